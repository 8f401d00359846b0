// The options of connections, each set of them once. Nearly all connections of a listener have the same, and none changes
// them often, so a connection holds a pointer (8 bytes) instead of a copy (72).
//
//   take(options) --hash--> chain: [ value, holders ] --> [ value, holders ]     the same value: one more holder
//   give(value)                                                                   the last holder: out of the chain
//
// Bounded: one block for each holder that there may be at once, mapped lazily. Chains are short: 4096 heads, and what a
// tenant makes long by using a different set for each socket is paid by its own calls of setsockopt.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <new>

#include "daemon/base/lazy_pool.h"
#include "daemon/stack/stack.h"
#include "shm/base/check.h"

namespace culvert::stack::tcp {

class OptionsTable {
public:
    /// Room for `holders` different sets.
    explicit OptionsTable(std::uint32_t holders)
        : pool_(sizeof(Block), holders), heads_(std::make_unique<std::uint32_t[]>(kHeads)) {}

    /// The shared copy of `options`, until give(). Requires: no more holders than there is room for.
    const Options* take(const Options& options) {
        std::uint32_t& head = heads_[slot_of(options)];
        for (std::uint32_t at = head; at != 0; at = block(at).next) {
            if (!(block(at).value == options)) continue;
            ++block(at).holders;
            return &block(at).value;
        }
        const std::uint32_t index = pool_.allocate();
        CHECK(index != LazyPool::kNone);
        new (pool_.at(index)) Block{options, head, 1};
        head = index + 1;
        return &block(head).value;
    }
    void give(const Options* value) {
        const std::uint32_t gone = pool_.index_of(value) + 1;
        if (--block(gone).holders > 0) return;
        std::uint32_t* link = &heads_[slot_of(*value)];
        while (*link != gone) link = &block(*link).next;
        *link = block(gone).next;
        pool_.release(gone - 1);
    }
    /// How many different sets there are.
    std::uint32_t used() const { return pool_.used(); }

private:
    static constexpr std::uint32_t kHeads = 4096;
    struct Block {
        Options value;  // first: its address is the block's
        std::uint32_t next = 0;
        std::uint32_t holders = 0;
    };

    Block& block(std::uint32_t number) { return *std::launder(reinterpret_cast<Block*>(pool_.at(number - 1))); }
    static std::uint32_t slot_of(const Options& o) {
        const auto count = [](Duration d) { return static_cast<std::uint64_t>(d.count()); };
        std::uint64_t h = o.no_delay | o.cork << 1 | o.keep_alive << 2 | o.quick_ack << 3;
        for (const std::uint64_t part :
             {count(o.keep_alive_idle), count(o.keep_alive_interval), std::uint64_t{o.keep_alive_count},
              count(o.user_timeout), std::uint64_t{o.receive_buffer} << 32 | o.send_buffer,
              std::uint64_t{o.max_segment} << 32 | std::uint64_t{static_cast<std::uint8_t>(o.congestion)} << 16 |
                  std::uint64_t{o.tos} << 8 | o.ttl,
              o.max_pacing_rate, std::uint64_t{o.window_clamp}})
            h = (std::rotl(h, 5) ^ part) * 0x9e3779b97f4a7c15u;
        return static_cast<std::uint32_t>(h >> 52);
    }

    LazyPool pool_;
    std::unique_ptr<std::uint32_t[]> heads_;  // numbers are indices + 1; 0: none
};

}  // namespace culvert::stack::tcp
