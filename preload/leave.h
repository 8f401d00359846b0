// Descriptors of ours that go to another program: see leave.cc for what happens to them.
#pragma once

#include <sys/socket.h>

#include <cstring>

namespace culvert::preload {

/// With more sockets than this left open over an exec, only descriptors 0 to 2 are meant for the next program; to move all would
/// slow down a server's connections for a child that knows nothing of them.
constexpr int kMostByExec = 64;

/// Before exec, in whatever process: connections that the next program will find are taken to kernel sockets, datagram sockets
/// left to the kernel. `spawns`: it is posix_spawn's child that will find them.
void leave_by_exec(bool spawns) noexcept;
/// Before sendmsg() with SCM_RIGHTS.
void leave_by_message(const msghdr& message) noexcept;
/// After recvmsg(): descriptors that have come.
void meet_received(const msghdr& message) noexcept;

/// In a child that shares our memory (in_borrowed_memory()): it has duplicated or closed descriptors of its own.
/// This is such a child, and it has notes: descriptors that the table does not know may be connections.
bool borrowed_copies() noexcept;
void note_borrowed_copy(int original, int copy) noexcept;
void note_borrowed_close(unsigned first, unsigned last) noexcept;

/// Calls visit(fd) for each descriptor that a message carries. Control messages that make no sense end it.
template <class Visit>
void for_each_passed(const msghdr& message, Visit&& visit) noexcept {
    const auto* const begin = static_cast<const char*>(message.msg_control);
    for (std::size_t at = 0; at + sizeof(cmsghdr) <= message.msg_controllen;) {
        cmsghdr header;
        std::memcpy(&header, begin + at, sizeof header);
        if (header.cmsg_len < sizeof header || header.cmsg_len > message.msg_controllen - at) return;
        if (header.cmsg_level == SOL_SOCKET && header.cmsg_type == SCM_RIGHTS)
            for (std::size_t offset = CMSG_LEN(0); offset + sizeof(int) <= header.cmsg_len; offset += sizeof(int)) {
                int fd = -1;
                std::memcpy(&fd, begin + at + offset, sizeof fd);
                visit(fd);
            }
        at += CMSG_ALIGN(header.cmsg_len);
    }
}

}  // namespace culvert::preload
