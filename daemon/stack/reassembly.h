// Fragments of IP packets, put together (RFC 791 3.2, RFC 1122 3.3.2, RFC 8200 4.5).
//
//   fragment --> key (IPv4: source, destination, protocol, id; IPv6: source, destination, id) --> Datagram
//
//   Datagram   have: one bit for every 8 bytes      chunks: a place for every byte, taken when the first one comes
//              |11110000 11000000 ...|              | eth ip data.. | data ........ |   (none)   | data ...
//                                                     the frame as if it had come in one piece
//
// A finished datagram is shown as an RxPacket of up to 17 fragments whose head holds Ethernet, a fresh IP header without
// options, and the transport header. Nothing is allocated per packet, and there is no list of holes to walk: a bit per
// unit says what is there, so hostile orders of arrival cost nothing more than friendly ones.
//
// Datagram: life
//   state      meaning                                  allowed                 caveat
//   gathering  some bytes are there                     all                     oldest goes when room is needed
//   finished   all bytes are there, lent to the caller  release()               out of every list
//   poisoned   IPv6 fragments overlapped [RFC5722 3]    refuse, expire          holds no chunks until its time is up
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/frame_pool.h"
#include "daemon/base/instant.h"
#include "daemon/base/packet.h"
#include "daemon/stack/interface.h"
#include "daemon/wire/address.h"
#include "daemon/wire/ethernet.h"

namespace culvert::stack {

/// One fragment whose headers have been proved.
struct FragmentPart {
    const RxPacket* packet = nullptr;
    Interface* interface = nullptr;
    Address source;
    Address destination;
    std::uint32_t identification = 0;
    std::uint32_t offset = 0;       // of its bytes in the datagram
    std::uint32_t data_offset = 0;  // of its bytes in the packet
    std::uint32_t length = 0;       // of its bytes
    bool more = false;              // it is not the last
    bool dedicated = false;
    std::uint8_t protocol = 0;  // IPv6: the next header field of the fragment header
    std::uint8_t ttl = 0;
    std::uint8_t tos = 0;
};

/// [RFC1122 3.2.1.4 reassembly] [RFC1122 3.3.2 reassemble, size, limit, learn] whatever fits an IP packet; 65535 bytes,
/// which is what every transport may count on.
class Reassembly {
public:
    // [RFC1122 3.3.2 fixed left out] asks for a fixed value between 60 and 120 seconds; 30 is Linux's for IPv4, as
    // memory is what an attacker wants and a fragment that is late by seconds is lost.
    static constexpr Duration kTimeoutV4 = std::chrono::seconds(30);
    static constexpr Duration kTimeoutV6 = std::chrono::seconds(60);  // [RFC8200 4.5]
    /// Unfinished datagrams of one source. More of them push out its own oldest.
    static constexpr std::uint32_t kMaxPerSource = 64;
    /// [RFC4963] a 16-bit identification comes round quickly: when so many fragments of a source have come since the last
    /// one of a datagram, what comes now under the same number belongs to another. (64 on Linux too.)
    static constexpr std::uint32_t kMaxDistance = 64;

    struct Limits {
        std::uint32_t datagrams = 512;  // unfinished at a time
        std::uint32_t chunks = 1024;    // of FramePool::kChunkSize; a source may hold a quarter
    };
    Reassembly(const Limits& limits, const std::uint64_t (&secret)[2], Counters& counters);

    /// The whole packet, if this was the last part of it: borrowed until release(). nullptr: not yet. Errors: a Drop for
    /// this fragment (not counted here); what happens to other datagrams meanwhile is counted here.
    std::expected<const RxPacket*, Drop> add(const FragmentPart& part, Instant now);
    /// The packet that add() has returned is done with.
    void release();

    /// A datagram whose time is up [RFC792] [RFC4443 3.3]. `quote` is its first fragment, IP header first, rebuilt and cut
    /// to what an ICMP message may carry; empty if the first fragment never came.
    class Observer {
    public:
        virtual ~Observer() = default;
        virtual void on_timeout(Interface& interface, bool dedicated, std::span<const std::byte> quote, Instant now) = 0;
    };
    void advance(Instant now, Observer& observer);
    Instant next_deadline() const;

    /// The same for all fragments of a datagram, in every stack with the same secret.
    std::uint32_t hash_of(const FragmentPart& part) const { return static_cast<std::uint32_t>(hash(part) >> 32); }

    std::uint32_t datagrams() const { return used_; }
    std::uint32_t free_chunks() const { return memory_.available(); }

private:
    static constexpr std::uint32_t kNone = UINT32_MAX;
    static constexpr std::uint32_t kMaxData = 65535;  // [RFC791 3.1] [RFC8200 4.5] with the header, for IPv4
    static constexpr std::size_t kPrefixV4 = 34;      // Ethernet and IP in front of the data
    static constexpr std::size_t kPrefixV6 = 54;
    static constexpr std::size_t kMaxChunks = (kPrefixV6 + wire::kVlanTagLength + kMaxData + FramePool::kChunkSize - 1) / FramePool::kChunkSize;
    static constexpr std::size_t kWords = (kMaxData / 8 + 1 + 63) / 64;
    static constexpr std::size_t kSources = 1024;  // a power of two
    static constexpr std::size_t kLongestQuote = 512;

    struct Links {
        std::uint32_t previous = kNone;
        std::uint32_t next = kNone;
    };
    struct List {
        std::uint32_t first = kNone;  // the oldest
        std::uint32_t last = kNone;
    };
    struct Datagram {
        Address source;
        Address destination;
        std::uint32_t identification = 0;
        std::uint8_t protocol = 0;
        std::uint8_t ttl = 0;
        std::uint8_t tos = 0;
        std::uint8_t ecn_seen = 0;  // one bit for each value
        bool v4 = true;
        bool dedicated = false;
        bool poisoned = false;
        Interface* interface = nullptr;
        std::uint32_t source_index = 0;
        std::uint32_t received = 0;      // bytes
        std::uint32_t end = 0;           // of the last byte received
        std::uint32_t total = 0;         // bytes; 0: the last fragment has not come
        std::uint32_t first_length = 0;  // of the fragment at 0; 0: it has not come
        std::uint32_t arrivals = 0;      // of the source, when its latest fragment came
        std::uint32_t chain = kNone;     // next of the hash bucket
        Instant deadline{};
        Links by_age;
        Links of_source;
        std::array<ChunkIndex, kMaxChunks> chunks;
        std::array<std::uint64_t, kWords> have;
    };
    /// Coarse: sources whose hashes agree share one.
    struct Source {
        List datagrams;
        std::uint32_t count = 0;
        std::uint32_t chunks = 0;
        std::uint32_t arrivals = 0;
    };

    /// As the interface that the whole comes in by wants it: a tag, where all its frames have one.
    static std::size_t prefix(const Datagram& d) {
        return (d.v4 ? kPrefixV4 : kPrefixV6) + (d.interface->is_only_vlan() ? wire::kVlanTagLength : 0);
    }
    static Drop check(const FragmentPart& part);
    std::uint64_t hash(const FragmentPart& part) const;
    std::uint32_t find(const FragmentPart& part, std::uint32_t bucket) const;
    std::uint32_t open(const FragmentPart& part, std::uint32_t bucket, Instant now);
    std::expected<const RxPacket*, Drop> give_up(std::uint32_t index, Drop drop);
    bool write(std::uint32_t index, const FragmentPart& part);
    bool same_bytes(const Datagram& d, const FragmentPart& part) const;
    std::expected<const RxPacket*, Drop> finish(std::uint32_t index);
    void make_quote(const Datagram& d, std::vector<std::byte>& out) const;
    void write_header(const Datagram& d);

    bool make_room(std::uint32_t keep);
    bool evict(const List& list, Links Datagram::*links, std::uint32_t keep);
    void unlink(std::uint32_t index);
    void free_memory(Datagram& d);
    void append(List& list, Links Datagram::*links, std::uint32_t index);
    void remove(List& list, Links Datagram::*links, std::uint32_t index);
    List& age_list(const Datagram& d) { return ages_[d.v4 ? 0 : 1]; }
    std::uint32_t bucket_of(const Datagram& d) const;

    Counters& counters_;
    std::uint64_t secret_[2];
    std::uint32_t chunks_per_source_;
    FramePool memory_;
    std::vector<Datagram> pool_;
    std::uint32_t free_ = kNone;  // through Datagram::chain
    std::uint32_t used_ = 0;
    std::vector<std::uint32_t> buckets_;
    std::vector<Source> sources_;
    List ages_[2];                   // IPv4, IPv6: each family has one timeout, so the oldest ends first
    std::uint32_t finished_ = kNone;  // lent out
    RxPacket whole_;
    std::array<std::span<const std::byte>, kMaxChunks> rest_;
    std::vector<std::byte> quote_;
};

}  // namespace culvert::stack
