// A raw or ping socket of a tenant: packets between its block lists and the stack's raw sockets.
//
// Who may have one was settled when it was bound (Tenant::bind_raw consumes a grant). What the application writes into a
// header is checked here and by the stack: lengths, and that the source is an address of Culvert's alone, for every other
// address is the kernel's to speak from.

#include <algorithm>
#include <array>
#include <cstring>

#include "daemon/tenant/sockets.h"
#include "shm/block_list.h"

namespace culvert::tenant {

namespace {
/// Blocks of one outgoing packet; an application that spreads it thinner is refused.
constexpr std::size_t kMaxFragmentsOfPacket = 64;
/// Receive blocks that one socket may hold unread, unless SO_RCVBUF says otherwise.
constexpr std::uint32_t kMaxLentBlocks = 512;
/// What Linux charges for a small packet (sk_buff and data), against twice SO_RCVBUF.
constexpr std::uint32_t kTrueSize = 768;
}  // namespace

RawSocket::~RawSocket() {
    if (socket_ != nullptr) sockets().close(*socket_);
    tenant_.ledger_.reclaim(lent_);
}

stack::raw::Raw& RawSocket::sockets() const { return tenant_.stack_.raw_sockets(); }

int RawSocket::bind(const Endpoint& local) {
    const Family family = (kind_ & shm::kRawV6) != 0 ? Family::kIpv6 : Family::kIpv4;
    const bool ping = (kind_ & shm::kRawPing) != 0;
    if (local.address.family() != family) return EINVAL;
    if (socket_ == nullptr) {
        auto opened = sockets().open(ping ? stack::raw::Kind::kPing : stack::raw::Kind::kRaw, family,
                                     static_cast<std::uint8_t>(kind_), *this);
        if (!opened) return opened.error().code;
        socket_ = *opened;
        local_.address = remote_ = Address::any(family);
    }
    const auto bound = sockets().bind(*socket_, local.address, ping ? local.port : Port{0});
    if (!bound) return bound.error().code;
    local_ = {local.address, ping ? socket_->identifier() : Port{0}};
    return 0;
}

void RawSocket::connect(const Address& remote) {
    remote_ = remote;
    sockets().connect(*socket_, remote.is_unspecified() ? nullptr : &remote_);
}

void RawSocket::set_options(const shm::SocketOptions& options) {
    const bool v4 = (kind_ & shm::kRawV6) == 0;
    options_.header_included = (options.flags & shm::kOptionHeaderIncluded) != 0;
    options_.all_groups = (options.flags & (v4 ? shm::kOptionOnlyOwnGroups : shm::kOptionOnlyOwnGroups6)) == 0;
    sockets().set_options(*socket_, options_);
    const std::uint32_t most = std::max(tenant_.segment_.geometry().rx_blocks / 2, 1u);
    const std::uint64_t wanted = options.receive_buffer != 0 ? options.receive_buffer * 2ull / kTrueSize : kMaxLentBlocks;
    max_lent_ = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(wanted, 1, most));
}

void RawSocket::block_types(const std::array<std::uint32_t, 8>& types) {
    options_.blocked_types = types;
    sockets().set_options(*socket_, options_);
}

void RawSocket::set_checksum_offset(std::uint32_t offset) {
    options_.checksum_offset.reset();
    if (offset != shm::kNoIndex) options_.checksum_offset = static_cast<std::uint16_t>(offset);
    sockets().set_options(*socket_, options_);
}

void RawSocket::look(Instant now) {
    const std::uint32_t newest = shm::take_all(tenant_.segment_.socket(index_).app.tx_list);
    if (newest == shm::kEmptyList) return;
    const BlockLedger::Taken taken = tenant_.ledger_.take_chain(newest);
    // Cut the chain into packets: all but the last block of each say "more".
    const stack::SendChunk* first = taken.first;
    for (const stack::SendChunk* chunk = taken.first; chunk != nullptr; chunk = chunk->next) {
        if ((tenant_.ledger_.flags(*chunk) & shm::kBlockMore) != 0 && chunk->next != nullptr) continue;
        send(first, chunk, now);
        first = chunk->next;
    }
    if (taken.first == nullptr) return;
    released_ += tenant_.ledger_.release(taken.first);
    tenant_.wake_starved();
    tenant_.mark_changed(index_);
}

void RawSocket::send(const stack::SendChunk* first, const stack::SendChunk* last, Instant now) {
    if (first->length < sizeof(shm::DatagramHeader)) return tenant_.drop(Drop::kTenantBadLength);
    shm::DatagramHeader header;
    std::memcpy(&header, first->data, sizeof header);  // read once, then trusted no further than checked
    std::array<std::span<const std::byte>, kMaxFragmentsOfPacket> fragments;
    std::size_t count = 0;
    std::uint32_t length = 0;
    for (const stack::SendChunk* chunk = first;; chunk = chunk->next) {
        const std::uint32_t skip = chunk == first ? sizeof header : 0;
        if (count == fragments.size()) return tenant_.drop(Drop::kTenantBadLength);
        if (chunk->length > skip) fragments[count++] = {chunk->data + skip, chunk->length - skip};
        length += chunk->length - skip;
        if (chunk == last) break;
    }
    if (length != header.length) return tenant_.drop(Drop::kTenantBadLength);
    const Address named = from_wire(header.remote).address;
    const Address to = named.is_unspecified() ? remote_ : named;
    if (to.is_unspecified()) return tenant_.drop(Drop::kTenantBadAddress);
    const Address source =
        Address::from_v6(std::as_bytes(std::span<const std::uint8_t, 16>(header.local_address)));
    const std::uint32_t interface = header.interface != 0 ? header.interface : header.remote.interface;
    // From a dedicated address or not at all: the route may have changed since the application asked for it.
    const auto route = tenant_.stack_.route_raw(to, interface);
    if (!route || (!source.is_unspecified() && !tenant_.stack_.is_dedicated(source))) {
        tenant_.drop(Drop::kTenantBadAddress);
        if (error_ == 0) error_ = route ? EADDRNOTAVAIL : route.error().code;
        return tenant_.mark_changed(index_);
    }
    const stack::raw::SendOptions options{
        .source = !source.is_unspecified() ? source : local_.address.is_unspecified() ? route->source : local_.address,
        .interface = interface,
        .ttl = (header.flags & shm::kDatagramTtl) != 0 ? header.ttl : std::uint8_t{0},
        .tos = header.tos,
        .broadcast = (header.flags & shm::kDatagramBroadcast) != 0};
    const auto sent = sockets().send(*socket_, to, {fragments.data(), count}, length, options, now);
    if (!sent && error_ == 0 && sent.error().code != ENOBUFS) error_ = sent.error().code;
}

bool RawSocket::publish(std::uint32_t app_flags) {
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

bool RawSocket::on_packet(stack::raw::Socket&, const stack::raw::PacketInfo& info, stack::Payload payload,
                          std::uint32_t length) {
    if (lent_.count >= max_lent_) tenant_.ledger_.collect_returned();
    shm::DatagramHeader header{};
    header.remote = to_wire({info.remote, 0}, (kind_ & shm::kRawV6) != 0 ? 6 : 4);
    if (info.remote.is_link_local() && !info.remote.is_v4()) header.remote.interface = info.interface;
    std::memcpy(header.local_address, info.local.bytes().data(), sizeof header.local_address);
    header.received_ns = info.received.time_since_epoch().count();
    header.length = length;
    header.interface = info.interface;
    header.ttl = info.ttl;
    header.tos = info.tos;
    header.overflow = overflow_;
    const auto bytes = std::as_bytes(std::span(&header, 1));
    if (lent_.count >= max_lent_ ||
        !stage_.append_datagram(tenant_.segment_, tenant_.ledger_, lent_, bytes, payload, length)) {
        ++overflow_;  // the stack counts it
        return false;
    }
    delivered_ += length;
    tenant_.mark_changed(index_);
    return true;
}

}  // namespace culvert::tenant
