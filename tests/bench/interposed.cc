// What a call costs more when libculvert.so stands before libc: on descriptors that are the kernel's.
//
//   LD_PRELOAD=.../libculvert.so interposed [CALLS]
//
// Each function is called by the name that the dynamic linker found, and at its address in libc, in short batches by turns; the
// shortest batch of either stands for it, so that neither interrupts nor slow minutes of the machine count. One line of JSON: for
// each call the nanoseconds in libc and what came on top. Without the library on top is nothing: that is the error of the method.
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void die(const char* what) {
    std::perror(what);
    std::exit(1);
}

int checked(int result, const char* what) {
    if (result < 0) die(what);
    return result;
}

void* const libc = ::dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);

struct Measured {
    std::string name;
    double libc_ns;
    double added_ns;
};

class Bench {
public:
    explicit Bench(int calls) : calls_(calls) {}

    /// `call(function)` once by each of the two; `symbol` is the function's name.
    template <class Function, class Call>
    void measure(const std::string& name, const char* symbol, Function* interposed, Call call) {
        auto* const direct = reinterpret_cast<Function*>(::dlsym(libc, symbol));
        if (direct == nullptr) die(symbol);
        double with = 1e9, without = 1e9;
        for (int round = 0; round < kRounds; ++round) {
            with = std::min(with, batch(interposed, call));
            without = std::min(without, batch(direct, call));
        }
        measured.push_back({name, without, with - without});
    }

    std::vector<Measured> measured;

private:
    static constexpr int kRounds = 300;

    template <class Function, class Call>
    double batch(Function* function, Call& call) const {
        const auto begin = Clock::now();
        for (int i = 0; i < calls_; ++i) call(function);
        return std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / calls_;
    }

    const int calls_;
};

/// A pair of connected TCP sockets over 127.0.0.1, which stay the kernel's.
std::array<int, 2> tcp_pair(int& listener) {
    listener = checked(::socket(AF_INET, SOCK_STREAM, 0), "socket");
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    checked(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
    checked(::listen(listener, 8), "listen");
    checked(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length), "getsockname");
    const int client = checked(::socket(AF_INET, SOCK_STREAM, 0), "socket");
    checked(::connect(client, reinterpret_cast<sockaddr*>(&address), sizeof address), "connect");
    checked(::fcntl(listener, F_SETFL, O_NONBLOCK), "fcntl");
    pollfd ready{listener, POLLIN, 0};
    checked(::poll(&ready, 1, 5000), "poll");
    return {client, checked(::accept(listener, nullptr, nullptr), "accept")};
}

/// The calls that work on any descriptor; `fd` has nothing to read.
void measure_any(Bench& bench, const std::string& of, int fd) {
    pollfd one{fd, POLLIN, 0};
    bench.measure("poll of " + of, "poll", ::poll, [&](auto* f) { f(&one, 1, 0); });
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    timeval none{};
    bench.measure("select of " + of, "select", ::select, [&](auto* f) {
        fd_set copy = set;
        f(fd + 1, &copy, nullptr, nullptr, &none);
    });
    bench.measure("fcntl(F_GETFL) of " + of, "fcntl", ::fcntl, [&](auto* f) { f(fd, F_GETFL, 0); });
    int bytes = 0;
    bench.measure("ioctl(FIONREAD) of " + of, "ioctl", ::ioctl, [&](auto* f) { f(fd, FIONREAD, &bytes); });
    const int epoll = checked(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    epoll_event event{.events = EPOLLIN, .data = {}};
    checked(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
    bench.measure("epoll_ctl(MOD) of " + of, "epoll_ctl", ::epoll_ctl, [&](auto* f) { f(epoll, EPOLL_CTL_MOD, fd, &event); });
    std::array<epoll_event, 8> events{};
    bench.measure("epoll_wait of " + of, "epoll_wait", ::epoll_wait, [&](auto* f) { f(epoll, events.data(), 8, 0); });
    event.events = EPOLLOUT;  // an eventfd and these sockets always have room
    checked(::epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event), "epoll_ctl");
    bench.measure("epoll_wait(1 s) of " + of, "epoll_wait", ::epoll_wait, [&](auto* f) { f(epoll, events.data(), 8, 1000); });
    bench.measure("dup + close of " + of, "dup", ::dup, [&](auto* f) {  // close() is libc's in one, ours in the other
        static auto* const libc_close = reinterpret_cast<int (*)(int)>(::dlsym(libc, "close"));
        f == &::dup ? ::close(f(fd)) : libc_close(f(fd));
    });
    ::close(epoll);
}

void measure_socket(Bench& bench, const std::string& of, int fd, int peer) {
    std::byte data[64]{};
    iovec part{data, sizeof data};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    bench.measure("recv of " + of, "recv", ::recv, [&](auto* f) { f(fd, data, sizeof data, MSG_DONTWAIT); });
    bench.measure("recvmsg of " + of, "recvmsg", ::recvmsg, [&](auto* f) { f(fd, &message, MSG_DONTWAIT); });
    bench.measure("send(0) of " + of, "send", ::send, [&](auto* f) { f(fd, data, 0, MSG_NOSIGNAL); });
    bench.measure("sendmsg(0) of " + of, "sendmsg", ::sendmsg, [&, none = msghdr{}](auto* f) { f(fd, &none, MSG_NOSIGNAL); });
    int value = 0;
    socklen_t length = sizeof value;
    bench.measure("getsockopt of " + of, "getsockopt", ::getsockopt, [&](auto* f) { f(fd, SOL_SOCKET, SO_ERROR, &value, &length); });
    bench.measure("setsockopt of " + of, "setsockopt", ::setsockopt,
                  [&](auto* f) { f(fd, SOL_SOCKET, SO_KEEPALIVE, &value, sizeof value); });
    sockaddr_storage name{};
    bench.measure("getsockname of " + of, "getsockname", ::getsockname, [&](auto* f) {
        socklen_t room = sizeof name;
        f(fd, reinterpret_cast<sockaddr*>(&name), &room);
    });
    measure_any(bench, of, fd);
    ::close(peer);
}

}  // namespace

int main(int argc, char** argv) {
    Bench bench(argc > 1 ? std::atoi(argv[1]) : 500);
    std::uint64_t count = 0;
    const int event = checked(::eventfd(0, EFD_NONBLOCK), "eventfd");
    const int zero = checked(::open("/dev/zero", O_RDWR), "/dev/zero");
    iovec part{&count, sizeof count};
    bench.measure("read of a file", "read", ::read, [&](auto* f) { f(zero, &count, 1); });
    bench.measure("write of a file", "write", ::write, [&](auto* f) { f(zero, &count, 1); });
    bench.measure("readv of a file", "readv", ::readv, [&](auto* f) { f(zero, &part, 1); });
    bench.measure("writev of a file", "writev", ::writev, [&](auto* f) { f(zero, &part, 1); });
    measure_any(bench, "an eventfd", event);
    std::array<pollfd, 64> many;
    many.fill({event, POLLIN, 0});
    bench.measure("poll of 64 eventfds", "poll", ::poll, [&](auto* f) { f(many.data(), many.size(), 0); });

    std::array<int, 2> local;
    checked(::socketpair(AF_UNIX, SOCK_STREAM, 0, local.data()), "socketpair");
    measure_socket(bench, "a UNIX socket", local[0], local[1]);
    int listener = -1;
    const auto [client, served] = tcp_pair(listener);
    bench.measure("accept4 of a TCP listener", "accept4", ::accept4, [&](auto* f) { f(listener, nullptr, nullptr, SOCK_CLOEXEC); });
    measure_socket(bench, "a kernel's TCP socket", client, served);
    static auto* const libc_close = reinterpret_cast<int (*)(int)>(::dlsym(libc, "close"));
    for (const auto& [name, family] : {std::pair{"socket + close, UNIX", AF_UNIX}, std::pair{"socket + close, TCP", AF_INET}})
        bench.measure(name, "socket", ::socket, [&](auto* f) {
            const int fd = f(family, SOCK_STREAM, 0);
            f == &::socket ? ::close(fd) : libc_close(fd);
        });

    std::printf("{");
    for (const Measured& each : bench.measured)
        std::printf("%s\"%s\": [%.1f, %.1f]", &each == bench.measured.data() ? "" : ", ", each.name.c_str(), each.libc_ns, each.added_ns);
    std::printf("}\n");
    return 0;
}
