// Socket as a UDP socket: Culvert and the kernel on one port.
//
// The kernel's socket owns the port and goes on receiving what Culvert leaves to it (loopback, other interfaces,
// multicast, fragments), so receive looks at both, Culvert first. A send asks the daemon whether the destination lies
// behind a Culvert interface; the answer holds for the following packets to the same address for a while.

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "preload/address.h"
#include "preload/fail.h"
#include "preload/libc.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

namespace {
constexpr std::size_t kMaxDatagram = 65507;
constexpr std::int64_t kRouteHoldsNs = 1'000'000'000;
}  // namespace

/// Tells the daemon of a bound socket. What cannot be Culvert's stays the kernel's.
void Socket::try_bind_datagram(int fd) noexcept {
    Client* client = Client::attached();
    if (client == nullptr) return;
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    if (libc::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return;
    const auto local = to_wire(reinterpret_cast<sockaddr*>(&name), length, family_);
    if (!local || local->port == 0) return;
    if (is_loopback(*local) || is_multicast(*local)) return client->note_reason(fd, shm::KernelReason::kLoopback);
    const std::uint32_t record = prepare_record(*client);
    if (record == shm::kNoIndex) return client->note_reason(fd, shm::KernelReason::kTableFull);
    if (const int error = operate(*client, record, shm::Operation::kBindDatagram, 0, *local, {}); error != 0) {
        client->let_go(record, false);
        return client->note_reason(
            fd, error == EADDRNOTAVAIL ? shm::KernelReason::kNotLocal : shm::KernelReason::kRefused);
    }
    adopt(*client, record, Path::kDatagram);
}

/// True if `remote` is reached through a Culvert interface.
bool Socket::routed(const shm::WireEndpoint& remote) noexcept {
    if (is_loopback(remote) || is_unspecified(remote) || is_multicast(remote)) return false;
    const std::int64_t now = now_ns();
    if (now < route_until_ns_ && std::memcmp(route_address_, remote.address, sizeof route_address_) == 0)
        return route_culvert_;
    Client* client = path() == Path::kDatagram ? client_ : Client::attached();
    if (client == nullptr || client->daemon_gone()) return false;
    bool culvert = false;
    if (path() == Path::kDatagram) {
        const shm::WireEndpoint local = shared().local;
        culvert = operate(*client, record(), shm::Operation::kRoute, 0, {}, remote) == 0;
        shared().local = local;  // the answer stands where the local address was
    } else if (const std::uint32_t record = prepare_record(*client); record != shm::kNoIndex) {
        culvert = operate(*client, record, shm::Operation::kRoute, 0, {}, remote) == 0;
        client->let_go(record, false);
    }
    std::memcpy(route_address_, remote.address, sizeof route_address_);
    route_culvert_ = culvert;
    route_until_ns_ = now + kRouteHoldsNs;
    return culvert;
}

namespace {

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

}  // namespace

int Socket::connect_datagram(int fd, const sockaddr* address, socklen_t length) noexcept {
    const KeepErrno keep;
    if (address != nullptr && length >= sizeof(sa_family_t) && address->sa_family == AF_UNSPEC) {
        if (path() == Path::kDatagram && datagram_connected_) {
            operate(*client_, record(), shm::Operation::kConnectDatagram, 0, {}, {});
            datagram_connected_ = false;
        }
        connected_kernel_ = false;
        return keep.pass(libc::connect(fd, address, length));
    }
    const auto remote = to_wire(address, length, family_);
    const bool through_culvert = remote && routed(*remote);
    if (through_culvert && path() == Path::kKernel) {
        if (is_unbound(fd, family_)) bind_any(fd, family_);
        try_bind_datagram(fd);
    }
    // The kernel's half is connected as well: getpeername and the source address are then the kernel's own, and it
    // drops what comes from others.
    const int result = libc::connect(fd, address, length);
    if (result != 0) return keep.pass(result);
    datagram_connected_ = false;
    connected_kernel_ = true;
    if (path() == Path::kDatagram && through_culvert &&
        operate(*client_, record(), shm::Operation::kConnectDatagram, 0, {}, *remote) == 0) {
        datagram_connected_ = true;
        connected_kernel_ = false;
    }
    return 0;
}

ssize_t Socket::send_datagram(int fd, const msghdr& message, int flags) noexcept {
    const auto* address = static_cast<const sockaddr*>(message.msg_name);
    const bool plain = message.msg_controllen == 0 && (flags & (MSG_OOB | MSG_MORE)) == 0;
    if (address == nullptr) {
        // Connected through us, or the kernel's answer (EDESTADDRREQ, or a peer on its side).
        if (!datagram_connected_ || path() != Path::kDatagram || !plain || client_->daemon_gone())
            return libc::sendmsg(fd, &message, flags);
        return send_datagram_blocks(message, {}, flags);
    }
    const auto remote = to_wire(address, message.msg_namelen, family_);
    if (!remote || remote->port == 0 || !plain || !routed(*remote)) return libc::sendmsg(fd, &message, flags);
    if (path() == Path::kKernel) {
        const KeepErrno keep;
        if (is_unbound(fd, family_)) bind_any(fd, family_);
        try_bind_datagram(fd);
    }
    if (path() != Path::kDatagram || client_->daemon_gone()) return libc::sendmsg(fd, &message, flags);
    return send_datagram_blocks(message, *remote, flags);
}

ssize_t Socket::send_datagram_blocks(const msghdr& message, const shm::WireEndpoint& to, int flags) noexcept {
    const KeepErrno keep;
    std::size_t length = 0;
    for (std::size_t i = 0; i < message.msg_iovlen; ++i) length += message.msg_iov[i].iov_len;
    if (length > kMaxDatagram) return keep.fail(EMSGSIZE);
    shm::SocketRecord& record = shared();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    shm::DatagramHeader header{};
    header.remote = to;
    header.length = static_cast<std::uint32_t>(length);
    const std::size_t total = sizeof header + length;
    const std::size_t needed = (total + shm::kBlockSize - 1) / shm::kBlockSize;
    if (needed > client_->segment().geometry().tx_blocks) return keep.fail(EMSGSIZE);  // never: there is nothing to wait for
    for (bool again = true;;) {
        if (const int error = take_error()) return keep.fail(error);
        if ((record.app.flags.load(std::memory_order_relaxed) & shm::kAppShutWrite) != 0) {
            return keep.fail(EPIPE);
        }
        std::uint32_t oldest = shm::kNoIndex;
        std::uint32_t newest = shm::kNoIndex;
        std::size_t have = 0;
        {
            const SocketLock lock(*client_, record.app.tx_lock);
            if (send_room() != 0) {
                for (; have < needed; ++have) {
                    const std::uint32_t block = client_->take_block();
                    if (block == shm::kNoIndex) break;
                    meta[block].next.store(newest == shm::kNoIndex ? shm::kEmptyList : newest + 1,
                                           std::memory_order_relaxed);
                    if (oldest == shm::kNoIndex) oldest = block;
                    newest = block;
                }
            }
            if (have == needed) {
                // The chain is linked newest first, so it is filled from its end: the last block holds the tail.
                std::size_t end = total;
                std::uint32_t block = newest;
                for (std::size_t index = needed; index-- > 0;) {
                    const std::size_t begin = index * shm::kBlockSize;
                    std::byte* to_bytes = client_->segment().block(block);
                    std::size_t position = 0;  // of the part that is looked at, in the whole
                    const auto put = [&](const void* data, std::size_t size) {
                        const std::size_t from = std::max(position, begin);
                        const std::size_t until = std::min(position + size, end);
                        if (from < until)
                            std::memcpy(to_bytes + (from - begin), static_cast<const std::byte*>(data) + (from - position),
                                        until - from);
                        position += size;
                    };
                    put(&header, sizeof header);
                    for (std::size_t i = 0; i < message.msg_iovlen; ++i)
                        put(message.msg_iov[i].iov_base, message.msg_iov[i].iov_len);
                    meta[block].length.store(static_cast<std::uint32_t>(end - begin), std::memory_order_relaxed);
                    meta[block].offset.store(0, std::memory_order_relaxed);
                    meta[block].flags.store(index + 1 < needed ? shm::kBlockMore : 0, std::memory_order_relaxed);
                    end = begin;
                    const std::uint32_t next = meta[block].next.load(std::memory_order_relaxed);
                    if (index != 0) block = next - 1;
                }
                record.app.tx_queued.store(record.app.tx_queued.load(std::memory_order_relaxed) + total,
                                           std::memory_order_release);
                shm::push_chain(record.app.tx_list, meta, newest, oldest);
                client_->post(record_.load(std::memory_order_relaxed));
                return static_cast<ssize_t>(length);
            }
        }
        while (newest != shm::kNoIndex) {  // not enough blocks: all back
            const std::uint32_t next = meta[newest].next.load(std::memory_order_relaxed);
            client_->untake_block(newest);
            newest = next == shm::kEmptyList ? shm::kNoIndex : next - 1;
        }
        if (!wants_to_wait(flags)) {
            // As in send_stream, but one more attempt only: some blocks may be free all the time, yet too few for this
            // datagram. Then the daemon is made to look, and tells.
            if (record.app.watch.load(std::memory_order_relaxed) != shm::kWatchNone && arm_write_notice()) {
                if (std::exchange(again, false)) continue;
                client_->post(record_.load(std::memory_order_relaxed));
            }
            return keep.fail(EAGAIN);
        }
        const int woken =
            wait_for(*client_, record, spin_history_, send_timeout_ns_.load(std::memory_order_relaxed), [&] {
                return record_lost() || record.daemon.error.load(std::memory_order_relaxed) != 0 || has_room() ||
                       arm_write_notice();
            });
        if (woken != 0) return keep.fail(woken);
        if (record_lost()) return keep.fail(ENETDOWN);
    }
}

/// One datagram out of the stash, or -1 with EAGAIN when there is none. Under rx_lock.
ssize_t Socket::take_datagram(msghdr& message, int flags) noexcept {
    shm::SocketRecord& record = shared();
    const std::uint32_t limit = client_->segment().geometry().blocks();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    const std::uint32_t first = record.app.stash_head.load(std::memory_order_relaxed);
    if (first == shm::kEmptyList || first > limit) return fail(EAGAIN);
    shm::DatagramHeader header{};
    std::size_t part = 0;
    std::size_t at = 0;
    std::size_t copied = 0;
    std::size_t length = 0;
    std::uint32_t link = first;
    std::uint32_t last = first;
    for (std::uint32_t steps = 0; link != shm::kEmptyList && link <= limit && steps < limit; ++steps) {
        const std::uint32_t block = link - 1;
        std::uint32_t offset = std::min(meta[block].offset.load(std::memory_order_relaxed), shm::kBlockSize);
        std::uint32_t size = std::min(meta[block].length.load(std::memory_order_relaxed), shm::kBlockSize - offset);
        const std::byte* from = client_->segment().block(block) + offset;
        if (link == first) {
            if (size >= sizeof header) {
                std::memcpy(&header, from, sizeof header);
                from += sizeof header;
                size -= static_cast<std::uint32_t>(sizeof header);
            } else {
                size = 0;
            }
        }
        length += size;
        while (size != 0 && part < message.msg_iovlen) {
            const std::size_t fits = std::min<std::size_t>(size, message.msg_iov[part].iov_len - at);
            if (fits != 0) std::memcpy(static_cast<std::byte*>(message.msg_iov[part].iov_base) + at, from, fits);
            from += fits;
            size -= static_cast<std::uint32_t>(fits);
            copied += fits;
            at += fits;
            if (at == message.msg_iov[part].iov_len) {
                ++part;
                at = 0;
            }
        }
        last = link;
        const bool more = (meta[block].flags.load(std::memory_order_relaxed) & shm::kBlockMore) != 0;
        link = meta[block].next.load(std::memory_order_relaxed);
        if (!more) break;
    }
    if ((flags & MSG_PEEK) == 0) {
        record.app.stash_head.store(link <= limit ? link : shm::kEmptyList, std::memory_order_relaxed);
        client_->return_blocks(first - 1, last - 1);
        record.app.rx_consumed.store(record.app.rx_consumed.load(std::memory_order_relaxed) + length,
                                     std::memory_order_release);
    }
    message.msg_flags = length > copied ? MSG_TRUNC : 0;
    from_wire(header.remote, family_, static_cast<sockaddr*>(message.msg_name), &message.msg_namelen);
    std::size_t control = 0;
    if (packet_info_ && message.msg_control != nullptr) {
        // To which of our addresses it came: IP_PKTINFO or IPV6_PKTINFO.
        const bool v6 = family_ == AF_INET6;
        in_pktinfo v4_info{};
        std::memcpy(&v4_info.ipi_addr, header.local_address + 12, 4);
        v4_info.ipi_spec_dst = v4_info.ipi_addr;
        v4_info.ipi_ifindex = static_cast<int>(header.remote.interface);
        in6_pktinfo v6_info{};
        std::memcpy(&v6_info.ipi6_addr, header.local_address, 16);
        v6_info.ipi6_ifindex = header.remote.interface;
        const std::size_t size = v6 ? sizeof v6_info : sizeof v4_info;
        if (message.msg_controllen >= CMSG_SPACE(size)) {
            cmsghdr* out = static_cast<cmsghdr*>(message.msg_control);
            out->cmsg_level = v6 ? IPPROTO_IPV6 : IPPROTO_IP;
            out->cmsg_type = v6 ? IPV6_PKTINFO : IP_PKTINFO;
            out->cmsg_len = CMSG_LEN(size);
            std::memcpy(CMSG_DATA(out), v6 ? static_cast<const void*>(&v6_info) : &v4_info, size);
            control = CMSG_SPACE(size);
        } else {
            message.msg_flags |= MSG_CTRUNC;
        }
    }
    message.msg_controllen = control;
    return static_cast<ssize_t>((flags & MSG_TRUNC) != 0 ? length : copied);
}

ssize_t Socket::receive_datagram(int fd, msghdr& message, int flags) noexcept {
    if ((flags & (MSG_ERRQUEUE | MSG_OOB)) != 0) return libc::recvmsg(fd, &message, flags);
    const KeepErrno keep;
    const std::int64_t timeout = receive_timeout_ns_.load(std::memory_order_relaxed);
    const std::int64_t deadline = timeout >= 0 ? now_ns() + timeout : -1;
    for (;;) {
        if (!record_lost()) {
            if (const int error = take_error()) return keep.fail(error);
            const SocketLock lock(*client_, shared().app.rx_lock);
            refill_stash();
            const ssize_t got = take_datagram(message, flags);
            if (got >= 0) return got;
        }
        const ssize_t kernel = libc::recvmsg(fd, &message, flags | MSG_DONTWAIT);
        if (kernel >= 0) return kernel;
        if (errno != EAGAIN || !wants_to_wait(flags)) return keep.pass(kernel);
        const std::int64_t left = deadline < 0 ? -1 : std::max<std::int64_t>(deadline - now_ns(), 0);
        const int woken = wait_both(fd, left, [&] {
            return !record_lost() && (readable() || shared().daemon.error.load(std::memory_order_relaxed) != 0);
        });
        if (woken != 0) return keep.fail(woken);
    }
}

}  // namespace culvert::preload
