#include "daemon/tenant/sockets.h"

#include <time.h>
#include <linux/errqueue.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "daemon/stack/udp.h"

#include "shm/block_list.h"

namespace culvert::tenant {

namespace {
/// Blocks of one outgoing datagram; an application that spreads it thinner is refused.
constexpr std::size_t kMaxFragmentsOfDatagram = 64;
/// Receive blocks that one socket may hold unread, unless SO_RCVBUF says otherwise.
constexpr std::uint32_t kMaxLentBlocks = 512;
/// What Linux charges for a small datagram (sk_buff and data), against twice SO_RCVBUF.
constexpr std::uint32_t kTrueSize = 768;
constexpr std::uint32_t kMaxErrors = 32;  // of one socket, unread

/// The bytes of a header, as a block begins with them.
template <class Header>
std::span<const std::byte> bytes_of(const Header& header) {
    return std::as_bytes(std::span(&header, 1));
}
}  // namespace

DatagramSocket::DatagramSocket(Tenant& tenant, std::uint32_t index)
    : tenant_(tenant), index_(index), max_lent_(kMaxLentBlocks) {}

DatagramSocket::~DatagramSocket() {
    if (socket != nullptr) tenant_.stack_.close(*socket);
    tenant_.ledger_.reclaim(lent_);
    tenant_.ledger_.reclaim(errors_lent_);
}

void DatagramSocket::set_options(const shm::SocketOptions& options) {
    const bool v4 = local.address.is_v4();
    const std::uint32_t flags = options.flags;
    const std::uint32_t rule = flags >> (v4 ? shm::kOptionPathRule4Shift : shm::kOptionPathRule6Shift) & 3;
    merges_ = (flags & shm::kOptionMerged) != 0;
    tenant_.stack_.set_options(*socket,
                               {.merged = merges_,
                                .errors = (flags & (shm::kOptionErrors4 | shm::kOptionErrors6)) != 0,
                                .all_groups = (flags & (v4 ? shm::kOptionOnlyOwnGroups : shm::kOptionOnlyOwnGroups6)) == 0,
                                .path_mtu = static_cast<stack::udp::PathMtu>(rule)});
    const std::uint32_t most = std::max(tenant_.segment_.geometry().rx_blocks / 2, 1u);
    const std::uint64_t wanted = options.receive_buffer != 0 ? options.receive_buffer * 2ull / kTrueSize : kMaxLentBlocks;
    max_lent_ = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(wanted, 1, most));
}

void DatagramSocket::publish_path(Instant now) {
    const std::uint32_t mtu = remote.port != 0 ? tenant_.stack_.path_mtu(*socket, remote, 0, now) : 0;
    if (mtu == path_mtu_) return;
    path_mtu_ = mtu;
    tenant_.segment_.socket(index_).daemon.path_mtu.store(mtu, std::memory_order_relaxed);
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
    if (remote.port != 0) publish_path(now);
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
    if (length != header.length || length > stack::udp::kMaxPayload) return tenant_.drop(Drop::kTenantBadLength);
    const Endpoint to = header.remote.port != 0 ? from_wire(header.remote) : remote;
    if (to.port == 0) return tenant_.drop(Drop::kTenantBadAddress);
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
    auto sent = tenant_.stack_.send_datagram(*socket, to, {fragments.data(), count}, length, options, now);
    if (!sent && error_ == 0 && sent.error().code != ENOBUFS) error_ = sent.error().code;
}

bool DatagramSocket::publish(std::uint32_t app_flags) {
    shm::SocketRecord& record = tenant_.segment_.socket(index_);
    bool news = false;
    if (!stage_.empty()) {
        stage_.publish(tenant_.segment_, record.daemon.rx_list);
        merging_.segments = 0;
        record.daemon.rx_delivered.store(delivered_, std::memory_order_release);
        news = true;
    }
    if (!error_stage_.empty()) {
        error_stage_.publish(tenant_.segment_, record.daemon.error_list);
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

/// No room: counted for SO_RXQ_OVFL.
bool DatagramSocket::refuse() {
    ++overflow_;
    return false;
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
    if (!same || !stage_.extend_datagram(tenant_.segment_, tenant_.ledger_, lent_, payload, length)) return false;
    ++merging_.segments;
    whole.segment_size = static_cast<std::uint16_t>(size);
    whole.length += length;
    std::memcpy(tenant_.segment_.block(stage_.datagram_block()), &whole, sizeof whole);
    return true;
}

bool DatagramSocket::on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo& info, stack::Payload payload,
                                 std::uint32_t length) {
    if (lent_.count >= max_lent_) tenant_.ledger_.collect_returned();
    if (lent_.count >= max_lent_) return refuse();
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
    header.overflow = overflow_;
    if (!(merges_ && merge(header, payload, length))) {
        if (!stage_.append_datagram(tenant_.segment_, tenant_.ledger_, lent_, bytes_of(header), payload, length)) {
            tenant_.drop(Drop::kTenantNoBlock);
            return refuse();
        }
        if (merges_) merging_ = {header, length != 0 && info.segment_size == 0 ? 1u : 0u};
    }
    delivered_ += length;
    tenant_.mark_changed(index_);
    return true;
}

void DatagramSocket::on_error(stack::udp::Socket&, const stack::udp::DatagramError& error) {
    error_ = error.error;
    tenant_.mark_changed(index_);
    if (error.info != 0 && remote.port != 0 && (path_mtu_ == 0 || error.info < path_mtu_)) {
        path_mtu_ = error.info;
        tenant_.segment_.socket(index_).daemon.path_mtu.store(path_mtu_, std::memory_order_relaxed);
    }
    if (!error.queued) return;
    if (errors_lent_.count >= kMaxErrors) tenant_.ledger_.collect_returned();
    if (errors_lent_.count >= kMaxErrors) return tenant_.drop(Drop::kUdpErrorQueueFull);
    shm::DatagramErrorHeader header{};
    const auto payload = error.payload.first(std::min<std::size_t>(error.payload.size(), shm::kBlockSize - sizeof header));
    header.remote = to_wire(error.remote, tenant_.segment_.socket(index_).local.family);
    std::memcpy(header.offender, error.offender.bytes().data(), sizeof header.offender);
    header.error = error.error;
    header.origin = !error.by_icmp ? std::uint8_t{SO_EE_ORIGIN_LOCAL}
                    : error.offender.is_v4() ? std::uint8_t{SO_EE_ORIGIN_ICMP}
                                             : std::uint8_t{SO_EE_ORIGIN_ICMP6};
    header.type = error.type;
    header.code = error.code;
    header.info = error.info;
    header.length = static_cast<std::uint32_t>(payload.size());
    if (!error_stage_.append_datagram(tenant_.segment_, tenant_.ledger_, errors_lent_, bytes_of(header), {&payload, 1},
                                      header.length))
        tenant_.drop(Drop::kTenantNoBlock);
}

}  // namespace culvert::tenant
