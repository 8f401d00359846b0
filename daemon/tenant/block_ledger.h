// Whose block is whose: the daemon's private truth about the blocks of one segment.
//
// | block    | state      | meaning                                              |
// | transmit | kApp       | the application's: in its pool, or being filled      |
// | transmit | kDaemon    | handed over, not yet acknowledged by the peer        |
// | receive  | kFree      | ours, empty                                          |
// | receive  | kLent      | carries data for a socket: being filled by us, or with the application |
//
// The chains that the application builds are walked only here: a block that is not in the state that the walk expects
// ends it and is counted, so that a loop, a foreign block or a wild index costs the daemon nothing and harms only the
// application that made it.
#pragma once

#include <cstdint>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/stack/owner.h"
#include "shm/segment.h"

namespace culvert::tenant {

/// Receive blocks that a socket has been lent, oldest first; kept by the socket, threaded through the ledger.
struct LentList {
    std::uint32_t head = shm::kNoIndex;
    std::uint32_t tail = shm::kNoIndex;
    std::uint32_t count = 0;
};

class BlockLedger {
public:
    /// Puts every transmit block into the application's pool and every receive block into ours.
    BlockLedger(shm::Segment& segment, Counters& counters);

    /// Chunks in order, from a chain taken off a tx_list (index + 1 of the newest). `bytes` is their total length.
    /// Stops at the first block that is not the application's or has an impossible length, and counts it.
    struct Taken {
        stack::SendChunk* first = nullptr;
        stack::SendChunk* last = nullptr;
        std::uint64_t bytes = 0;
        std::uint64_t behind_urgent = 0;  // if urgent: bytes behind the last kBlockUrgent
        bool urgent = false;
        bool more_to_come = false;        // says the newest block
    };
    Taken take_chain(std::uint32_t newest);
    /// Flags of a taken block as they were when it was taken.
    std::uint32_t flags(const stack::SendChunk& chunk) const { return tx_flags_[chunk.tag]; }
    /// Gives a list of chunks back to the application's pool. Returns the number of bytes.
    std::uint64_t release(stack::SendChunk* first);
    /// Transmit blocks that the daemon holds now.
    std::uint32_t transmitting() const { return transmitting_; }
    /// Less than a quarter of the blocks is left: buffers that tune themselves shall shrink.
    bool transmit_scarce() const { return transmitting_ > tx_count_ - tx_count_ / 4; }
    /// The same of receive blocks, after looking at what the application has returned.
    bool receive_scarce() {
        const auto enough = [this] { return rx_free_.size() >= rx_.size() / 4; };
        if (enough()) return false;
        collect_returned();
        return !enough();
    }
    bool receive_half_spent() const { return rx_free_.size() < rx_.size() / 2; }
    /// Less than an eighth is left.
    bool receive_nearly_spent() const { return rx_free_.size() < rx_.size() / 8; }

    /// An empty receive block, lent to `list` from now on; kNoIndex when none is left even after looking at what the
    /// application has returned.
    std::uint32_t lend(LentList& list);
    /// Takes back what the application has returned.
    void collect_returned();
    /// Calls act(block) for what is lent to `list`, oldest first, until it returns false.
    template <class Act>
    void for_each_lent(const LentList& list, Act act) const {
        for (std::uint32_t block = list.head; block != shm::kNoIndex; block = rx_[rx_index(block)].next)
            if (!act(block)) return;
    }
    /// Everything still lent to `list` is ours again (the socket is gone; its application returns no more of its blocks).
    void reclaim(LentList& list);
    std::uint32_t free_receive_blocks() const { return static_cast<std::uint32_t>(rx_free_.size()); }

private:
    enum class State : std::uint8_t { kApp, kDaemon, kFree, kLent };
    struct ReceiveBlock {
        LentList* list = nullptr;
        std::uint32_t previous = shm::kNoIndex;
        std::uint32_t next = shm::kNoIndex;
    };

    void unlink(std::uint32_t block);
    std::uint32_t rx_index(std::uint32_t block) const { return block - tx_count_; }

    shm::Segment& segment_;
    Counters& counters_;
    std::uint32_t tx_count_;
    std::vector<State> states_;
    std::vector<stack::SendChunk> chunks_;   // one per transmit block
    std::vector<std::uint32_t> tx_flags_;
    std::vector<ReceiveBlock> rx_;           // one per receive block
    std::vector<std::uint32_t> rx_free_;
    std::uint32_t transmitting_ = 0;
};

}  // namespace culvert::tenant
