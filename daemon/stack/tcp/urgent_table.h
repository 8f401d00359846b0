// Where the urgent data ends that connections have to send (RFC 9293 3.8.5, SND.UP). Hardly any connection ever has some, so
// the places are kept here, one table for an engine, and a connection knows only by a bit that it has one.
//
// Set-associative, of fixed size: four connections whose numbers fall together, no more. One that finds no place sends its
// data as ordinary data (Counters::tcp_urgent_refused), which is what RFC 6093 would have applications do anyway.
#pragma once

#include <array>
#include <cstdint>

#include "daemon/stack/tcp/sequence.h"

namespace culvert::stack::tcp {

class UrgentTable {
public:
    static constexpr std::uint32_t kSets = 64;
    static constexpr std::uint32_t kWays = 4;

    /// The urgent data of `connection` (its number in the pool) ends before `end`. False: no place.
    bool set(std::uint32_t connection, Position end) {
        Entry* place = nullptr;
        for (Entry& entry : set_of(connection)) {
            if (entry.owner == connection + 1) {
                entry.end = end;
                return true;
            }
            if (entry.owner == 0 && place == nullptr) place = &entry;
        }
        if (place == nullptr) return false;
        *place = {connection + 1, end};
        return true;
    }
    /// 0: it has none.
    Position find(std::uint32_t connection) const {
        for (const Entry& entry : sets_[connection % kSets])
            if (entry.owner == connection + 1) return entry.end;
        return 0;
    }
    void erase(std::uint32_t connection) {
        for (Entry& entry : set_of(connection))
            if (entry.owner == connection + 1) entry = {};
    }

private:
    struct Entry {
        std::uint32_t owner = 0;  // number + 1; 0: free
        Position end = 0;
    };
    std::array<Entry, kWays>& set_of(std::uint32_t connection) { return sets_[connection % kSets]; }

    std::array<std::array<Entry, kWays>, kSets> sets_{};
};

}  // namespace culvert::stack::tcp
