// What the tests of sockets share: a fake daemon, and calls as a program makes them but on Socket directly.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "preload/fd_table.h"
#include "preload/libc.h"
#include "preload/socket.h"
#include "preload/startup.h"
#include "tests/support/fake_daemon.h"

namespace culvert::test {

inline sockaddr_in ipv4(const char* address, std::uint16_t port) {
    sockaddr_in out{};
    out.sin_family = AF_INET;
    out.sin_port = htons(port);
    ::inet_pton(AF_INET, address, &out.sin_addr);
    return out;
}
inline const sockaddr* as_sockaddr(const sockaddr_in& address) { return reinterpret_cast<const sockaddr*>(&address); }
inline sockaddr* as_sockaddr(sockaddr_in& address) { return reinterpret_cast<sockaddr*>(&address); }

/// A descriptor that the shim knows, closed at the end as close() would.
class Fd {
public:
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    ~Fd() { close(); }
    void close() {
        if (fd_ < 0) return;
        preload::FdTable::instance().remove(fd_);
        preload::raw::close(fd_);
        fd_ = -1;
    }
    int number() const { return fd_; }
    preload::Socket& operator*() const {
        preload::DescriptionRef ref = preload::FdTable::instance().find(fd_);
        if (!ref) throw std::runtime_error("descriptor is not the shim's");
        return preload::Socket::of(*ref.get());
    }
    preload::Socket* operator->() const { return &**this; }
    bool known() const { return preload::FdTable::instance().contains(fd_); }

    ssize_t send(const std::string& bytes, int flags = 0) const {
        iovec part{const_cast<char*>(bytes.data()), bytes.size()};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        return (**this).send(fd_, message, flags);
    }
    ssize_t send_to(const std::string& bytes, const sockaddr_in& to, int flags = 0) const {
        iovec part{const_cast<char*>(bytes.data()), bytes.size()};
        msghdr message{};
        message.msg_name = const_cast<sockaddr_in*>(&to);
        message.msg_namelen = sizeof to;
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        return (**this).send(fd_, message, flags);
    }
    /// The bytes, or "errno N".
    std::string receive(std::size_t size, int flags = 0) const {
        std::string bytes(size, '\0');
        iovec part{bytes.data(), bytes.size()};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        const ssize_t got = (**this).receive(fd_, message, flags);
        if (got < 0) return "errno " + std::to_string(errno);
        bytes.resize(std::min<std::size_t>(static_cast<std::size_t>(got), size));
        return bytes;
    }
    int connect(const char* address, std::uint16_t port) const {
        const sockaddr_in to = ipv4(address, port);
        return (**this).connect(fd_, as_sockaddr(to), sizeof to);
    }
    int get_int(int level, int name) const {
        int value = -1;
        socklen_t length = sizeof value;
        return (**this).get_option(fd_, level, name, &value, &length) == 0 ? value : -errno;
    }
    int set_int(int level, int name, int value) const {
        return (**this).set_option(fd_, level, name, &value, sizeof value) == 0 ? 0 : -errno;
    }

private:
    int fd_;
};

inline std::string error_text(int code) { return "errno " + std::to_string(code); }

class SocketTest : public ::testing::Test {
protected:
    SocketTest() { client = daemon.attach(); }
    ~SocketTest() override { preload::Client::install(nullptr); }
    void SetUp() override { ASSERT_NE(client, nullptr); }

    Fd open(int type) { return Fd(preload::Socket::open(AF_INET, type, 0)); }
    /// A blocking connection to a peer behind Culvert.
    Fd connected(int extra_type = 0) {
        Fd fd = open(SOCK_STREAM);
        EXPECT_EQ(fd.connect("10.77.0.9", 80), 0) << std::strerror(errno);
        EXPECT_EQ(fd->path(), preload::Socket::Path::kConnection);
        if (extra_type != 0) fd->set_status_flags(fd.number(), O_NONBLOCK);
        return fd;
    }
    /// A listener on every address; `port` is the kernel's choice.
    Fd listening(int extra_type = 0) {
        Fd fd = open(SOCK_STREAM | extra_type);
        sockaddr_in any = ipv4("0.0.0.0", 0);
        EXPECT_EQ(fd->bind(fd.number(), as_sockaddr(any), sizeof any), 0);
        EXPECT_EQ(fd->listen(fd.number(), 16), 0);
        EXPECT_EQ(fd->path(), preload::Socket::Path::kListener);
        socklen_t length = sizeof any;
        EXPECT_EQ(fd->sockname(fd.number(), as_sockaddr(any), &length), 0);
        port = ntohs(any.sin_port);
        return fd;
    }
    Fd accept(const Fd& listener, int flags = 0) { return Fd(listener->accept(listener.number(), nullptr, nullptr, flags)); }

    FakeDaemon daemon;
    preload::Client* client = nullptr;
    std::uint16_t port = 0;
};

}  // namespace culvert::test
