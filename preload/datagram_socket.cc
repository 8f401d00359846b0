// Socket as a UDP socket, the way out: Culvert and the kernel on one port.
//
// The kernel's socket owns the port and goes on receiving what Culvert leaves to it (loopback, other interfaces, groups
// and broadcasts on shared links, fragments), so receive looks at both, Culvert first (datagram_receive.cc). A send asks
// the daemon whether the destination lies behind a Culvert interface; the answer holds for a while (route_cache.h).
//
// A datagram goes to the daemon in blocks, and the call returns. What can be known beforehand fails here, with the errno
// of Linux (EMSGSIZE, EINVAL of a bad control message, EACCES of a broadcast that was not meant); what turns out later is
// the socket's next error, as an ICMP error would be.

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "preload/address.h"
#include "preload/async_signals.h"
#include "preload/fail.h"
#include "preload/libc.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

namespace {

/// What the length field of the header can say: of an IPv4 packet, of an IPv6 payload.
constexpr std::size_t longest_datagram(bool v4) noexcept { return v4 ? 65535 - 20 - 8 : 65535 - 8; }
constexpr std::size_t kMaxSegments = 64;  // UDP_MAX_SEGMENTS

/// Gives an unbound socket the port that its first send would give it.
bool bind_any(int fd, int family) noexcept {
    sockaddr_storage name{};
    name.ss_family = static_cast<sa_family_t>(family);
    const socklen_t length = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    return libc::bind(fd, reinterpret_cast<sockaddr*>(&name), length) == 0;
}

bool is_unbound(int fd, int family) noexcept {
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    if (libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return false;
    const auto local = to_wire(reinterpret_cast<sockaddr*>(&name), length, family);
    return local && local->port == 0;
}

bool is_link_local6(const shm::WireEndpoint& endpoint) noexcept {
    return endpoint.address[0] == 0xfe && (endpoint.address[1] & 0xc0) == 0x80;
}

/// What the headers of one datagram take.
std::size_t headers_of(bool v4) noexcept { return v4 ? 20 + 8 : 40 + 8; }

}  // namespace

/// As Linux refuses it, or 0. `mtu` 0: not known yet.
int Socket::check_datagram(std::size_t length, const shm::DatagramHeader& header, bool v4, std::uint32_t mtu) noexcept {
    if (length > longest_datagram(v4)) return EMSGSIZE;
    const bool cut = header.segment_size != 0 && length > header.segment_size;
    if (cut && length > header.segment_size * kMaxSegments) return EINVAL;
    const bool whole_only = cut || (header.flags >> shm::kDatagramPathRuleShift & 3) != 0;
    const std::size_t longest = cut ? header.segment_size : length;
    return whole_only && mtu != 0 && longest + headers_of(v4) > mtu ? EMSGSIZE : 0;
}

/// Tells the daemon of a bound socket. What cannot be Culvert's stays the kernel's.
shm::KernelReason Socket::try_bind_datagram(int fd) noexcept {
    Client* client = Client::attached();
    const auto leave = [&](shm::KernelReason reason) {
        if (client != nullptr && !client->daemon_gone()) {  // else: gone again, it waits for the next one
            abandon();                                      // if it was another daemon's
            datagram_connected_ = false;
            client->note_reason(fd, reason);
        }
        return reason;
    };
    if (!datagram_->kernel_only && signals_input(fd)) {
        datagram_->kernel_only = true;
        datagram_->kernel_reason = shm::KernelReason::kOption;
    }
    if (datagram_->kernel_only) return leave(datagram_->kernel_reason);
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    if (libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return shm::KernelReason::kType;
    const auto local = to_wire(reinterpret_cast<sockaddr*>(&name), length, family_);
    if (!local || local->port == 0) return shm::KernelReason::kUnconnected;
    if (datagram_->bound || is_loopback(*local)) {
        const auto call = datagram_->bound ? shm::Policy::Call::kListen : shm::Policy::Call::kConnect;
        const shm::KernelReason policy = why_kernel(shm::Policy::Protocol::kUdp, call, *local);
        if (policy != shm::KernelReason::kUnknown) {
            datagram_->kernel_only = datagram_->bound && client != nullptr;  // whose daemon's policy has been heard, too
            datagram_->kernel_reason = policy;
            return leave(policy);
        }
    }
    if (client == nullptr) {
        if (path() != Path::kDatagram && !Client::strict()) adopt_nobody(Path::kDatagram);
        return shm::KernelReason::kNoDaemon;
    }
    const std::uint32_t record = prepare_record(*client);
    if (record == shm::kNoIndex) return leave(shm::KernelReason::kTableFull);
    const std::uint32_t by_policy_of = datagram_->bound ? shm::kBoundByProgram : shm::kBoundBySending;
    if (const int error = operate(*client, record, shm::Operation::kBindDatagram, by_policy_of, *local, {}); error != 0) {
        client->let_go(record, false);
        return leave(reason_of_bind(error, *local));
    }
    learn_file_flags(fd);
    adopt(*client, record, Path::kDatagram);
    client->note_reason(fd, shm::KernelReason::kDatagramPair);
    tell_groups();
    return shm::KernelReason::kUnknown;
}

/// It has been passed on, and is waited for here again.
void Socket::wake_datagrams(int fd) noexcept {
    if ((shared().app.flags.load(std::memory_order_relaxed) & shm::kAppPassedOn) != 0) return give_back(fd, shm::KernelReason::kPassedOn);
    const int error = operate(*client_, record(), shm::Operation::kBindDatagram, shm::kBoundByProgram, shared().local, {});
    if (error == 0) return tell_groups();
    if (!is_resting()) return;  // another process was quicker, or the daemon has gone
    give_back(fd, shm::KernelReason::kRefused);
}

/// Its daemon has gone, and there is another one: bound, connected and in its groups as before.
void Socket::revive_datagram(int fd) noexcept {
    if (is_resting()) return wake_datagrams(fd);
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    std::optional<shm::WireEndpoint> remote;
    if (datagram_connected_) remote = shm::WireEndpoint(shared().remote);
    else if (libc::getpeername(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0)
        remote = to_wire(reinterpret_cast<sockaddr*>(&name), length, family_);
    datagram_connected_ = false;
    if (datagram_->groups_lost) return leave_to_kernel(fd);
    try_bind_datagram(fd);
    if (wants_daemon() || path() != Path::kDatagram || !remote) return;
    if (why_not_to(*remote) != shm::KernelReason::kUnknown || ask_route({.remote = *remote}).error != 0) return;
    if (operate(*client_, record(), shm::Operation::kConnectDatagram, 0, {}, *remote) != 0) return;
    datagram_connected_ = true;
    connected_kernel_ = false;
}

/// What the policy says of a datagram to `remote`: of an unbound socket, and of loopback, each peer is asked about; a bound one
/// has been judged by its own address.
shm::KernelReason Socket::why_not_to(const shm::WireEndpoint& remote) const noexcept {
    if (datagram_->bound && !is_loopback(remote)) return shm::KernelReason::kUnknown;
    return why_kernel(policy_protocol(), shm::Policy::Call::kConnect, remote);
}

/// A datagram goes by the kernel: notes why, as long as the whole socket is the kernel's. What to fail with instead, or 0.
int Socket::stays_with_kernel(int fd, shm::KernelReason reason) const noexcept {
    if (reason == shm::KernelReason::kUnknown) return 0;
    if (const int error = strict_error(reason)) return error;
    if (Client* client = Client::current(); client != nullptr && path() == Path::kKernel) client->note_reason(fd, reason);
    return 0;
}

void Socket::leave_to_kernel(int fd) noexcept {
    datagram_->kernel_only = true;
    datagram_->kernel_reason = shm::KernelReason::kOption;
    datagram_connected_ = false;
    if (path() == Path::kDatagram) uncork();
    abandon_at_once();
    if (Client* client = Client::current()) client->note_reason(fd, shm::KernelReason::kOption);
}

/// Asks the daemon whether `key.remote` is reached through a Culvert interface, from that source if one is given.
RouteAnswer Socket::ask_route(const RouteKey& key) noexcept {
    if (is_unspecified(key.remote)) return {EHOSTUNREACH, 0};
    const std::int64_t now = now_ns();
    RouteAnswer answer;
    if (find_route(key, now, answer)) return answer;
    Client* client = path() == Path::kDatagram ? client_ : Client::attached();
    if (client == nullptr || client->daemon_gone()) return {ENETDOWN, 0};
    shm::WireEndpoint source{};
    std::memcpy(source.address, key.source, sizeof source.address);
    const bool own_record = path() != Path::kDatagram;
    const std::uint32_t record = own_record ? prepare_record(*client) : this->record();
    if (record == shm::kNoIndex) return {ENOBUFS, 0};
    shm::SocketRecord& shared = client->segment().socket(record);
    const shm::WireEndpoint local = shared.local;
    answer.error = operate(*client, record, shm::Operation::kRoute, 0, source, key.remote);
    const bool to_ourselves = std::memcmp(shared.local.address, key.remote.address, sizeof local.address) == 0;
    answer.mtu = answer.error == 0 ? shared.info.path_mtu : 0;
    if (own_record) {
        client->let_go(record, false);
    } else {
        shared.local = local;  // the answer stands where the local address was
    }
    // Of our own addresses only some ports are Culvert's; and which broadcasts are meant is each socket's own affair.
    if (answer.error != EACCES) keep_route(key, answer.error == 0 && !to_ourselves, answer, now);
    return answer;
}

int Socket::connect_datagram(int fd, const sockaddr* address, socklen_t length) noexcept {
    const KeepErrno keep;
    if (address != nullptr && length >= sizeof(sa_family_t) && address->sa_family == AF_UNSPEC) {
        if (path() == Path::kDatagram && datagram_connected_) {
            operate(*client_, record(), shm::Operation::kConnectDatagram, 0, {}, {});
            datagram_connected_ = false;
        }
        connected_kernel_ = false;
        const int result = libc::connect(fd, address, length);
        // A port that nobody asked for by number goes with the peer: Linux unhashes the socket, and so do we.
        if (result == 0 && path() == Path::kDatagram && is_unbound(fd, family_) && !has_something_waiting())
            abandon();
        return keep.pass(result);
    }
    const auto remote = to_wire(address, length, family_);
    bool through_culvert = false;
    if (remote && !datagram_->kernel_only) {
        Client::attached();  // whose daemon has a policy, too
        shm::KernelReason reason = why_not_to(*remote);
        if (reason == shm::KernelReason::kUnknown)
            if (const int error = ask_route({.remote = *remote}).error; error != 0) reason = reason_of_route(error, *remote);
        through_culvert = reason == shm::KernelReason::kUnknown;
        if (const int refused = stays_with_kernel(fd, reason)) return keep.fail(refused);
    }
    if (through_culvert && path() == Path::kKernel) {
        if (is_unbound(fd, family_)) bind_any(fd, family_);
        if (const int refused = strict_error(try_bind_datagram(fd))) return keep.fail(refused);
    }
    // The kernel's half is connected as well: getpeername and the source address are then the kernel's own, and it
    // drops what comes from others. Where it has no way to the peer (every address of the interface is Culvert's), only
    // ours is.
    if (libc::connect(fd, address, length) != 0) {
        const bool no_way = errno == ENETUNREACH || errno == EHOSTUNREACH || errno == EADDRNOTAVAIL;
        if (!(no_way && through_culvert && path() == Path::kDatagram)) return keep.pass(-1);
    }
    datagram_connected_ = false;
    connected_kernel_ = true;
    if (path() == Path::kDatagram && through_culvert &&
        operate(*client_, record(), shm::Operation::kConnectDatagram, 0, {}, *remote) == 0) {
        datagram_connected_ = true;
        connected_kernel_ = false;
    }
    return 0;
}

/// The kernel keeps what MSG_MORE has begun, so it gets the rest, too. Sends of a socket of Culvert's are counted here (MSG_ZEROCOPY).
ssize_t Socket::send_by_kernel(int fd, const msghdr& message, int flags) noexcept {
    const bool counted = (flags & MSG_ZEROCOPY) != 0 && path() == Path::kDatagram && !is_raw();
    const ssize_t sent = libc::sendmsg(fd, &message, counted ? flags & ~MSG_ZEROCOPY : flags);
    datagram_->corked = sent >= 0 ? (flags & MSG_MORE) != 0 || datagram_->cork_option : datagram_->corked;
    if (counted) tell_copied(sent);
    return sent;
}

/// The pending error of our half, before the kernel's half sends. What is wrong with the call itself is told first, by the kernel.
int Socket::error_of_both(const msghdr& message, int flags) noexcept {
    if (path() != Path::kDatagram || record_lost()) return 0;
    const bool nowhere = message.msg_namelen == 0 && !datagram_connected_;
    const bool refused = (flags & MSG_OOB) != 0 && family_ == AF_INET;
    return nowhere || refused || total_length(message) > longest_datagram(family_ == AF_INET) ? 0 : take_error();
}

ssize_t Socket::send_datagram(int fd, const msghdr& message, int flags) noexcept {
    const auto* address = static_cast<const sockaddr*>(message.msg_namelen != 0 ? message.msg_name : nullptr);
    const bool goes_on = datagram_->pending.load(std::memory_order_relaxed) != nullptr;
    if (goes_on && family_ == AF_INET6) flags &= ~MSG_OOB;  // which means nothing to it
    const int kernels_flags = goes_on ? MSG_OOB : MSG_OOB | MSG_DONTROUTE;
    if (datagram_->kernel_only || datagram_->corked || (flags & kernels_flags) != 0) {
        if (const int error = error_of_both(message, flags)) return fail(error);
        return send_by_kernel(fd, message, flags);
    }
    const bool more = (flags & MSG_MORE) != 0 || datagram_->cork_option;
    if (goes_on && path() == Path::kDatagram) {  // where to has been said
        const ssize_t sent = send_part(message, {}, false, 0, flags, more);
        if ((flags & MSG_ZEROCOPY) != 0) tell_copied(sent);
        return sent;
    }
    if (is_resting()) return send_by_kernel(fd, message, flags);  // another program has it, and hears the answer, unless we wait for it
    revive_if_due(fd);
    DatagramSend send;
    if (message.msg_controllen != 0) {
        const int refused = read_control(message, family_, send);
        if (refused > 0) return fail(refused);
        if (refused < 0) return send_by_kernel(fd, message, flags);
    }
    shm::WireEndpoint to{};
    if (address != nullptr) {
        const auto remote = to_wire(address, message.msg_namelen, family_);
        if (!remote || remote->port == 0) return send_by_kernel(fd, message, flags);  // its errno
        to = *remote;
    } else if (!datagram_connected_ || path() != Path::kDatagram || client_->daemon_gone()) {
        if (datagram_connected_ && Client::strict()) return fail(ENETDOWN);
        return send_by_kernel(fd, message, flags);  // EDESTADDRREQ, or a peer on its side
    }
    const shm::WireEndpoint peer = address != nullptr ? to : shm::WireEndpoint(shared().remote);
    const bool v4 = is_mapped(peer);
    if (address != nullptr && path() == Path::kKernel) Client::attached();  // whose daemon has a policy, too
    if (const shm::KernelReason policy = address != nullptr ? why_not_to(peer) : shm::KernelReason::kUnknown;
        policy != shm::KernelReason::kUnknown) {
        const int refused = stays_with_kernel(fd, policy);
        return refused != 0 ? fail(refused) : send_by_kernel(fd, message, flags);
    }
    shm::DatagramHeader header = make_header(to, v4, is_multicast(peer), send, datagram_->defaults);
    std::uint32_t mtu = 0;
    if (address != nullptr || send.has_source || send.interface != 0) {
        RouteKey key{.remote = peer};
        std::memcpy(key.source, header.local_address, sizeof key.source);
        if (header.interface != 0) key.remote.interface = header.interface;
        if (!v4 && is_link_local6(peer) && key.remote.interface == 0) return send_by_kernel(fd, message, flags);
        const RouteAnswer route = ask_route(key);
        if (route.error == EACCES) return fail(EACCES);
        if (route.error != 0) {
            const int refused = stays_with_kernel(fd, reason_of_route(route.error, peer));
            return refused != 0 ? fail(refused) : send_by_kernel(fd, message, flags);
        }
        mtu = route.mtu;
        shm::KernelReason bound = shm::KernelReason::kUnknown;
        if (path() == Path::kKernel) {
            const KeepErrno keep;
            if (is_unbound(fd, family_)) bind_any(fd, family_);
            bound = try_bind_datagram(fd);
        }
        if (path() == Path::kDatagram && client_->daemon_gone()) bound = shm::KernelReason::kNoDaemon;
        if (path() != Path::kDatagram || bound != shm::KernelReason::kUnknown) {
            if (const int refused = strict_error(bound)) return fail(refused);
            return send_by_kernel(fd, message, flags);
        }
    }
    if (address == nullptr) mtu = shared().daemon.path_mtu.load(std::memory_order_relaxed);
    const std::size_t length = total_length(message);
    // IPV6_MTU: what is longer is cut smaller than the path asks for, which only the kernel does.
    if (!v4 && datagram_->fragment_size6 != 0 && (more || length + headers_of(v4) > datagram_->fragment_size6))
        return send_by_kernel(fd, message, flags);
    if (const int error = check_datagram(length, header, v4, mtu)) {
        tell_too_long(error, length, header, v4, mtu);
        return fail(error);
    }
    header.length = static_cast<std::uint32_t>(length);
    const ssize_t sent = more ? send_part(message, header, v4, mtu, flags, true) : send_datagram_blocks(message, header, flags);
    if ((flags & MSG_ZEROCOPY) != 0) [[unlikely]]
        tell_copied(sent);
    return sent;
}

/// 0, or what a send fails with before it has anything to do.
int Socket::send_datagram_state() noexcept {
    if (record_lost()) return ENETDOWN;
    if (const int error = take_error()) return error;
    return (shared().app.flags.load(std::memory_order_relaxed) & shm::kAppShutWrite) != 0 ? EPIPE : 0;
}

ssize_t Socket::send_datagram_blocks(const msghdr& message, shm::DatagramHeader& header, int flags) noexcept {
    const KeepErrno keep;
    shm::SocketRecord& record = shared();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    const std::size_t needed = (sizeof header + header.length + shm::kBlockSize - 1) / shm::kBlockSize;
    if (needed > client_->segment().geometry().tx_blocks) return keep.fail(EMSGSIZE);  // never: there is nothing to wait for
    bool sent = false;
    // All the blocks or none: who held some while waiting for more would keep them from others who do the same.
    const auto try_once = [&] {
        const SocketLock lock(*client_, record.app.tx_lock);
        std::uint32_t newest = shm::kNoIndex;
        std::size_t have = 0;
        for (; send_room() != 0 && have < needed; ++have) {
            const std::uint32_t block = client_->take_block();
            if (block == shm::kNoIndex) break;
            meta[block].next.store(newest == shm::kNoIndex ? shm::kEmptyList : newest + 1, std::memory_order_relaxed);
            newest = block;
        }
        if (have == needed) {
            push_datagram(message, header, newest, needed);
            return sent = true;
        }
        while (newest != shm::kNoIndex) {
            const std::uint32_t next = meta[newest].next.load(std::memory_order_relaxed);
            client_->untake_block(newest);
            newest = next == shm::kEmptyList ? shm::kNoIndex : next - 1;
        }
        return false;
    };
    // The daemon tells those that have asked (kAppWantWrite) whenever blocks come back while tx_starved is set, also when
    // the pool was not empty but had too few: so ask, then look once more, then sleep.
    const auto ask_and_try = [&] {
        client_->segment().header().tx_starved.store(1, std::memory_order_seq_cst);
        record.app.flags.fetch_or(shm::kAppWantWrite, std::memory_order_seq_cst);
        return try_once();
    };
    if (const int state = send_datagram_state()) return keep.fail(state);
    if (try_once()) return header.length;
    if (!wants_to_wait(flags)) {
        if (record.app.watch.load(std::memory_order_relaxed) != shm::kWatchNone && ask_and_try()) return header.length;
        return keep.fail(EAGAIN);
    }
    const int woken = wait_for(*client_, record, spin_history_, send_timeout_ns_.load(std::memory_order_relaxed), [&] {
        return record_lost() || record.daemon.error.load(std::memory_order_relaxed) != 0 ||
               (record.app.flags.load(std::memory_order_relaxed) & shm::kAppShutWrite) != 0 || ask_and_try();
    }, true);
    if (sent) return header.length;
    if (woken != 0) return keep.fail(woken);
    return keep.fail(std::max(send_datagram_state(), 1));
}

/// Fills the chain of `count` blocks that ends with `newest`, and hands it over. Under tx_lock.
void Socket::push_datagram(const msghdr& message, const shm::DatagramHeader& header, std::uint32_t newest,
                           std::size_t count) noexcept {
    shm::SocketRecord& record = shared();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    const std::size_t total = sizeof header + header.length;
    // The chain is linked newest first, so it is filled from its end: the last block holds the tail.
    std::size_t end = total;
    std::uint32_t block = newest;
    for (std::size_t index = count; index-- > 0;) {
        const std::size_t begin = index * shm::kBlockSize;
        std::byte* to_bytes = client_->segment().block(block);
        std::size_t position = 0;  // of the part that is looked at, in the whole
        const auto put = [&](const void* data, std::size_t size) {
            const std::size_t from = std::max(position, begin);
            const std::size_t until = std::min(position + size, end);
            if (from < until)
                std::memcpy(to_bytes + (from - begin), static_cast<const std::byte*>(data) + (from - position), until - from);
            position += size;
        };
        put(&header, sizeof header);
        for (std::size_t i = 0; i < message.msg_iovlen; ++i) put(message.msg_iov[i].iov_base, message.msg_iov[i].iov_len);
        meta[block].length.store(static_cast<std::uint32_t>(end - begin), std::memory_order_relaxed);
        meta[block].offset.store(0, std::memory_order_relaxed);
        meta[block].flags.store(index + 1 < count ? shm::kBlockMore : 0, std::memory_order_relaxed);
        end = begin;
        if (index != 0) block = meta[block].next.load(std::memory_order_relaxed) - 1;
    }
    record.app.tx_queued.store(record.app.tx_queued.load(std::memory_order_relaxed) + total, std::memory_order_release);
    shm::push_chain(record.app.tx_list, meta, newest, block);
    client_->post(record_.load(std::memory_order_relaxed));
}

}  // namespace culvert::preload
