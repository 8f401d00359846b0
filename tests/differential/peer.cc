// The other end: a process in the other namespace, on kernel sockets, that does what its case says, one command at a time.
//
//   listen -> port   accept   connect PORT   blackhole -> port   closed_port -> port
//   send N   urgent   shut   close   reset   receive_all -> what came and how it ended   receive N
//   ping   switch N (to another connection)   drain
//   icmp TYPE*256+CODE: an error about what the connection would send next   hear_syns   icmp_syn N: about the next SYN to the port
//   udp -> port   udp_to PORT   udp_send N   udp_receive -> what came   udp_mark PORT   udp_send_refused   udp_close

#include <fcntl.h>
#include <netinet/tcp.h>
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
        if (verb == "icmp") return send_icmp(number);
        if (verb == "hear_syns") return (raw_ = ::socket(family_, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_TCP)) >= 0 ? "ok" : "";
        if (verb == "icmp_syn") return send_icmp_about_syn(number);
        if (verb == "send") return send_pattern(number);
        if (verb == "urgent") return ::send(connection_, "U", 1, MSG_OOB) == 1 ? "ok" : "";
        if (verb == "receive_urgent") return receive_urgent();
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
        for (const int fd : {listener_, connection_, datagram_, raw_, other_})
            if (fd >= 0) ::close(fd);
        for (int& fd : connections_)
            if (const int kept = std::exchange(fd, -1); kept >= 0) ::close(kept);
        current_ = 0;
        listener_ = connection_ = datagram_ = raw_ = other_ = -1;
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

    /// An ICMP error of the host that `to` reached: about a TCP segment from `from` to `to` with that sequence number.
    std::string send_icmp(long what, const Name& from, const Name& to, std::uint32_t sequence) {
        const bool v6 = family_ == AF_INET6;
        unsigned char message[8 + 40 + 20] = {static_cast<unsigned char>(what >> 8), static_cast<unsigned char>(what & 255)};
        unsigned char* const ip = message + 8;
        unsigned char* const tcp = ip + (v6 ? 40 : 20);
        ip[0] = v6 ? 0x60 : 0x45;
        ip[v6 ? 6 : 9] = IPPROTO_TCP;
        ip[v6 ? 7 : 8] = 64;
        ip[v6 ? 5 : 3] = v6 ? 20 : 40;
        if (v6) {
            std::memcpy(ip + 8, &reinterpret_cast<const sockaddr_in6&>(from.storage).sin6_addr, 16);
            std::memcpy(ip + 24, &reinterpret_cast<const sockaddr_in6&>(to.storage).sin6_addr, 16);
        } else {
            std::memcpy(ip + 12, &reinterpret_cast<const sockaddr_in&>(from.storage).sin_addr, 4);
            std::memcpy(ip + 16, &reinterpret_cast<const sockaddr_in&>(to.storage).sin_addr, 4);
            set16(ip + 10, checksum(ip, 20));
        }
        set16(tcp, static_cast<unsigned>(port_of(from)));
        set16(tcp + 2, static_cast<unsigned>(port_of(to)));
        set16(tcp + 4, sequence >> 16);
        set16(tcp + 6, sequence & 0xffff);
        tcp[12] = 0x50;
        const std::size_t length = static_cast<std::size_t>(tcp + 20 - message);
        if (!v6) set16(message + 2, checksum(message, length));
        const int fd = ::socket(family_, SOCK_RAW | SOCK_CLOEXEC, v6 ? int{IPPROTO_ICMPV6} : int{IPPROTO_ICMP});
        Name where = theirs(0);
        const bool sent = ::sendto(fd, message, length, 0, where.get(), where.length) == static_cast<ssize_t>(length);
        ::close(fd);
        return sent ? "ok" : "";
    }
    static void set16(unsigned char* at, unsigned value) {
        at[0] = static_cast<unsigned char>(value >> 8 & 255);
        at[1] = static_cast<unsigned char>(value & 255);
    }
    static unsigned checksum(const unsigned char* data, std::size_t length) {
        unsigned sum = 0;
        for (std::size_t i = 0; i + 1 < length; i += 2) sum += static_cast<unsigned>(data[i] << 8 | data[i + 1]);
        while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
        return ~sum & 0xffff;
    }

    std::string send_icmp(long what) {
        Name to, from;
        to.length = from.length = sizeof to.storage;
        int on = 1, queue = TCP_RECV_QUEUE, off = -1;  // without a window probe
        std::uint32_t sequence = 0;
        socklen_t size = sizeof sequence;
        const bool known = ::setsockopt(connection_, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) == 0 &&
                           ::setsockopt(connection_, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof queue) == 0 &&
                           ::getsockopt(connection_, IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence, &size) == 0 &&
                           ::setsockopt(connection_, IPPROTO_TCP, TCP_REPAIR, &off, sizeof off) == 0 &&
                           ::getsockname(connection_, to.get(), &to.length) == 0 && ::getpeername(connection_, from.get(), &from.length) == 0;
        return known ? send_icmp(what, from, to, sequence) : "";
    }

    /// About the next SYN that comes to the listener: hear_syns was before it.
    std::string send_icmp_about_syn(long what) {
        Name to;
        to.length = sizeof to.storage;
        if (::getsockname(listener_, to.get(), &to.length) != 0) return "";
        while (wait_for(raw_, POLLIN)) {
            unsigned char packet[2048];
            const ssize_t got = ::recv(raw_, packet, sizeof packet, 0);
            const unsigned char* const tcp = packet + (family_ == AF_INET6 ? 0 : (packet[0] & 15) * 4);
            if (got < tcp + 20 - packet || (tcp[2] << 8 | tcp[3]) != port_of(to) || (tcp[13] & 0x12) != 2) continue;
            return send_icmp(what, theirs(tcp[0] << 8 | tcp[1]), to,
                             static_cast<std::uint32_t>(tcp[4]) << 24 | static_cast<std::uint32_t>(tcp[5]) << 16 |
                                 static_cast<std::uint32_t>(tcp[6]) << 8 | tcp[7]);
        }
        return "";
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

    std::string receive_urgent() {
        char octet = 0;
        if (!wait_for(connection_, POLLPRI)) return "nothing urgent";
        return ::recv(connection_, &octet, 1, MSG_OOB) == 1 ? std::string("octet ") + octet : std::string(::strerrorname_np(errno));
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
    int raw_ = -1;    // hears SYNs
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
