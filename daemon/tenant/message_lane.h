// What sockets of messages (UDP, raw, ping) have in common between their record and the stack: messages out of the list of
// blocks that the application hands over, and what is staged for it, published at the end of the turn.
//
//   tx_list --take_all--> ledger's chain --cut at "more"--> read(): header and fragments, checked --> the socket sends
//   on_datagram / on_packet --> stage --publish()--> rx_list, positions, error
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "daemon/stack/owner.h"
#include "daemon/tenant/receive_stage.h"
#include "daemon/tenant/tenant.h"
#include "shm/socket_record.h"

namespace culvert::tenant {

class MessageLane {
public:
    MessageLane(Tenant& tenant, std::uint32_t index) : tenant_(tenant), index_(index) {}
    ~MessageLane();
    MessageLane(const MessageLane&) = delete;
    MessageLane& operator=(const MessageLane&) = delete;

    /// One message as the application wrote it. The header was read once and is trusted no further than checked; the bytes
    /// lie in its blocks.
    struct Message {
        shm::DatagramHeader header;
        std::array<std::span<const std::byte>, 64> fragments;  // an application that spreads it thinner is refused
        std::size_t count = 0;
        std::uint32_t length = 0;

        stack::Payload payload() const { return {fragments.data(), count}; }
    };

    /// Everything handed over since the last look, a message at a time to `send(const Message&)`. What is no message is
    /// dropped by name. False: nothing was handed over.
    template <class Send>
    bool take_output(Send send);

    /// Writes the daemon's line. True if an application could want to know.
    bool publish(std::uint32_t app_flags);

    /// True while the application has as much unread as it may; what it has given back is collected first.
    bool full();
    /// A message for which there was no room: counted for SO_RXQ_OVFL. Always false, for callers that answer with it.
    bool refuse() {
        ++overflow_;
        return false;
    }
    std::uint32_t overflow() const { return overflow_; }
    /// So many bytes of payload were staged.
    void delivered(std::uint32_t bytes);

    /// As SO_RCVBUF asks, within what one socket may hold of the tenant's blocks.
    void set_receive_buffer(std::uint32_t bytes);
    /// To be told to the application. The newest stands ...
    void set_error(std::int32_t error) { error_ = error; }
    /// ... but of sending, the first until it is published, and nothing of a queue that was full for a moment.
    void set_send_error(std::int32_t error);

    ReceiveStage stage;
    LentList lent;

private:
    /// Receive blocks that one socket may hold unread, unless SO_RCVBUF says otherwise.
    static constexpr std::uint32_t kMaxLentBlocks = 512;
    /// What Linux charges for a small message (sk_buff and data), against twice SO_RCVBUF.
    static constexpr std::uint32_t kTrueSize = 768;

    BlockLedger::Taken take();
    bool goes_on(const stack::SendChunk& chunk) const;
    bool read(const stack::SendChunk* first, const stack::SendChunk* last, Message& message);
    void give_back(stack::SendChunk* first);

    Tenant& tenant_;
    const std::uint32_t index_;
    std::uint32_t max_lent_ = kMaxLentBlocks;  // receive blocks that may lie unread
    std::uint32_t overflow_ = 0;  // messages refused for want of room
    std::int32_t error_ = 0;
    std::uint64_t delivered_ = 0;
    std::uint64_t released_ = 0;
    std::uint64_t published_released_ = 0;
};

template <class Send>
bool MessageLane::take_output(Send send) {
    const BlockLedger::Taken taken = take();
    if (taken.first == nullptr) return false;
    // Cut the chain into messages: all but the last block of each say "more".
    const stack::SendChunk* first = taken.first;
    Message message;
    for (const stack::SendChunk* chunk = taken.first; chunk != nullptr; chunk = chunk->next) {
        if (goes_on(*chunk) && chunk->next != nullptr) continue;
        if (read(first, chunk, message)) send(std::as_const(message));
        first = chunk->next;
    }
    give_back(taken.first);
    return true;
}

}  // namespace culvert::tenant
