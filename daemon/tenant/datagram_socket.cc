#include "daemon/tenant/sockets.h"


#include <algorithm>
#include <cstring>
#include <utility>

#include "daemon/stack/udp.h"
#include "daemon/tenant/error_entry.h"

namespace culvert::tenant {

namespace {
constexpr std::uint32_t kMaxErrors = 32;  // of one socket, unread

/// The bytes of a header, as a block begins with them.
template <class Header>
std::span<const std::byte> bytes_of(const Header& header) {
    return std::as_bytes(std::span(&header, 1));
}

/// A datagram of which `block` is the first part.
UnreadDatagram begin_unread(std::span<const std::byte> block, Port local_port) {
    shm::DatagramHeader header;
    std::memcpy(&header, block.data(), sizeof header);
    const Address local = Address::from_v6(std::as_bytes(std::span<const std::uint8_t, 16>(header.local_address)));
    return {.remote = from_wire(header.remote),
            .local = {local, local_port},
            .interface = header.interface,
            .segment_size = header.segment_size,
            .ttl = header.ttl,
            .tos = header.tos,
            .payload = {}};
}
}  // namespace

DatagramSocket::DatagramSocket(Tenant& tenant, std::uint32_t index) : tenant_(tenant), index_(index), lane_(tenant, index) {
    tenant_.datagram_sockets_.take();
}

DatagramSocket::~DatagramSocket() {
    if (socket != nullptr) tenant_.stack_.close(*socket);
    tenant_.ledger_.reclaim(errors_lent_);
    tenant_.datagram_sockets_.give();
}

void DatagramSocket::set_options(const shm::SocketOptions& options) {
    const bool v4 = local.address.is_v4();
    const std::uint32_t flags = options.flags;
    const std::uint32_t rule = flags >> (v4 ? shm::kOptionPathRule4Shift : shm::kOptionPathRule6Shift) & 3;
    merges_ = (flags & shm::kOptionMerged) != 0;
    lane_.set_receive_buffer(options.receive_buffer);
    if (socket == nullptr) return;
    tenant_.stack_.set_options(*socket,
                               {.merged = merges_,
                                .errors = (flags & (shm::kOptionErrors4 | shm::kOptionErrors6)) != 0,
                                .all_groups = (flags & (v4 ? shm::kOptionOnlyOwnGroups : shm::kOptionOnlyOwnGroups6)) == 0,
                                .path_mtu = static_cast<stack::udp::PathMtu>(rule)});
}

void DatagramSocket::publish_path(Instant now) {
    const std::uint32_t mtu = remote.port != 0 && socket != nullptr ? tenant_.stack_.path_mtu(*socket, remote, 0, now) : 0;
    if (mtu == path_mtu_) return;
    path_mtu_ = mtu;
    tenant_.segment_.socket(index_).daemon.path_mtu.store(mtu, std::memory_order_relaxed);
}

void DatagramSocket::look(Instant now) {
    const bool sent = lane_.take_output([&](const MessageLane::Message& message) { send(message, now); });
    if (sent && remote.port != 0) publish_path(now);
}

void DatagramSocket::send(const MessageLane::Message& message, Instant now) {
    const shm::DatagramHeader& header = message.header;
    if (message.length > stack::udp::kMaxPayload) return tenant_.drop(Drop::kTenantBadLength);
    if (socket == nullptr) return tenant_.drop(Drop::kTenantBadSocket);  // it rests
    const Endpoint to = header.remote.port != 0 ? from_wire(header.remote) : remote;
    if (to.port == 0) return tenant_.drop(Drop::kTenantBadAddress);
    if ((bound_by_sending || to.address.is_loopback()) &&
        !tenant_.permits(shm::Policy::Protocol::kUdp, shm::Policy::Call::kConnect, to))
        return lane_.set_send_error(tenant_.refuse_by_policy());
    const Address source =
        Address::from_v6(std::as_bytes(std::span<const std::uint8_t, 16>(header.local_address)));
    // The source must be ours: an application may not send in the name of others.
    if (!source.is_unspecified() && !tenant_.stack_.is_local(source)) return tenant_.drop(Drop::kTenantBadAddress);
    const stack::udp::SendOptions options{
        .source = source,
        .interface = header.interface != 0 ? header.interface : header.remote.interface,
        .segment_size = header.segment_size,
        .ttl = (header.flags & shm::kDatagramTtl) != 0 ? header.ttl : std::uint8_t{0},
        .tos = header.tos,
        .path_mtu = static_cast<stack::udp::PathMtu>(header.flags >> shm::kDatagramPathRuleShift & 3),
        .broadcast = (header.flags & shm::kDatagramBroadcast) != 0,
        .stays = (header.flags & shm::kDatagramTtl) != 0 && header.ttl == 0,
        .loop = (header.flags & shm::kDatagramLoop) != 0};
    auto sent = tenant_.stack_.send_datagram(*socket, to, message.payload(), message.length, options, now);
    if (!sent) lane_.set_send_error(sent.error().code);
}

std::vector<UnreadDatagram> DatagramSocket::rest() {
    std::vector<UnreadDatagram> all;
    if (socket == nullptr) return all;
    tenant_.stack_.close(*std::exchange(socket, nullptr));
    merging_.segments = 0;
    lane_.stage.publish(tenant_.segment_, tenant_.segment_.socket(index_).daemon.rx_list);  // says how long the last block is
    tenant_.ledger_.collect_returned();
    std::size_t bytes = 0;
    bool within = false;  // a datagram whose blocks go on
    bool kept = false;
    // Headers, lengths and marks are the application's to spoil; it spoils its own datagrams only.
    tenant_.ledger_.for_each_lent(lane_.lent, [&](std::uint32_t block) {
        const shm::BlockMeta& meta = tenant_.segment_.block_meta()[block];
        const std::uint32_t offset = std::min(meta.offset.load(std::memory_order_relaxed), shm::kBlockSize);
        const std::uint32_t length = std::min(meta.length.load(std::memory_order_relaxed), shm::kBlockSize - offset);
        std::span<const std::byte> part(tenant_.segment_.block(block) + offset, length);
        if (!within) {
            kept = part.size() >= sizeof(shm::DatagramHeader) && all.size() < Tenant::kMostUnread && bytes < Tenant::kMostUnreadBytes;
            if (!kept) tenant_.drop(Drop::kTenantUnreadLost);
            if (kept) all.push_back(begin_unread(part, local.port));
            if (kept) part = part.subspan(sizeof(shm::DatagramHeader));
        }
        if (kept && all.back().payload.size() + part.size() <= stack::udp::kMaxPayload) {
            all.back().payload.insert(all.back().payload.end(), part.begin(), part.end());
            bytes += part.size();
        }
        within = (meta.flags.load(std::memory_order_relaxed) & shm::kBlockMore) != 0;
        return true;
    });
    tenant_.ledger_.reclaim(lane_.lent);
    return all;
}

bool DatagramSocket::publish(std::uint32_t app_flags) {
    if (!lane_.stage.empty()) merging_.segments = 0;
    bool news = lane_.publish(app_flags);
    if (!error_stage_.empty()) {
        error_stage_.publish(tenant_.segment_, tenant_.segment_.socket(index_).daemon.error_list);
        news = true;
    }
    return news;
}

/// A datagram that goes on where the last one ended, in a burst of one flow (UDP_GRO): all but the last equally long.
bool DatagramSocket::merge(const shm::DatagramHeader& header, stack::Payload payload, std::uint32_t length) {
    shm::DatagramHeader& whole = merging_.header;
    const std::uint32_t size = merging_.segments == 1 ? whole.length : whole.segment_size;
    const bool same = merging_.segments != 0 && merging_.segments < stack::udp::kMaxSegments && length != 0 &&
                      length <= size && whole.length % size == 0 && whole.length + length <= stack::udp::kMaxPayload &&
                      whole.ttl == header.ttl && whole.tos == header.tos && whole.interface == header.interface &&
                      std::memcmp(&whole.remote, &header.remote, sizeof whole.remote) == 0 &&
                      std::memcmp(whole.local_address, header.local_address, sizeof whole.local_address) == 0;
    if (!same || !lane_.stage.extend_datagram(tenant_.segment_, tenant_.ledger_, lane_.lent, payload, length)) return false;
    ++merging_.segments;
    whole.segment_size = static_cast<std::uint16_t>(size);
    whole.length += length;
    std::memcpy(tenant_.segment_.block(lane_.stage.datagram_block()), &whole, sizeof whole);
    return true;
}

bool DatagramSocket::on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo& info, stack::Payload payload,
                                 std::uint32_t length) {
    if (lane_.full()) return lane_.refuse();
    shm::DatagramHeader header{};
    const auto family = tenant_.segment_.socket(index_).local.family;
    header.remote = to_wire(info.remote, family);
    if (info.remote.address.is_link_local() && !info.remote.address.is_v4()) header.remote.interface = info.interface;
    std::memcpy(header.local_address, info.local.bytes().data(), sizeof header.local_address);
    header.received_ns = info.received.time_since_epoch().count();
    header.length = length;
    header.interface = info.interface;
    header.segment_size = info.segment_size;
    header.ttl = info.ttl;
    header.tos = info.tos;
    header.overflow = lane_.overflow();
    if (!(merges_ && merge(header, payload, length))) {
        if (!lane_.stage.append_datagram(tenant_.segment_, tenant_.ledger_, lane_.lent, bytes_of(header), payload, length)) {
            tenant_.drop(Drop::kTenantNoBlock);
            return lane_.refuse();
        }
        if (merges_) merging_ = {header, length != 0 && info.segment_size == 0 ? 1u : 0u};
    }
    lane_.delivered(length);
    return true;
}

void DatagramSocket::on_error(stack::udp::Socket&, const stack::udp::DatagramError& error) {
    lane_.set_error(error.error);
    tenant_.mark_changed(index_);
    if (error.info != 0 && remote.port != 0 && (path_mtu_ == 0 || error.info < path_mtu_)) {
        path_mtu_ = error.info;
        tenant_.segment_.socket(index_).daemon.path_mtu.store(path_mtu_, std::memory_order_relaxed);
    }
    if (!error.queued) return;
    if (errors_lent_.count >= kMaxErrors) tenant_.ledger_.collect_returned();
    if (errors_lent_.count >= kMaxErrors) return tenant_.drop(Drop::kUdpErrorQueueFull);
    shm::DatagramErrorHeader header = error_header(error, tenant_.segment_.socket(index_).local.family);
    header.info = error.info;
    if (!append_error(tenant_.segment_, tenant_.ledger_, error_stage_, errors_lent_, header, error.payload)) tenant_.drop(Drop::kTenantNoBlock);
}

}  // namespace culvert::tenant
