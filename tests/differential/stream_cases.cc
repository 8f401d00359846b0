// TCP: every state that a socket can be in, times every call, times blocking, non-blocking and with a timeout.
//
// After the call the case looks at what is left: readiness, SO_ERROR, a read, a write, and what the peer has seen in the end.

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "world.h"

namespace differential {

namespace {

struct State {
    const char* name;
    void (*enter)(World&);
    bool connected;   // there is (or was) a peer
    bool peer_hears;  // and it can still receive
    bool unsettled = false;  // sending brings a reset, which has to be waited for
};

void fresh(World& w) { w.fd = w.make_socket(SOCK_STREAM); }

void bound(World& w) {
    fresh(w);
    Name name = w.own();
    w.require(::bind(w.fd, name.get(), name.length) == 0, "bind");
    name.length = sizeof name.storage;
    w.require(::getsockname(w.fd, name.get(), &name.length) == 0, "getsockname");
    w.bound_port = port_of(name);
}

void listening(World& w) {
    fresh(w);
    w.bind_and_listen();
}

void listening_ready(World& w) {
    listening(w);
    w.peer("connect " + std::to_string(w.bound_port));
    w.await(POLLIN);
}

void start_connect(World& w, const std::string& where) {
    fresh(w);
    w.require(::fcntl(w.fd, F_SETFL, O_NONBLOCK) == 0, "O_NONBLOCK");
    w.peer_port = std::stoi(w.peer(where));
    Name name = w.other(w.peer_port);
    w.said("connect without waiting", ::connect(w.fd, name.get(), name.length));
}

void connecting(World& w) { start_connect(w, "blackhole"); }

void refused(World& w) {
    start_connect(w, "closed_port");
    w.await(POLLERR | POLLHUP);
}

void refused_and_told(World& w) {
    refused(w);
    int error = 0;
    socklen_t length = sizeof error;
    ::getsockopt(w.fd, SOL_SOCKET, SO_ERROR, &error, &length);
}

void connected(World& w) {
    fresh(w);
    w.connect_out();
}

void accepted(World& w) {
    fresh(w);
    w.accept_one();
}

void hello(World& w) {
    w.peer("send 5");
    w.await_unread(5);
}

void peer_half_closed(World& w) {
    w.peer("shut");
    w.await(POLLRDHUP);
}

void peer_reset(World& w) {
    w.peer("reset");
    w.await(POLLHUP);
}

void own_half_closed(World& w) {
    w.require(::shutdown(w.fd, SHUT_WR) == 0, "shutdown");
    w.require(w.peer("receive_all") == "0 \"\"  and the end", "the peer's end of stream");
}

void peer_closed(World& w) {
    w.peer("close");
    w.await(POLLRDHUP);
}

void full(World& w) {
    const int small = 8192;
    ::setsockopt(w.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    const int flags = ::fcntl(w.fd, F_GETFL);
    ::fcntl(w.fd, F_SETFL, flags | O_NONBLOCK);
    std::array<char, 65536> data{};
    // Until the peer's window and our buffer are full and stay so.
    for (int idle = 0; idle < 3;) {
        pollfd entry{w.fd, POLLOUT, 0};
        if (::write(w.fd, data.data(), data.size()) > 0)
            idle = 0;
        else if (::poll(&entry, 1, 30) == 0)
            ++idle;
    }
    ::fcntl(w.fd, F_SETFL, flags);
}

#define BOTH_WAYS(name, steps)                                     \
    void out_##name(World& w) { connected(w); steps; }             \
    void in_##name(World& w) { accepted(w); steps; }
BOTH_WAYS(data, hello(w))
BOTH_WAYS(peer_half_closed, peer_half_closed(w))
BOTH_WAYS(data_and_peer_half_closed, (hello(w), peer_half_closed(w)))
BOTH_WAYS(own_half_closed, own_half_closed(w))
BOTH_WAYS(own_shut_read, w.require(::shutdown(w.fd, SHUT_RD) == 0, "shutdown"))
BOTH_WAYS(both_closed, (own_half_closed(w), w.peer("close"), w.await(POLLHUP)))
BOTH_WAYS(peer_closed, peer_closed(w))
BOTH_WAYS(reset, peer_reset(w))
BOTH_WAYS(data_and_reset, (hello(w), peer_reset(w)))
BOTH_WAYS(urgent, (hello(w), w.peer("urgent"), w.await(POLLPRI)))
BOTH_WAYS(full, full(w))

constexpr State kStates[] = {
    {"fresh", fresh, false, false},
    {"bound", bound, false, false},
    {"listening", listening, false, false},
    {"listening_ready", listening_ready, false, false},
    {"connecting", connecting, false, false},
    {"refused", refused, false, false},
    {"refused_and_told", refused_and_told, false, false},
    {"connected", connected, true, true},
    {"accepted", accepted, true, true},
#define BOTH_STATES(name, hears, unsettled) \
    {"connected_" #name, out_##name, true, hears, unsettled}, {"accepted_" #name, in_##name, true, hears, unsettled}
    BOTH_STATES(data, true, false),
    BOTH_STATES(peer_half_closed, true, false),
    BOTH_STATES(data_and_peer_half_closed, true, false),
    BOTH_STATES(own_half_closed, true, false),
    BOTH_STATES(own_shut_read, true, false),
    BOTH_STATES(both_closed, false, false),
    BOTH_STATES(peer_closed, false, true),
    BOTH_STATES(reset, false, false),
    BOTH_STATES(data_and_reset, false, false),
    BOTH_STATES(urgent, true, false),
    BOTH_STATES(full, false, false),
};

// --- calls ----------------------------------------------------------------------------------------------------------------

struct Call {
    const char* name;
    std::function<void(World&)> make;
    bool sleeps = true;     // may wait: worth trying in blocking mode and with a timeout
    bool leaves_it = true;  // the socket is still there afterwards
};

Call recv_with(const char* name, int flags, std::size_t length = 64) {
    return {name, [=](World& w) {
        char data[64] = {};
        w.bounded("recv", [&] { return ::recv(w.fd, data, length, flags); }, (flags & MSG_TRUNC) != 0 ? nullptr : data);
    }};
}

Call send_with(const char* name, int flags, std::size_t length = 5) {
    return {name, [=](World& w) { w.bounded("send", [&] { return ::send(w.fd, "HELLO", length, flags); }); }};
}

void receive_message(World& w, std::vector<iovec> parts, int flags, std::size_t control_size) {
    char control[128];
    Name from;
    msghdr message{};
    message.msg_name = from.get();
    message.msg_namelen = sizeof from.storage;
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    message.msg_control = control_size != 0 ? control : nullptr;
    message.msg_controllen = control_size;
    message.msg_flags = -1;
    if (w.bounded("recvmsg", [&] { return ::recvmsg(w.fd, &message, flags); }) < 0) return;
    w.say("  flags %x name %u control %zu", static_cast<unsigned>(message.msg_flags), message.msg_namelen, message.msg_controllen);
}

int file_with(const char* text) {
    const int file = ::memfd_create("file", MFD_CLOEXEC);
    if (::write(file, text, std::strlen(text)) < 0 || ::lseek(file, 0, SEEK_SET) != 0) return -1;
    return file;
}

void send_file(World& w, off_t start, bool with_offset, std::size_t count) {
    const int file = file_with("0123456789");
    off_t offset = start;
    w.bounded("sendfile", [&] { return ::sendfile(w.fd, file, with_offset ? &offset : nullptr, count); });
    w.say("  offset %ld position %ld", static_cast<long>(offset), static_cast<long>(::lseek(file, 0, SEEK_CUR)));
    ::close(file);
}

void splice_out(World& w) {
    int pipe[2];
    w.require(::pipe2(pipe, O_CLOEXEC) == 0, "pipe");
    w.bounded("splice to a pipe", [&] { return ::splice(w.fd, nullptr, pipe[1], nullptr, 64, 0); });
    char data[64];
    ::fcntl(pipe[0], F_SETFL, O_NONBLOCK);
    w.said("  in the pipe", ::read(pipe[0], data, sizeof data), data);
    ::close(pipe[0]);
    ::close(pipe[1]);
}

void splice_in(World& w) {
    int pipe[2];
    w.require(::pipe2(pipe, O_CLOEXEC) == 0 && ::write(pipe[1], "SPLICE", 6) == 6, "pipe");
    w.bounded("splice from a pipe", [&] { return ::splice(pipe[0], nullptr, w.fd, nullptr, 6, 0); });
    int left = 0;
    ::ioctl(pipe[0], FIONREAD, &left);
    w.say("  left in the pipe %d", left);
    ::close(pipe[0]);
    ::close(pipe[1]);
}

void connect_to(World& w, const char* what, Name name, socklen_t length) {
    const long result = w.bounded(what, [&] { return ::connect(w.fd, name.get(), length); });
    if (result == -1 && errno == EINPROGRESS) w.await(POLLHUP);  // nobody listens there
}

void accept_with(World& w, int flags, bool names) {
    Name name;
    name.length = sizeof name.storage;
    int got = -1;
    w.bounded("accept", [&] {
        got = ::accept4(w.fd, names ? name.get() : nullptr, names ? &name.length : nullptr, flags);
        return got >= 0 ? 0 : -1;
    });
    if (got < 0) return;
    if (names) {
        reinterpret_cast<sockaddr_in&>(name.storage).sin_port = 0;
        w.say("  from %s", w.describe(name).c_str());
    }
    w.say("  status flags %x, close on exec %d", ::fcntl(got, F_GETFL), ::fcntl(got, F_GETFD));
    ::close(got);
}

using NameCall = int (*)(int, sockaddr*, socklen_t*);
void ask_name(World& w, const char* what, NameCall call) {
    for (const socklen_t room : {socklen_t{sizeof(sockaddr_storage)}, socklen_t{4}, socklen_t{0}, socklen_t(-1)}) {
        Name name;
        name.length = room;
        const long result = w.said(std::string(what) + " into " + std::to_string(static_cast<int>(room)),
                                   call(w.fd, name.get(), &name.length));
        if (result != 0) continue;
        const socklen_t length = name.length;
        if (room >= sizeof(sockaddr_storage)) w.say("  %s", w.describe(name).c_str());
        else w.say("  length %u", length);
    }
    w.said(std::string(what) + " without a length", call(w.fd, Name().get(), nullptr));
}

void poll_all(World& w) {
    pollfd entry{w.fd, POLLIN | POLLPRI | POLLOUT | POLLRDHUP | POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND, 0};
    w.said("poll", ::poll(&entry, 1, 0));
    w.say("  %s", World::describe_events(entry.revents).c_str());
    entry.events = 0;
    w.said("poll for nothing", ::poll(&entry, 1, 0));
    w.say("  %s", World::describe_events(entry.revents).c_str());
}

void select_all(World& w) {
    fd_set sets[3];
    for (fd_set& set : sets) {
        FD_ZERO(&set);
        FD_SET(w.fd, &set);
    }
    timeval none{};
    w.said("select", ::select(w.fd + 1, &sets[0], &sets[1], &sets[2], &none));
    w.say("  %d %d %d", FD_ISSET(w.fd, &sets[0]), FD_ISSET(w.fd, &sets[1]), FD_ISSET(w.fd, &sets[2]));
}

void number_ioctl(World& w, const char* name, unsigned long request, int value) {
    int number = value;
    w.said(std::string("ioctl ") + name, ::ioctl(w.fd, request, &number));
    w.say("  %d", number);
}

void status_flags(World& w) {
    w.say("F_GETFL %x", ::fcntl(w.fd, F_GETFL));
    w.said("F_SETFL", ::fcntl(w.fd, F_SETFL, O_NONBLOCK | O_APPEND));
    w.say("F_GETFL %x", ::fcntl(w.fd, F_GETFL));
    w.said("F_SETFL 0", ::fcntl(w.fd, F_SETFL, 0));
    w.say("F_GETFL %x", ::fcntl(w.fd, F_GETFL));
    w.say("F_GETFD %x", ::fcntl(w.fd, F_GETFD));
    w.said("F_SETFD", ::fcntl(w.fd, F_SETFD, FD_CLOEXEC));
    w.say("F_GETFD %x", ::fcntl(w.fd, F_GETFD));
    w.said("F_SETOWN", ::fcntl(w.fd, F_SETOWN, 1));
    w.said("F_GETOWN", ::fcntl(w.fd, F_GETOWN));
    w.said("F_SETSIG", ::fcntl(w.fd, F_SETSIG, 40));
    w.said("F_GETSIG", ::fcntl(w.fd, F_GETSIG));
    w.said("fcntl 9999", ::fcntl(w.fd, 9999));
    w.said("F_GETPIPE_SZ", ::fcntl(w.fd, F_GETPIPE_SZ));
}

void as_a_file(World& w) {
    struct stat status{};
    w.said("fstat", ::fstat(w.fd, &status));
    w.say("  socket %d size %ld", S_ISSOCK(status.st_mode), static_cast<long>(status.st_size));
    char data[8];
    w.said("lseek", ::lseek(w.fd, 0, SEEK_SET));
    w.said("pread", ::pread(w.fd, data, sizeof data, 0));
    w.said("pwrite", ::pwrite(w.fd, data, sizeof data, 0));
    w.said("ftruncate", ::ftruncate(w.fd, 0));
    w.said("fsync", ::fsync(w.fd));
    w.said("isatty", ::isatty(w.fd));
}

void on_a_duplicate(World& w) {
    const int copy = ::fcntl(w.fd, F_DUPFD, 100);
    w.say("F_DUPFD at least 100: %d", copy >= 100);
    ::close(w.fd);
    w.fd = ::dup(copy);
    ::close(copy);
    w.said("F_DUPFD -1", ::fcntl(w.fd, F_DUPFD, -1));
}

std::vector<Call> all_calls() {
    char* const none = nullptr;
    std::vector<Call> calls = {
        {"read", [](World& w) { char data[64]; w.bounded("read", [&] { return ::read(w.fd, data, 64); }, data); }},
        {"read_2", [](World& w) { char data[64]; w.bounded("read", [&] { return ::read(w.fd, data, 2); }, data); }},
        {"read_0", [=](World& w) { w.bounded("read", [&] { return ::read(w.fd, none, 0); }); }},
        {"readv", [](World& w) {
            char data[64];
            const iovec parts[] = {{data, 2}, {data + 2, 0}, {data + 2, 60}};
            w.bounded("readv", [&] { return ::readv(w.fd, parts, 3); }, data);
            w.bounded("readv of no parts", [&] { return ::readv(w.fd, parts, 0); });
            w.said("readv of -1 parts", ::readv(w.fd, parts, -1));
            w.said("readv of 1025 parts", ::readv(w.fd, parts, 1025));
        }},
        recv_with("recv", 0),
        recv_with("recv_0", 0, 0),
        recv_with("recv_peek", MSG_PEEK),
        recv_with("recv_waitall", MSG_WAITALL),
        recv_with("recv_waitall_5", MSG_WAITALL, 5),
        recv_with("recv_waitall_peek", MSG_WAITALL | MSG_PEEK),
        recv_with("recv_dontwait", MSG_DONTWAIT),
        recv_with("recv_trunc", MSG_TRUNC),
        recv_with("recv_peek_trunc", MSG_PEEK | MSG_TRUNC),
        recv_with("recv_oob", MSG_OOB),
        recv_with("recv_oob_peek", MSG_OOB | MSG_PEEK),
        recv_with("recv_errqueue", MSG_ERRQUEUE),
        recv_with("recv_nosignal", MSG_NOSIGNAL),
        recv_with("recv_strange_flags", 0x00800000),
        {"recvfrom", [](World& w) {
            char data[64];
            Name from;
            from.length = sizeof from.storage;
            if (w.bounded("recvfrom", [&] { return ::recvfrom(w.fd, data, 64, 0, from.get(), &from.length); }, data) >= 0)
                w.say("  name length %u", from.length);
        }},
        {"recvmsg_tiny", [](World& w) { char a[2]; receive_message(w, {{a, 1}, {a + 1, 1}}, 0, 0); }},
        {"recvmsg_control", [](World& w) { char a[64]; receive_message(w, {{a, 64}}, 0, 128); }},
        {"recvmsg_none", [](World& w) { receive_message(w, {}, 0, 0); }},
        {"recvmsg_errqueue", [](World& w) { char a[64]; receive_message(w, {{a, 64}}, MSG_ERRQUEUE, 128); }},
        {"recvmsg_cmsg_cloexec", [](World& w) { char a[64]; receive_message(w, {{a, 64}}, MSG_CMSG_CLOEXEC, 128); }},
        {"recvmmsg", [](World& w) {
            char data[2][4];
            iovec parts[2] = {{data[0], 4}, {data[1], 4}};
            mmsghdr messages[2]{};
            for (int i = 0; i < 2; ++i) {
                messages[i].msg_hdr.msg_iov = &parts[i];
                messages[i].msg_hdr.msg_iovlen = 1;
            }
            w.bounded("recvmmsg", [&] { return ::recvmmsg(w.fd, messages, 2, MSG_WAITFORONE, nullptr); });
            w.say("  %u %u", messages[0].msg_len, messages[1].msg_len);
        }},
        {"write", [](World& w) { w.bounded("write", [&] { return ::write(w.fd, "HELLO", 5); }); }},
        {"write_0", [](World& w) { w.bounded("write", [&] { return ::write(w.fd, "HELLO", 0); }); }},
        {"writev", [](World& w) {
            char text[] = "HELLO";
            const iovec parts[] = {{text, 2}, {text + 2, 0}, {text + 2, 3}};
            w.bounded("writev", [&] { return ::writev(w.fd, parts, 3); });
            w.said("writev of no parts", ::writev(w.fd, parts, 0));
            w.said("writev of -1 parts", ::writev(w.fd, parts, -1));
        }},
        send_with("send", 0),
        send_with("send_0", 0, 0),
        send_with("send_nosignal", MSG_NOSIGNAL),
        send_with("send_0_nosignal", MSG_NOSIGNAL, 0),
        send_with("send_dontwait", MSG_DONTWAIT),
        send_with("send_more", MSG_MORE),
        send_with("send_oob", MSG_OOB),
        send_with("send_eor", MSG_EOR),
        send_with("send_confirm_dontroute", MSG_CONFIRM | MSG_DONTROUTE),
        send_with("send_strange_flags", 0x00800000),
        send_with("send_zerocopy", MSG_ZEROCOPY),
        {"sendto_name", [](World& w) {
            Name name = w.other(9);
            w.bounded("sendto", [&] { return ::sendto(w.fd, "HELLO", 5, 0, name.get(), name.length); });
        }},
        {"sendmsg", [](World& w) {
            char text[] = "HELLO";
            iovec parts[] = {{text, 2}, {text + 2, 3}};
            msghdr message{};
            message.msg_iov = parts;
            message.msg_iovlen = 2;
            w.bounded("sendmsg", [&] { return ::sendmsg(w.fd, &message, 0); });
            message.msg_iovlen = 0;
            w.bounded("sendmsg of nothing", [&] { return ::sendmsg(w.fd, &message, 0); });
            message.msg_iovlen = 1025;
            w.bounded("sendmsg of 1025 parts", [&] { return ::sendmsg(w.fd, &message, 0); });
        }},
        {"sendmsg_bad_control", [](World& w) {
            char text[] = "HELLO";
            iovec part{text, 5};
            alignas(cmsghdr) char control[CMSG_SPACE(4)] = {};
            auto* header = reinterpret_cast<cmsghdr*>(control);
            *header = {.cmsg_len = 4, .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
            msghdr message{};
            message.msg_iov = &part;
            message.msg_iovlen = 1;
            message.msg_control = control;
            message.msg_controllen = sizeof control;
            w.bounded("sendmsg with a short header", [&] { return ::sendmsg(w.fd, &message, 0); });
            *header = {.cmsg_len = CMSG_LEN(4), .cmsg_level = SOL_SOCKET, .cmsg_type = 9999};
            w.bounded("sendmsg with an unknown type", [&] { return ::sendmsg(w.fd, &message, 0); });
        }},
        {"sendmmsg", [](World& w) {
            char text[] = "HELLO";
            iovec part{text, 5};
            mmsghdr messages[2]{};
            for (mmsghdr& message : messages) {
                message.msg_hdr.msg_iov = &part;
                message.msg_hdr.msg_iovlen = 1;
            }
            w.bounded("sendmmsg", [&] { return ::sendmmsg(w.fd, messages, 2, 0); });
            w.said("sendmmsg of none", ::sendmmsg(w.fd, messages, 0, 0));
        }},
        {"sendfile", [](World& w) { send_file(w, 0, false, 5); }},
        {"sendfile_offset", [](World& w) { send_file(w, 4, true, 100); }},
        {"sendfile_behind", [](World& w) { send_file(w, 40, true, 100); }},
        {"sendfile_0", [](World& w) { send_file(w, 4, true, 0); }},
        {"sendfile_negative", [](World& w) { send_file(w, -1, true, 5); }},
        {"sendfile_bad_fd", [](World& w) { w.said("sendfile", ::sendfile(w.fd, 999, nullptr, 5)); }, false},
        {"splice_out", splice_out},
        {"splice_in", splice_in},
        {"connect_again", [](World& w) {
            const Name name = w.other(std::stoi(w.peer("closed_port")));
            connect_to(w, "connect", name, name.length);
            connect_to(w, "connect once more", name, name.length);
        }},
        {"connect_unspec", [](World& w) {
            Name name;
            connect_to(w, "connect to AF_UNSPEC", name, sizeof(sockaddr_in));
            connect_to(w, "connect to AF_UNSPEC once more", name, sizeof(sockaddr_in));
        }, false},
        {"connect_wrong", [](World& w) {
            Name name = w.other(9);
            connect_to(w, "connect, length 1", name, 1);
            connect_to(w, "connect, length 4", name, 4);
            connect_to(w, "connect, length -1", name, socklen_t(-1));
            name.storage.ss_family = AF_UNIX;
            connect_to(w, "connect to AF_UNIX", name, name.length);
            name.storage.ss_family = w.family == AF_INET ? AF_INET6 : AF_INET;
            connect_to(w, "connect to the other family", name, name.length);
            w.said("connect to nowhere", ::connect(w.fd, nullptr, name.length));
        }, false},
        {"listen", [](World& w) {
            w.said("listen 5", ::listen(w.fd, 5));
            w.said("listen -1", ::listen(w.fd, -1));
            w.said("listen 0", ::listen(w.fd, 0));
        }, false},
        {"accept", [](World& w) { accept_with(w, 0, true); }},
        {"accept_flags", [](World& w) { accept_with(w, SOCK_NONBLOCK | SOCK_CLOEXEC, false); }},
        {"accept_bad_flags", [](World& w) { accept_with(w, 1, false); }, false},
        {"accept_bad_name", [](World& w) {
            Name name;
            w.bounded("accept without a length", [&] { return ::accept(w.fd, name.get(), nullptr) >= 0 ? 0 : -1; });
            name.length = socklen_t(-1);
            w.bounded("accept into -1 bytes", [&] { return ::accept(w.fd, name.get(), &name.length) >= 0 ? 0 : -1; });
        }},
        {"bind_again", [](World& w) {
            Name name = w.own();
            w.said("bind", ::bind(w.fd, name.get(), name.length));
            w.said("bind, short", ::bind(w.fd, name.get(), 4));
            w.said("bind to nothing", ::bind(w.fd, nullptr, name.length));
            name = w.other(0);
            w.said("bind to the peer's", ::bind(w.fd, name.get(), name.length));
        }, false},
        {"getsockname", [](World& w) { ask_name(w, "getsockname", ::getsockname); }, false},
        {"getpeername", [](World& w) { ask_name(w, "getpeername", ::getpeername); }, false},
        {"shutdown_read", [](World& w) { w.said("shutdown", ::shutdown(w.fd, SHUT_RD)); poll_all(w); }, false},
        {"shutdown_write", [](World& w) { w.said("shutdown", ::shutdown(w.fd, SHUT_WR)); }, false},
        {"shutdown_both", [](World& w) { w.said("shutdown", ::shutdown(w.fd, SHUT_RDWR)); }, false},
        {"shutdown_twice", [](World& w) {
            w.said("shutdown", ::shutdown(w.fd, SHUT_WR));
            w.said("shutdown again", ::shutdown(w.fd, SHUT_WR));
            w.said("shutdown read", ::shutdown(w.fd, SHUT_RD));
        }, false},
        {"shutdown_bad", [](World& w) {
            w.said("shutdown 3", ::shutdown(w.fd, 3));
            w.said("shutdown -1", ::shutdown(w.fd, -1));
        }, false},
        {"poll", poll_all, false},
        {"select", select_all, false},
        {"ioctl_fionread", [](World& w) { number_ioctl(w, "FIONREAD", FIONREAD, 77); }, false},
        {"ioctl_siocatmark", [](World& w) { number_ioctl(w, "SIOCATMARK", SIOCATMARK, 77); }, false},
        {"ioctl_fionbio", [](World& w) {
            number_ioctl(w, "FIONBIO", FIONBIO, 1);
            w.say("F_GETFL %x", ::fcntl(w.fd, F_GETFL));
            number_ioctl(w, "FIONBIO", FIONBIO, 0);
            w.say("F_GETFL %x", ::fcntl(w.fd, F_GETFL));
        }, false},
        {"ioctl_fioclex", [](World& w) {
            w.said("FIOCLEX", ::ioctl(w.fd, FIOCLEX));
            w.say("F_GETFD %x", ::fcntl(w.fd, F_GETFD));
            w.said("FIONCLEX", ::ioctl(w.fd, FIONCLEX));
            w.say("F_GETFD %x", ::fcntl(w.fd, F_GETFD));
        }, false},
        {"ioctl_owner", [](World& w) {
            number_ioctl(w, "FIOSETOWN", 0x8901, 1);
            number_ioctl(w, "FIOGETOWN", 0x8903, 0);
            number_ioctl(w, "SIOCGPGRP", 0x8904, 0);
        }, false},
        {"ioctl_bad", [](World& w) {
            number_ioctl(w, "0x1234", 0x1234, 7);
            number_ioctl(w, "TCGETS", 0x5401, 7);
            number_ioctl(w, "TIOCGWINSZ", 0x5413, 7);
            w.said("ioctl FIONREAD into nothing", ::ioctl(w.fd, FIONREAD, nullptr));
            w.said("ioctl SIOCOUTQ into nothing", ::ioctl(w.fd, TIOCOUTQ, nullptr));
            w.said("ioctl FIONBIO of nothing", ::ioctl(w.fd, FIONBIO, nullptr));
        }, false},
        {"sockatmark", [](World& w) { w.said("sockatmark", ::sockatmark(w.fd)); }, false},
        {"fcntl", status_flags, false},
        {"file", as_a_file, false},
        {"dup", on_a_duplicate, false},
        {"dup2", [](World& w) {
            w.say("dup2: %d", ::dup2(w.fd, 200));
            ::close(w.fd);
            w.fd = 200;
            w.said("dup3 onto itself", ::dup3(200, 200, 0));
        }, false},
        {"close", [](World& w) {
            w.said("close", ::close(w.fd));
            w.said("close again", ::close(w.fd));
            w.fd = -1;
        }, true, false},
        {"close_lingering_0", [](World& w) {
            const linger abort{1, 0};
            ::setsockopt(w.fd, SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
            w.said("close", ::close(w.fd));
            w.fd = -1;
        }, false, false},
        {"close_lingering_5", [](World& w) {
            const linger wait{1, 1};
            ::setsockopt(w.fd, SOL_SOCKET, SO_LINGER, &wait, sizeof wait);
            w.said("close", ::close(w.fd));
            w.fd = -1;
        }, false, false},
    };
    return calls;
}

/// Leaves out what another case has in all but name.
bool is_worth_it(int family, std::string_view state, Mode mode) {
    // IPv6 differs in names and in making the socket, not in how it waits or ends.
    const bool turned = state.starts_with("accepted_") && state != "accepted_data";
    if (family == AF_INET6) return mode == Mode::kNonblocking && !turned;
    if (mode == Mode::kNonblocking) return true;
    if (state.ends_with("_full") || state.ends_with("_data") || state.find('_') == std::string_view::npos) return true;
    return mode == Mode::kBlocking && turned;
}

/// What the call has left behind.
void look_around(World& w, const State& state) {
    if (w.resets_what_it_gets) {  // the call has sent nothing
        const ssize_t sent = ::send(w.fd, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent == 1) w.await(POLLERR | POLLHUP);
    }
    poll_all(w);
    int error = -1;
    socklen_t length = sizeof error;
    w.said("SO_ERROR", ::getsockopt(w.fd, SOL_SOCKET, SO_ERROR, &error, &length));
    w.say("  %s", error == 0 ? "0" : ::strerrorname_np(error));
    char data[64];
    for (int i = 0; i < 2; ++i) w.said("then recv", ::recv(w.fd, data, sizeof data, MSG_DONTWAIT), data);
    for (int i = 0; i < 2; ++i) w.said("then send", ::send(w.fd, "!", 1, MSG_DONTWAIT));
}

void run_case(World& w, const State& state, const Call& call) {
    state.enter(w);
    w.resets_what_it_gets = state.unsettled;
    w.set_mode();
    call.make(w);
    if (w.fd >= 0) look_around(w, state);
    if (w.fd >= 0) w.said("finally close", ::close(w.fd));
    w.fd = -1;
    if (state.peer_hears) w.say("peer: %s", w.peer("receive_all").c_str());
}

}  // namespace

void add_stream_cases(Cases& cases) {
    for (const int family : {AF_INET, AF_INET6}) {
        for (const State& state : kStates) {
            for (const Call& call : all_calls()) {
                for (const Mode mode : {Mode::kNonblocking, Mode::kBlocking, Mode::kTimeout}) {
                    if (mode != Mode::kNonblocking && !call.sleeps) continue;
                    if (!is_worth_it(family, state.name, mode)) continue;
                    cases.push_back({std::string("tcp") + (family == AF_INET6 ? "6" : "4") + "/" + state.name + "/" +
                                         kModeNames[static_cast<int>(mode)] + "/" + call.name,
                                     [=](World& w) {
                                         w.family = family;
                                         w.mode = mode;
                                         run_case(w, state, call);
                                     }});
                }
            }
        }
    }
}

}  // namespace differential
