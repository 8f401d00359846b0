// TCP Fast Open, RFC 7413: data in the SYN, from a client that has shown before that it lives at its address.
//
//   client                                   server
//   SYN + request (empty option)  -->        FastOpenCookies::make
//                                 <--        SYN-ACK + cookie              an ordinary connection; the client remembers
//   FastOpenCache::learn
//   ...
//   SYN + cookie + data           -->        check: the connection begins, accept() returns, the data is there
//                                 <--        SYN-ACK of SYN and data, the answer right behind it
//   ACK                           -->        established
//
// FastOpenCookies  the server's: a hash of both addresses under a key that changes, so nothing is kept for a client
// FastOpenCache    the client's: cookies of servers, bounded; and where the option or the data got lost
// FastOpenPending  which connections were accepted with a SYN and await the ACK; a listener may have so many
#pragma once

#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/base/instant.h"
#include "daemon/stack/tcp/sip_hash.h"

namespace culvert::stack::tcp {

class Listener;

class FastOpenCookies {
public:
    using Cookie = std::array<std::byte, 8>;
    /// [RFC7413 4.1.2] the server changes the key; a cookie of the last one is still good, and replaced.
    static constexpr Duration kKeyLife = std::chrono::hours(12);

    explicit FastOpenCookies(const SipKey& secret) : secret_(secret) {}

    enum class Match : std::uint8_t { kNone, kCurrent, kOld };
    Cookie make(const Address& local, const Address& remote, Instant now) const;
    Match check(const Address& local, const Address& remote, std::span<const std::byte> cookie, Instant now) const;

private:
    Cookie make(const Address& local, const Address& remote, std::uint64_t generation) const;
    static std::uint64_t generation(Instant now) {
        return static_cast<std::uint64_t>(now.time_since_epoch() / kKeyLife);
    }

    SipKey secret_;
};

/// A fixed table of four-way sets: no allocation, the least recently used of a set makes room.
class FastOpenCache {
public:
    static constexpr std::uint32_t kSets = 256;
    static constexpr std::uint32_t kWays = 4;

    explicit FastOpenCache(const SipKey& secret) : key_(derive_key(secret, 0x7466632d63616368)), entries_(kSets * kWays) {}

    struct Entry {
        Address local = {};
        Address remote = {};
        Instant used{};
        Instant blocked_until{};    // after one failure alone: when that was
        std::uint16_t mss = 0;      // as the server announced it; 0: the entry is free
        std::uint8_t length = 0;    // of the cookie; 0: only a memory of failure
        std::uint8_t failures = 0;  // in a row
        std::array<std::byte, 16> bytes{};

        std::span<const std::byte> cookie() const { return std::span(bytes).first(length); }
    };

    /// The cookie for a destination; nullptr: none, or not to be used now.
    const Entry* find(const Address& local, const Address& remote, Instant now);
    /// [RFC7413 4.1.3] the option or the data seems not to get through: not to be tried again for a while.
    bool blocked(const Address& local, const Address& remote, Instant now);
    void learn(const Address& local, const Address& remote, std::span<const std::byte> cookie, std::uint16_t mss,
               Instant now);
    enum class Failure : std::uint8_t {
        kOption,      // a SYN with the option got no answer, one without it did: by chance, once
        kConnection,  // nothing came back at all, also later: whatever it is, it costs minutes
    };
    /// [RFC7413 4.1.3.1] A second lost option in a row, or a lost connection, blocks the destination.
    void failed(const Address& local, const Address& remote, Failure failure, Instant now);
    /// The server has taken data with a SYN.
    void worked(const Address& local, const Address& remote, Instant now);

private:
    Entry* look_up(const Address& local, const Address& remote);
    Entry& claim(const Address& local, const Address& remote, Instant now);
    std::span<Entry> set_of(const Address& local, const Address& remote);

    SipKey key_;
    std::vector<Entry> entries_;
};

/// How many connections of a listener were accepted with their SYN and have not been acknowledged. [RFC7413 5.1]
///
/// One that is reset counts on for a minute or two: else whoever can make the owner of a stolen address send resets
/// could keep opening connections.
class FastOpenQuota {
public:
    bool room(std::uint32_t limit, Instant now);
    void began() { ++pending_; }
    void ended(bool reset, Instant now);
    std::uint32_t pending() const { return pending_; }

private:
    static constexpr Duration kResetPeriod = std::chrono::minutes(1);
    void roll(Instant now);

    std::uint32_t pending_ = 0;
    std::uint32_t resets_ = 0;         // of this period
    std::uint32_t resets_before_ = 0;  // of the last
    Instant period_end_{};
};

class FastOpenPending {
public:
    static constexpr std::uint32_t kMax = 4096;  // of all listeners together

    FastOpenPending() { listeners_.reserve(kMax); }

    bool full() const { return listeners_.size() >= kMax; }
    /// `connection`: its index in the pool.
    void began(std::uint32_t connection, Listener& listener);
    void ended(std::uint32_t connection, bool reset, Instant now);
    /// The listener is gone; what it has accepted goes on.
    void forget(const Listener& listener);

private:
    boost::unordered_flat_map<std::uint32_t, Listener*> listeners_;
};

}  // namespace culvert::stack::tcp
