// Threads and signals: one thread sleeps in a call, another one closes, shuts down, overwrites or feeds its socket; signals end
// calls with or without SA_RESTART; threads are cancelled.
//
//   threads4/SLEEPS IN/WHAT HAPPENS        threads4/signal/...        threads4/cancel/...
//
// Whether a thread sleeps is read from /proc: its state is S. One that is still asleep after half a second of what should have
// woken it "sleeps on", and is then woken by the peer.

#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <utility>

#include "states.h"
#include "world.h"

namespace differential {

using namespace states;

namespace {

void pause_ms(int milliseconds) {
    const timespec moment{0, milliseconds * 1'000'000L};
    ::nanosleep(&moment, nullptr);
}

/// A thread in one call, and what became of it.
class Sleeper {
public:
    Sleeper(World& world, std::function<long()> call) : world_(world), call_(std::move(call)) {
        world_.require(::pthread_create(&thread_, nullptr, run, this) == 0, "thread");
        while (tid_.load() == 0) pause_ms(1);
        // Asleep for several looks in a row: not just waiting for a lock, or for the core.
        for (int asleep = 0, looks = 0; asleep < 5 && !done_.load() && looks < 30'000; ++looks) {
            asleep = state() == 'S' ? asleep + 1 : 0;
            pause_ms(2);
        }
    }
    ~Sleeper() { ::pthread_join(thread_, nullptr); }
    Sleeper(const Sleeper&) = delete;
    Sleeper& operator=(const Sleeper&) = delete;

    bool ended_within(int milliseconds) {
        for (int i = 0; i < milliseconds / 2 && !done_.load(); ++i) pause_ms(2);
        return done_.load();
    }
    /// What the call gave, or that it sleeps on.
    void say(const char* what) {
        if (!ended_within(700)) return world_.say("%s: sleeps on", what);
        errno = error_;
        world_.said(std::string(what) + ": the sleeper's", result_);
    }
    pthread_t thread() const { return thread_; }
    bool done() const { return done_.load(); }

private:
    char state() const {
        char path[64], text[256] = "";
        std::snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid_.load());
        const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
        const ssize_t got = ::read(fd, text, sizeof text - 1);
        ::close(fd);
        const char* const name_end = got > 0 ? std::strrchr(text, ')') : nullptr;
        return name_end != nullptr ? name_end[2] : '?';
    }
    static void* run(void* argument) {
        auto* const self = static_cast<Sleeper*>(argument);
        self->tid_.store(static_cast<int>(::syscall(SYS_gettid)));
        self->result_ = self->call_();
        self->error_ = errno;
        self->done_.store(true);
        return nullptr;
    }

    World& world_;
    const std::function<long()> call_;
    pthread_t thread_{};
    std::atomic<int> tid_{0};
    std::atomic<bool> done_{false};
    long result_ = 0;
    int error_ = 0;
};

// --- asleep in a call -------------------------------------------------------------------------------------------------------------

void full(World& w) {
    accepted(w);
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
void connecting(World& w) {
    w.fd = w.make_socket(SOCK_STREAM);
    w.peer_port = std::stoi(w.peer("blackhole"));
}

/// connect() has several sleeps; the last one is meant, after the SYN has been sent.
void await_syn_sent(int fd) {
    constexpr int kSynSent = 2;
    for (int i = 0; i < 5000; ++i) {
        tcp_info info{};
        socklen_t length = sizeof info;
        if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_state == kSynSent) break;
        pause_ms(2);
    }
    pause_ms(50);
}

char received[65536];

struct Place {
    const char* name;
    void (*enter)(World&);
    long (*sleep)(World&, int fd);  // `fd`: w.fd when the thread started
    const char* wake;               // what the peer does to end it: a command
};

constexpr Place kPlaces[] = {
    {"recv", accepted, [](World&, int fd) { return ::recv(fd, received, 16, 0); }, "send 5"},
    {"recv_out", connected, [](World&, int fd) { return ::recv(fd, received, 16, 0); }, "send 5"},
    {"recv_waitall", accepted, [](World&, int fd) { return ::recv(fd, received, 7, MSG_WAITALL); }, "send 7"},
    {"recv_peek_waitall", accepted, [](World&, int fd) { return ::recv(fd, received, 5, MSG_WAITALL | MSG_PEEK); }, "send 5"},
    {"recv_timeout", accepted, [](World&, int fd) {
        const timeval patience{20, 0};
        ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        return ::recv(fd, received, 16, 0);
    }, "send 5"},
    {"send", full, [](World&, int fd) { return ::send(fd, received, 65536, MSG_NOSIGNAL) > 0 ? 1L : -1L; }, "drain"},
    {"accept", listening, [](World&, int fd) { return ::accept(fd, nullptr, nullptr) >= 0 ? 0L : -1L; }, nullptr},
    {"connect", connecting, [](World& w, int fd) {
        Name name = w.other(w.peer_port);
        return long{::connect(fd, name.get(), name.length)};
    }, nullptr},
    {"poll", accepted, [](World&, int fd) {
        pollfd entry{fd, POLLIN | POLLRDHUP, 0};
        const int count = ::poll(&entry, 1, 20'000);
        return count > 0 ? 1000L + entry.revents : long{count};
    }, "send 5"},
    {"poll_listener", listening, [](World&, int fd) {
        pollfd entry{fd, POLLIN, 0};
        const int count = ::poll(&entry, 1, 20'000);
        return count > 0 ? 1000L + entry.revents : long{count};
    }, nullptr},
    {"epoll_wait", accepted, [](World&, int fd) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        epoll_event event{EPOLLIN | EPOLLRDHUP, {}};
        ::epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
        const int count = ::epoll_wait(set, &event, 1, 20'000);
        const int error = errno;
        ::close(set);
        errno = error;
        return count > 0 ? 1000L + event.events : long{count};
    }, "send 5"},
    {"recv_udp", connected_datagram, [](World&, int fd) { return ::recv(fd, received, 16, 0); }, "udp_send 5"},
};

struct Deed {
    const char* name;
    void (*act)(World&, int fd);
};

constexpr Deed kDeeds[] = {
    {"wake", [](World&, int) {}},  // by the peer
    {"shutdown_read", [](World& w, int fd) { w.said("shutdown", ::shutdown(fd, SHUT_RD)); }},
    {"shutdown_write", [](World& w, int fd) { w.said("shutdown", ::shutdown(fd, SHUT_WR)); }},
    {"shutdown_both", [](World& w, int fd) { w.said("shutdown", ::shutdown(fd, SHUT_RDWR)); }},
    {"close", [](World& w, int fd) { w.said("close", ::close(fd)); }},
    {"dup2_over", [](World& w, int fd) {
        const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
        w.said("dup2", ::dup2(null, fd) == fd ? 0 : -1);
        ::close(null);
    }},
    {"other_thread_uses_it", [](World& w, int fd) {
        w.said("send", ::send(fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL));
        w.said("recv", ::recv(fd, received + 100, 4, MSG_DONTWAIT));
        int type = 0;
        socklen_t length = sizeof type;
        w.said("getsockopt", ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length));
    }},
    {"nonblocking", [](World& w, int fd) { w.said("O_NONBLOCK", ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK)); }},
    {"peer_resets", [](World& w, int) {
        if (w.peer_port == 0) w.peer("reset");
    }},
};

void run_place(World& w, const Place& place, const Deed& deed) {
    place.enter(w);
    const int fd = w.fd;
    const int keeper = std::string_view(deed.name) == "close" || std::string_view(deed.name) == "dup2_over" ? ::dup(fd) : -1;
    // A second descriptor keeps the socket alive, so that the peer can end what nothing else ends.
    {
        Sleeper sleeper(w, [&] { return place.sleep(w, fd); });
        w.say("asleep %d", !sleeper.done());
        if (place.enter == connecting) await_syn_sent(fd);
        deed.act(w, fd);
        if (std::string_view(deed.name) == "wake" && place.wake != nullptr) w.peer(place.wake);
        if (std::string_view(deed.name) == "wake" && place.wake == nullptr && place.enter == listening)
            w.peer("connect " + std::to_string(w.bound_port));
        sleeper.say(deed.name);
        if (!sleeper.done()) {  // still: let it go
            if (place.enter == connecting) {
                ::shutdown(keeper >= 0 ? keeper : fd, SHUT_RDWR);
            } else if (place.enter == listening) {
                w.said("waking", w.peer("connect_try " + std::to_string(w.bound_port)) == "ok" ? 0 : 1);
            } else {
                w.peer(place.wake);
            }
            sleeper.say("woken");
            if (!sleeper.done()) ::shutdown(keeper >= 0 ? keeper : fd, SHUT_RDWR);
            if (!sleeper.ended_within(10'000)) ::_exit(4);
        }
    }
    pollfd entry{keeper >= 0 ? keeper : fd, POLLIN | POLLOUT | POLLRDHUP, 0};
    if (place.enter != connecting && place.enter != full) {
        ::poll(&entry, 1, 0);
        w.say("afterwards %s", World::describe_events(entry.revents).c_str());
    }
    if (keeper >= 0) {
        if (std::string_view(deed.name) == "close") w.fd = -1;
        ::close(keeper);
    }
}

// --- the last descriptor goes ---------------------------------------------------------------------------------------------------

struct Named {
    const char* name;
    void (*run)(World&);
};

constexpr Named kOthers[] = {
    {"close/in_poll_last", [](World& w) {  // poll holds the file: it sleeps on, and the data end it
        accepted(w);
        const int fd = std::exchange(w.fd, -1);
        Sleeper sleeper(w, [fd] {
            pollfd entry{fd, POLLIN, 0};
            return long{::poll(&entry, 1, 600)};
        });
        w.said("close", ::close(fd));
        sleeper.ended_within(5000);
        sleeper.say("poll");
    }},
    {"close/in_epoll_last", [](World& w) {
        accepted(w);
        const int fd = std::exchange(w.fd, -1);
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        epoll_event event{EPOLLIN, {}};
        ::epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
        {
            Sleeper sleeper(w, [set] {
                epoll_event got;
                return long{::epoll_wait(set, &got, 1, 600)};
            });
            w.said("close", ::close(fd));
            w.say("peer: %s", w.peer("receive_all").c_str());
            sleeper.ended_within(5000);
            sleeper.say("epoll_wait");
        }
        ::close(set);
    }},
    {"close/in_recv_last", [](World& w) {  // recv holds the file: the connection lives until it returns
        accepted(w);
        const int fd = std::exchange(w.fd, -1);
        {
            Sleeper sleeper(w, [fd] { return ::recv(fd, received, 16, 0); });
            w.said("close", ::close(fd));
            w.peer("send 3");
            sleeper.say("recv");
        }
        w.say("peer: %s", w.peer("receive_all").c_str());
    }},
    {"close/in_accept_last", [](World& w) {
        listening(w);
        const int fd = std::exchange(w.fd, -1);
        Sleeper sleeper(w, [fd] { return ::accept(fd, nullptr, nullptr) >= 0 ? 0L : -1L; });
        w.said("close", ::close(fd));
        w.say("connect: %s", w.peer("connect_try " + std::to_string(w.bound_port)).c_str());
        sleeper.say("accept");
    }},
    {"epoll/added_while_waiting", [](World& w) {
        accepted(w);
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        w.peer("send 2");
        w.await_unread(2);
        {
            Sleeper sleeper(w, [set] {
                epoll_event got;
                return long{::epoll_wait(set, &got, 1, 20'000)};
            });
            epoll_event event{EPOLLIN, {}};
            w.said("ADD", ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event));
            sleeper.say("epoll_wait");
        }
        ::close(set);
    }},
    {"epoll/modified_while_waiting", [](World& w) {
        accepted(w);
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        epoll_event event{EPOLLPRI, {}};
        ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event);
        {
            Sleeper sleeper(w, [set] {
                epoll_event got;
                return long{::epoll_wait(set, &got, 1, 20'000)};
            });
            event.events = EPOLLOUT;
            w.said("MOD", ::epoll_ctl(set, EPOLL_CTL_MOD, w.fd, &event));
            sleeper.say("epoll_wait");
        }
        ::close(set);
    }},
    {"epoll/removed_while_waiting", [](World& w) {
        accepted(w);
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        epoll_event event{EPOLLIN, {}};
        ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event);
        {
            Sleeper sleeper(w, [set] {
                epoll_event got;
                return long{::epoll_wait(set, &got, 1, 800)};
            });
            w.said("DEL", ::epoll_ctl(set, EPOLL_CTL_DEL, w.fd, nullptr));
            w.peer("send 2");
            sleeper.ended_within(5000);
            sleeper.say("epoll_wait");
        }
        ::close(set);
    }},
    {"epoll/two_waiters", [](World& w) {  // level-triggered, one event: both may wake; edge-triggered: one
        accepted(w);
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        epoll_event event{EPOLLIN | EPOLLET, {}};
        ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event);
        const auto wait = [set] {
            epoll_event got;
            return long{::epoll_wait(set, &got, 1, 900)};
        };
        long woken = 0;
        {
            Sleeper one(w, wait), two(w, wait);
            w.peer("send 2");
            one.ended_within(5000);
            two.ended_within(5000);
            one.say("one");
            two.say("two");
            woken = one.done() + two.done();
        }
        w.say("done %ld", woken);
        ::close(set);
    }},
};

// --- signals -----------------------------------------------------------------------------------------------------------------------

volatile sig_atomic_t handled = 0;
void count_signal(int) { handled = handled + 1; }

void handle(int flags) {
    struct sigaction action{};
    action.sa_handler = count_signal;
    action.sa_flags = flags;
    ::sigaction(SIGUSR1, &action, nullptr);
    handled = 0;
}

void run_signal(World& w, const Place& place, int flags) {
    place.enter(w);
    handle(flags);
    const int fd = w.fd;
    Sleeper sleeper(w, [&] { return place.sleep(w, fd); });
    if (place.enter == connecting) await_syn_sent(fd);
    ::pthread_kill(sleeper.thread(), SIGUSR1);
    sleeper.say("signal");
    w.say("handled %d", static_cast<int>(handled));
    if (!sleeper.done()) {
        if (place.wake != nullptr)
            w.peer(place.wake);
        else if (place.enter == listening)
            w.peer("connect " + std::to_string(w.bound_port));
        sleeper.say("woken");
    }
    if (!sleeper.done()) ::shutdown(fd, SHUT_RDWR);
    if (!sleeper.ended_within(10'000)) ::_exit(4);
}

// --- cancellation -------------------------------------------------------------------------------------------------------------------

void run_cancel(World& w, const Place& place) {
    place.enter(w);
    struct Shared {
        World* world;
        const Place* place;
        int fd;
        std::atomic<bool> cleaned{false};
    } shared{&w, &place, w.fd};
    pthread_t thread;
    w.require(::pthread_create(&thread, nullptr, [](void* argument) -> void* {
        auto* const self = static_cast<Shared*>(argument);
        pthread_cleanup_push([](void* again) { static_cast<Shared*>(again)->cleaned.store(true); }, argument);
        self->place->sleep(*self->world, self->fd);
        pthread_cleanup_pop(0);
        return nullptr;
    }, &shared) == 0, "thread");
    pause_ms(60);  // on its way or asleep: both are to be cancelled
    ::pthread_cancel(thread);
    bool gone = false;
    void* result = nullptr;
    timespec until{};
    ::clock_gettime(CLOCK_REALTIME, &until);
    ++until.tv_sec;
    gone = ::pthread_timedjoin_np(thread, &result, &until) == 0;
    w.say("cancelled %d, cleaned up %d", gone && result == PTHREAD_CANCELED, shared.cleaned.load());
    if (!gone) {
        ::shutdown(shared.fd, SHUT_RDWR);
        ::pthread_join(thread, &result);
    }
    // The socket is as it was.
    if (place.enter == accepted || place.enter == connected) {
        w.said("send", ::send(w.fd, "alive", 5, MSG_NOSIGNAL | MSG_DONTWAIT));
        w.peer("send 3");
        char data[8];
        w.await(POLLIN);
        w.said("recv", ::recv(w.fd, data, 8, MSG_DONTWAIT), data);
    }
    if (place.enter == listening) {
        w.peer("connect " + std::to_string(w.bound_port));
        w.await(POLLIN);
        const int connection = ::accept(w.fd, nullptr, nullptr);
        w.said("accept", connection >= 0 ? 0 : -1);
        ::close(connection);
    }
}

}  // namespace

void add_thread_cases(Cases& cases) {
    const auto add = [&](std::string name, std::function<void(World&)> run) {
        cases.push_back({"threads4/" + name, [run = std::move(run)](World& w) {
            w.mode = Mode::kBlocking;
            run(w);
        }});
    };
    for (const Place& place : kPlaces) {
        for (const Deed& deed : kDeeds) {
            const std::string_view what = deed.name;
            if (place.enter == connecting && (what == "wake" || what == "peer_resets" || what == "other_thread_uses_it")) continue;
            if ((place.enter == listening || place.enter == connected_datagram) && what == "peer_resets") continue;
            if (place.enter == connecting && (what == "close" || what == "dup2_over" || what == "nonblocking")) continue;
            add(std::string(place.name) + "/" + deed.name, [&](World& w) { run_place(w, place, deed); });
        }
        add(std::string("signal/") + place.name, [&](World& w) { run_signal(w, place, 0); });
        add(std::string("signal_restart/") + place.name, [&](World& w) { run_signal(w, place, SA_RESTART); });
        add(std::string("cancel/") + place.name, [&](World& w) { run_cancel(w, place); });
    }
    for (const Named& named : kOthers) add(named.name, named.run);
}

}  // namespace differential
