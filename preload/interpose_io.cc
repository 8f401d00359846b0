// Reading and writing.
#include "preload/interpose.h"

#include <fcntl.h>
#include <sys/sendfile.h>

#include "preload/bounce.h"
#include "preload/leave.h"

using namespace culvert::preload;

extern "C" [[noreturn]] void __chk_fail() noexcept;

namespace {

/// RWF_* of preadv2 and pwritev2 on a socket: only "do not wait" means something there.
int message_flags(int flags) noexcept { return (flags & RWF_NOWAIT) != 0 ? MSG_DONTWAIT : 0; }

/// What the kernel does not know of any file it refuses before it looks at this one. RWF_NOAPPEND is newer than our headers.
bool refuses_flags(int flags) noexcept {
    constexpr int kNoAppend = 0x20;
    constexpr int kKnown = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT | RWF_APPEND | kNoAppend;
    const bool unknown = (flags & ~kKnown) != 0;
    if (!unknown && (flags & (RWF_APPEND | kNoAppend)) != (RWF_APPEND | kNoAppend)) return false;
    errno = unknown ? EOPNOTSUPP : EINVAL;
    return true;
}

ssize_t receive(const SocketRef& socket, int fd, msghdr& message, int flags) {
    return cancellable([&] {
        const CancellationOff off(uses_kernel_calls(socket));
        return socket->receive(fd, message, flags);
    });
}

ssize_t send_message(const SocketRef& socket, int fd, const msghdr& message, int flags) {
    return cancellable([&] {
        const CancellationOff off(uses_kernel_calls(socket));
        return socket->send(fd, message, flags);
    });
}

ssize_t receive_parts(const SocketRef& socket, int fd, const iovec* parts, int count, int flags) {
    if (bad_parts(parts, count)) return -1;
    if (empty_parts(parts, count)) return 0;
    msghdr message = message_of(parts, count);
    return receive(socket, fd, message, flags);
}

ssize_t send_parts(const SocketRef& socket, int fd, const iovec* parts, int count, int flags) {
    if (bad_parts(parts, count)) return -1;
    if (empty_parts(parts, count)) return 0;
    return send_message(socket, fd, message_of(parts, count), flags);
}

}  // namespace

// --- read -------------------------------------------------------------------------------------------------------------

CULVERT_EXPORT ssize_t read(int fd, void* data, std::size_t length) {
    if (const SocketRef socket = our_socket(fd)) {
        if (length == 0) return 0;  // unlike recv(): System V's behaviour, says the kernel
        Message message(data, length);
        return receive(socket, fd, message.header, 0);
    }
    return libc::read.get()(fd, data, length);
}
CULVERT_EXPORT ssize_t __read(int fd, void* data, std::size_t length) { return read(fd, data, length); }

CULVERT_EXPORT ssize_t __read_chk(int fd, void* data, std::size_t length, std::size_t room) {
    if (length > room) __chk_fail();
    return read(fd, data, length);
}

CULVERT_EXPORT ssize_t readv(int fd, const iovec* parts, int count) {
    if (const SocketRef socket = our_socket(fd)) return receive_parts(socket, fd, parts, count, 0);
    return libc::readv.get()(fd, parts, count);
}

CULVERT_EXPORT ssize_t preadv2(int fd, const iovec* parts, int count, off_t offset, int flags) {
    const SocketRef socket = offset == -1 ? our_socket(fd) : SocketRef();
    if (socket) return refuses_flags(flags) ? -1 : receive_parts(socket, fd, parts, count, message_flags(flags));
    return libc::preadv2.get()(fd, parts, count, offset, flags);
}
CULVERT_EXPORT ssize_t preadv64v2(int fd, const iovec* parts, int count, off64_t offset, int flags) {
    return preadv2(fd, parts, count, offset, flags);
}

CULVERT_EXPORT ssize_t recv(int fd, void* data, std::size_t length, int flags) {
    if (const SocketRef socket = our_socket(fd)) {
        Message message(data, length);
        return receive(socket, fd, message.header, flags);
    }
    return libc::recv.get()(fd, data, length, flags);
}

CULVERT_EXPORT ssize_t __recv_chk(int fd, void* data, std::size_t length, std::size_t room, int flags) {
    if (length > room) __chk_fail();
    return recv(fd, data, length, flags);
}

CULVERT_EXPORT ssize_t recvfrom(int fd, void* data, std::size_t length, int flags, sockaddr* address,
                                socklen_t* address_length) {
    if (const SocketRef socket = our_socket(fd)) {
        Message message(data, length);
        // What is wrong with the room for the name is found when there is one to write: after the data have been taken.
        const int wrong = address == nullptr ? 0 : address_length == nullptr ? EFAULT : static_cast<int>(*address_length) < 0 ? EINVAL : 0;
        if (address != nullptr && wrong == 0) {
            message.header.msg_name = address;
            message.header.msg_namelen = *address_length;
        }
        const ssize_t got = receive(socket, fd, message.header, flags);
        if (got >= 0 && wrong != 0) {
            errno = wrong;
            return -1;
        }
        if (got >= 0 && address != nullptr) *address_length = message.header.msg_namelen;
        return got;
    }
    return libc::recvfrom.get()(fd, data, length, flags, address, address_length);
}

CULVERT_EXPORT ssize_t __recvfrom_chk(int fd, void* data, std::size_t length, std::size_t room, int flags,
                                      sockaddr* address, socklen_t* address_length) {
    if (length > room) __chk_fail();
    return recvfrom(fd, data, length, flags, address, address_length);
}

CULVERT_EXPORT ssize_t recvmsg(int fd, msghdr* message, int flags) {
    if (const SocketRef socket = our_socket(fd)) return receive(socket, fd, *message, flags);
    const ssize_t got = libc::recvmsg.get()(fd, message, flags);
    if (got >= 0 && message->msg_controllen != 0) meet_received(*message);
    return got;
}

CULVERT_EXPORT int recvmmsg(int fd, mmsghdr* messages, unsigned count, int flags, timespec* timeout) {
    if (const SocketRef socket = our_socket(fd)) {
        return cancellable([&] {
            const CancellationOff off(uses_kernel_calls(socket));
            return socket->receive_many(fd, messages, count, flags, timeout);
        });
    }
    const int got = libc::recvmmsg.get()(fd, messages, count, flags, timeout);
    for (int i = 0; i < got; ++i)
        if (messages[i].msg_hdr.msg_controllen != 0) meet_received(messages[i].msg_hdr);
    return got;
}

// --- write ------------------------------------------------------------------------------------------------------------

CULVERT_EXPORT ssize_t write(int fd, const void* data, std::size_t length) {
    if (const SocketRef socket = sending_socket(fd)) return send_message(socket, fd, Message(data, length).header, 0);
    return libc::write.get()(fd, data, length);
}
CULVERT_EXPORT ssize_t __write(int fd, const void* data, std::size_t length) { return write(fd, data, length); }

CULVERT_EXPORT ssize_t writev(int fd, const iovec* parts, int count) {
    if (const SocketRef socket = sending_socket(fd)) return send_parts(socket, fd, parts, count, 0);
    return libc::writev.get()(fd, parts, count);
}

CULVERT_EXPORT ssize_t pwritev2(int fd, const iovec* parts, int count, off_t offset, int flags) {
    const SocketRef socket = offset == -1 ? sending_socket(fd) : SocketRef();
    if (socket) return refuses_flags(flags) ? -1 : send_parts(socket, fd, parts, count, message_flags(flags));
    return libc::pwritev2.get()(fd, parts, count, offset, flags);
}
CULVERT_EXPORT ssize_t pwritev64v2(int fd, const iovec* parts, int count, off64_t offset, int flags) {
    return pwritev2(fd, parts, count, offset, flags);
}

CULVERT_EXPORT ssize_t send(int fd, const void* data, std::size_t length, int flags) {
    if (const SocketRef socket = sending_socket(fd)) return send_message(socket, fd, Message(data, length).header, flags);
    return libc::send.get()(fd, data, length, flags);
}
CULVERT_EXPORT ssize_t __send(int fd, const void* data, std::size_t length, int flags) {
    return send(fd, data, length, flags);
}

CULVERT_EXPORT ssize_t sendto(int fd, const void* data, std::size_t length, int flags, const sockaddr* address,
                              socklen_t address_length) {
    // A stream that is not connected yet may be connected by this very call (MSG_FASTOPEN): Socket knows.
    if (const SocketRef socket = address != nullptr ? any_socket(fd) : sending_socket(fd)) {
        // The kernel takes the address before it looks at the socket; of no bytes it is one that is too short.
        const bool too_short = address != nullptr && address_length == 0 && socket->type() != SOCK_STREAM;
        if (address != nullptr && (static_cast<int>(address_length) < 0 || address_length > sizeof(sockaddr_storage) || too_short)) {
            errno = EINVAL;
            return -1;
        }
        Message message(data, length);
        message.header.msg_name = const_cast<sockaddr*>(address);
        message.header.msg_namelen = address != nullptr ? address_length : 0;
        return send_message(socket, fd, message.header, flags);
    }
    return libc::sendto.get()(fd, data, length, flags, address, address_length);
}

CULVERT_EXPORT ssize_t sendmsg(int fd, const msghdr* message, int flags) {
    const bool connects = (flags & MSG_FASTOPEN) != 0;
    if (const SocketRef socket = connects ? any_socket(fd) : sending_socket(fd))
        return send_message(socket, fd, *message, flags);
    if (message != nullptr && message->msg_controllen != 0) leave_by_message(*message);
    return libc::sendmsg.get()(fd, message, flags);
}

CULVERT_EXPORT int sendmmsg(int fd, mmsghdr* messages, unsigned count, int flags) {
    if (const SocketRef socket = sending_socket(fd)) {
        return cancellable([&] {
            const CancellationOff off(uses_kernel_calls(socket));
            return socket->send_many(fd, messages, count, flags);
        });
    }
    for (unsigned i = 0; messages != nullptr && i < count; ++i)
        if (messages[i].msg_hdr.msg_controllen != 0) leave_by_message(messages[i].msg_hdr);
    return libc::sendmmsg.get()(fd, messages, count, flags);
}

// --- between descriptors ----------------------------------------------------------------------------------------------

CULVERT_EXPORT ssize_t sendfile(int out, int in, off_t* offset, std::size_t count) noexcept {
    if (const SocketRef socket = our_socket(out)) return not_cancelled([&] { return socket->sendfile(out, in, offset, count); });
    return libc::sendfile(out, in, offset, count);
}
CULVERT_EXPORT ssize_t sendfile64(int out, int in, off64_t* offset, std::size_t count) noexcept {
    return sendfile(out, in, offset, count);
}

CULVERT_EXPORT ssize_t splice(int in, off64_t* in_offset, int out, off64_t* out_offset, std::size_t length,
                              unsigned flags) {
    const SocketRef from = our_socket(in);
    const SocketRef to = our_socket(out);
    if (!from && !to) return libc::splice.get()(in, in_offset, out, out_offset, length, flags);
    // In the kernel's order: flags, access modes, which end is the pipe, its offset, the socket's (which has none).
    constexpr unsigned kKnown = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT;
    const auto refuse = [](int error) {
        errno = error;
        return ssize_t{-1};
    };
    if (length == 0) return 0;
    if ((flags & ~kKnown) != 0) return refuse(EINVAL);
    const KeepErrno keep;
    const int other = from ? out : in;
    const int mode = libc::fcntl(other, F_GETFL);
    if (mode < 0) return keep.fail(EBADF);
    const bool is_pipe = libc::fcntl(other, F_GETPIPE_SZ) >= 0;
    if (is_pipe && (from ? out_offset : in_offset) != nullptr) return keep.fail(ESPIPE);
    if ((mode & O_PATH) != 0 || (mode & O_ACCMODE) == (from ? O_RDONLY : O_WRONLY)) return keep.fail(EBADF);
    if (!is_pipe || (from && to) || (from ? in_offset : out_offset) != nullptr) return keep.fail(EINVAL);
    return keep.pass(cancellable([&] {
        return from ? splice_from(*from, in, out, length, flags) : splice_to(in, *to, out, length, flags);
    }));
}
