#include "daemon/tenant/sockets.h"

#include <array>
#include <cstring>

#include "shm/block_list.h"

namespace culvert::tenant {

namespace {
constexpr std::uint32_t kMaxDatagram = 65507;
/// Blocks of one outgoing datagram; an application that spreads it thinner is refused.
constexpr std::size_t kMaxFragmentsOfDatagram = 64;
/// Receive blocks that one socket may hold unread: like SO_RCVBUF, counted in whole blocks (Linux counts truesize).
constexpr std::uint32_t kMaxLentBlocks = 512;
}  // namespace

DatagramSocket::~DatagramSocket() {
    if (socket != nullptr) tenant_.stack_.close(*socket);
    tenant_.ledger_.reclaim(lent_);
}

void DatagramSocket::look(Instant now) {
    shm::SocketRecord& record = tenant_.segment_.socket(index_);
    const std::uint32_t newest = shm::take_all(record.app.tx_list);
    if (newest == shm::kEmptyList) return;
    const BlockLedger::Taken taken = tenant_.ledger_.take_chain(newest);
    // Cut the chain into datagrams: all but the last block of each say "more".
    const stack::SendChunk* first = taken.first;
    for (const stack::SendChunk* chunk = taken.first; chunk != nullptr; chunk = chunk->next) {
        if ((tenant_.ledger_.flags(*chunk) & shm::kBlockMore) != 0 && chunk->next != nullptr) continue;
        send(first, chunk, now);
        first = chunk->next;
    }
    if (taken.first != nullptr) {
        released_ += tenant_.ledger_.release(taken.first);
        tenant_.wake_starved();
        tenant_.mark_changed(index_);
    }
}

void DatagramSocket::send(const stack::SendChunk* first, const stack::SendChunk* last, Instant now) {
    if (first->length < sizeof(shm::DatagramHeader)) return tenant_.drop(Drop::kTenantBadLength);
    shm::DatagramHeader header;
    std::memcpy(&header, first->data, sizeof header);  // read once, then trusted no further than checked
    std::array<std::span<const std::byte>, kMaxFragmentsOfDatagram> fragments;
    std::size_t count = 0;
    std::uint32_t length = 0;
    for (const stack::SendChunk* chunk = first;; chunk = chunk->next) {
        const std::uint32_t skip = chunk == first ? sizeof header : 0;
        if (count == fragments.size()) return tenant_.drop(Drop::kTenantBadLength);
        if (chunk->length > skip) fragments[count++] = {chunk->data + skip, chunk->length - skip};
        length += chunk->length - skip;
        if (chunk == last) break;
    }
    if (length != header.length || length > kMaxDatagram) return tenant_.drop(Drop::kTenantBadLength);
    const Endpoint to = header.remote.port != 0 ? from_wire(header.remote) : remote;
    if (to.port == 0) return tenant_.drop(Drop::kTenantBadAddress);
    const Address source =
        Address::from_v6(std::as_bytes(std::span<const std::uint8_t, 16>(header.local_address)));
    // The source must be ours: an application may not send in the name of others.
    if (!source.is_unspecified() && !tenant_.stack_.is_local(source)) return tenant_.drop(Drop::kTenantBadAddress);
    auto sent = tenant_.stack_.send_datagram(*socket, to, {fragments.data(), count}, length,
                                             {.source = source, .ttl = header.ttl, .tos = header.tos}, now);
    if (!sent && error_ == 0 && sent.error().code != ENOBUFS) error_ = sent.error().code;
}

bool DatagramSocket::publish(std::uint32_t app_flags) {
    shm::SocketRecord& record = tenant_.segment_.socket(index_);
    bool news = false;
    if (!stage_.empty()) {
        stage_.publish(tenant_.segment_, record.daemon.rx_list);
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

bool DatagramSocket::on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo& info, stack::Payload payload,
                                 std::uint32_t length) {
    if (lent_.count >= kMaxLentBlocks) tenant_.ledger_.collect_returned();
    if (lent_.count >= kMaxLentBlocks) return false;
    shm::DatagramHeader header{};
    const auto family = tenant_.segment_.socket(index_).local.family;
    header.remote = to_wire(info.remote, family);
    header.remote.interface = info.interface;
    std::memcpy(header.local_address, info.local.bytes().data(), sizeof header.local_address);
    header.length = length;
    header.ttl = info.ttl;
    header.tos = info.tos;
    if (!stage_.append_datagram(tenant_.segment_, tenant_.ledger_, lent_, header, payload, length)) {
        tenant_.drop(Drop::kTenantNoBlock);
        return false;
    }
    delivered_ += length;
    tenant_.mark_changed(index_);
    return true;
}

void DatagramSocket::on_error(stack::udp::Socket&, const stack::udp::DatagramError& error) {
    error_ = error.error;
    tenant_.mark_changed(index_);
}

}  // namespace culvert::tenant
