#include "daemon/tenant/message_lane.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "shm/block_list.h"

namespace culvert::tenant {

MessageLane::~MessageLane() { tenant_.ledger_.reclaim(lent); }

BlockLedger::Taken MessageLane::take() {
    const std::uint32_t newest = shm::take_all(tenant_.segment_.socket(index_).app.tx_list);
    return newest == shm::kEmptyList ? BlockLedger::Taken{} : tenant_.ledger_.take_chain(newest);
}

bool MessageLane::goes_on(const stack::SendChunk& chunk) const {
    return (tenant_.ledger_.flags(chunk) & shm::kBlockMore) != 0;
}

/// False: no message, counted.
bool MessageLane::read(const stack::SendChunk* first, const stack::SendChunk* last, Message& message) {
    const auto refused = [&] {
        tenant_.drop(Drop::kTenantBadLength);
        return false;
    };
    message.count = 0;
    message.length = 0;
    if (first->length < sizeof message.header) return refused();
    std::memcpy(&message.header, first->data, sizeof message.header);
    for (const stack::SendChunk* chunk = first;; chunk = chunk->next) {
        const std::uint32_t skip = chunk == first ? sizeof message.header : 0;
        if (message.count == message.fragments.size()) return refused();
        if (chunk->length > skip) message.fragments[message.count++] = {chunk->data + skip, chunk->length - skip};
        message.length += chunk->length - skip;
        if (chunk == last) break;
    }
    if (message.length != message.header.length) return refused();
    return true;
}

void MessageLane::give_back(stack::SendChunk* first) {
    released_ += tenant_.ledger_.release(first);
    tenant_.wake_starved();
    tenant_.mark_changed(index_);
}

bool MessageLane::publish(std::uint32_t app_flags) {
    shm::SocketRecord& record = tenant_.segment_.socket(index_);
    bool news = false;
    if (!stage.empty()) {
        stage.publish(tenant_.segment_, record.daemon.rx_list);
        record.daemon.rx_delivered.store(delivered_, std::memory_order_release);
        news = true;
    }
    if (released_ != published_released_) {
        published_released_ = released_;
        record.daemon.tx_released.store(released_, std::memory_order_release);
    }
    if (error_ != 0) {
        record.daemon.error.store(error_, std::memory_order_release);
        error_ = 0;
        news = true;
    }
    if ((app_flags & shm::kAppWantWrite) != 0 && tenant_.has_transmit_blocks()) {
        record.app.flags.fetch_and(~shm::kAppWantWrite, std::memory_order_seq_cst);
        news = true;
    }
    return news;
}

bool MessageLane::full() {
    if (lent.count >= max_lent_) tenant_.ledger_.collect_returned();
    return lent.count >= max_lent_;
}

void MessageLane::delivered(std::uint32_t bytes) {
    delivered_ += bytes;
    tenant_.mark_changed(index_);
}

void MessageLane::set_receive_buffer(std::uint32_t bytes) {
    const std::uint32_t most = std::max(tenant_.segment_.geometry().rx_blocks / 2, 1u);
    const std::uint64_t wanted = bytes != 0 ? bytes * 2ull / kTrueSize : kMaxLentBlocks;
    max_lent_ = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(wanted, 1, most));
}

void MessageLane::set_send_error(std::int32_t error) {
    if (error_ == 0 && error != ENOBUFS) error_ = error;
}

}  // namespace culvert::tenant
