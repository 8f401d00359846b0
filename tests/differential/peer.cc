// The other end: a process in the other namespace, on kernel sockets, that does what its case says, one command at a time.
//
//   listen -> port   accept   connect PORT   blackhole -> port   closed_port -> port
//   send N   urgent   shut   close   reset   receive_all -> what came and how it ended   receive N
//   ping   switch N (to another connection)   drain
//   udp -> port   udp_to PORT   udp_send N   udp_receive -> what came   udp_mark PORT   udp_send_refused   udp_close

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <utility>

#include "world.h"

namespace differential {

namespace {

class Peer {
public:
    /// What to answer. An empty text: failed, errno says why.
    std::string obey(const std::string& words) {
        std::istringstream in(words);
        int version = 0;
        std::string verb;
        long number = 0;
        std::string whose;
        in >> whose >> version >> verb >> number;
        if (whose == "new") forget();
        family_ = version == 6 ? AF_INET6 : AF_INET;
        if (verb == "listen") return listen_for_case(8);
        if (verb == "accept") return adopt(::accept(listener_, nullptr, nullptr));
        if (verb == "connect") return connect_to(static_cast<int>(number));
        if (verb == "connect_try") return (connect_to(static_cast<int>(number)).empty()) ? ::strerrorname_np(errno) : "ok";
        if (verb == "blackhole") return blackhole();
        if (verb == "closed_port") return closed_port();
        if (verb == "send") return send_pattern(number);
        if (verb == "urgent") return ::send(connection_, "U", 1, MSG_OOB) == 1 ? "ok" : "";
        if (verb == "shut") return ::shutdown(connection_, SHUT_WR) == 0 ? "ok" : "";
        if (verb == "close") return adopt(-1, true);
        if (verb == "reset") return reset();
        if (verb == "receive") return receive(static_cast<std::size_t>(number));
        if (verb == "receive_all") return receive(SIZE_MAX);
        if (verb == "udp") return open_datagram();
        if (verb == "udp_to") return datagram_to(static_cast<int>(number));
        if (verb == "udp_send") return send_datagram(number);
        if (verb == "udp_receive") return receive_datagram();
        if (verb == "ping") return "ok";
        if (verb == "switch") return switch_to(static_cast<std::size_t>(number));
        if (verb == "drain") return drain();
        if (verb == "udp_mark") return mark(static_cast<int>(number));
        if (verb == "udp_send_refused") return send_until_refused();
        if (verb == "udp_close") return ::close(std::exchange(datagram_, -1)) == 0 ? "ok" : "";
        errno = ENOSYS;
        return "";
    }

private:
    /// The case before has ended.
    void forget() {
        for (const int fd : {listener_, connection_, datagram_, other_})
            if (fd >= 0) ::close(fd);
        for (int& fd : connections_)
            if (const int kept = std::exchange(fd, -1); kept >= 0) ::close(kept);
        current_ = 0;
        listener_ = connection_ = datagram_ = other_ = -1;
    }

    static bool wait_for(int fd, short events) {
        pollfd entry{fd, events, 0};
        return ::poll(&entry, 1, 10'000) == 1;
    }

    /// So that a sender is soon stopped.
    static void keep_small(int fd) {
        const int bytes = 16384;
        ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    }

    std::string name_and_port(int fd) const {
        Name name;
        name.length = sizeof name.storage;
        return ::getsockname(fd, name.get(), &name.length) == 0 ? std::to_string(port_of(name)) : "";
    }

    Name mine() const { return make_name(family_, addresses.peer[family_ == AF_INET6 ? 1 : 0], 0); }
    Name theirs(int port) const { return make_name(family_, addresses.own[family_ == AF_INET6 ? 1 : 0], port); }

    std::string adopt(int fd, bool closing = false) {
        if (fd < 0 && !closing) return "";
        if (connection_ >= 0) ::close(connection_);
        connection_ = fd;
        return "ok";
    }

    std::string listen_for_case(int backlog) {
        listener_ = ::socket(family_, SOCK_STREAM | SOCK_CLOEXEC, 0);
        keep_small(listener_);
        Name name = mine();
        if (::bind(listener_, name.get(), name.length) != 0 || ::listen(listener_, backlog) != 0) return "";
        return name_and_port(listener_);
    }

    std::string connect_to(int port) {
        const int fd = ::socket(family_, SOCK_STREAM | SOCK_CLOEXEC, 0);
        Name name = theirs(port);
        keep_small(fd);
        if (::connect(fd, name.get(), name.length) != 0) {
            const int error = errno;
            ::close(fd);
            errno = error;
            return "";
        }
        return adopt(fd);
    }

    /// A listener whose queue is full answers no SYN.
    std::string blackhole() {
        const std::string port = listen_for_case(0);
        if (port.empty()) return "";
        const int filler = other_ = ::socket(family_, SOCK_STREAM | SOCK_CLOEXEC, 0);
        Name name = mine();
        name.length = sizeof name.storage;
        if (::getsockname(listener_, name.get(), &name.length) != 0) return "";
        return ::connect(filler, name.get(), name.length) == 0 && wait_for(listener_, POLLIN) ? port : "";
    }

    /// Bound, so that nobody else gets it, and not listening.
    std::string closed_port() {
        const int fd = other_ = ::socket(family_, SOCK_STREAM | SOCK_CLOEXEC, 0);
        Name name = mine();
        return ::bind(fd, name.get(), name.length) == 0 ? name_and_port(fd) : "";
    }

    std::string send_pattern(long count) {
        std::string data;
        for (long i = 0; i < count; ++i) data += static_cast<char>('a' + i % 26);
        for (std::size_t at = 0; at < data.size();) {
            const ssize_t sent = ::send(connection_, data.data() + at, data.size() - at, MSG_NOSIGNAL);
            if (sent < 0) return "";
            at += static_cast<std::size_t>(sent);
        }
        return "ok";
    }

    std::string reset() {
        const linger now{1, 0};
        ::setsockopt(connection_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        return adopt(-1, true);
    }

    std::string receive(std::size_t most) {
        std::string data;
        const char* end = "";
        char buffer[65536];
        while (data.size() < most) {
            if (!wait_for(connection_, POLLIN)) {
                end = " and nothing more";
                break;
            }
            const ssize_t got = ::recv(connection_, buffer, std::min(sizeof buffer, most - data.size()), 0);
            if (got > 0) {
                data.append(buffer, static_cast<std::size_t>(got));
                continue;
            }
            end = got == 0 ? " and the end" : ::strerrorname_np(errno);
            break;
        }
        return std::to_string(data.size()) + " " + World::describe_data(data.data(), data.size()) + " " + end;
    }

    std::string open_datagram() {
        datagram_ = ::socket(family_, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        Name name = mine();
        return ::bind(datagram_, name.get(), name.length) == 0 ? name_and_port(datagram_) : "";
    }

    std::string datagram_to(int port) {
        Name name = theirs(port);
        return ::connect(datagram_, name.get(), name.length) == 0 ? "ok" : "";
    }

    std::string send_datagram(long count) {
        std::string data;
        for (long i = 0; i < count; ++i) data += static_cast<char>('a' + i % 26);
        return ::send(datagram_, data.data(), data.size(), 0) == count ? "ok" : "";
    }

    std::string receive_datagram() {
        if (!wait_for(datagram_, POLLIN)) return "nothing came";
        char buffer[65536];
        const ssize_t got = ::recv(datagram_, buffer, sizeof buffer, 0);
        if (got < 0) return ::strerrorname_np(errno);
        return std::to_string(got) + " " + World::describe_data(buffer, static_cast<std::size_t>(got));
    }

    /// Another connection is the one that commands are about.
    std::string switch_to(std::size_t which) {
        if (which >= connections_.size()) return "";
        std::swap(connection_, connections_[current_]);  // put back
        std::swap(connection_, connections_[which]);
        current_ = which;
        return "ok";
    }

    /// Reads until nothing has come for a while.
    std::string drain() {
        static char data[65536];
        for (;;) {
            pollfd entry{connection_, POLLIN, 0};
            if (::poll(&entry, 1, 100) != 1) return "ok";
            if (::recv(connection_, data, sizeof data, 0) <= 0) return "ok";
        }
    }

    /// A datagram to another port than the case's.
    std::string mark(int port) {
        const int fd = ::socket(family_, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        Name name = theirs(port);
        const bool sent = ::sendto(fd, "mark", 4, 0, name.get(), name.length) == 4;
        ::close(fd);
        return sent ? "ok" : "";
    }

    /// The case has closed its socket: what comes now is refused by ICMP.
    std::string send_until_refused() {
        for (int i = 0; i < 100; ++i) {
            if (::send(datagram_, "late", 4, 0) != 4) return ::strerrorname_np(errno);
            pollfd entry{datagram_, POLLERR, 0};
            if (::poll(&entry, 1, 100) == 1 && ::recv(datagram_, nullptr, 0, 0) < 0) return ::strerrorname_np(errno);
        }
        return "nobody minded";
    }

    int family_ = AF_INET;
    int listener_ = -1;
    int connection_ = -1;
    std::array<int, 4> connections_{-1, -1, -1, -1};  // those that have been switched from
    std::size_t current_ = 0;
    int datagram_ = -1;
    int other_ = -1;  // that only has to be there
};

void serve(int control) {
    Peer peer;
    char words[256];
    for (;;) {
        const ssize_t got = ::recv(control, words, sizeof words, 0);
        if (got <= 0) return;
        std::string answer = peer.obey(std::string(words, static_cast<std::size_t>(got)));
        if (answer.empty()) answer = std::string("error ") + ::strerrorname_np(errno);
        if (::send(control, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) return;
    }
}

}  // namespace

void serve_as_peer() {
    ::signal(SIGCHLD, SIG_IGN);
    ::signal(SIGPIPE, SIG_IGN);
    const int listener = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strncpy(name.sun_path, addresses.control.c_str(), sizeof name.sun_path - 1);
    if (::bind(listener, reinterpret_cast<sockaddr*>(&name), sizeof name) != 0 || ::listen(listener, 256) != 0) {
        std::perror(name.sun_path);
        ::_exit(1);
    }
    for (;;) {
        const int control = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        if (control < 0) continue;
        if (::fork() == 0) {
            ::close(listener);
            serve(control);
            ::_exit(0);
        }
        ::close(control);
    }
}

}  // namespace differential
