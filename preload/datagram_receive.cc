// Socket as a UDP socket, the way in: datagrams and errors, from Culvert first, then from the kernel's socket.

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "preload/address.h"
#include "preload/fail.h"
#include "preload/libc.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

namespace {

/// Copies into the application's buffers, one piece after the other, as far as they reach.
class Scatter {
public:
    explicit Scatter(const msghdr& message) noexcept : parts_(message.msg_iov), count_(message.msg_iovlen) {}
    void put(const std::byte* from, std::size_t size) noexcept {
        while (size != 0 && part_ < count_) {
            const std::size_t fits = std::min(size, parts_[part_].iov_len - at_);
            if (fits != 0) std::memcpy(static_cast<std::byte*>(parts_[part_].iov_base) + at_, from, fits);
            from += fits;
            size -= fits;
            copied_ += fits;
            at_ += fits;
            if (at_ == parts_[part_].iov_len) {
                ++part_;
                at_ = 0;
            }
        }
    }
    std::size_t copied() const noexcept { return copied_; }

private:
    const iovec* parts_;
    std::size_t count_;
    std::size_t part_ = 0;
    std::size_t at_ = 0;
    std::size_t copied_ = 0;
};

/// What a block holds, within the block whatever its description says.
struct BlockBytes {
    const std::byte* data;
    std::uint32_t size;
};
BlockBytes bytes_of(Client& client, std::uint32_t block) noexcept {
    const shm::BlockMeta& meta = client.segment().block_meta()[block];
    const std::uint32_t offset = std::min(meta.offset.load(std::memory_order_relaxed), shm::kBlockSize);
    const std::uint32_t size = std::min(meta.length.load(std::memory_order_relaxed), shm::kBlockSize - offset);
    return {client.segment().block(block) + offset, size};
}

}  // namespace

/// One datagram out of the stash, or -1 with EAGAIN when there is none. Under rx_lock.
ssize_t Socket::take_datagram(msghdr& message, int flags) noexcept {
    shm::SocketRecord& record = shared();
    const std::uint32_t limit = client_->segment().geometry().blocks();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    const std::uint32_t first = record.app.stash_head.load(std::memory_order_relaxed);
    if (first == shm::kEmptyList || first > limit) return fail(EAGAIN);
    shm::DatagramHeader header{};
    Scatter out(message);
    std::size_t length = 0;
    std::uint32_t link = first;
    std::uint32_t last = first;
    for (std::uint32_t steps = 0; link != shm::kEmptyList && link <= limit && steps < limit; ++steps) {
        BlockBytes bytes = bytes_of(*client_, link - 1);
        if (link == first) {
            const auto skip = std::min(bytes.size, static_cast<std::uint32_t>(sizeof header));
            if (skip == sizeof header) std::memcpy(&header, bytes.data, sizeof header);
            bytes = {bytes.data + skip, bytes.size - skip};
        }
        length += bytes.size;
        out.put(bytes.data, bytes.size);
        last = link;
        const bool more = (meta[link - 1].flags.load(std::memory_order_relaxed) & shm::kBlockMore) != 0;
        link = meta[link - 1].next.load(std::memory_order_relaxed);
        if (!more) break;
    }
    if ((flags & MSG_PEEK) == 0) {
        record.app.stash_head.store(link <= limit ? link : shm::kEmptyList, std::memory_order_relaxed);
        client_->return_blocks(first - 1, last - 1);
        record.app.rx_consumed.store(record.app.rx_consumed.load(std::memory_order_relaxed) + length,
                                     std::memory_order_release);
    }
    message.msg_flags = length > out.copied() ? MSG_TRUNC : 0;
    from_wire(header.remote, family_, static_cast<sockaddr*>(message.msg_name), &message.msg_namelen);
    const std::uint32_t wants = datagram_->wants.load(std::memory_order_relaxed);
    if (wants != 0) [[unlikely]]
        write_control(message, header, record.local.port, family_, wants);
    else
        message.msg_controllen = 0;
    return static_cast<ssize_t>((flags & MSG_TRUNC) != 0 ? length : out.copied());
}

bool Socket::has_error_entry() const noexcept {
    const shm::SocketRecord& record = shared();
    return record.app.error_stash.load(std::memory_order_relaxed) != shm::kEmptyList ||
           record.daemon.error_list.load(std::memory_order_relaxed) != shm::kEmptyList;
}

/// The oldest entry of the error queue, or -1 with EAGAIN. Under rx_lock.
ssize_t Socket::take_error_entry(msghdr& message, int flags) noexcept {
    shm::SocketRecord& record = shared();
    const std::uint32_t limit = client_->segment().geometry().blocks();
    shm::BlockMeta* const meta = client_->segment().block_meta();
    std::uint32_t first = record.app.error_stash.load(std::memory_order_relaxed);
    if (first == shm::kEmptyList) {  // turn round what has come
        std::uint32_t link = shm::take_all(record.daemon.error_list);
        for (std::uint32_t steps = 0; link != shm::kEmptyList && link <= limit && steps < limit; ++steps) {
            const std::uint32_t next = meta[link - 1].next.load(std::memory_order_relaxed);
            meta[link - 1].next.store(first, std::memory_order_relaxed);
            first = link;
            link = next;
        }
    }
    if (first == shm::kEmptyList || first > limit) return fail(EAGAIN);
    BlockBytes bytes = bytes_of(*client_, first - 1);
    shm::DatagramErrorHeader header{};
    Scatter out(message);
    if (bytes.size >= sizeof header) {
        std::memcpy(&header, bytes.data, sizeof header);
        bytes = {bytes.data + sizeof header, bytes.size - static_cast<std::uint32_t>(sizeof header)};
        out.put(bytes.data, bytes.size);
    }
    // As Linux: taking the last one also takes the error that it raised; MSG_PEEK means nothing here.
    const std::uint32_t next = meta[first - 1].next.load(std::memory_order_relaxed);
    record.app.error_stash.store(next <= limit ? next : shm::kEmptyList, std::memory_order_relaxed);
    client_->return_block(first - 1);
    if (!has_error_entry()) record.daemon.error.store(0, std::memory_order_relaxed);
    message.msg_flags = MSG_ERRQUEUE | (bytes.size > out.copied() ? MSG_TRUNC : 0);
    from_wire(header.remote, family_, static_cast<sockaddr*>(message.msg_name), &message.msg_namelen);
    write_error_control(message, header, family_);
    return static_cast<ssize_t>((flags & MSG_TRUNC) != 0 ? bytes.size : out.copied());
}

/// Payload of the datagram that would be received next from Culvert; -1: there is none.
int Socket::next_datagram_length() noexcept {
    if (record_lost()) return -1;
    const SocketLock lock(*client_, shared().app.rx_lock);
    refill_stash();
    const std::uint32_t first = shared().app.stash_head.load(std::memory_order_relaxed);
    if (first == shm::kEmptyList || first > client_->segment().geometry().blocks()) return -1;
    const BlockBytes bytes = bytes_of(*client_, first - 1);
    shm::DatagramHeader header{};
    if (bytes.size < sizeof header) return -1;
    std::memcpy(&header, bytes.data, sizeof header);
    return static_cast<int>(std::min(header.length, 0xffffu));
}

ssize_t Socket::receive_datagram(int fd, msghdr& message, int flags) noexcept {
    // Means nothing to UDP; raw sockets refuse it.
    if ((flags & MSG_OOB) != 0 && is_raw()) return libc::recvmsg(fd, &message, flags);
    const KeepErrno keep;
    if ((flags & MSG_ERRQUEUE) != 0) {  // never waits
        if (!record_lost()) {
            const SocketLock lock(*client_, shared().app.rx_lock);
            ssize_t got = take_error_entry(message, flags);
            if (got < 0) got = take_local_error(message);
            if (got < 0) got = take_copy_notice(message);
            if (got >= 0) return got;
        }
        return keep.pass(libc::recvmsg(fd, &message, flags));
    }
    const std::int64_t timeout = receive_timeout_ns_.load(std::memory_order_relaxed);
    const std::int64_t deadline = timeout >= 0 ? now_ns() + timeout : -1;
    for (;;) {
        revive_if_due(fd);
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
        const auto shut_read = [&] {
            return !record_lost() && (shared().app.flags.load(std::memory_order_relaxed) & shm::kAppShutRead) != 0;
        };
        if (shut_read()) {  // unlike a stream it says so only to those who would wait
            message.msg_namelen = 0;
            message.msg_controllen = 0;
            message.msg_flags = 0;
            return 0;
        }
        const std::int64_t left = deadline < 0 ? -1 : std::max<std::int64_t>(deadline - now_ns(), 0);
        const int woken = wait_both(fd, left, [&] {
            return !record_lost() && (readable() || shared().daemon.error.load(std::memory_order_relaxed) != 0);
        });
        if (woken != 0) return keep.fail(woken);
    }
}

}  // namespace culvert::preload
