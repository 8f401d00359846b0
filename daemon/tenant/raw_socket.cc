// A raw or ping socket of a tenant: packets between its block lists and the stack's raw sockets.
//
// Who may have one was settled when it was bound (Tenant::bind_raw consumes a grant). What the application writes into a
// header is checked here and by the stack: lengths, and that the source is an address of Culvert's alone, for every other
// address is the kernel's to speak from.

#include <array>
#include <cstring>

#include "daemon/tenant/sockets.h"

namespace culvert::tenant {

RawSocket::~RawSocket() {
    if (socket_ != nullptr) sockets().close(*socket_);
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
    lane_.set_receive_buffer(options.receive_buffer);
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
    lane_.take_output([&](const MessageLane::Message& message) { send(message, now); });
}

void RawSocket::send(const MessageLane::Message& message, Instant now) {
    const shm::DatagramHeader& header = message.header;
    const Address named = from_wire(header.remote).address;
    const Address to = named.is_unspecified() ? remote_ : named;
    if (to.is_unspecified()) return tenant_.drop(Drop::kTenantBadAddress);
    const shm::Policy::Protocol protocol = protocol_of_raw(kind_);
    if (!tenant_.permits(protocol, shm::Policy::Call::kConnect, {to, 0}) && !tenant_.permits(protocol, shm::Policy::Call::kListen, {local_.address, 0})) {
        lane_.set_send_error(tenant_.refuse_by_policy());
        return tenant_.mark_changed(index_);
    }
    const Address source =
        Address::from_v6(std::as_bytes(std::span<const std::uint8_t, 16>(header.local_address)));
    const std::uint32_t interface = header.interface != 0 ? header.interface : header.remote.interface;
    // From a dedicated address or not at all: the route may have changed since the application asked for it.
    const auto route = tenant_.stack_.route_raw(to, interface);
    if (!route || (!source.is_unspecified() && !tenant_.stack_.is_dedicated(source))) {
        tenant_.drop(Drop::kTenantBadAddress);
        lane_.set_send_error(route ? EADDRNOTAVAIL : route.error().code);
        return tenant_.mark_changed(index_);
    }
    const stack::raw::SendOptions options{
        .source = !source.is_unspecified() ? source : local_.address.is_unspecified() ? route->source : local_.address,
        .interface = interface,
        .ttl = (header.flags & shm::kDatagramTtl) != 0 ? header.ttl : std::uint8_t{0},
        .tos = header.tos,
        .broadcast = (header.flags & shm::kDatagramBroadcast) != 0};
    const auto sent = sockets().send(*socket_, to, message.payload(), message.length, options, now);
    if (!sent) lane_.set_send_error(sent.error().code);
}

bool RawSocket::publish(std::uint32_t app_flags) { return lane_.publish(app_flags); }

bool RawSocket::on_packet(stack::raw::Socket&, const stack::raw::PacketInfo& info, stack::Payload payload,
                          std::uint32_t length) {
    if (lane_.full()) return lane_.refuse();  // the stack counts it
    shm::DatagramHeader header{};
    header.remote = to_wire({info.remote, 0}, (kind_ & shm::kRawV6) != 0 ? 6 : 4);
    if (info.remote.is_link_local() && !info.remote.is_v4()) header.remote.interface = info.interface;
    std::memcpy(header.local_address, info.local.bytes().data(), sizeof header.local_address);
    header.received_ns = info.received.time_since_epoch().count();
    header.length = length;
    header.interface = info.interface;
    header.ttl = info.ttl;
    header.tos = info.tos;
    header.overflow = lane_.overflow();
    const auto bytes = std::as_bytes(std::span(&header, 1));
    if (!lane_.stage.append_datagram(tenant_.segment_, tenant_.ledger_, lane_.lent, bytes, payload, length))
        return lane_.refuse();
    lane_.delivered(length);
    return true;
}

}  // namespace culvert::tenant
