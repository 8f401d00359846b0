// getsockopt and setsockopt: every number of every level, with good, short, long and negative lengths and with values that no
// sane program gives, on sockets that are fresh, listening, connected, accepted, and UDP.
//
// The role "before_connect" sets an option and then connects: its @path says whether Culvert still takes the connection.
// preload/OPTIONS.md is made from these transcripts (differential_test.py --write-options).

#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "world.h"

namespace differential {

namespace {

struct Option {
    int level;
    int number;
    const char* name;
};

#define OPTION(level, name) {level, name, #level "/" #name}
constexpr Option kNamed[] = {
    OPTION(SOL_SOCKET, SO_DEBUG), OPTION(SOL_SOCKET, SO_REUSEADDR), OPTION(SOL_SOCKET, SO_TYPE), OPTION(SOL_SOCKET, SO_ERROR),
    OPTION(SOL_SOCKET, SO_DONTROUTE), OPTION(SOL_SOCKET, SO_BROADCAST), OPTION(SOL_SOCKET, SO_SNDBUF), OPTION(SOL_SOCKET, SO_RCVBUF),
    OPTION(SOL_SOCKET, SO_SNDBUFFORCE), OPTION(SOL_SOCKET, SO_RCVBUFFORCE), OPTION(SOL_SOCKET, SO_KEEPALIVE),
    OPTION(SOL_SOCKET, SO_OOBINLINE), OPTION(SOL_SOCKET, SO_NO_CHECK), OPTION(SOL_SOCKET, SO_PRIORITY), OPTION(SOL_SOCKET, SO_LINGER),
    OPTION(SOL_SOCKET, SO_REUSEPORT), OPTION(SOL_SOCKET, SO_PASSCRED), OPTION(SOL_SOCKET, SO_PEERCRED), OPTION(SOL_SOCKET, SO_RCVLOWAT),
    OPTION(SOL_SOCKET, SO_SNDLOWAT), OPTION(SOL_SOCKET, SO_RCVTIMEO), OPTION(SOL_SOCKET, SO_SNDTIMEO),
    OPTION(SOL_SOCKET, SO_BINDTODEVICE), OPTION(SOL_SOCKET, SO_ATTACH_FILTER), OPTION(SOL_SOCKET, SO_DETACH_FILTER),
    OPTION(SOL_SOCKET, SO_PEERNAME), OPTION(SOL_SOCKET, SO_TIMESTAMP), OPTION(SOL_SOCKET, SO_ACCEPTCONN), OPTION(SOL_SOCKET, SO_PEERSEC),
    OPTION(SOL_SOCKET, SO_PASSSEC), OPTION(SOL_SOCKET, SO_TIMESTAMPNS), OPTION(SOL_SOCKET, SO_MARK), OPTION(SOL_SOCKET, SO_TIMESTAMPING),
    OPTION(SOL_SOCKET, SO_PROTOCOL), OPTION(SOL_SOCKET, SO_DOMAIN), OPTION(SOL_SOCKET, SO_RXQ_OVFL), OPTION(SOL_SOCKET, SO_WIFI_STATUS),
    OPTION(SOL_SOCKET, SO_PEEK_OFF), OPTION(SOL_SOCKET, SO_NOFCS), OPTION(SOL_SOCKET, SO_LOCK_FILTER),
    OPTION(SOL_SOCKET, SO_SELECT_ERR_QUEUE), OPTION(SOL_SOCKET, SO_BUSY_POLL), OPTION(SOL_SOCKET, SO_MAX_PACING_RATE),
    OPTION(SOL_SOCKET, SO_BPF_EXTENSIONS), OPTION(SOL_SOCKET, SO_INCOMING_CPU), OPTION(SOL_SOCKET, SO_ATTACH_BPF),
    OPTION(SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF), OPTION(SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF), OPTION(SOL_SOCKET, SO_CNX_ADVICE),
    OPTION(SOL_SOCKET, SO_MEMINFO), OPTION(SOL_SOCKET, SO_INCOMING_NAPI_ID), OPTION(SOL_SOCKET, SO_COOKIE),
    OPTION(SOL_SOCKET, SO_PEERGROUPS), OPTION(SOL_SOCKET, SO_ZEROCOPY), OPTION(SOL_SOCKET, SO_TXTIME),
    OPTION(SOL_SOCKET, SO_BINDTOIFINDEX), OPTION(SOL_SOCKET, SO_PREFER_BUSY_POLL), OPTION(SOL_SOCKET, SO_BUSY_POLL_BUDGET),
    OPTION(IPPROTO_TCP, TCP_NODELAY), OPTION(IPPROTO_TCP, TCP_MAXSEG), OPTION(IPPROTO_TCP, TCP_CORK), OPTION(IPPROTO_TCP, TCP_KEEPIDLE),
    OPTION(IPPROTO_TCP, TCP_KEEPINTVL), OPTION(IPPROTO_TCP, TCP_KEEPCNT), OPTION(IPPROTO_TCP, TCP_SYNCNT), OPTION(IPPROTO_TCP, TCP_LINGER2),
    OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT), OPTION(IPPROTO_TCP, TCP_WINDOW_CLAMP), OPTION(IPPROTO_TCP, TCP_INFO),
    OPTION(IPPROTO_TCP, TCP_QUICKACK), OPTION(IPPROTO_TCP, TCP_CONGESTION), OPTION(IPPROTO_TCP, TCP_MD5SIG),
    OPTION(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS), OPTION(IPPROTO_TCP, TCP_THIN_DUPACK), OPTION(IPPROTO_TCP, TCP_USER_TIMEOUT),
    OPTION(IPPROTO_TCP, TCP_FASTOPEN), OPTION(IPPROTO_TCP, TCP_TIMESTAMP), OPTION(IPPROTO_TCP, TCP_NOTSENT_LOWAT),
    OPTION(IPPROTO_TCP, TCP_CC_INFO), OPTION(IPPROTO_TCP, TCP_SAVE_SYN), OPTION(IPPROTO_TCP, TCP_SAVED_SYN), OPTION(IPPROTO_TCP, TCP_ULP),
    OPTION(IPPROTO_TCP, TCP_FASTOPEN_CONNECT), OPTION(IPPROTO_TCP, TCP_FASTOPEN_KEY), OPTION(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE),
    OPTION(IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE), OPTION(IPPROTO_TCP, TCP_INQ), OPTION(IPPROTO_TCP, TCP_TX_DELAY),
    OPTION(IPPROTO_IP, IP_TOS), OPTION(IPPROTO_IP, IP_TTL), OPTION(IPPROTO_IP, IP_HDRINCL), OPTION(IPPROTO_IP, IP_OPTIONS),
    OPTION(IPPROTO_IP, IP_RECVOPTS), OPTION(IPPROTO_IP, IP_RETOPTS), OPTION(IPPROTO_IP, IP_PKTINFO), OPTION(IPPROTO_IP, IP_MTU_DISCOVER),
    OPTION(IPPROTO_IP, IP_RECVERR), OPTION(IPPROTO_IP, IP_RECVTTL), OPTION(IPPROTO_IP, IP_RECVTOS), OPTION(IPPROTO_IP, IP_MTU),
    OPTION(IPPROTO_IP, IP_FREEBIND), OPTION(IPPROTO_IP, IP_TRANSPARENT), OPTION(IPPROTO_IP, IP_ORIGDSTADDR), OPTION(IPPROTO_IP, IP_MINTTL),
    OPTION(IPPROTO_IP, IP_NODEFRAG), OPTION(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT), OPTION(IPPROTO_IP, IP_MULTICAST_IF),
    OPTION(IPPROTO_IP, IP_MULTICAST_TTL), OPTION(IPPROTO_IP, IP_MULTICAST_LOOP), OPTION(IPPROTO_IP, IP_ADD_MEMBERSHIP),
    OPTION(IPPROTO_IP, IP_DROP_MEMBERSHIP), OPTION(IPPROTO_IP, IP_MULTICAST_ALL), OPTION(IPPROTO_IP, IP_UNICAST_IF),
    OPTION(IPPROTO_IPV6, IPV6_ADDRFORM), OPTION(IPPROTO_IPV6, IPV6_CHECKSUM), OPTION(IPPROTO_IPV6, IPV6_UNICAST_HOPS),
    OPTION(IPPROTO_IPV6, IPV6_MULTICAST_IF), OPTION(IPPROTO_IPV6, IPV6_MULTICAST_HOPS), OPTION(IPPROTO_IPV6, IPV6_MULTICAST_LOOP),
    OPTION(IPPROTO_IPV6, IPV6_JOIN_GROUP), OPTION(IPPROTO_IPV6, IPV6_LEAVE_GROUP), OPTION(IPPROTO_IPV6, IPV6_MTU_DISCOVER),
    OPTION(IPPROTO_IPV6, IPV6_MTU), OPTION(IPPROTO_IPV6, IPV6_RECVERR), OPTION(IPPROTO_IPV6, IPV6_V6ONLY),
    OPTION(IPPROTO_IPV6, IPV6_RECVPKTINFO), OPTION(IPPROTO_IPV6, IPV6_PKTINFO), OPTION(IPPROTO_IPV6, IPV6_RECVHOPLIMIT),
    OPTION(IPPROTO_IPV6, IPV6_HOPLIMIT), OPTION(IPPROTO_IPV6, IPV6_HOPOPTS), OPTION(IPPROTO_IPV6, IPV6_RTHDR),
    OPTION(IPPROTO_IPV6, IPV6_DSTOPTS), OPTION(IPPROTO_IPV6, IPV6_RECVTCLASS), OPTION(IPPROTO_IPV6, IPV6_TCLASS),
    OPTION(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL), OPTION(IPPROTO_IPV6, IPV6_MINHOPCOUNT), OPTION(IPPROTO_IPV6, IPV6_TRANSPARENT),
    OPTION(IPPROTO_IPV6, IPV6_FREEBIND), OPTION(IPPROTO_IPV6, IPV6_UNICAST_IF), OPTION(IPPROTO_IPV6, IPV6_DONTFRAG),
    OPTION(IPPROTO_UDP, UDP_CORK), OPTION(IPPROTO_UDP, UDP_ENCAP), OPTION(IPPROTO_UDP, UDP_SEGMENT), OPTION(IPPROTO_UDP, UDP_GRO),
    {SOL_SOCKET, 9999, "SOL_SOCKET/9999"}, {IPPROTO_TCP, 9999, "IPPROTO_TCP/9999"}, {IPPROTO_IP, 9999, "IPPROTO_IP/9999"},
    {IPPROTO_IPV6, 9999, "IPPROTO_IPV6/9999"}, {9999, 1, "9999/1"},
};

/// What differs from socket to socket or from moment to moment: only its length is told.
bool has_its_own_value(const Option& option) {
    if (option.level == SOL_SOCKET)
        return option.number == SO_INCOMING_CPU || option.number == SO_INCOMING_NAPI_ID || option.number == SO_COOKIE ||
               option.number == SO_MEMINFO || option.number == SO_PEERNAME;
    return option.level == IPPROTO_TCP && (option.number == TCP_INFO || option.number == TCP_TIMESTAMP || option.number == TCP_CC_INFO);
}

void get(World& w, const Option& option, socklen_t room) {
    unsigned char value[256] = {};
    socklen_t length = room;
    if (w.said("get into " + std::to_string(static_cast<int>(room)), ::getsockopt(w.fd, option.level, option.number, value, &length)) != 0)
        return;
    std::string text;
    char digits[4];
    for (socklen_t i = 0; i < std::min<socklen_t>(length, 24) && !has_its_own_value(option); ++i) {
        std::snprintf(digits, sizeof digits, "%02x", value[i]);
        text += digits;
    }
    w.say("  length %u %s", length, text.c_str());
}

void set(World& w, const Option& option, int number, socklen_t length, bool read_back = true) {
    alignas(8) unsigned char value[64] = {};
    std::memcpy(value, &number, sizeof number);
    const long result = w.said("set " + std::to_string(number) + " in " + std::to_string(static_cast<int>(length)) + " bytes",
                               ::setsockopt(w.fd, option.level, option.number, value, length));
    if (result == 0 && read_back) get(w, option, 16);
}

void try_everything(World& w, const Option& option) {
    for (const int room : {128, 4, 1, 0, -1}) get(w, option, static_cast<socklen_t>(room));
    int unused = 0;
    w.said("get without a length", ::getsockopt(w.fd, option.level, option.number, &unused, nullptr));
    for (const int length : {0, 1, 3, -1}) set(w, option, 1, static_cast<socklen_t>(length));
    for (const int number : {0, 1, 2, -1, 1000, 40000, 0x7fffffff, 1}) set(w, option, number, 4);
    for (const int length : {8, 16, 32}) set(w, option, 1, static_cast<socklen_t>(length));
    w.said("set without a value", ::setsockopt(w.fd, option.level, option.number, nullptr, 4));
}

void before_connect(World& w, const Option& option) {
    w.fd = w.make_socket(SOCK_STREAM);
    set(w, option, 1, option.number == SO_RCVTIMEO || option.number == SO_SNDTIMEO || option.number == SO_LINGER ? 16 : 4, false);
    w.peer_port = std::stoi(w.peer("listen"));
    Name name = w.other(w.peer_port);
    if (w.said("connect", ::connect(w.fd, name.get(), name.length)) != 0) return;
    w.note_path();
    get(w, option, 16);
}

void add(Cases& cases, const Option& option, const char* role, int family, void (*enter)(World&)) {
    cases.push_back({std::string("option") + (family == AF_INET6 ? "6/" : "4/") + option.name + "/" + role, [=](World& w) {
        w.family = family;
        enter(w);
        try_everything(w, option);
    }});
}

}  // namespace

void add_option_cases(Cases& cases) {
    for (const Option& option : kNamed) {
        const int family = option.level == IPPROTO_IPV6 ? AF_INET6 : AF_INET;
        const std::string name = option.name;
        add(cases, option, "udp", family, [](World& w) { w.fd = w.make_socket(SOCK_DGRAM); });
        add(cases, option, "udp_bound", family, [](World& w) {
            w.fd = w.make_socket(SOCK_DGRAM);
            Name own = w.own();
            w.require(::bind(w.fd, own.get(), own.length) == 0, "bind");
        });
        if (option.level == IPPROTO_UDP) continue;
        add(cases, option, "fresh", family, [](World& w) { w.fd = w.make_socket(SOCK_STREAM); });
        add(cases, option, "listening", family, [](World& w) {
            w.fd = w.make_socket(SOCK_STREAM);
            w.bind_and_listen();
        });
        add(cases, option, "connected", family, [](World& w) {
            w.fd = w.make_socket(SOCK_STREAM);
            w.connect_out();
        });
        add(cases, option, "accepted", family, [](World& w) {
            w.fd = w.make_socket(SOCK_STREAM);
            w.accept_one();
        });
        if (option.number == SO_BINDTOIFINDEX && option.level == SOL_SOCKET) continue;  // 1 is the loopback interface
        cases.push_back({std::string("option") + (family == AF_INET6 ? "6/" : "4/") + name + "/before_connect", [=](World& w) {
            w.family = family;
            before_connect(w, option);
        }});
    }
}

}  // namespace differential
