// What all tenants of one engine share, and how none of them takes it from the others.
//
//   used < 7/8 of it         whoever asks gets one
//   the last eighth          only who has less than its fair part: all there is, divided by the tenants there are
//   nothing left             nobody
//
// So one tenant alone may use nearly everything, and what is left is kept for those who have little. Refusals are new work
// only; what a tenant has, it keeps. Used on the engine's thread.
#pragma once

#include <cstdint>

#include "daemon/tenant/event_signal.h"

namespace culvert::tenant {

/// A table of the stack, as the tenants use it.
struct SharedTable {
    std::uint32_t limit = UINT32_MAX;
    std::uint32_t used = 0;

    /// May a tenant that has `mine` entries have another?
    bool grants(std::uint32_t mine, std::uint32_t tenants) const {
        if (used >= limit) return false;
        return used < limit - limit / 8 || mine < limit / (tenants != 0 ? tenants : 1);
    }
};

struct Commons {
    std::uint32_t tenants = 0;
    SharedTable connections;  // also those whose sockets are closed
    SharedTable listeners;
    SharedTable datagram_sockets;
    EventSignal signal;
};

/// One tenant's part of a SharedTable.
class Part {
public:
    Part(const Commons& commons, SharedTable& table) : commons_(commons), table_(table) {}
    ~Part() { table_.used -= used_; }
    Part(const Part&) = delete;

    bool grants() const { return table_.grants(used_, commons_.tenants); }
    void take() { ++used_, ++table_.used; }
    void give() { --used_, --table_.used; }
    std::uint32_t used() const { return used_; }

private:
    const Commons& commons_;
    SharedTable& table_;
    std::uint32_t used_ = 0;
};

}  // namespace culvert::tenant
