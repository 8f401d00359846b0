// Which connection does a segment belong to? One open-addressing table for connections, half-open ones and TIME-WAIT.
//
//   hash(local, remote) -> home slot -> { hash, what | index } { hash, what | index } { empty }
//                                         8 bytes each, linear probing, backward-shift deletion: no tombstones
//
// The hash is keyed: 128-bit multiply folding (as in wyhash) over the addresses and ports, mixed with a secret of 128
// bits, so nobody outside can aim flows at one slot. A slot keeps the whole 32-bit hash, so nearly every probe that
// reaches for the object finds the right one. Bounded: as large as all that it may hold, at two thirds load; the memory
// is mapped once and touched as flows come.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "daemon/base/prefetch.h"
#include "daemon/stack/peers.h"
#include "daemon/wire/address.h"
#include "shm/base/check.h"

namespace culvert::stack::tcp {

/// What a flow is at the moment, and where: an index of the pool of its kind.
struct FlowRef {
    enum class Kind : std::uint8_t { kNone, kConnection, kHalfOpen, kTimeWait };
    Kind kind = Kind::kNone;
    std::uint32_t index = 0;

    explicit operator bool() const { return kind != Kind::kNone; }
    friend bool operator==(const FlowRef&, const FlowRef&) = default;
};

/// The keyed hash of a flow.
class FlowHash {
public:
    explicit FlowHash(const std::uint64_t (&secret)[2]) : key0_(secret[0] | 1), key1_(secret[1] ^ 0x9e3779b97f4a7c15u) {}

    std::uint64_t operator()(const Endpoint& local, const Endpoint& remote) const {
        std::uint64_t words[4];
        std::memcpy(&words[0], local.address.bytes().data(), 16);
        std::memcpy(&words[2], remote.address.bytes().data(), 16);
        std::uint64_t h = fold(words[2] ^ key0_, words[3] ^ key1_);
        h = fold(h ^ words[0] ^ key1_, words[1] ^ std::rotl(key0_, 32));
        const std::uint64_t ports = std::uint64_t{local.port} << 16 | remote.port;
        return fold(h ^ ports ^ key0_, key1_ ^ 0xe7037ed1a0b428dbu);
    }

private:
    static std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
        __extension__ using Wide = unsigned __int128;
        const Wide product = static_cast<Wide>(a) * b;
        return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
    }

    std::uint64_t key0_;
    std::uint64_t key1_;
};

class FlowTable {
public:
    enum class Inserted : std::uint8_t {
        kYes,
        kFull,
        kElsewhere,  // another engine has it: not inserted
    };

    /// Room for `capacity` flows. With `peers`, each flow is told to the other engines before it is found here. Throws
    /// std::system_error (startup only).
    explicit FlowTable(std::uint32_t capacity, Peers* peers = nullptr);
    ~FlowTable();
    FlowTable(const FlowTable&) = delete;
    FlowTable& operator=(const FlowTable&) = delete;

    /// The flow with this hash for which `matches(FlowRef)` is true.
    template <typename Matches>
    FlowRef find(std::uint32_t hash, Matches&& matches) const {
        for (std::uint32_t slot = hash & mask_; slots_[slot].what != 0; slot = (slot + 1) & mask_) {
            if (slots_[slot].hash != hash) continue;
            const FlowRef ref = unpack(slots_[slot].what);
            if (matches(ref)) return ref;
        }
        return {};
    }
    /// Announces to the caches what find(hash) will read first.
    void expect(std::uint32_t hash) const { prefetch_line(&slots_[hash & mask_]); }
    /// The first flow that find(hash) will ask about; none if there is none near.
    FlowRef guess(std::uint32_t hash) const {
        for (std::uint32_t slot = hash & mask_; slots_[slot].what != 0; slot = (slot + 1) & mask_)
            if (slots_[slot].hash == hash) return unpack(slots_[slot].what);
        return {};
    }
    /// Requires: not in the table yet. `share_hash`: as Peers::flow_began.
    [[nodiscard]] Inserted insert(std::uint32_t hash, FlowRef ref, bool share_hash = false);
    /// Requires: in the table.
    void erase(std::uint32_t hash, FlowRef ref);
    /// The flow goes on as something else. Requires: `from` is in the table.
    void replace(std::uint32_t hash, FlowRef from, FlowRef to) { slots_[slot_of(hash, from)].what = pack(to); }

    /// Calls `visit(FlowRef)` for every flow. Visits all slots: cold. The table must not change meanwhile.
    template <typename Visit>
    void for_each(Visit&& visit) const {
        for (std::uint32_t slot = 0, left = size_; left > 0; ++slot) {
            if (slots_[slot].what == 0) continue;
            visit(unpack(slots_[slot].what));
            --left;
        }
    }
    std::uint32_t size() const { return size_; }

private:
    struct Slot {
        std::uint32_t hash;
        std::uint32_t what;  // 0: empty; kind in the top 2 bits, index below
    };
    static constexpr std::uint32_t kIndexBits = 30;
    static std::uint32_t pack(FlowRef ref) {
        DCHECK(ref && ref.index >> kIndexBits == 0);
        return static_cast<std::uint32_t>(ref.kind) << kIndexBits | ref.index;
    }
    static FlowRef unpack(std::uint32_t what) {
        return {static_cast<FlowRef::Kind>(what >> kIndexBits), what & ((1u << kIndexBits) - 1)};
    }
    std::uint32_t slot_of(std::uint32_t hash, FlowRef ref) const;

    Slot* slots_ = nullptr;
    std::uint32_t mask_ = 0;
    std::uint32_t limit_;
    std::uint32_t size_ = 0;
    Peers* peers_;
};

}  // namespace culvert::stack::tcp
