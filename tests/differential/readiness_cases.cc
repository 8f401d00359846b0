// Readiness: what epoll, poll and select say, in which order, how often, and when they stop saying it.
//
//   readiness4/stream/MODE EVENTS/SCRIPT    one connection in a set: every mode of epoll x what it is asked for x what happens
//   readiness4/listener/..., datagram/...   the same for the other kinds
//   readiness4/set/..., poll/..., select/... several descriptors, duplicates, closed ones, sets in sets, wrong calls
//
// Before a look everything that the peer has done has arrived (await), and one more round trip to it has passed.

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <string>

#include "states.h"
#include "world.h"

namespace differential {

using namespace states;

namespace {

long long now_us() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000LL + now.tv_nsec / 1000;
}

/// An epoll set whose entries are told apart by a letter.
class Set {
public:
    explicit Set(World& world, const char* name = "set") : world_(world), name_(name), fd_(::epoll_create1(EPOLL_CLOEXEC)) {}
    ~Set() { ::close(fd_); }
    Set(const Set&) = delete;
    Set& operator=(const Set&) = delete;

    int fd() const { return fd_; }
    int control(int operation, char label, int fd, std::uint32_t events) {
        epoll_event event{};
        event.events = events;
        event.data.u32 = static_cast<std::uint32_t>(label);
        const char* const names[] = {"", "ADD", "DEL", "MOD"};
        return static_cast<int>(world_.said(std::string(name_) + " " + names[operation] + " " + label,
                                            ::epoll_ctl(fd_, operation, fd, operation == EPOLL_CTL_DEL ? nullptr : &event)));
    }
    int add(char label, int fd, std::uint32_t events = EPOLLIN) { return control(EPOLL_CTL_ADD, label, fd, events); }
    int modify(char label, int fd, std::uint32_t events = EPOLLIN) { return control(EPOLL_CTL_MOD, label, fd, events); }
    int remove(char label, int fd) { return control(EPOLL_CTL_DEL, label, fd, 0); }

    /// One epoll_wait. In the order of their letters if `sorted`.
    void wait(int most = 16, int timeout_ms = 0, bool sorted = false) {
        epoll_event events[16];
        const long count = ::epoll_wait(fd_, events, most, timeout_ms);
        std::string text;
        if (count > 0 && sorted)
            std::sort(events, events + count, [](const epoll_event& a, const epoll_event& b) { return a.data.u32 < b.data.u32; });
        for (long i = 0; i < count; ++i)
            text += std::string(" ") + static_cast<char>(events[i].data.u32) + ":" + World::describe_events(static_cast<int>(events[i].events));
        const int error = errno;
        if (count < 0) text = std::string(" ") + ::strerrorname_np(error);
        world_.say("%s wait = %ld%s", name_, count, text.c_str());
    }
    /// Twice: what is told once only, what again and again.
    void wait_twice() {
        wait();
        wait();
    }

private:
    World& world_;
    const char* const name_;
    const int fd_;
};

/// What the peer and we have done is here, and has been told to everybody. Binding asks the daemon, and waits for its answer:
/// it has looked at everything from before by then.
void settle(World& w) {
    w.peer("ping");
    for (int i = 0; i < 2; ++i) {
        const int marker = w.make_socket(SOCK_DGRAM);
        Name name = w.own();
        w.require(::bind(marker, name.get(), name.length) == 0, "bind of a marker");
        ::close(marker);
    }
}

void nonblocking(int fd) { ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

/// Everything that can be read is read.
void drain(World& w) {
    char data[256];
    long total = 0;
    for (ssize_t got; (got = ::recv(w.fd, data, sizeof data, MSG_DONTWAIT)) > 0;) total += got;
    w.say("drained %ld", total);
}

void fill(World& w) {
    const int small = 8192;
    ::setsockopt(w.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    static char data[65536];
    for (int idle = 0; idle < 3;) {
        pollfd entry{w.fd, POLLOUT, 0};
        if (::send(w.fd, data, sizeof data, MSG_DONTWAIT) > 0)
            idle = 0;
        else if (::poll(&entry, 1, 30) == 0)
            ++idle;
    }
}

struct ModeOf {
    const char* name;
    std::uint32_t flags;
};
constexpr ModeOf kModes[] = {{"level", 0},
                             {"edge", EPOLLET},
                             {"oneshot", EPOLLONESHOT},
                             {"edge_oneshot", EPOLLET | EPOLLONESHOT},
                             {"exclusive", EPOLLEXCLUSIVE},
                             {"edge_exclusive", EPOLLEXCLUSIVE | EPOLLET}};
constexpr ModeOf kAsked[] = {{"in", EPOLLIN}, {"out", EPOLLOUT}, {"in_out", EPOLLIN | EPOLLOUT},
                             {"in_rdhup", EPOLLIN | EPOLLRDHUP}, {"rdhup", EPOLLRDHUP}, {"pri", EPOLLPRI}, {"nothing", 0},
                             {"in_rdnorm_wrnorm", EPOLLIN | EPOLLRDNORM | EPOLLWRNORM}};

struct Script {
    const char* name;
    void (*play)(World&, Set&, std::uint32_t events);
};

void peer_sends(World& w, int bytes) {
    int before = 0;
    ::ioctl(w.fd, FIONREAD, &before);
    w.peer("send " + std::to_string(bytes));
    w.await_unread(before + bytes);
    settle(w);
}

constexpr Script kStreamScripts[] = {
    {"data", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        peer_sends(w, 5);
        set.wait_twice();
        char data[8];
        w.said("read 2", ::read(w.fd, data, 2), data);
        set.wait_twice();
        peer_sends(w, 4);
        set.wait_twice();
        drain(w);
        set.wait_twice();
        peer_sends(w, 1);
        set.wait_twice();
    }},
    {"modify_with_data", [](World& w, Set& set, std::uint32_t events) {
        peer_sends(w, 5);
        set.wait_twice();
        set.modify('a', w.fd, events);
        set.wait_twice();
        set.modify('b', w.fd, EPOLLOUT | (events & EPOLLET));
        set.wait_twice();
        set.modify('c', w.fd, 0);
        set.wait_twice();
        set.modify('d', w.fd, EPOLLIN);
        set.wait_twice();
    }},
    {"remove_and_add", [](World& w, Set& set, std::uint32_t events) {
        peer_sends(w, 5);
        set.remove('a', w.fd);
        set.wait();
        set.remove('a', w.fd);
        set.add('b', w.fd, events);
        set.add('c', w.fd, events);
        set.wait_twice();
    }},
    {"peer_shuts", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        w.peer("shut");
        w.await(POLLRDHUP);
        settle(w);
        set.wait_twice();
        w.said("shutdown", ::shutdown(w.fd, SHUT_WR));
        w.await(POLLHUP);
        settle(w);
        set.wait_twice();
    }},
    {"peer_resets", [](World& w, Set& set, std::uint32_t) {
        peer_sends(w, 5);
        set.wait_twice();
        w.peer("reset");
        w.await(POLLHUP);
        settle(w);
        set.wait_twice();
        drain(w);
        set.wait_twice();
    }},
    {"own_shutdown", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        w.said("shutdown read", ::shutdown(w.fd, SHUT_RD));
        settle(w);
        set.wait_twice();
        w.said("shutdown write", ::shutdown(w.fd, SHUT_WR));
        settle(w);
        set.wait_twice();
    }},
    {"urgent", [](World& w, Set& set, std::uint32_t) {
        w.peer("urgent");
        w.await(POLLPRI);
        settle(w);
        set.wait_twice();
        char byte;
        w.said("recv out of band", ::recv(w.fd, &byte, 1, MSG_OOB), &byte);
        set.wait_twice();
    }},
    {"low_water", [](World& w, Set& set, std::uint32_t) {
        const int four = 4;
        w.said("SO_RCVLOWAT", ::setsockopt(w.fd, SOL_SOCKET, SO_RCVLOWAT, &four, sizeof four));
        peer_sends(w, 3);
        set.wait_twice();
        char data[8];
        w.said("peek", ::recv(w.fd, data, 8, MSG_PEEK | MSG_DONTWAIT), data);
        w.said("recv 1", ::recv(w.fd, data, 1, MSG_DONTWAIT), data);
        peer_sends(w, 1);
        set.wait_twice();
        peer_sends(w, 1);
        set.wait_twice();
        w.said("recv", ::recv(w.fd, data, 8, 0), data);
        peer_sends(w, 2);
        set.wait_twice();
        w.peer("shut");
        w.await(POLLRDHUP);
        settle(w);
        set.wait_twice();
        w.said("recv", ::recv(w.fd, data, 8, 0), data);
        set.wait_twice();
    }},
    {"full", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        fill(w);
        set.wait_twice();
        w.peer("drain");
        w.await(POLLOUT);
        settle(w);
        set.wait_twice();
    }},
};

constexpr Script kListenerScripts[] = {
    {"connections", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        const std::string connect = "connect " + std::to_string(w.bound_port);
        w.peer(connect);
        w.await(POLLIN);
        settle(w);
        set.wait_twice();
        w.peer("switch 1");
        w.peer(connect);
        settle(w);
        const int first = ::accept(w.fd, nullptr, nullptr);
        set.wait_twice();
        const int second = ::accept(w.fd, nullptr, nullptr);
        w.say("accepted %d %d", first >= 0, second >= 0);
        set.wait_twice();
        w.peer("switch 2");
        w.peer(connect);
        w.await(POLLIN);
        settle(w);
        set.wait_twice();
        ::close(first);
        ::close(second);
    }},
    {"shutdown", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        w.said("shutdown", ::shutdown(w.fd, SHUT_RD));
        settle(w);
        set.wait_twice();
        w.said("listen", ::listen(w.fd, 3));
        set.wait_twice();
    }},
};

constexpr Script kDatagramScripts[] = {
    {"data", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        w.peer("udp_send 5");
        w.settle_datagrams();
        set.wait_twice();
        w.peer("udp_send 0");
        w.settle_datagrams();
        set.wait_twice();
        char data[8];
        w.said("recv", ::recv(w.fd, data, 8, MSG_DONTWAIT), data);
        set.wait_twice();
        w.said("recv", ::recv(w.fd, data, 8, MSG_DONTWAIT), data);
        set.wait_twice();
        w.peer("udp_send 1");
        w.settle_datagrams();
        set.wait_twice();
    }},
    {"refused", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        w.peer("udp_close");
        w.said("send", ::send(w.fd, "x", 1, 0));
        w.await(POLLERR);
        settle(w);
        set.wait_twice();
        int error = 0;
        socklen_t length = sizeof error;
        w.said("SO_ERROR", ::getsockopt(w.fd, SOL_SOCKET, SO_ERROR, &error, &length));
        set.wait_twice();
    }},
    {"shutdown", [](World& w, Set& set, std::uint32_t) {
        set.wait_twice();
        w.said("shutdown read", ::shutdown(w.fd, SHUT_RD));
        settle(w);
        set.wait_twice();
        w.said("shutdown write", ::shutdown(w.fd, SHUT_WR));
        settle(w);
        set.wait_twice();
    }},
};

// --- single descriptors ----------------------------------------------------------------------------------------------------

template <std::size_t Count>
void add_scripts(Cases& cases, int family, const char* kind, void (*enter)(World&), const Script (&scripts)[Count], bool all) {
    for (const Script& script : scripts)
        for (const ModeOf& mode : kModes)
            for (const ModeOf& asked : kAsked) {
                if ((mode.flags & EPOLLEXCLUSIVE) != 0 && (asked.flags & ~std::uint32_t{EPOLLIN | EPOLLOUT}) != 0) continue;
                if (!all && asked.flags != EPOLLIN && asked.flags != (EPOLLIN | EPOLLOUT)) continue;
                cases.push_back({std::string("readiness") + (family == AF_INET6 ? "6/" : "4/") + kind + "/" + mode.name + "_" +
                                     asked.name + "/" + script.name,
                                 [=, play = script.play](World& w) {
                                     w.family = family;
                                     enter(w);
                                     Set set(w);
                                     const std::uint32_t events = mode.flags | asked.flags;
                                     set.add('a', w.fd, events);
                                     play(w, set, events);
                                 }});
            }
}

// --- several descriptors -----------------------------------------------------------------------------------------------------

/// Two connections, A and B, and a UDP socket, all Culvert's; a pipe, an eventfd and a UNIX socket.
struct Crowd {
    explicit Crowd(World& world) : w(world) {
        listening(w);
        for (int* const connection : {&a, &b}) {
            w.peer(connection == &a ? "switch 0" : "switch 1");
            w.peer("connect " + std::to_string(w.bound_port));
            w.await(POLLIN);
            *connection = ::accept(w.fd, nullptr, nullptr);
        }
        ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
        w.require(::pipe2(pipe, O_CLOEXEC) == 0, "pipe");
        counter = ::eventfd(0, EFD_CLOEXEC);
    }
    ~Crowd() {
        for (const int fd : {a, b, pipe[0], pipe[1], pair[0], pair[1], counter}) ::close(fd);
    }
    void peer_sends_to(int which, int fd) {
        int before = 0;
        ::ioctl(fd, FIONREAD, &before);
        w.peer("switch " + std::to_string(which));
        w.peer("send 5");
        w.await_unread(before + 5, fd);
        settle(w);
    }
    void wake_pipe() { w.require(::write(pipe[1], "p", 1) == 1, "write"); }
    void wake_counter() {
        const std::uint64_t one = 1;
        w.require(::write(counter, &one, sizeof one) == sizeof one, "write");
    }
    void wake_pair() { w.require(::write(pair[1], "u", 1) == 1, "write"); }

    World& w;
    int a = -1, b = -1, counter = -1;
    int pipe[2]{}, pair[2]{};
};

void say_poll(World& w, const char* what, std::vector<pollfd> entries, int timeout_ms = 0) {
    const long count = w.said(what, ::poll(entries.data(), entries.size(), timeout_ms));
    if (count < 0) return;
    std::string text;
    for (const pollfd& entry : entries) text += " " + World::describe_events(entry.revents);
    w.say(" %s", text.c_str());
}

struct Named {
    const char* name;
    void (*run)(World&);
};

void add_and_connect(World& w, std::uint32_t events) {
    w.fd = w.make_socket(SOCK_STREAM);
    nonblocking(w.fd);
    Set set(w);
    set.add('a', w.fd, events);
    set.wait_twice();
    w.peer_port = std::stoi(w.peer("listen"));
    Name name = w.other(w.peer_port);
    w.said("connect", ::connect(w.fd, name.get(), name.length));
    w.peer("accept");
    w.await(POLLOUT);
    settle(w);
    set.wait_twice();
    peer_sends(w, 3);
    set.wait_twice();
}

constexpr Named kSets[] = {
    {"two_in_order", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a);
        set.add('b', crowd.b);
        crowd.peer_sends_to(1, crowd.b);
        set.wait(1);
        crowd.peer_sends_to(0, crowd.a);
        set.wait(1);
        set.wait(1);
        set.wait(1);
        set.wait(1);
        set.wait();
    }},
    {"mixed", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a);
        set.add('b', crowd.b);
        set.add('e', crowd.counter);
        set.add('l', w.fd);
        set.add('p', crowd.pipe[0]);
        set.add('u', crowd.pair[0]);
        set.wait();
        crowd.wake_pipe();
        crowd.peer_sends_to(1, crowd.b);
        crowd.wake_counter();
        set.wait(16, 0, true);
        crowd.wake_pair();
        crowd.peer_sends_to(0, crowd.a);
        set.wait(16, 0, true);
        char data[16];
        w.said("read a", ::read(crowd.a, data, 16), data);
        w.said("read pipe", ::read(crowd.pipe[0], data, 16), data);
        set.wait(16, 0, true);
        set.wait(16, 0, true);
    }},
    {"mixed_one_at_a_time", [](World& w) {  // nobody starves
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a);
        set.add('p', crowd.pipe[0]);
        set.add('u', crowd.pair[0]);
        crowd.wake_pipe();
        crowd.wake_pair();
        crowd.peer_sends_to(0, crowd.a);
        std::string seen;
        for (int i = 0; i < 24; ++i) {
            epoll_event event{};
            if (::epoll_wait(set.fd(), &event, 1, 0) == 1 && seen.find(static_cast<char>(event.data.u32)) == std::string::npos)
                seen += static_cast<char>(event.data.u32);
        }
        std::sort(seen.begin(), seen.end());
        w.say("seen %s", seen.c_str());
    }},
    {"in_two_sets", [](World& w) {
        Crowd crowd(w);
        Set one(w, "one"), two(w, "two");
        one.add('a', crowd.a, EPOLLIN);
        two.add('a', crowd.a, EPOLLIN | EPOLLET);
        crowd.peer_sends_to(0, crowd.a);
        one.wait_twice();
        two.wait_twice();
        one.remove('a', crowd.a);
        crowd.peer_sends_to(0, crowd.a);
        one.wait();
        two.wait_twice();
    }},
    {"duplicate", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        const int copy = ::dup(crowd.a);
        set.add('a', crowd.a);
        set.add('c', copy, EPOLLIN | EPOLLET);
        crowd.peer_sends_to(0, crowd.a);
        set.wait(16, 0, true);
        set.wait();
        set.modify('d', copy, EPOLLIN);
        set.wait();
        set.remove('a', crowd.a);
        set.wait();
        ::close(copy);
    }},
    {"closed_with_a_duplicate_left", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        const int copy = ::dup(crowd.a);
        set.add('a', crowd.a);
        w.said("close", ::close(crowd.a));
        crowd.peer_sends_to(0, copy);
        set.wait_twice();  // the file is still there, and so is its entry
        set.remove('a', crowd.a);
        set.wait();
        w.said("close the other", ::close(copy));
        set.wait();
    }},
    {"closed_without", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a);
        set.add('b', crowd.b);
        crowd.peer_sends_to(0, crowd.a);
        w.said("close", ::close(crowd.a));
        set.wait();
        crowd.peer_sends_to(1, crowd.b);
        set.wait();
        set.modify('a', crowd.a);
        set.remove('a', crowd.a);
    }},
    {"number_used_again", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a);
        crowd.peer_sends_to(0, crowd.a);
        const int number = crowd.a;
        ::close(crowd.a);
        w.say("same number %d", ::dup2(crowd.b, number) == number);
        set.wait();
        set.modify('n', number);
        set.add('n', number);
        crowd.peer_sends_to(1, crowd.b);
        set.wait();
    }},
    {"overwritten_by_dup2", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a);
        set.add('b', crowd.b);
        crowd.peer_sends_to(0, crowd.a);
        w.say("dup2 %d", ::dup2(crowd.b, crowd.a) == crowd.a);
        set.wait();
        crowd.peer_sends_to(1, crowd.b);
        set.wait();
    }},
    {"nested", [](World& w) {
        Crowd crowd(w);
        Set inner(w, "inner"), outer(w, "outer");
        inner.add('a', crowd.a);
        outer.add('i', inner.fd());
        outer.wait();
        say_poll(w, "poll of the set", {{inner.fd(), POLLIN, 0}});
        crowd.peer_sends_to(0, crowd.a);
        say_poll(w, "poll of the set", {{inner.fd(), POLLIN, 0}});
        outer.wait_twice();
        inner.wait_twice();
        char data[8];
        w.said("read", ::read(crowd.a, data, 8), data);
        outer.wait();
        say_poll(w, "poll of the set", {{inner.fd(), POLLIN | POLLOUT, 0}, {outer.fd(), POLLIN, 0}});
    }},
    {"nested_edge", [](World& w) {
        Crowd crowd(w);
        Set inner(w, "inner"), outer(w, "outer");
        inner.add('a', crowd.a);
        inner.add('p', crowd.pipe[0]);
        outer.add('i', inner.fd(), EPOLLIN | EPOLLET);
        crowd.peer_sends_to(0, crowd.a);
        outer.wait_twice();
        crowd.wake_pipe();
        outer.wait_twice();
        inner.wait(16, 0, true);
        outer.wait_twice();
    }},
    {"nested_thrice", [](World& w) {
        Crowd crowd(w);
        Set first(w, "first"), second(w, "second"), third(w, "third");
        third.add('2', second.fd());
        second.add('1', first.fd());
        first.add('a', crowd.a);
        third.wait();
        crowd.peer_sends_to(0, crowd.a);
        third.wait_twice();
        second.wait();
        first.wait();
        fd_set readable;
        FD_ZERO(&readable);
        FD_SET(third.fd(), &readable);
        timeval none{};
        w.said("select of the set", ::select(third.fd() + 1, &readable, nullptr, nullptr, &none));
    }},
    {"added_before_connect", [](World& w) { add_and_connect(w, EPOLLIN | EPOLLOUT | EPOLLRDHUP); }},
    {"added_before_connect_edge", [](World& w) { add_and_connect(w, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET); }},
    {"added_before_refusal", [](World& w) {
        w.fd = w.make_socket(SOCK_STREAM);
        nonblocking(w.fd);
        Set set(w);
        set.add('a', w.fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
        Name name = w.other(std::stoi(w.peer("closed_port")));
        w.said("connect", ::connect(w.fd, name.get(), name.length));
        w.await(POLLHUP);
        settle(w);
        set.wait_twice();
        int error = 0;
        socklen_t length = sizeof error;
        ::getsockopt(w.fd, SOL_SOCKET, SO_ERROR, &error, &length);
        w.say("error %s", ::strerrorname_np(error));
        set.wait_twice();
        w.said("connect again", ::connect(w.fd, name.get(), name.length));
        set.wait_twice();
    }},
    {"added_while_connecting", [](World& w) {
        w.fd = w.make_socket(SOCK_STREAM);
        nonblocking(w.fd);
        Name name = w.other(std::stoi(w.peer("blackhole")));
        w.said("connect", ::connect(w.fd, name.get(), name.length));
        Set set(w);
        set.add('a', w.fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
        set.wait_twice();
    }},
    {"added_before_listen", [](World& w) {
        w.fd = w.make_socket(SOCK_STREAM);
        Set set(w);
        set.add('l', w.fd);
        set.wait();
        w.bind_and_listen();
        set.wait();
        w.peer("connect " + std::to_string(w.bound_port));
        w.await(POLLIN);
        settle(w);
        set.wait_twice();
    }},
    {"added_before_bind_udp", [](World& w) {
        w.fd = w.make_socket(SOCK_DGRAM);
        Set set(w);
        set.add('d', w.fd, EPOLLIN | EPOLLOUT);
        set.wait();
        Name name = w.own();
        w.said("bind", ::bind(w.fd, name.get(), name.length));
        set.wait_twice();
    }},
    {"oneshot_of_two", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a, EPOLLIN | EPOLLONESHOT);
        set.add('b', crowd.b, EPOLLIN);
        crowd.peer_sends_to(0, crowd.a);
        crowd.peer_sends_to(1, crowd.b);
        set.wait(16, 0, true);
        set.wait(16, 0, true);
        set.modify('a', crowd.a, EPOLLIN | EPOLLONESHOT);
        set.wait(16, 0, true);
        set.wait(16, 0, true);
    }},
    {"exclusive_rules", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT);
        set.add('a', crowd.a, EPOLLIN | EPOLLEXCLUSIVE | EPOLLRDHUP);
        set.add('a', crowd.a, EPOLLIN | EPOLLEXCLUSIVE | EPOLLPRI);
        set.add('a', crowd.a, EPOLLIN | EPOLLEXCLUSIVE | EPOLLWAKEUP);
        set.modify('a', crowd.a, EPOLLIN | EPOLLEXCLUSIVE);
        set.modify('a', crowd.a, EPOLLIN);
        set.remove('a', crowd.a);
        set.add('a', crowd.a, EPOLLIN);
        set.modify('a', crowd.a, EPOLLIN | EPOLLEXCLUSIVE);
        Set other(w, "other");
        set.add('s', other.fd(), EPOLLIN | EPOLLEXCLUSIVE);
    }},
    {"wrong_calls", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.modify('a', crowd.a);
        set.remove('a', crowd.a);
        set.add('a', crowd.a);
        set.add('a', crowd.a);
        set.add('x', 999);
        set.modify('x', 999);
        set.remove('x', 999);
        set.add('s', set.fd());
        set.add('n', -1);
        epoll_event event{EPOLLIN, {}};
        w.said("epoll_ctl of a pipe", ::epoll_ctl(crowd.pipe[0], EPOLL_CTL_ADD, crowd.a, &event));
        w.said("epoll_ctl of a connection", ::epoll_ctl(crowd.a, EPOLL_CTL_ADD, crowd.b, &event));
        w.said("epoll_ctl of itself", ::epoll_ctl(crowd.a, EPOLL_CTL_ADD, crowd.a, &event));
        w.said("epoll_ctl 9", ::epoll_ctl(set.fd(), 9, crowd.a, &event));
        w.said("epoll_ctl 0", ::epoll_ctl(set.fd(), 0, crowd.b, &event));
        w.said("epoll_ctl ADD without an event", ::epoll_ctl(set.fd(), EPOLL_CTL_ADD, crowd.b, nullptr));
        w.said("epoll_ctl of a closed set", ::epoll_ctl(999, EPOLL_CTL_ADD, crowd.b, &event));
        epoll_event events[2];
        w.said("epoll_wait for none", ::epoll_wait(set.fd(), events, 0, 0));
        w.said("epoll_wait for -1", ::epoll_wait(set.fd(), events, -1, 0));
        w.said("epoll_wait for many", ::epoll_wait(set.fd(), events, 0x7fffffff, 0));
        w.said("epoll_wait of a connection", ::epoll_wait(crowd.a, events, 2, 0));
        w.said("epoll_wait of a pipe", ::epoll_wait(crowd.pipe[0], events, 2, 0));
        w.said("epoll_wait of 999", ::epoll_wait(999, events, 2, 0));
        const timespec bad{0, 1'000'000'000}, negative{-1, 0};
        w.said("epoll_pwait2 with too much", ::epoll_pwait2(set.fd(), events, 2, &bad, nullptr));
        w.said("epoll_pwait2 with less than nothing", ::epoll_pwait2(set.fd(), events, 2, &negative, nullptr));
        w.said("epoll_create1 9", ::epoll_create1(9));
        w.said("epoll_create 0", ::epoll_create(0));
    }},
    {"timeouts", [](World& w) {
        Crowd crowd(w);
        Set set(w);
        set.add('a', crowd.a);
        for (const int ms : {0, 1, 30}) {
            const long long before = now_us();
            set.wait(4, ms);
            const long long took = now_us() - before;
            w.say("  %d ms: not before %d", ms, took >= ms * 1000);
        }
        epoll_event event;
        const timespec short_time{0, 300'000};
        const long long before = now_us();
        w.said("epoll_pwait2", ::epoll_pwait2(set.fd(), &event, 1, &short_time, nullptr));
        w.say("  not before %d", now_us() - before >= 300);
    }},
};

void on_signal(int) {}

/// A signal that is pending while blocked, and comes in with the mask of the call.
void raise_blocked(int flags) {
    struct sigaction action{};
    action.sa_handler = on_signal;
    action.sa_flags = flags;
    ::sigaction(SIGUSR1, &action, nullptr);
    sigset_t set;
    ::sigemptyset(&set);
    ::sigaddset(&set, SIGUSR1);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    ::raise(SIGUSR1);
}

bool is_pending() {
    sigset_t set;
    ::sigpending(&set);
    return ::sigismember(&set, SIGUSR1) == 1;
}

void wait_with_mask(World& w, bool ready, int flags) {
    Crowd crowd(w);
    Set set(w);
    set.add('a', crowd.a);
    if (ready) crowd.peer_sends_to(0, crowd.a);
    sigset_t open;
    ::sigemptyset(&open);
    epoll_event events[2];
    raise_blocked(flags);
    w.said("epoll_pwait", ::epoll_pwait(set.fd(), events, 2, 5000, &open));
    w.say("  pending %d", is_pending());
    raise_blocked(flags);
    pollfd entry{crowd.a, POLLIN, 0};
    const timespec patience{5, 0};
    w.said("ppoll", ::ppoll(&entry, 1, &patience, &open));
    w.say("  pending %d", is_pending());
    raise_blocked(flags);
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(crowd.a, &readable);
    w.said("pselect", ::pselect(crowd.a + 1, &readable, nullptr, nullptr, &patience, &open));
    w.say("  pending %d", is_pending());
    const timespec none{};
    raise_blocked(flags);
    w.said("epoll_pwait, no time", ::epoll_pwait(set.fd(), events, 2, 0, &open));
    w.say("  pending %d", is_pending());
    raise_blocked(flags);
    w.said("ppoll, no time", ::ppoll(&entry, 1, &none, &open));
    w.say("  pending %d", is_pending());
}

constexpr Named kPolls[] = {
    {"many", [](World& w) {
        Crowd crowd(w);
        crowd.wake_pipe();
        crowd.peer_sends_to(1, crowd.b);
        say_poll(w, "poll", {{crowd.a, POLLIN | POLLOUT, 0}, {crowd.b, POLLIN | POLLOUT, 0}, {crowd.pipe[0], POLLIN, 0},
                             {-1, POLLIN, 0}, {crowd.b, POLLRDHUP, 0}, {crowd.b, POLLRDNORM, 0}, {w.fd, POLLIN, 0},
                             {crowd.counter, POLLIN | POLLOUT, 0}, {999, POLLIN, 0}, {-5, POLLIN, 0}});
        say_poll(w, "poll with time", {{crowd.b, POLLIN, 0}, {crowd.a, POLLIN, 0}}, 5000);
        say_poll(w, "poll of a closed one", {{999, 0, 0}, {crowd.a, POLLIN, 0}}, 5000);
        say_poll(w, "poll of nothing", {}, 1);
        w.said("poll of too many", ::poll(nullptr, 100'000'000, 0));
    }},
    {"times", [](World& w) {
        Crowd crowd(w);
        for (const int ms : {0, 1, 30}) {
            const long long before = now_us();
            say_poll(w, "poll", {{crowd.a, POLLIN, 0}, {crowd.pipe[0], POLLIN, 0}}, ms);
            w.say("  %d ms: not before %d", ms, now_us() - before >= ms * 1000);
        }
        pollfd entry{crowd.a, POLLIN, 0};
        const timespec bad{0, 1'000'000'000}, negative{-1, 0};
        w.said("ppoll with too much", ::ppoll(&entry, 1, &bad, nullptr));
        w.said("ppoll with less than nothing", ::ppoll(&entry, 1, &negative, nullptr));
    }},
    {"mask_idle", [](World& w) { wait_with_mask(w, false, 0); }},
    {"mask_idle_restart", [](World& w) { wait_with_mask(w, false, SA_RESTART); }},
    {"mask_ready", [](World& w) { wait_with_mask(w, true, 0); }},
    {"select", [](World& w) {
        Crowd crowd(w);
        crowd.wake_pipe();
        crowd.peer_sends_to(1, crowd.b);
        const auto ask = [&](const char* what, std::vector<int> in, std::vector<int> out, std::vector<int> exceptional, timeval time,
                             int highest) {
            fd_set sets[3];
            const std::vector<int>* const wanted[3] = {&in, &out, &exceptional};
            for (int i = 0; i < 3; ++i) {
                FD_ZERO(&sets[i]);
                for (const int fd : *wanted[i]) FD_SET(fd, &sets[i]);
            }
            if (w.said(what, ::select(highest, &sets[0], &sets[1], &sets[2], &time)) < 0) return;
            std::string text;
            for (int i = 0; i < 3; ++i) {
                for (const int fd : *wanted[i]) text += FD_ISSET(fd, &sets[i]) ? " 1" : " 0";
                text += ";";
            }
            w.say(" %s", text.c_str());
        };
        ask("select", {crowd.a, crowd.b, crowd.pipe[0], w.fd}, {crowd.a, crowd.pipe[1]}, {crowd.a}, {}, 600);
        ask("select for reading", {crowd.a}, {}, {}, {0, 20'000}, 600);
        ask("select of a closed one", {crowd.a, 60}, {}, {}, {}, 600);
        ask("select below", {crowd.a, crowd.b}, {}, {}, {}, crowd.a + 1);
        ask("select of -1", {}, {}, {}, {}, -1);
        ask("select with a bad time", {crowd.b}, {}, {}, {-1, 0}, 600);
        ask("select with much", {crowd.b}, {}, {}, {0, 2'000'000}, 600);
        timeval left{5, 0};
        fd_set readable;
        FD_ZERO(&readable);
        FD_SET(crowd.b, &readable);
        w.said("select", ::select(600, &readable, nullptr, nullptr, &left));
        w.say("  time left of five seconds: %d", left.tv_sec == 4 || (left.tv_sec == 5 && left.tv_usec == 0));
        left = {0, 1000};
        w.said("select of nothing", ::select(0, nullptr, nullptr, nullptr, &left));
    }},
    {"hung_up", [](World& w) {
        Crowd crowd(w);
        w.peer("switch 0");
        w.peer("reset");
        w.await(POLLHUP, crowd.a);
        say_poll(w, "poll for nothing", {{crowd.a, 0, 0}, {crowd.b, 0, 0}}, 5000);
        say_poll(w, "poll", {{crowd.a, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0}, {crowd.b, POLLIN, 0}}, 5000);
    }},
};

}  // namespace

void add_readiness_cases(Cases& cases) {
    for (const int family : {AF_INET, AF_INET6}) {
        const bool all = family == AF_INET;
        add_scripts(cases, family, "stream", accepted, kStreamScripts, all);
        if (all) add_scripts(cases, family, "stream_out", connected, kStreamScripts, false);
        add_scripts(cases, family, "listener", listening, kListenerScripts, false);
        add_scripts(cases, family, "datagram", connected_datagram, kDatagramScripts, false);
        const auto add = [&](const char* kind, const Named& named) {
            cases.push_back({std::string("readiness") + (family == AF_INET6 ? "6/" : "4/") + kind + "/" + named.name,
                             [=](World& w) {
                                 w.family = family;
                                 named.run(w);
                             }});
        };
        for (const Named& named : kSets) add("set", named);
        for (const Named& named : kPolls) add("poll", named);
    }
}

}  // namespace differential
