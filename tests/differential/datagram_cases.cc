// UDP: unconnected, connected, with datagrams waiting, after a refusal, with an error queue, shut down; every call, blocking or
// not, errors first.

#include <fcntl.h>
#include <netinet/ip.h>
#include <linux/errqueue.h>
#include <netinet/udp.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "states.h"
#include "world.h"

namespace differential {

namespace {

void bound_to_any(World& w) {
    w.fd = w.make_socket(SOCK_DGRAM);
    Name name = make_name(w.family, w.family == AF_INET6 ? "::" : "0.0.0.0", 0);
    w.require(::bind(w.fd, name.get(), name.length) == 0, "bind");
    states::meet_udp_peer(w);
}

void connected_unbound(World& w) {
    w.fd = w.make_socket(SOCK_DGRAM);
    w.peer_port = std::stoi(w.peer("udp"));
    states::connect_to_udp_peer(w);
    states::learn_port(w);
    w.peer("udp_to " + std::to_string(w.bound_port));
}

void disconnected(World& w) {
    states::connected_datagram(w);
    Name nobody;
    w.require(::connect(w.fd, nobody.get(), sizeof(sockaddr_in)) == 0, "connect to AF_UNSPEC");
}

void want_errors(World& w) {
    const int on = 1;
    if (w.family == AF_INET6)
        ::setsockopt(w.fd, IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof on);
    else
        ::setsockopt(w.fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on);
}

void with_data(World& w) {
    for (const char* command : {"udp_send 10", "udp_send 0", "udp_send 3"}) w.peer(command);
    w.settle_datagrams();
}

void be_refused(World& w) {
    w.peer("udp_close");
    Name name = w.other(w.peer_port);
    Name now;
    now.length = sizeof now.storage;
    const bool has_peer = ::getpeername(w.fd, now.get(), &now.length) == 0;
    w.require(::sendto(w.fd, "x", 1, 0, has_peer ? nullptr : name.get(), has_peer ? 0 : name.length) == 1, "send");
    w.await(POLLERR);
}

void refused(World& w) {
    states::connected_datagram(w);
    be_refused(w);
}

struct State {
    const char* name;
    void (*enter)(World&);
    bool peer_hears;
    bool plain = false;  // worth all modes
};

constexpr State kStates[] = {
    {"fresh", [](World& w) { w.fd = w.make_socket(SOCK_DGRAM); }, false, true},
    {"bound", states::bound_datagram, true, true},
    {"bound_to_any", bound_to_any, true},
    {"connected", states::connected_datagram, true, true},
    {"connected_unbound", connected_unbound, true},
    {"disconnected", disconnected, false},  // another port: the peer knows the old one
    {"bound_data", [](World& w) { states::bound_datagram(w); with_data(w); }, true},
    {"bound_to_any_data", [](World& w) { bound_to_any(w); with_data(w); }, true},
    {"connected_data", [](World& w) { states::connected_datagram(w); with_data(w); }, true},
    {"refused", refused, false, true},
    {"refused_with_queue", [](World& w) { states::connected_datagram(w); want_errors(w); be_refused(w); }, false},
    {"bound_refused_with_queue", [](World& w) { states::bound_datagram(w); want_errors(w); be_refused(w); }, false},
    {"data_and_refused", [](World& w) { states::connected_datagram(w); with_data(w); be_refused(w); }, false},
    {"shut_read", [](World& w) { states::connected_datagram(w); w.require(::shutdown(w.fd, SHUT_RD) == 0, "shutdown"); }, true, true},
    {"shut_write", [](World& w) { states::connected_datagram(w); w.require(::shutdown(w.fd, SHUT_WR) == 0, "shutdown"); }, true, true},
    {"shut_both_data", [](World& w) { states::connected_datagram(w); with_data(w); w.require(::shutdown(w.fd, SHUT_RDWR) == 0, "shutdown"); }, true},
    {"bound_shut", [](World& w) { states::bound_datagram(w); ::shutdown(w.fd, SHUT_RDWR); }, true, true},
};

struct Call {
    const char* name;
    std::function<void(World&)> make;
    bool sleeps = false;
};

Call receive_with(const char* name, std::size_t room, int flags) {
    return {name, [=](World& w) {
        char data[64] = {};
        Name from;
        from.length = sizeof from.storage;
        const long got = w.bounded("recvfrom", [&] { return ::recvfrom(w.fd, data, room, flags, from.get(), &from.length); },
                                   (flags & MSG_TRUNC) != 0 ? nullptr : data);
        if (got >= 0) w.say("  from %s", w.describe(from).c_str());
    }, true};
}

Call send_with(const char* name, std::size_t length, int flags, bool named) {
    return {name, [=](World& w) {
        const std::string data(length, 'd');
        Name to = w.other(w.peer_port != 0 ? w.peer_port : 9);
        const long sent = w.bounded("sendto", [&] {
            return ::sendto(w.fd, data.data(), data.size(), flags, named ? to.get() : nullptr, named ? to.length : 0);
        });
        if (sent >= 0 && w.peer_port != 0) w.say("peer: %s", w.peer("udp_receive").c_str());
    }};
}

void say_control(World& w, const msghdr& message) {
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(const_cast<msghdr*>(&message), header)) {
        const bool is_error = (header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_RECVERR) ||
                              (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_RECVERR);
        w.say("  control %d/%d length %zu", header->cmsg_level, header->cmsg_type, static_cast<std::size_t>(header->cmsg_len));
        if (header->cmsg_len < CMSG_LEN(0)) return;
        const std::size_t size = header->cmsg_len - CMSG_LEN(0);
        if (!is_error || size <= sizeof(sock_extended_err) || size > sizeof(sock_extended_err) + sizeof(sockaddr_storage)) {
            if (header->cmsg_len >= message.msg_controllen) return;  // cut
            continue;
        }
        sock_extended_err error{};
        std::memcpy(&error, CMSG_DATA(header), sizeof error);
        w.say("  error %s origin %d type %d code %d info %u data %u", ::strerrorname_np(static_cast<int>(error.ee_errno)),
              error.ee_origin, error.ee_type, error.ee_code, error.ee_info, error.ee_data);
        Name offender;
        std::memcpy(&offender.storage, CMSG_DATA(header) + sizeof error, size - sizeof error);
        reinterpret_cast<sockaddr_in&>(offender.storage).sin_port = 0;
        offender.length = w.family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
        w.say("  offender %s", w.describe(offender).c_str());
    }
}

void receive_message(World& w, std::size_t first, std::size_t second, std::size_t control_room, int flags) {
    char data[80];
    alignas(cmsghdr) char control[256];
    iovec parts[] = {{data, first}, {data + first, second}};
    Name from;
    msghdr message{};
    message.msg_name = from.get();
    message.msg_namelen = sizeof from.storage;
    message.msg_iov = parts;
    message.msg_iovlen = second != 0 ? 2 : first != 0 ? 1 : 0;
    message.msg_control = control;
    message.msg_controllen = control_room;
    message.msg_flags = 0x1234;
    if (w.bounded("recvmsg", [&] { return ::recvmsg(w.fd, &message, flags); }, data) < 0) return;
    from.length = message.msg_namelen;
    w.say("  flags %x control %zu from %s", static_cast<unsigned>(message.msg_flags), message.msg_controllen,
          w.describe(from).c_str());
    say_control(w, message);
}

void receive_many(World& w, unsigned count, int flags, timespec* timeout) {
    char data[4][8] = {};
    iovec parts[4];
    Name from[4];
    mmsghdr messages[4]{};
    for (int i = 0; i < 4; ++i) {
        parts[i] = {data[i], 8};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        messages[i].msg_hdr.msg_name = from[i].get();
        messages[i].msg_hdr.msg_namelen = sizeof from[i].storage;
    }
    const long got = w.bounded("recvmmsg", [&] { return ::recvmmsg(w.fd, messages, count, flags, timeout); });
    for (int i = 0; i < got; ++i)
        w.say("  %u flags %x %s name %u", messages[i].msg_len, static_cast<unsigned>(messages[i].msg_hdr.msg_flags),
              World::describe_data(data[i], std::min(messages[i].msg_len, 8u)).c_str(), messages[i].msg_hdr.msg_namelen);
}

/// Three messages, of which the second is `odd`.
void send_many(World& w, std::size_t odd_length, bool odd_name, bool named) {
    static std::array<char, 100'000> data;
    std::fill(data.begin(), data.end(), 'm');
    iovec parts[3] = {{data.data(), 3}, {data.data(), odd_length}, {data.data(), 5}};
    Name to = w.other(w.peer_port != 0 ? w.peer_port : 9);
    Name nowhere = w.other(0);
    mmsghdr messages[3]{};
    for (int i = 0; i < 3; ++i) {
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        if (named) {
            messages[i].msg_hdr.msg_name = i == 1 && odd_name ? nowhere.get() : to.get();
            messages[i].msg_hdr.msg_namelen = to.length;
        }
    }
    const long sent = w.bounded("sendmmsg", [&] { return ::sendmmsg(w.fd, messages, 3, 0); });
    w.say("  %u %u %u", messages[0].msg_len, messages[1].msg_len, messages[2].msg_len);
    for (int i = 0; i < sent && w.peer_port != 0; ++i) w.say("peer: %s", w.peer("udp_receive").c_str());
    w.bounded("sendmmsg of none", [&] { return ::sendmmsg(w.fd, messages, 0, 0); });
}

void say_names(World& w) {
    for (const auto call : {&::getsockname, &::getpeername}) {
        Name name;
        name.length = sizeof name.storage;
        if (w.said(call == &::getsockname ? "getsockname" : "getpeername", call(w.fd, name.get(), &name.length)) == 0)
            w.say("  %s", w.describe(name).c_str());
        name.length = 4;
        w.said("  into 4", call(w.fd, name.get(), &name.length));
        w.said("  without a length", call(w.fd, name.get(), nullptr));
    }
}

void echo(World& w) {
    if (w.peer_port == 0) return;
    w.peer("udp_send 4");
    if (w.mode == Mode::kNonblocking) w.settle_datagrams();
}

void add_receiving(std::vector<Call>& calls) {
    calls.insert(calls.end(), {
        receive_with("recv", 64, 0), receive_with("recv_short", 4, 0), receive_with("recv_0", 0, 0),
        receive_with("recv_trunc", 4, MSG_TRUNC), receive_with("recv_peek", 64, MSG_PEEK),
        receive_with("recv_peek_trunc", 4, MSG_PEEK | MSG_TRUNC), receive_with("recv_dontwait", 64, MSG_DONTWAIT),
        receive_with("recv_oob", 64, MSG_OOB), receive_with("recv_errqueue", 64, MSG_ERRQUEUE),
        receive_with("recv_waitall", 64, MSG_WAITALL), receive_with("recv_strange", 64, 0x00800000),
        {"read_0", [](World& w) { char byte; w.bounded("read", [&] { return ::read(w.fd, &byte, 0); }); }, true},
        {"read", [](World& w) { char data[64]; w.bounded("read", [&] { return ::read(w.fd, data, 64); }, data); }, true},
        {"readv", [](World& w) {
            char data[64];
            const iovec parts[] = {{data, 2}, {data + 2, 0}, {data + 2, 60}};
            w.bounded("readv", [&] { return ::readv(w.fd, parts, 3); }, data);
            w.bounded("readv of no parts", [&] { return ::readv(w.fd, parts, 0); });
        }, true},
        {"recvmsg", [](World& w) { receive_message(w, 2, 4, 64, 0); }, true},
        {"recvmsg_none", [](World& w) { receive_message(w, 0, 0, 0, 0); }, true},
        {"recvmsg_errqueue", [](World& w) {
            for (int i = 0; i < 2; ++i) receive_message(w, 16, 16, 256, MSG_ERRQUEUE);
        }},
        {"recvmsg_errqueue_small", [](World& w) { receive_message(w, 0, 0, 24, MSG_ERRQUEUE); }},
        {"recvmsg_errqueue_peek", [](World& w) { receive_message(w, 16, 0, 256, MSG_ERRQUEUE | MSG_PEEK); }},
        {"recvmmsg", [](World& w) { receive_many(w, 4, 0, nullptr); }, true},
        {"recvmmsg_2", [](World& w) { receive_many(w, 2, 0, nullptr); }, true},
        {"recvmmsg_one", [](World& w) { receive_many(w, 4, MSG_WAITFORONE, nullptr); }, true},
        {"recvmmsg_none", [](World& w) { receive_many(w, 0, 0, nullptr); }},
        {"recvmmsg_timeout", [](World& w) {
            timespec moment{0, 1'000'000};
            receive_many(w, 4, MSG_DONTWAIT, &moment);
            moment = {0, 0};
            receive_many(w, 4, MSG_DONTWAIT, &moment);
            moment = {-1, 0};
            receive_many(w, 4, MSG_DONTWAIT, &moment);
            moment = {0, 1'000'000'000};
            receive_many(w, 4, MSG_DONTWAIT, &moment);
        }},
        {"recvfrom_bad_name", [](World& w) {
            char data[8];
            Name from;
            from.length = 4;
            if (w.said("recvfrom, room 4", ::recvfrom(w.fd, data, 8, MSG_DONTWAIT, from.get(), &from.length), data) >= 0)
                w.say("  length %u", from.length);
            from.length = socklen_t(-1);
            w.said("recvfrom, room -1", ::recvfrom(w.fd, data, 8, MSG_DONTWAIT, from.get(), &from.length));
            w.said("recvfrom without a length", ::recvfrom(w.fd, data, 8, MSG_DONTWAIT, from.get(), nullptr));
        }},
        {"peek_twice", [](World& w) {
            char data[8];
            for (int i = 0; i < 2; ++i) w.said("peek", ::recv(w.fd, data, 8, MSG_PEEK | MSG_DONTWAIT), data);
            echo(w);
            for (int i = 0; i < 2; ++i) w.said("recv", ::recv(w.fd, data, 8, MSG_DONTWAIT), data);
        }},
    });
}

void add_sending(std::vector<Call>& calls) {
    calls.insert(calls.end(), {
        send_with("send", 5, 0, false), send_with("send_0", 0, 0, false), send_with("send_dontwait", 5, MSG_DONTWAIT, false),
        send_with("send_oob", 5, MSG_OOB, false), send_with("send_nosignal", 5, MSG_NOSIGNAL, false),
        send_with("send_confirm", 5, MSG_CONFIRM, false), send_with("send_dontroute", 5, MSG_DONTROUTE, false),
        send_with("send_oversize", 65508, 0, false), send_with("send_huge", 100000, 0, false),
        send_with("sendto", 5, 0, true), send_with("sendto_0", 0, 0, true), send_with("sendto_large", 4000, 0, true),
        send_with("sendto_oversize", 65528, 0, true), send_with("sendto_oob", 5, MSG_OOB, true),
        {"write", [](World& w) { w.said("write", ::write(w.fd, "hello", 5)); w.said("write 0", ::write(w.fd, "", 0)); }},
        {"writev", [](World& w) {
            char text[] = "hello";
            const iovec parts[] = {{text, 2}, {text + 2, 0}, {text + 2, 3}};
            const long sent = w.said("writev", ::writev(w.fd, parts, 3));
            w.said("writev of no parts", ::writev(w.fd, parts, 0));
            if (sent >= 0 && w.peer_port != 0) w.say("peer: %s", w.peer("udp_receive").c_str());
        }},
        {"send_more", [](World& w) {
            Name to = w.other(w.peer_port != 0 ? w.peer_port : 9);
            w.said("send more", ::sendto(w.fd, "AB", 2, MSG_MORE, to.get(), to.length));
            const long sent = w.said("send", ::sendto(w.fd, "CD", 2, 0, to.get(), to.length));
            if (sent >= 0 && w.peer_port != 0) w.say("peer: %s", w.peer("udp_receive").c_str());
        }},
        {"sendto_wrong", [](World& w) {
            Name to = w.other(9);
            w.said("sendto, length 4", ::sendto(w.fd, "x", 1, 0, to.get(), 4));
            w.said("sendto, length -1", ::sendto(w.fd, "x", 1, 0, to.get(), socklen_t(-1)));
            w.said("sendto, length 200", ::sendto(w.fd, "x", 1, 0, to.get(), 200));
            w.said("sendto, length 0", ::sendto(w.fd, "x", 1, 0, to.get(), 0));
            to.storage.ss_family = AF_UNIX;
            w.said("sendto AF_UNIX", ::sendto(w.fd, "x", 1, 0, to.get(), to.length));
            to.storage.ss_family = w.family == AF_INET ? AF_INET6 : AF_INET;
            w.said("sendto the other family", ::sendto(w.fd, "x", 1, 0, to.get(), to.length));
            to = w.other(0);
            w.said("sendto port 0", ::sendto(w.fd, "x", 1, 0, to.get(), to.length));
        }},
        {"sendmmsg", [](World& w) { send_many(w, 4, false, true); }},
        {"sendmmsg_unnamed", [](World& w) { send_many(w, 4, false, false); }},
        {"sendmmsg_second_empty", [](World& w) { send_many(w, 0, false, true); }},
        {"sendmmsg_second_oversize", [](World& w) { send_many(w, 70'000, false, true); }},
        {"sendmmsg_second_nowhere", [](World& w) { send_many(w, 4, true, true); }},
        {"sendmsg_bad_control", [](World& w) {
            char text[] = "HELLO";
            iovec part{text, 5};
            alignas(cmsghdr) char control[CMSG_SPACE(4)] = {};
            auto* header = reinterpret_cast<cmsghdr*>(control);
            *header = {.cmsg_len = 4, .cmsg_level = IPPROTO_IP, .cmsg_type = IP_TTL};
            Name to = w.other(w.peer_port != 0 ? w.peer_port : 9);
            msghdr message{};
            message.msg_name = to.get();
            message.msg_namelen = to.length;
            message.msg_iov = &part;
            message.msg_iovlen = 1;
            message.msg_control = control;
            message.msg_controllen = sizeof control;
            w.said("sendmsg with a short header", ::sendmsg(w.fd, &message, 0));
            *header = {.cmsg_len = CMSG_LEN(4), .cmsg_level = IPPROTO_IP, .cmsg_type = 9999};
            w.said("sendmsg with an unknown type", ::sendmsg(w.fd, &message, 0));
            *header = {.cmsg_len = CMSG_LEN(4), .cmsg_level = SOL_SOCKET, .cmsg_type = 9999};
            w.said("sendmsg with an unknown type of SOL_SOCKET", ::sendmsg(w.fd, &message, 0));
            *header = {.cmsg_len = CMSG_LEN(4), .cmsg_level = 9999, .cmsg_type = 1};
            const long sent = w.said("sendmsg with an unknown level", ::sendmsg(w.fd, &message, 0));
            if (sent >= 0 && w.peer_port != 0) w.say("peer: %s", w.peer("udp_receive").c_str());
        }},
    });
}

void add_others(std::vector<Call>& calls) {
    calls.insert(calls.end(), {
        {"shutdown", [](World& w) {
            w.said("shutdown 3", ::shutdown(w.fd, 3));
            w.said("shutdown read", ::shutdown(w.fd, SHUT_RD));
            char data[8];
            w.said("recv", ::recv(w.fd, data, 8, MSG_DONTWAIT), data);
            w.said("shutdown write", ::shutdown(w.fd, SHUT_WR));
            w.said("send", ::send(w.fd, "x", 1, 0));
        }},
        {"connect_unspec", [](World& w) {
            Name name;
            w.said("connect to AF_UNSPEC", ::connect(w.fd, name.get(), sizeof(sockaddr_in)));
            say_names(w);
            echo(w);
        }},
        {"connect_again", [](World& w) {
            Name name = w.other(w.peer_port != 0 ? w.peer_port : 9);
            w.said("connect", ::connect(w.fd, name.get(), name.length));
            say_names(w);
            const long sent = w.said("send", ::send(w.fd, "again", 5, 0));
            if (sent >= 0 && w.peer_port != 0) w.say("peer: %s", w.peer("udp_receive").c_str());
        }},
        {"connect_elsewhere", [](World& w) {
            Name name = w.other(9);
            w.said("connect", ::connect(w.fd, name.get(), name.length));
            echo(w);  // from somebody who is a stranger now
        }},
        {"connect_wrong", [](World& w) {
            Name name = w.other(9);
            w.said("connect, length 1", ::connect(w.fd, name.get(), 1));
            w.said("connect, length 4", ::connect(w.fd, name.get(), 4));
            w.said("connect, length -1", ::connect(w.fd, name.get(), socklen_t(-1)));
            w.said("connect to nowhere", ::connect(w.fd, nullptr, name.length));
            name.storage.ss_family = AF_UNIX;
            w.said("connect to AF_UNIX", ::connect(w.fd, name.get(), name.length));
            say_names(w);
        }},
        {"listen", [](World& w) { w.said("listen", ::listen(w.fd, 5)); w.said("accept", ::accept(w.fd, nullptr, nullptr)); }},
        {"bind_again", [](World& w) {
            Name name = w.own();
            w.said("bind", ::bind(w.fd, name.get(), name.length));
            w.said("bind, short", ::bind(w.fd, name.get(), 4));
            name = w.other(0);
            w.said("bind to the peer's", ::bind(w.fd, name.get(), name.length));
        }},
        {"ioctl", [](World& w) {
            int number = 77;
            w.said("FIONREAD", ::ioctl(w.fd, FIONREAD, &number));
            w.say("  %d", number);
            w.said("TIOCOUTQ", ::ioctl(w.fd, TIOCOUTQ, &number));
            w.say("  %d", number);
            w.said("SIOCATMARK", ::ioctl(w.fd, SIOCATMARK, &number));
            w.said("0x1234", ::ioctl(w.fd, 0x1234, &number));
            w.said("FIONBIO", ::ioctl(w.fd, FIONBIO, &number));
            w.say("F_GETFL %x", ::fcntl(w.fd, F_GETFL));
        }},
        {"names", say_names},
        {"exchange", [](World& w) {  // both ways once more
            echo(w);
            char data[16];
            if (w.mode != Mode::kNonblocking && w.peer_port == 0) return;
            w.bounded("recv", [&] { return ::recv(w.fd, data, sizeof data, 0); }, data);
            Name to = w.other(w.peer_port != 0 ? w.peer_port : 9);
            const long sent = w.said("sendto", ::sendto(w.fd, "pong", 4, 0, to.get(), to.length));
            if (sent >= 0 && w.peer_port != 0) w.say("peer: %s", w.peer("udp_receive").c_str());
        }, true},
        {"so_error_first", [](World& w) {
            int error = -1;
            socklen_t length = sizeof error;
            w.said("SO_ERROR", ::getsockopt(w.fd, SOL_SOCKET, SO_ERROR, &error, &length));
            w.say("  %s", error == 0 ? "0" : ::strerrorname_np(error));
            w.said("send", ::send(w.fd, "x", 1, 0));
        }},
        {"close", [](World& w) {
            w.said("close", ::close(w.fd));
            w.said("close again", ::close(w.fd));
            w.fd = -1;
            if (w.peer_port != 0) w.say("peer: %s", w.peer("udp_send_refused").c_str());
        }},
    });
}

/// Every refusal of what has been sent so far is here: that of one more datagram, sent by another socket, comes last.
void settle_refusals(World& w) {
    const int marker = w.make_socket(SOCK_DGRAM);
    Name name = w.other(9);
    w.require(::connect(marker, name.get(), name.length) == 0 && ::send(marker, "x", 1, 0) == 1, "a datagram to a closed port");
    w.await(POLLERR, marker);
    ::close(marker);
}

void look_around(World& w) {
    if (w.peer_port == 0) settle_refusals(w);
    pollfd entry{w.fd, POLLIN | POLLPRI | POLLOUT | POLLRDHUP | POLLRDNORM | POLLWRNORM, 0};
    w.said("poll", ::poll(&entry, 1, 0));
    w.say("  %s", World::describe_events(entry.revents).c_str());
    int error = -1;
    socklen_t length = sizeof error;
    w.said("SO_ERROR", ::getsockopt(w.fd, SOL_SOCKET, SO_ERROR, &error, &length));
    w.say("  %s", error == 0 ? "0" : ::strerrorname_np(error));
    char data[64];
    for (int i = 0; i < 4; ++i) w.said("then recv", ::recv(w.fd, data, sizeof data, MSG_DONTWAIT), data);
    receive_message(w, 16, 0, 256, MSG_ERRQUEUE);
    entry.revents = 0;
    w.said("poll", ::poll(&entry, 1, 0));
    w.say("  %s", World::describe_events(entry.revents).c_str());
}

/// Leaves out what another case has in all but name.
bool is_worth_it(int family, const State& state, const Call& call, Mode mode) {
    if (family == AF_INET6 && !state.plain && std::string_view(state.name).find("queue") == std::string_view::npos) return false;
    if (mode == Mode::kNonblocking) return true;
    // What comes after the end has been told is a race.
    if (std::string_view(state.name).find("shut") != std::string_view::npos && std::string_view(call.name) == "exchange") return false;
    return family == AF_INET && state.plain && call.sleeps;
}

}  // namespace

void add_datagram_cases(Cases& cases) {
    std::vector<Call> calls;
    add_receiving(calls);
    add_sending(calls);
    add_others(calls);
    for (const int family : {AF_INET, AF_INET6}) {
        for (const State& state : kStates) {
            for (const Call& call : calls) {
                for (const Mode mode : {Mode::kNonblocking, Mode::kBlocking, Mode::kTimeout}) {
                    if (!is_worth_it(family, state, call, mode)) continue;
                    cases.push_back({std::string("udp") + (family == AF_INET6 ? "6/" : "4/") + state.name + "/" +
                                         kModeNames[static_cast<int>(mode)] + "/" + call.name,
                                     [=](World& w) {
                                         w.family = family;
                                         w.mode = mode;
                                         state.enter(w);
                                         w.set_mode();
                                         if (!state.peer_hears) w.peer_port = 0;
                                         call.make(w);
                                         if (w.fd >= 0) look_around(w);
                                     }});
                }
            }
        }
    }
}

}  // namespace differential
