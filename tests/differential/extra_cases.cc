// What a stream gives beside its bytes, and what an accepted connection keeps:
//
//   extra?/copies/...    SO_ZEROCOPY and MSG_ZEROCOPY: which sends have a number, what the error queue says, who wakes
//   extra?/unread/...    TCP_INQ: the control message with each receive
//   extra?/onward/...    SO_PEEK_OFF: where MSG_PEEK begins
//   extra?/icmp/...      errors about an open connection, with and without IP_RECVERR, and about one that is being made
//   extra?/kept/...      options of an accepted connection: inherited, set, read back together, through duplicates, in a set
//
// The notice that a buffer is free comes with the peer's acknowledgement in the kernel, at once in Culvert: cases wait for as many as
// they have sent and tell the numbers, not the moments.

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/errqueue.h>

#include <cerrno>
#include <cstring>

#include "states.h"

namespace differential {

using namespace states;

namespace {

constexpr int kInq = 36;  // TCP_INQ, TCP_CM_INQ

int set_int(World& w, const char* what, int level, int name, int value) {
    return static_cast<int>(w.said(std::string("set ") + what + " " + std::to_string(value), ::setsockopt(w.fd, level, name, &value, sizeof value)));
}
void say_int(World& w, const char* what, int level, int name, int fd = -1) {
    int value = 0;
    socklen_t length = sizeof value;
    if (w.said(std::string("get ") + what, ::getsockopt(fd >= 0 ? fd : w.fd, level, name, &value, &length)) == 0) w.say("  %d", value);
}

void say_control(World& w, msghdr& message) {
    w.say("  msg_flags%s%s%s%s namelen %u controllen %zu", (message.msg_flags & MSG_ERRQUEUE) != 0 ? " ERRQUEUE" : "",
          (message.msg_flags & MSG_CTRUNC) != 0 ? " CTRUNC" : "", (message.msg_flags & MSG_TRUNC) != 0 ? " TRUNC" : "",
          (message.msg_flags & MSG_EOR) != 0 ? " EOR" : "", message.msg_namelen, message.msg_controllen);
    for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
        w.say("  control level %d type %d length %zu", at->cmsg_level, at->cmsg_type, static_cast<std::size_t>(at->cmsg_len));
        if (at->cmsg_level == IPPROTO_TCP && at->cmsg_len == CMSG_LEN(sizeof(int))) {
            int value = 0;
            std::memcpy(&value, CMSG_DATA(at), sizeof value);
            w.say("  unread %d", value);
        }
        if (at->cmsg_level != IPPROTO_TCP && at->cmsg_len >= CMSG_LEN(sizeof(sock_extended_err))) {
            sock_extended_err error{};
            std::memcpy(&error, CMSG_DATA(at), sizeof error);
            w.say("  errno %u origin %u type %u code %u info %u data %u", error.ee_errno, error.ee_origin, error.ee_type, error.ee_code,
                  error.ee_info, error.ee_data);
        }
    }
}

/// recvmsg with all that comes along.
long receive(World& w, const char* what, std::size_t room, int flags, std::size_t control_room = 256) {
    char data[64] = {};
    alignas(cmsghdr) char control[256] = {};
    sockaddr_storage name{};
    iovec part{data, room};
    msghdr message{};
    message.msg_name = &name;
    message.msg_namelen = sizeof name;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control_room != 0 ? control : nullptr;
    message.msg_controllen = control_room;
    // The bytes of the error queue are our own header, with numbers that differ each time.
    const long got = w.bounded(what, [&] { return ::recvmsg(w.fd, &message, flags); }, (flags & MSG_ERRQUEUE) != 0 ? nullptr : data);
    if (got >= 0) say_control(w, message);
    return got;
}

void say_poll(World& w) {
    pollfd entry{w.fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
    w.said("poll", ::poll(&entry, 1, 0));
    w.say("  %s", World::describe_events(entry.revents).c_str());
}

/// Waits until `count` sends have been told of, and says their numbers.
void notices(World& w, unsigned count) {
    unsigned next = 0;
    std::string told;
    while (next < count) {
        w.await(POLLERR);
        alignas(cmsghdr) char control[128];
        msghdr message{};
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        if (::recvmsg(w.fd, &message, MSG_ERRQUEUE) < 0) continue;
        cmsghdr* const at = CMSG_FIRSTHDR(&message);
        w.require(at != nullptr, "a control message");
        sock_extended_err error{};
        std::memcpy(&error, CMSG_DATA(at), sizeof error);
        w.require(error.ee_origin == SO_EE_ORIGIN_ZEROCOPY && error.ee_info == next && error.ee_data < count, "the next numbers");
        next = error.ee_data + 1;
    }
    w.say("told of sends 0 to %u", count - 1);
    w.said("no more", ::recv(w.fd, nullptr, 0, MSG_ERRQUEUE));
}

long send_bytes(World& w, const char* what, std::size_t bytes, int flags = MSG_ZEROCOPY) {
    static char data[1 << 16];
    return w.said(what, ::send(w.fd, data, bytes, flags));
}
/// A send of ten bytes that has arrived, and whose notice has come.
void copy_ten(World& w) {
    send_bytes(w, "send", 10);
    w.peer("receive 10");
    w.await(POLLERR);
}
void turn_on_copies(World& w) { set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1); }

using Run = void (*)(World&);
struct Named {
    const char* name;
    Run run;
};

constexpr Named kCopies[] = {
    {"not_asked_for", [](World& w) {
         send_bytes(w, "send", 10);
         w.peer("receive 10");
         receive(w, "error queue", 0, MSG_ERRQUEUE);
         say_poll(w);
     }},
    {"one", [](World& w) {
         turn_on_copies(w);
         copy_ten(w);
         say_poll(w);
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
         receive(w, "recv", 10, MSG_DONTWAIT);
         receive(w, "error queue", 10, MSG_ERRQUEUE);
         say_poll(w);
         receive(w, "error queue again", 10, MSG_ERRQUEUE);
     }},
    {"several", [](World& w) {
         turn_on_copies(w);
         for (int i = 0; i < 3; ++i) send_bytes(w, "send", 10);
         send_bytes(w, "send without the flag", 10, 0);
         send_bytes(w, "send", 1);
         w.peer("receive 41");
         notices(w, 4);
         send_bytes(w, "send nothing", 0);
         say_poll(w);
     }},
    {"large", [](World& w) {
         turn_on_copies(w);
         send_bytes(w, "send", 1 << 16);
         w.peer("receive 65536");
         notices(w, 1);
     }},
    {"many_messages", [](World& w) {
         turn_on_copies(w);
         char text[] = "abc";
         iovec part{text, 3};
         mmsghdr messages[3] = {};
         for (mmsghdr& message : messages) message.msg_hdr.msg_iov = &part, message.msg_hdr.msg_iovlen = 1;
         w.said("sendmmsg", ::sendmmsg(w.fd, messages, 3, MSG_ZEROCOPY));
         w.peer("receive 9");
         notices(w, 3);
     }},
    {"little_room", [](World& w) {
         turn_on_copies(w);
         copy_ten(w);
         receive(w, "error queue", 10, MSG_ERRQUEUE, 32);
         copy_ten(w);
         receive(w, "error queue", 10, MSG_ERRQUEUE, 0);
         say_poll(w);
     }},
    {"peeked", [](World& w) {
         turn_on_copies(w);
         copy_ten(w);
         receive(w, "error queue", 10, MSG_ERRQUEUE | MSG_PEEK);
         receive(w, "error queue", 10, MSG_ERRQUEUE | MSG_PEEK);
     }},
    {"turned_off", [](World& w) {
         turn_on_copies(w);
         send_bytes(w, "send", 10);
         w.peer("receive 10");
         notices(w, 1);
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 0);
         send_bytes(w, "send", 10);
         w.peer("receive 10");
         receive(w, "error queue", 10, MSG_ERRQUEUE);
     }},
    {"after_shutdown", [](World& w) {
         turn_on_copies(w);
         w.said("shutdown", ::shutdown(w.fd, SHUT_WR));
         send_bytes(w, "send", 10, MSG_ZEROCOPY | MSG_NOSIGNAL);
         receive(w, "error queue", 10, MSG_ERRQUEUE);
     }},
    {"edge", [](World& w) {
         turn_on_copies(w);
         const int set = ::epoll_create1(EPOLL_CLOEXEC);
         epoll_event event{EPOLLIN | EPOLLET, {}};
         w.said("add", ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event));
         w.said("wait", ::epoll_wait(set, &event, 1, 0));
         copy_ten(w);
         if (w.said("wait", ::epoll_wait(set, &event, 1, 30'000)) == 1) w.say("  %s", World::describe_events(static_cast<int>(event.events)).c_str());
         w.said("wait", ::epoll_wait(set, &event, 1, 0));
         send_bytes(w, "send", 10);
         w.peer("receive 10");
         if (w.said("wait", ::epoll_wait(set, &event, 1, 30'000)) == 1) w.say("  %s", World::describe_events(static_cast<int>(event.events)).c_str());
         notices(w, 2);
         ::close(set);
     }},
};

constexpr Named kUnread[] = {
    {"pieces", [](World& w) {
         set_int(w, "TCP_INQ", IPPROTO_TCP, kInq, 1);
         w.peer("send 10");
         w.await_unread(10);
         receive(w, "recv", 4, 0);
         receive(w, "peek", 4, MSG_PEEK);
         receive(w, "recv", 4, 0, 0);
         receive(w, "recv", 1, 0, 18);
         receive(w, "recv", 4, 0);
         receive(w, "recv", 4, MSG_DONTWAIT);
         w.peer("shut");
         w.await(POLLRDHUP);
         receive(w, "recv", 4, 0);
     }},
    {"last_bytes", [](World& w) {
         set_int(w, "TCP_INQ", IPPROTO_TCP, kInq, 1);
         w.peer("send 5");
         w.peer("shut");
         w.await(POLLRDHUP);
         receive(w, "recv", 5, 0);
         receive(w, "recv", 5, 0);
     }},
    {"turned_off", [](World& w) {
         set_int(w, "TCP_INQ", IPPROTO_TCP, kInq, 1);
         set_int(w, "TCP_INQ", IPPROTO_TCP, kInq, 0);
         w.peer("send 5");
         w.await_unread(5);
         receive(w, "recv", 5, 0);
     }},
    {"plain_recv", [](World& w) {
         set_int(w, "TCP_INQ", IPPROTO_TCP, kInq, 1);
         w.peer("send 5");
         w.await_unread(5);
         char data[8];
         w.said("recv", ::recv(w.fd, data, 3, 0), data);
         w.said("read", ::read(w.fd, data, 3), data);
     }},
};

constexpr Named kOnward[] = {
    {"pieces", [](World& w) {
         set_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF, 0);
         w.peer("send 10");
         w.await_unread(10);
         receive(w, "peek", 3, MSG_PEEK);
         receive(w, "peek", 3, MSG_PEEK);
         say_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF);
         receive(w, "recv", 2, 0);
         say_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF);
         receive(w, "peek", 20, MSG_PEEK);
         receive(w, "peek at the end", 20, MSG_PEEK | MSG_DONTWAIT);
         receive(w, "recv", 20, 0);
         say_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF);
     }},
    {"beyond_what_has_come", [](World& w) {
         set_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF, 5);
         w.peer("send 3");
         w.await_unread(3);
         receive(w, "peek", 20, MSG_PEEK | MSG_DONTWAIT);
         w.mode = Mode::kBlocking;
         receive(w, "peek, waiting", 20, MSG_PEEK);
         w.peer("send 4");
         w.await_unread(7);
         receive(w, "peek", 20, MSG_PEEK | MSG_DONTWAIT);
         say_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF);
         w.peer("shut");
         w.await(POLLRDHUP);
         receive(w, "peek", 20, MSG_PEEK);
         receive(w, "recv", 20, 0);
     }},
    {"turned_off", [](World& w) {
         set_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF, 2);
         w.peer("send 5");
         w.await_unread(5);
         receive(w, "peek", 2, MSG_PEEK);
         set_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF, -1);
         receive(w, "peek", 2, MSG_PEEK);
         receive(w, "peek", 2, MSG_PEEK);
         say_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF);
     }},
    {"all_of_it", [](World& w) {
         set_int(w, "SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF, 1);
         w.peer("send 5");
         w.await_unread(5);
         receive(w, "peek", 4, MSG_PEEK | MSG_WAITALL);
         receive(w, "peek and discard", 4, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
     }},
};

// --- ICMP -----------------------------------------------------------------------------------------------------------------

struct Message {
    const char* name;
    int v4, v6;  // type and code; -1: not of this family
};
constexpr Message kMessages[] = {
    {"net", 3 << 8 | 0, 1 << 8 | 0},       {"host", 3 << 8 | 1, 1 << 8 | 3},     {"protocol", 3 << 8 | 2, 4 << 8 | 1}, {"port", 3 << 8 | 3, 1 << 8 | 4},
    {"filtered", 3 << 8 | 13, 1 << 8 | 1}, {"source", 3 << 8 | 5, 1 << 8 | 5},   {"time", 11 << 8 | 0, 3 << 8 | 0},    {"parameter", 12 << 8 | 0, 4 << 8 | 0},
    {"quench", 4 << 8 | 0, -1},            {"of_no_known_code", 3 << 8 | 99, 1 << 8 | 99},
};
int code_of(const World& w, const Message& message) { return w.family == AF_INET6 ? message.v6 : message.v4; }

void ask_for_errors(World& w, int on = 1) {
    if (w.family == AF_INET6)
        set_int(w, "IPV6_RECVERR", IPPROTO_IPV6, IPV6_RECVERR, on);
    else
        set_int(w, "IP_RECVERR", IPPROTO_IP, IP_RECVERR, on);
}

/// The message, and something behind it: when that is here, so is the message.
void deliver(World& w, const Message& message) {
    w.peer("icmp " + std::to_string(code_of(w, message)));
    w.peer("send 1");
    w.await_unread(1);
}
/// Nothing says that an error which is only kept has come, but SO_ERROR.
void ask_until_told(World& w) {
    int error = 0;
    for (int tries = 0; error == 0 && tries < 30'000; ++tries) {
        if (tries != 0) ::poll(nullptr, 0, 1);
        socklen_t length = sizeof error;
        w.require(::getsockopt(w.fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0, "SO_ERROR");
    }
    w.say("SO_ERROR %d", error);
}
long take_byte(World& w) { return receive(w, "recv", 1, MSG_DONTWAIT); }

using About = void (*)(World&, const Message&);
struct NamedAbout {
    const char* name;
    About run;
};
constexpr NamedAbout kIcmp[] = {
    {"told_when_asked", [](World& w, const Message& message) {
         w.peer("icmp " + std::to_string(code_of(w, message)));
         ask_until_told(w);
         say_poll(w);
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
         receive(w, "recv", 5, MSG_DONTWAIT);
         send_bytes(w, "send", 5, 0);
         w.peer("receive 5");
         say_poll(w);
     }},
    {"cured", [](World& w, const Message& message) {
         deliver(w, message);
         say_poll(w);
         take_byte(w);
         send_bytes(w, "send", 5, 0);
         w.peer("receive 5");
         for (int left = 1; left != 0; ::poll(nullptr, 0, 1)) w.require(::ioctl(w.fd, TIOCOUTQ, &left) == 0, "TIOCOUTQ");
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
     }},
    {"at_once_recv", [](World& w, const Message& message) {
         ask_for_errors(w);
         deliver(w, message);
         say_poll(w);
         receive(w, "error queue", 10, MSG_ERRQUEUE);
         take_byte(w);
         take_byte(w);
         take_byte(w);
         say_poll(w);
     }},
    {"at_once_send", [](World& w, const Message& message) {
         ask_for_errors(w);
         deliver(w, message);
         send_bytes(w, "send", 5, 0);
         send_bytes(w, "send", 5, 0);
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
         w.say("%s", w.peer("receive 5").c_str());
     }},
    {"at_once_so_error", [](World& w, const Message& message) {
         ask_for_errors(w);
         deliver(w, message);
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
         say_poll(w);
     }},
    {"no_longer_asked", [](World& w, const Message& message) {
         ask_for_errors(w);
         ask_for_errors(w, 0);
         w.peer("icmp " + std::to_string(code_of(w, message)));
         ask_until_told(w);
     }},
};

bool asks_before_connect = false;

/// A connection that is being made, and what ICMP says of its SYN.
void refused_by(World& w, const Message& message) {
    w.fd = w.make_socket(SOCK_STREAM);
    w.require(::fcntl(w.fd, F_SETFL, O_NONBLOCK) == 0, "O_NONBLOCK");
    if (asks_before_connect) ask_for_errors(w);
    w.peer_port = std::stoi(w.peer("blackhole"));
    w.peer("hear_syns");
    Name name = w.other(w.peer_port);
    w.said("connect", ::connect(w.fd, name.get(), name.length));
    w.peer("icmp_syn " + std::to_string(code_of(w, message)));
    w.await(POLLERR);
    say_poll(w);
}
long connect_again(World& w) {
    Name name = w.other(w.peer_port);
    return w.said("connect", ::connect(w.fd, name.get(), name.length));
}
constexpr NamedAbout kAttempts[] = {
    {"queue_first", [](World& w, const Message& message) {
         refused_by(w, message);
         receive(w, "error queue", 40, MSG_ERRQUEUE);
         say_poll(w);
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
         receive(w, "error queue", 40, MSG_ERRQUEUE);
     }},
    {"error_first", [](World& w, const Message& message) {
         refused_by(w, message);
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
         say_poll(w);
         receive(w, "error queue", 40, MSG_ERRQUEUE);
         say_poll(w);
     }},
    {"connect_first", [](World& w, const Message& message) {
         refused_by(w, message);
         connect_again(w);
         say_int(w, "SO_ERROR", SOL_SOCKET, SO_ERROR);
     }},
    {"recv_first", [](World& w, const Message& message) {
         refused_by(w, message);
         receive(w, "recv", 5, 0);
         receive(w, "recv", 5, 0);
     }},
};

struct Plain {
    const char* name;
    int level, number, value;
};
constexpr Plain kInherited[] = {
    {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR, 1}, {"SO_DONTROUTE", SOL_SOCKET, SO_DONTROUTE, 1},
    {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1}, {"SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 1},
    {"SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1},   {"SO_PEEK_OFF", SOL_SOCKET, SO_PEEK_OFF, 3},
    {"TCP_INQ", IPPROTO_TCP, kInq, 1},             {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1},
    {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 77}, {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 5000},
    {"TCP_QUICKACK", IPPROTO_TCP, TCP_QUICKACK, 0}, {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 3},
};

/// Those that a connection of Culvert's has no place for in its record.
constexpr Plain kInheritedToo[] = {
    {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3},
    {"SO_RXQ_OVFL", SOL_SOCKET, SO_RXQ_OVFL, 1},
    {"SO_BUSY_POLL", SOL_SOCKET, SO_BUSY_POLL, 10},
    {"SO_NO_CHECK", SOL_SOCKET, SO_NO_CHECK, 1},
    {"SO_SELECT_ERR_QUEUE", SOL_SOCKET, SO_SELECT_ERR_QUEUE, 1},
    {"SO_MAX_PACING_RATE", SOL_SOCKET, SO_MAX_PACING_RATE, 1 << 20},
    {"SO_BUSY_POLL_BUDGET", SOL_SOCKET, SO_BUSY_POLL_BUDGET, 5},
    {"IP_PKTINFO", IPPROTO_IP, IP_PKTINFO, 1},
    {"IP_RECVTTL", IPPROTO_IP, IP_RECVTTL, 1},
    {"IP_RECVTOS", IPPROTO_IP, IP_RECVTOS, 1},
    {"IP_RECVOPTS", IPPROTO_IP, IP_RECVOPTS, 1},
    {"IP_RETOPTS", IPPROTO_IP, IP_RETOPTS, 1},
    {"IP_ORIGDSTADDR", IPPROTO_IP, IP_ORIGDSTADDR, 1},
    {"IP_RECVERR", IPPROTO_IP, IP_RECVERR, 1},
    {"IP_MTU_DISCOVER", IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO},
    {"IP_FREEBIND", IPPROTO_IP, IP_FREEBIND, 1},
    {"IP_TOS", IPPROTO_IP, IP_TOS, 16},
    {"IP_TTL", IPPROTO_IP, IP_TTL, 99},
    {"IP_MULTICAST_LOOP", IPPROTO_IP, IP_MULTICAST_LOOP, 0},
    {"IP_MULTICAST_ALL", IPPROTO_IP, IP_MULTICAST_ALL, 0},
    {"IP_BIND_ADDRESS_NO_PORT", IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1},
    {"IPV6_RECVPKTINFO", IPPROTO_IPV6, IPV6_RECVPKTINFO, 1},
    {"IPV6_RECVHOPLIMIT", IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1},
    {"IPV6_RECVTCLASS", IPPROTO_IPV6, IPV6_RECVTCLASS, 1},
    {"IPV6_RECVRTHDR", IPPROTO_IPV6, IPV6_RECVRTHDR, 1},
    {"IPV6_RECVERR", IPPROTO_IPV6, IPV6_RECVERR, 1},
    {"IPV6_MTU_DISCOVER", IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO},
    {"IPV6_DONTFRAG", IPPROTO_IPV6, IPV6_DONTFRAG, 1},
    {"IPV6_TCLASS", IPPROTO_IPV6, IPV6_TCLASS, 16},
    {"IPV6_UNICAST_HOPS", IPPROTO_IPV6, IPV6_UNICAST_HOPS, 99},
    {"IPV6_MULTICAST_LOOP", IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0},
    {"IPV6_AUTOFLOWLABEL", IPPROTO_IPV6, 70, 0},
    {"IPV6_FREEBIND", IPPROTO_IPV6, 78, 1},
    {"TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 4},
    {"TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2, 17},
    {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 11},
    {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 5},
    {"TCP_CORK", IPPROTO_TCP, TCP_CORK, 1},
    {"TCP_THIN_LINEAR_TIMEOUTS", IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1},
    {"TCP_NOTSENT_LOWAT", IPPROTO_TCP, TCP_NOTSENT_LOWAT, 5000},
};

/// Some of each kind of option, as they are now.
void say_options(World& w, int fd = -1) {
    for (const Plain& option : kInherited)
        if (option.number != TCP_QUICKACK || option.level != IPPROTO_TCP) say_int(w, option.name, option.level, option.number, fd);
    say_int(w, "SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, fd);
    say_int(w, "TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, fd);
}

void say_names(World& w) {
    for (const bool peers : {false, true}) {
        Name name;
        name.length = sizeof name.storage;
        w.said(peers ? "getpeername" : "getsockname",
               peers ? ::getpeername(w.fd, name.get(), &name.length) : ::getsockname(w.fd, name.get(), &name.length));
        w.say("  %s", w.describe(name).c_str());
    }
}

constexpr Named kKept[] = {
    {"names_and_flags", [](World& w) {
         w.said("O_NONBLOCK", ::fcntl(w.fd, F_SETFL, O_NONBLOCK | O_APPEND));
         set_int(w, "TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1);
         set_int(w, "TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 1234);
         set_int(w, "SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3);
         set_int(w, "TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 60);
         set_int(w, "TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 2);
         say_options(w);
         w.say("F_GETFL %x F_GETFD %x", ::fcntl(w.fd, F_GETFL), ::fcntl(w.fd, F_GETFD));
         say_names(w);
         Name any = w.own();
         w.said("bind", ::bind(w.fd, any.get(), any.length));
         w.peer("send 5");
         w.await_unread(5);
         receive(w, "recv", 5, 0);
         send_bytes(w, "send", 5, 0);
         w.say("%s", w.peer("receive 5").c_str());
         w.said("shutdown", ::shutdown(w.fd, SHUT_RDWR));
         say_names(w);
     }},
    {"duplicates", [](World& w) {
         const int other = ::fcntl(w.fd, F_DUPFD_CLOEXEC, 0);
         set_int(w, "SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3);
         say_options(w, other);
         w.say("F_GETFD %x %x", ::fcntl(w.fd, F_GETFD), ::fcntl(other, F_GETFD));
         ::close(other);
         say_options(w);
     }},
    {"in_a_set", [](World& w) {
         const int set = ::epoll_create1(EPOLL_CLOEXEC);
         epoll_event event{EPOLLIN, {}};
         w.said("add", ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event));
         set_int(w, "SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3);
         w.said("wait", ::epoll_wait(set, &event, 1, 0));
         w.peer("send 5");
         w.await_unread(5);
         w.said("wait", ::epoll_wait(set, &event, 1, 30'000));
         receive(w, "recv", 5, 0);
         w.said("wait", ::epoll_wait(set, &event, 1, 0));
         event.events = EPOLLOUT;
         w.said("modify", ::epoll_ctl(set, EPOLL_CTL_MOD, w.fd, &event));
         w.said("wait", ::epoll_wait(set, &event, 1, 0));
         w.said("delete", ::epoll_ctl(set, EPOLL_CTL_DEL, w.fd, &event));
         ::close(set);
     }},
};

}  // namespace

void add_extra_cases(Cases& cases) {
    for (const int family : {AF_INET, AF_INET6}) {
        const std::string prefix = family == AF_INET6 ? "extra6/" : "extra4/";
        const auto add = [&](const std::string& name, Run enter, Run run) {
            cases.push_back({prefix + name, [=](World& w) {
                                 w.family = family;
                                 enter(w);
                                 w.note_path();
                                 run(w);
                             }});
        };
        for (const bool accepts : {false, true}) {
            const Run enter = accepts ? &accepted : &connected;
            const std::string suffix = accepts ? "/accepted" : "/connected";
            for (const Named& one : kCopies) add("copies/" + std::string(one.name) + suffix, enter, one.run);
            for (const Named& one : kUnread) add("unread/" + std::string(one.name) + suffix, enter, one.run);
            for (const Named& one : kOnward) add("onward/" + std::string(one.name) + suffix, enter, one.run);
            for (const Named& one : kKept) add("kept/" + std::string(one.name) + suffix, enter, one.run);
        }
        const auto add_about = [&](const std::string& name, Run enter, About run, const Message& message) {
            if ((family == AF_INET6 ? message.v6 : message.v4) < 0) return;
            cases.push_back({prefix + name + "/" + message.name, [=, &message](World& w) {
                                 w.family = family;
                                 enter(w);
                                 run(w, message);
                             }});
        };
        for (const Message& message : kMessages) {
            const bool means_something = family == AF_INET6 || (message.v4 != (4 << 8) && (message.v4 & 255) != 99);
            for (const NamedAbout& one : kIcmp) {
                if (!means_something && (std::strcmp(one.name, "told_when_asked") == 0 || std::strcmp(one.name, "no_longer_asked") == 0)) continue;
                add_about("icmp/" + std::string(one.name) + "/connected", &connected, one.run, message);
                add_about("icmp/" + std::string(one.name) + "/accepted", &accepted, one.run, message);
            }
            for (const NamedAbout& one : kAttempts) {
                if (!means_something) continue;
                add_about("icmp_syn/" + std::string(one.name), [](World&) { asks_before_connect = false; }, one.run, message);
                add_about("icmp_syn/asked/" + std::string(one.name), [](World&) { asks_before_connect = true; }, one.run, message);
            }
        }
        for (const Plain& option : kInheritedToo) {
            if (option.level == IPPROTO_IPV6 && family != AF_INET6) continue;
            for (const bool late : {false, true})
                cases.push_back({prefix + "kept/from_the_listener_too/" + (late ? "late/" : "early/") + option.name, [=](World& w) {
                                     w.family = family;
                                     w.fd = w.make_socket(SOCK_STREAM);
                                     if (!late) set_int(w, option.name, option.level, option.number, option.value);
                                     w.bind_and_listen();
                                     if (late) set_int(w, option.name, option.level, option.number, option.value);
                                     w.peer("connect " + std::to_string(w.bound_port));
                                     w.await(POLLIN);
                                     const int connection = ::accept4(w.fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
                                     w.require(connection >= 0, "accept");
                                     w.become(connection);
                                     w.note_path();
                                     say_int(w, option.name, option.level, option.number);
                                     w.say("flags %x %x", ::fcntl(w.fd, F_GETFL), ::fcntl(w.fd, F_GETFD));
                                     set_int(w, "TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 60);
                                     say_int(w, "TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE);
                                     set_int(w, "SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 2);
                                     say_int(w, "SO_PRIORITY", SOL_SOCKET, SO_PRIORITY);
                                     say_int(w, option.name, option.level, option.number);
                                     w.said("send", ::send(w.fd, "hello", 5, 0));
                                     w.say("peer got %s", w.peer("receive 5").c_str());
                                     receive(w, "recv", 10, MSG_DONTWAIT);
                                 }});
        }
        for (const Plain& option : kInherited) {
            cases.push_back({prefix + "kept/from_the_listener/" + option.name, [=](World& w) {
                                 w.family = family;
                                 w.fd = w.make_socket(SOCK_STREAM);
                                 set_int(w, option.name, option.level, option.number, option.value);
                                 w.accept_one();
                                 w.note_path();
                                 say_int(w, option.name, option.level, option.number);
                                 set_int(w, "SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3);
                                 say_int(w, option.name, option.level, option.number);
                             }});
        }
    }
}

}  // namespace differential
