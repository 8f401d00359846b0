// Data on its way to an application within one turn: copied here, published once at the end of the turn.
//
// This is the one place where received payload is copied: from the packet's fragments into blocks of the tenant.
// Stream bytes of several segments share blocks; every datagram starts a block of its own.
#pragma once

#include <cstdint>

#include "daemon/stack/owner.h"
#include "daemon/tenant/block_ledger.h"

namespace culvert::tenant {

class ReceiveStage {
public:
    /// Copies as much of the payload as there are blocks for; returns the number of bytes.
    std::uint32_t append(shm::Segment& segment, BlockLedger& ledger, LentList& lent, stack::Payload payload,
                         std::uint32_t length);
    /// All or nothing: the header and the whole datagram. False: no blocks.
    bool append_datagram(shm::Segment& segment, BlockLedger& ledger, LentList& lent, std::span<const std::byte> header,
                         stack::Payload payload, std::uint32_t length);
    /// More bytes of the datagram that was appended last. All or nothing.
    bool extend_datagram(shm::Segment& segment, BlockLedger& ledger, LentList& lent, stack::Payload payload,
                         std::uint32_t length);
    /// The block in which the datagram that was appended last begins.
    std::uint32_t datagram_block() const { return datagram_; }
    bool empty() const { return newest_ == shm::kNoIndex; }
    /// Pushes everything to `rx_list`.
    void publish(shm::Segment& segment, std::atomic<std::uint32_t>& rx_list);
    /// Forgets what is staged; the blocks stay lent until they are reclaimed.
    void clear() { newest_ = oldest_ = shm::kNoIndex; }

private:
    bool add_block(shm::Segment& segment, BlockLedger& ledger, LentList& lent);
    std::uint32_t copy(shm::Segment& segment, BlockLedger& ledger, LentList& lent, std::span<const std::byte> bytes);
    void finish_block(shm::Segment& segment, std::uint32_t flags);

    std::uint32_t newest_ = shm::kNoIndex;  // being filled
    std::uint32_t oldest_ = shm::kNoIndex;
    std::uint32_t datagram_ = shm::kNoIndex;
    std::uint32_t used_ = 0;  // bytes in newest_
};

}  // namespace culvert::tenant
