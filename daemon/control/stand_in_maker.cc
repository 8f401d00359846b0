#include "daemon/control/stand_in_maker.h"

#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>

#include <spdlog/spdlog.h>

namespace culvert::control {
namespace {

constexpr int kPatienceMs = 1000;
constexpr unsigned kLoopbackIndex = 1;  // of every network namespace

struct Request {
    std::uint8_t local[16];
    std::uint8_t remote[16];
    std::uint16_t local_port;
    std::uint16_t remote_port;  // host order
    std::uint32_t v6;
};

struct Reply {
    std::int32_t error;  // errno value; 0: two descriptors come with it, ours first (not with the first reply)
};

// --- the helper: one thread, one request at a time --------------------------------------------------------------------

/// Every address of the family is local here.
bool make_everything_local(int netlink, unsigned char family) {
    struct {
        nlmsghdr header;
        rtmsg route;
        rtattr attribute;
        std::uint32_t interface;
    } message{};
    message.header.nlmsg_len = sizeof message;
    message.header.nlmsg_type = RTM_NEWROUTE;
    message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK;
    message.route.rtm_family = family;
    message.route.rtm_table = RT_TABLE_LOCAL;
    message.route.rtm_protocol = RTPROT_STATIC;
    message.route.rtm_scope = RT_SCOPE_HOST;
    message.route.rtm_type = RTN_LOCAL;
    message.attribute.rta_type = RTA_OIF;
    message.attribute.rta_len = RTA_LENGTH(sizeof message.interface);
    message.interface = kLoopbackIndex;
    if (::send(netlink, &message, sizeof message, 0) != static_cast<ssize_t>(sizeof message)) return false;
    struct {
        nlmsghdr header;
        nlmsgerr error;
        char rest[256];
    } answer{};
    const ssize_t got = ::recv(netlink, &answer, sizeof answer, 0);
    return got >= static_cast<ssize_t>(sizeof answer.header + sizeof answer.error.error) &&
           answer.header.nlmsg_type == NLMSG_ERROR && answer.error.error == 0;
}

void write_setting(const char* path, const char* value) {
    const UniqueFd file(::open(path, O_WRONLY | O_CLOEXEC));
    if (file) (void)!::write(file.get(), value, std::strlen(value));
}

/// A network namespace in which every address is ours. False: not allowed; we are where we were.
bool enter_own_network() {
    if (::unshare(CLONE_NEWNET) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return false;
    const UniqueFd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq up{};
    std::strcpy(up.ifr_name, "lo");
    up.ifr_flags = IFF_UP | IFF_RUNNING;
    const UniqueFd netlink(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    const bool ready = any && netlink && ::ioctl(any.get(), SIOCSIFFLAGS, &up) == 0 && make_everything_local(netlink.get(), AF_INET);
    make_everything_local(netlink.get(), AF_INET6);  // a host without IPv6 has no connections that would need it
    // The same two names may be wanted again at once, and nothing here is lost or late: no TIME-WAIT.
    write_setting("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    return ready;
}

socklen_t to_name(const std::uint8_t (&address)[16], std::uint16_t port, bool v6, sockaddr_storage& name) {
    name = {};
    if (v6) {
        auto& in6 = reinterpret_cast<sockaddr_in6&>(name);
        in6.sin6_family = AF_INET6;
        in6.sin6_port = htons(port);
        std::memcpy(&in6.sin6_addr, address, 16);
        if (IN6_IS_ADDR_LINKLOCAL(&in6.sin6_addr)) in6.sin6_scope_id = kLoopbackIndex;
        return sizeof in6;
    }
    auto& in = reinterpret_cast<sockaddr_in&>(name);
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    std::memcpy(&in.sin_addr, address + 12, 4);
    return sizeof in;
}

bool set(int fd, int level, int name, int value) { return ::setsockopt(fd, level, name, &value, sizeof value) == 0; }

UniqueFd bound_socket(const sockaddr_storage& name, socklen_t length) {
    UniqueFd fd(::socket(name.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd || !set(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1)) return {};
    // Other connections of the same server have the port, too; IPv6 asks for addresses of interfaces otherwise.
    if (name.ss_family == AF_INET6 && !set(fd.get(), IPPROTO_IPV6, IPV6_FREEBIND, 1)) return {};
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), length) != 0) return {};
    return fd;
}

bool same_name(int fd, bool peer, const sockaddr_storage& wanted, socklen_t length) {
    sockaddr_storage name{};
    socklen_t room = sizeof name;
    const int result = peer ? ::getpeername(fd, reinterpret_cast<sockaddr*>(&name), &room)
                            : ::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &room);
    return result == 0 && room == length && std::memcmp(&name, &wanted, length) == 0;
}

/// An errno value.
int make_pair(const Request& request, bool v6, UniqueFd& ours, UniqueFd& theirs) {
    sockaddr_storage local;
    sockaddr_storage remote;
    socklen_t length = to_name(request.local, request.local_port, v6, local);
    to_name(request.remote, request.remote_port, v6, remote);
    const UniqueFd listener = bound_socket(local, length);
    if (!listener || ::listen(listener.get(), 1) != 0) return errno;
    ours = bound_socket(remote, length);
    if (!ours) return errno;
    ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&local), &length);  // where the port was left to the kernel
    ::getsockname(ours.get(), reinterpret_cast<sockaddr*>(&remote), &length);
    if (::fcntl(ours.get(), F_SETFL, O_NONBLOCK) != 0) return errno;
    if (::connect(ours.get(), reinterpret_cast<sockaddr*>(&local), length) != 0 && errno != EINPROGRESS) return errno;
    // A holder of another pair can connect to any listener here: what is accepted must be our own.
    for (int attempts = 0; attempts < 16; ++attempts) {
        pollfd waiting{listener.get(), POLLIN, 0};
        if (::poll(&waiting, 1, kPatienceMs / 2) <= 0) return ETIMEDOUT;
        theirs.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!theirs) return errno;
        if (same_name(theirs.get(), true, remote, length) && same_name(theirs.get(), false, local, length)) break;
        theirs.reset();
    }
    if (!theirs || !same_name(ours.get(), true, local, length)) return ECONNREFUSED;
    // As the kernel ends our sockets with us, so shall the other end hear of a daemon that was killed: by a reset.
    const linger reset{1, 0};
    if (::setsockopt(ours.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset) != 0) return errno;
    set(ours.get(), IPPROTO_TCP, TCP_NODELAY, 1);
    set(ours.get(), SOL_SOCKET, SO_OOBINLINE, 1);
    if (v6) set(theirs.get(), IPPROTO_IPV6, IPV6_FREEBIND, 0);
    return 0;
}

void reply(int daemon, int error, const UniqueFd& ours, const UniqueFd& theirs) {
    Reply message{error};
    iovec part{&message, sizeof message};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
    if (error == 0 && ours) {
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        cmsghdr* const rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(2 * sizeof(int));
        const int fds[2] = {ours.get(), theirs.get()};
        std::memcpy(CMSG_DATA(rights), fds, sizeof fds);
    }
    if (::sendmsg(daemon, &header, MSG_NOSIGNAL) < 0) ::_exit(1);
}

[[noreturn]] void run_helper(int daemon) {
    ::prctl(PR_SET_NAME, "culvert-standin");
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) ::signal(signal, SIG_IGN);  // its end is the daemon's
    const bool own = enter_own_network();
    reply(daemon, own ? 0 : EPERM, UniqueFd(), UniqueFd());
    Request request;
    for (;;) {
        const ssize_t got = ::recv(daemon, &request, sizeof request, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got != static_cast<ssize_t>(sizeof request)) ::_exit(0);
        UniqueFd ours;
        UniqueFd theirs;
        const bool v6 = request.v6 != 0;
        int error = own && request.local_port != 0 ? make_pair(request, v6, ours, theirs) : EADDRNOTAVAIL;
        if (error != 0) {  // both ends of one connection here: the names are taken
            Request anywhere{};
            const std::uint8_t mapped[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
            const std::uint8_t loopback6[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
            std::memcpy(anywhere.local, v6 ? loopback6 : mapped, 16);
            std::memcpy(anywhere.remote, anywhere.local, 16);
            error = make_pair(anywhere, v6, ours, theirs);
        }
        reply(daemon, error, ours, theirs);
    }
}

// --- the daemon's side ----------------------------------------------------------------------------------------------------

/// False: the helper is of no use any more.
bool receive_reply(int helper, Reply& message, StandInMaker::Pair& pair) {
    iovec part{&message, sizeof message};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    ssize_t got = 0;
    do {
        got = ::recvmsg(helper, &header, MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got != static_cast<ssize_t>(sizeof message)) return false;
    const cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    if (rights == nullptr) return true;
    if (rights->cmsg_len != CMSG_LEN(2 * sizeof(int))) return false;
    int fds[2];
    std::memcpy(fds, CMSG_DATA(rights), sizeof fds);
    pair.ours.reset(fds[0]);
    pair.theirs.reset(fds[1]);
    return true;
}

}  // namespace

Result<StandInMaker> StandInMaker::start() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return fail_errno("socketpair");
    UniqueFd mine(ends[0]);
    UniqueFd helpers(ends[1]);
    const timeval patience{kPatienceMs / 1000, 0};
    ::setsockopt(mine.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    const pid_t pid = ::fork();
    if (pid < 0) return fail_errno("fork");
    if (pid == 0) {
        mine.reset();
        run_helper(helpers.get());
    }
    helpers.reset();
    Reply ready{};
    Pair none;
    StandInMaker maker(std::move(mine), pid, false);
    if (!receive_reply(maker.helper_.get(), ready, none)) return fail(ECHILD, "the helper for stand-ins says nothing");
    maker.true_names_ = ready.error == 0;
    if (ready.error != 0)
        spdlog::warn("no network namespace for connections that leave their program (neither CAP_SYS_ADMIN nor user namespaces): "
                     "whoever gets one sees 127.0.0.1 as its peer");
    return maker;
}

StandInMaker::~StandInMaker() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);  // it has nothing to put in order
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
}

Result<StandInMaker::Pair> StandInMaker::make(const Endpoint& local, const Endpoint& remote, bool v6) {
    if (!helper_) return fail(ENOBUFS, "no helper for stand-ins");
    Request request{};
    std::memcpy(request.local, local.address.bytes().data(), sizeof request.local);
    std::memcpy(request.remote, remote.address.bytes().data(), sizeof request.remote);
    request.local_port = local.port;
    request.remote_port = remote.port;
    request.v6 = v6 ? 1 : 0;
    Reply answer{};
    Pair pair;
    if (::send(helper_.get(), &request, sizeof request, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof request) ||
        !receive_reply(helper_.get(), answer, pair)) {
        helper_.reset();  // an answer that comes late could not be told from the next one
        spdlog::error("the helper for stand-ins has ended; connections cannot leave their programs any more");
        return fail(ENOBUFS, "no helper for stand-ins");
    }
    if (answer.error != 0 || !pair.ours || !pair.theirs) return fail(answer.error != 0 ? answer.error : EPROTO, "stand-in");
    return pair;
}

}  // namespace culvert::control
