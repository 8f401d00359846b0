#include "daemon/tenant/sockets.h"
#include "shm/base/fault_point.h"

namespace culvert::tenant {

ListenSocket::ListenSocket(Tenant& tenant, std::uint32_t index, std::uint32_t queue, std::uint32_t backlog)
    : tenant_(tenant), index_(index), queue_index_(queue), queue_(tenant.segment_.accept_queue(queue), backlog) {
    tenant_.listeners_.take();
}

ListenSocket::~ListenSocket() {
    if (listener != nullptr) tenant_.stack_.close(*listener);
    tenant_.free_accept_queues_.push_back(queue_index_);
    tenant_.listeners_.give();
}

bool ListenSocket::can_accept() {
    if (queue_.full() || tenant_.free_records_.empty()) return false;
    if (tenant_.connections_.grants()) return true;
    tenant_.drop(Drop::kTenantConnectionShare);
    return false;
}

stack::tcp::ConnectionOwner* ListenSocket::on_accept(stack::tcp::Connection& connection) {
    if (queue_.full()) {
        tenant_.drop(Drop::kTcpAcceptQueueFull);
        return nullptr;
    }
    const std::uint32_t index = tenant_.allocate_record();
    if (index == shm::kNoIndex) {
        tenant_.drop(Drop::kTenantNoSocket);
        return nullptr;
    }
    tenant_.connections_.take();
    Tenant::Slot& slot = tenant_.slots_[index];
    shm::SocketRecord& record = tenant_.segment_.socket(index);
    const shm::SocketRecord& listening = tenant_.segment_.socket(index_);
    slot.kind = Tenant::Kind::kStream;
    slot.linger_zero = tenant_.slots_[index_].linger_zero;
    const auto family = listening.local.family;
    record.local = to_wire(connection.local(), family);
    record.remote = to_wire(connection.remote(), family);
    record.listener.store(index_, std::memory_order_relaxed);
    record.protocol.store(6, std::memory_order_relaxed);
    record.options = listening.options;
    record.options.flags &= ~shm::kOptionNoQuickAck;  // as on Linux: each connection begins with it on
    slot.stream.open(connection, shm::kStatusReady);
    record.daemon.window_position.store(connection.receive_buffer() / 2, std::memory_order_relaxed);
    record.daemon.status.store(shm::kStatusReady, std::memory_order_release);
    CULVERT_FAULT_POINT(accept_made);
    slot.stream.ticket = {index_, queue_.add(index)};
    CULVERT_FAULT_POINT(accept_queued);
    tenant_.mark_changed(index);   // data that came with the last segment of the handshake
    tenant_.mark_changed(index_);  // the listener has become readable
    return &slot.stream;
}

}  // namespace culvert::tenant
