// fork: parent and child share a connection, a listener, a UDP socket, an epoll set. They take turns: the child does a step when the
// parent says so, and tells what it saw.

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <wordexp.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "states.h"
#include "world.h"

namespace differential {

using namespace states;

namespace {

/// A forked child that does one step after the other. What it says goes into the parent's transcript.
class Child {
public:
    using Step = std::function<void(World&)>;
    Child(World& world, std::vector<Step> steps) : world_(world) {
        world_.require(::pipe2(go_, O_CLOEXEC) == 0 && ::pipe2(told_, O_CLOEXEC) == 0, "pipes");
        pid_ = ::fork();
        if (pid_ != 0) return;
        ::alarm(20);
        for (const Step& step : steps) {
            char word;
            if (::read(go_[0], &word, 1) != 1) break;
            static char text[8192];
            text[0] = '\0';
            Transcript transcript(text, sizeof text);
            {
                World mine(transcript);
                mine.family = world.family;
                mine.fd = world.fd;
                mine.bound_port = world.bound_port;
                mine.peer_port = world.peer_port;
                step(mine);
                world.fd = mine.fd;
                mine.fd = -1;
            }
            const std::size_t length = std::strlen(text);
            if (::write(told_[1], &length, sizeof length) < 0 || ::write(told_[1], text, length) < 0) break;
        }
        ::_exit(0);
    }
    ~Child() { end(); }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;

    /// The next step; its lines, indented.
    void step() {
        begin();
        finish();
    }
    /// The next step, which falls asleep; finish() waits for its end.
    void begin_sleep() {
        begin();
        // Asleep for several looks in a row: not just waiting for a lock, or for the core.
        for (int asleep = 0, looks = 0; asleep < 5 && looks < 30'000; ++looks) {
            asleep = state() == 'S' ? asleep + 1 : 0;
            const timespec moment{0, 1'000'000};
            ::nanosleep(&moment, nullptr);
        }
    }
    void finish() {
        std::size_t length = 0;
        if (::read(told_[0], &length, sizeof length) != sizeof length) return world_.say("the child is gone");
        std::string text(length, '\0');
        for (std::size_t at = 0; at < length;) {
            const ssize_t got = ::read(told_[0], text.data() + at, length - at);
            if (got <= 0) break;
            at += static_cast<std::size_t>(got);
        }
        for (std::size_t begin = 0; begin < text.size();) {
            const std::size_t end = text.find('\n', begin);
            world_.say("  child: %s", text.substr(begin, end - begin).c_str());
            begin = end + 1;
        }
    }
    void end() {
        if (pid_ == 0) return;
        for (const int fd : {go_[0], go_[1], told_[1]}) ::close(fd);
        char rest;
        while (::read(told_[0], &rest, 1) > 0) {
        }
        ::close(told_[0]);
        int status = 0;
        ::waitpid(pid_, &status, 0);
        if (status != 0) world_.say("child ended with %x", static_cast<unsigned>(status));
        pid_ = 0;
    }

private:
    void begin() { world_.require(::write(go_[1], "g", 1) == 1, "the child listens"); }
    char state() const {
        char path[64], line[512];
        std::snprintf(path, sizeof path, "/proc/%d/stat", pid_);
        const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
        const ssize_t got = ::read(fd, line, sizeof line - 1);
        ::close(fd);
        line[got > 0 ? got : 0] = '\0';
        const char* const behind_name = std::strrchr(line, ')');
        return behind_name != nullptr ? behind_name[2] : '?';
    }

    World& world_;
    int go_[2], told_[2];
    pid_t pid_ = 0;
};

void set_flags(World& w, int on, int off = 0) {
    w.said("F_SETFL", ::fcntl(w.fd, F_SETFL, (::fcntl(w.fd, F_GETFL) | on) & ~off));
}
void say_flags(World& w) { w.say("F_GETFL %x", static_cast<unsigned>(::fcntl(w.fd, F_GETFL))); }

void read_some(World& w, std::size_t count, int fd = -1) {
    char data[64];
    w.said("read " + std::to_string(count), ::recv(fd >= 0 ? fd : w.fd, data, count, MSG_DONTWAIT), data);
}
void write_some(World& w, const char* text) { w.said("write", ::send(w.fd, text, std::strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT)); }
void close_it(World& w) {
    w.said("close", ::close(w.fd));
    w.fd = -1;
}
void look(World& w) {
    pollfd entry{w.fd, POLLIN | POLLOUT | POLLRDHUP, 0};
    w.said("poll", ::poll(&entry, 1, 0));
    w.say("  %s", World::describe_events(entry.revents).c_str());
}
void peer_sends(World& w, int count) {
    int before = 0;
    ::ioctl(w.fd, FIONREAD, &before);
    w.peer("send " + std::to_string(count));
    w.await_unread(before + count);
}
void accept_and_greet(World& w) {
    w.await(POLLIN);
    const int connection = ::accept(w.fd, nullptr, nullptr);
    w.said("accept", connection >= 0 ? 0 : -1);
    w.said("write", ::write(connection, "hi", 2));
    ::close(connection);
}

// --- an epoll set that both have --------------------------------------------------------------------------------------

int control(World& w, const char* what, int set, int operation, int fd, std::uint32_t events, std::uint64_t data) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = data;
    return static_cast<int>(w.said(what, ::epoll_ctl(set, operation, fd, &event)));
}
/// What comes at once, or within `timeout_ms`.
void wait_for_events(World& w, int set, int timeout_ms = 0) {
    epoll_event got[8];
    const int count = ::epoll_wait(set, got, 8, timeout_ms);
    w.said("epoll_wait", count);
    for (std::uint64_t data = 0; data < 100; ++data)  // in the order of their data
        for (int i = 0; i < count; ++i)
            if (got[i].data.u64 == data)
                w.say("  %d: %s", static_cast<int>(data), World::describe_events(static_cast<int>(got[i].events)).c_str());
}
/// What is reported to nobody has to come first.
void await_data(World& w, int fd) {
    pollfd entry{fd, POLLIN, 0};
    w.require(::poll(&entry, 1, 20'000) == 1, "data");
}
int second_connection(World& w) {
    const int listener = w.make_socket(SOCK_STREAM);
    Name name = w.own();
    w.require(::bind(listener, name.get(), name.length) == 0 && ::listen(listener, 4) == 0, "listen");
    name.length = sizeof name.storage;
    w.require(::getsockname(listener, name.get(), &name.length) == 0, "getsockname");
    w.peer("connect " + std::to_string(port_of(name)));
    w.await(POLLIN, listener);
    const int connection = ::accept(listener, nullptr, nullptr);
    w.require(connection >= 0, "accept");
    ::close(listener);
    return connection;
}
constexpr auto kEdge = std::uint32_t{EPOLLET};
constexpr auto kOnce = std::uint32_t{EPOLLONESHOT};

/// That a process has ended is seen a moment later.
const char* refused_in_the_end(World& w) {
    for (int i = 0; i < 3000; ++i)
        if (w.peer("connect_try " + std::to_string(w.bound_port)) == "ECONNREFUSED") return "refused";
    return "not refused";
}

/// For a shell, with the descriptor's number wherever there is "%d". Not /bin/sh itself: dash knows numbers of one digit only.
std::string shell_words(int fd, std::string script) {
    for (std::size_t at; (at = script.find("%d")) != std::string::npos;) script.replace(at, 2, std::to_string(fd));
    return "exec /bin/bash -c '" + script + "' 2>/dev/null";
}
int run_shell(int fd, const char* script) { return ::system(shell_words(fd, script).c_str()); }

struct Named {
    const char* name;
    void (*enter)(World&);
    void (*run)(World&);
};

#define FOR_BOTH(name, body) {"accepted_" name, accepted, body}, {"connected_" name, connected, body}

/// The child accepts, then the parent, who closes; then the child again, and ends.
void serve_by_turns(World& w, Child& child) {
    const auto client = [&] { w.peer("connect " + std::to_string(w.bound_port)); };
    const auto hears = [&] { w.say("peer: %s", w.peer("receive_all").c_str()); };
    client();
    child.step();
    hears();
    client();
    accept_and_greet(w);
    hears();
    close_it(w);
    client();
    child.step();
    hears();
    child.end();
    w.say("nobody left: %s", refused_in_the_end(w));
}

constexpr Named kForks[] = {
    FOR_BOTH("shares_the_stream", [](World& w) {
        peer_sends(w, 9);
        Child child(w, {[](World& c) { read_some(c, 2); write_some(c, "child "); },
                        [](World& c) { read_some(c, 2); look(c); }});
        read_some(w, 2);
        child.step();
        read_some(w, 2);
        write_some(w, "parent ");
        child.step();
        read_some(w, 9);
        ::shutdown(w.fd, SHUT_WR);
        w.say("peer: %s", w.peer("receive_all").c_str());
    }),
    FOR_BOTH("child_goes_on", [](World& w) {
        Child child(w, {[](World& c) { c.await_unread(4); read_some(c, 9); write_some(c, "child"); }, close_it});
        close_it(w);
        w.peer("send 4");
        child.step();
        w.say("peer: %s", w.peer("receive 5").c_str());
        child.step();
        w.say("peer: %s", w.peer("receive_all").c_str());
    }),
    FOR_BOTH("parent_goes_on", [](World& w) {
        Child child(w, {close_it});
        child.step();
        child.end();
        peer_sends(w, 4);
        read_some(w, 9);
        write_some(w, "parent");
        w.say("peer: %s", w.peer("receive 6").c_str());
        look(w);
    }),
    FOR_BOTH("child_ends_without_closing", [](World& w) {
        Child child(w, {[](World& c) { write_some(c, "bye "); }});
        child.step();
        child.end();
        write_some(w, "parent");
        ::shutdown(w.fd, SHUT_WR);
        w.say("peer: %s", w.peer("receive_all").c_str());
    }),
    FOR_BOTH("shutdown_in_the_child", [](World& w) {
        Child child(w, {[](World& c) { c.said("shutdown", ::shutdown(c.fd, SHUT_WR)); }, [](World& c) { look(c); }});
        child.step();
        w.say("peer: %s", w.peer("receive_all").c_str());
        write_some(w, "no more");
        look(w);
        peer_sends(w, 3);
        read_some(w, 9);
        w.said("shutdown", ::shutdown(w.fd, SHUT_RD));
        child.step();
    }),
    FOR_BOTH("flags_and_options", [](World& w) {
        Child child(w, {[](World& c) {
                            const int on = 1;
                            c.said("F_SETFL", ::fcntl(c.fd, F_SETFL, ::fcntl(c.fd, F_GETFL) | O_NONBLOCK));
                            c.said("TCP_NODELAY", ::setsockopt(c.fd, IPPROTO_TCP, 1, &on, sizeof on));
                            c.said("FD_CLOEXEC", ::fcntl(c.fd, F_SETFD, FD_CLOEXEC));
                        }});
        child.step();
        w.say("F_GETFL %x F_GETFD %x", static_cast<unsigned>(::fcntl(w.fd, F_GETFL)), static_cast<unsigned>(::fcntl(w.fd, F_GETFD)));
        int value = -1;
        socklen_t length = sizeof value;
        w.said("TCP_NODELAY", ::getsockopt(w.fd, IPPROTO_TCP, 1, &value, &length));
        w.say("  %d", value);
    }),
    FOR_BOTH("nonblocking_by_the_child", [](World& w) {
        Child child(w, {[](World& c) { set_flags(c, O_NONBLOCK | O_APPEND); }, say_flags,
                        [](World& c) { char data[8]; c.said("recv", ::recv(c.fd, data, 8, 0), data); }});
        child.step();
        say_flags(w);
        char data[8];
        w.mode = Mode::kBlocking;
        w.bounded("recv", [&] { return ::recv(w.fd, data, 8, 0); });
        int off = 0;
        w.said("FIONBIO", ::ioctl(w.fd, FIONBIO, &off));
        child.step();
        child.begin_sleep();
        w.peer("send 3");
        child.finish();
    }),
    FOR_BOTH("nonblocking_set_before", [](World& w) {
        set_flags(w, O_NONBLOCK);
        Child child(w, {[](World& c) { say_flags(c); set_flags(c, 0, O_NONBLOCK); }});
        Child second(w, {[](World& c) { say_flags(c); }});
        child.step();
        second.step();
        say_flags(w);
    }),
    {"nonblocking_before_connect", [](World& w) { w.fd = w.make_socket(SOCK_STREAM); }, [](World& w) {
        Child child(w, {[](World& c) { set_flags(c, O_NONBLOCK); }});
        child.step();
        say_flags(w);
        const int port = std::stoi(w.peer("listen"));
        Name name = w.other(port);
        w.said("connect", ::connect(w.fd, name.get(), name.length));
        w.await(POLLOUT);
        say_flags(w);
    }},
    {"nonblocking_listener", listening, [](World& w) {
        Child child(w, {[](World& c) { set_flags(c, O_NONBLOCK); },
                        [](World& c) { c.said("accept", ::accept(c.fd, nullptr, nullptr) >= 0 ? 0 : -1); }});
        child.step();
        say_flags(w);
        w.mode = Mode::kBlocking;
        w.bounded("accept", [&] { return ::accept(w.fd, nullptr, nullptr); });
        set_flags(w, 0, O_NONBLOCK);
        child.begin_sleep();
        w.peer("connect " + std::to_string(w.bound_port));
        child.finish();
    }},
    {"nonblocking_udp", bound_datagram, [](World& w) {
        Child child(w, {[](World& c) { set_flags(c, O_NONBLOCK); }});
        child.step();
        say_flags(w);
        char data[8];
        w.mode = Mode::kBlocking;
        w.bounded("recv", [&] { return ::recv(w.fd, data, 8, 0); });
    }},
    FOR_BOTH("reset_is_told_to_one", [](World& w) {
        Child child(w, {[](World& c) { look(c); read_some(c, 4); }, [](World& c) { read_some(c, 4); write_some(c, "x"); }});
        w.peer("reset");
        w.await(POLLHUP);
        child.step();
        read_some(w, 4);
        child.step();
        look(w);
    }),
    FOR_BOTH("child_blocks_in_recv", [](World& w) {
        Child child(w, {[](World& c) { char data[8]; c.said("recv", ::recv(c.fd, data, 8, 0), data); }});
        w.peer("send 4");
        child.step();
        look(w);
    }),
    FOR_BOTH("system_inherits", [](World& w) {
        peer_sends(w, 9);
        read_some(w, 2);
        w.said("system", run_shell(w.fd, "head -c 3 <&%d >&%d; echo from the shell >&%d"));
        look(w);
        read_some(w, 9);
        write_some(w, "parent");
        ::shutdown(w.fd, SHUT_WR);
        w.say("peer: %s", w.peer("receive_all").c_str());
    }),
    FOR_BOTH("popen_inherits", [](World& w) {
        peer_sends(w, 9);
        FILE* const stream = ::popen(shell_words(w.fd, "head -c 5 <&%d").c_str(), "r");
        char data[16];
        w.said("fread", static_cast<long>(::fread(data, 1, sizeof data, stream)), data);
        w.said("pclose", ::pclose(stream));
        read_some(w, 9);
        write_some(w, "parent");
        close_it(w);
        w.say("peer: %s", w.peer("receive_all").c_str());
    }),
    FOR_BOTH("wordexp_inherits", [](World& w) {
        peer_sends(w, 9);
        wordexp_t words{};
        w.said("wordexp", ::wordexp(("$(" + shell_words(w.fd, "head -c 5 <&%d") + ")").c_str(), &words, 0));
        w.say("%s", words.we_wordc == 1 ? words.we_wordv[0] : "none");
        ::wordfree(&words);
        read_some(w, 9);
    }),
    FOR_BOTH("system_finds_it_closed", [](World& w) {
        ::fcntl(w.fd, F_SETFD, FD_CLOEXEC);
        w.said("system", run_shell(w.fd, "echo from the shell >&%d"));
        peer_sends(w, 3);
        read_some(w, 9);
        write_some(w, "parent");
        w.say("peer: %s", w.peer("receive 6").c_str());
    }),
    {"listener_shared", listening, [](World& w) {
        Child child(w, {accept_and_greet, accept_and_greet});
        serve_by_turns(w, child);
    }},
    {"listener_closed_by_the_child", listening, [](World& w) {
        Child child(w, {close_it});
        child.step();
        w.peer("connect " + std::to_string(w.bound_port));
        accept_and_greet(w);
        w.say("peer: %s", w.peer("receive_all").c_str());
    }},
    {"listener_shut_by_the_child", listening, [](World& w) {
        Child child(w, {[](World& c) { c.said("shutdown", ::shutdown(c.fd, SHUT_RDWR)); }});
        child.step();
        w.said("accept", ::accept4(w.fd, nullptr, nullptr, SOCK_NONBLOCK));
        w.say("connect: %s", w.peer("connect_try " + std::to_string(w.bound_port)).c_str());
    }},
    {"listener_shut_while_one_accepts", listening, [](World& w) {
        Child child(w, {[](World& c) { c.said("accept", ::accept(c.fd, nullptr, nullptr)); look(c); }});
        child.begin_sleep();
        w.said("shutdown", ::shutdown(w.fd, SHUT_RD));
        child.finish();
        look(w);
        w.said("accept", ::accept(w.fd, nullptr, nullptr));
    }},
    {"listener_shut_while_one_polls", listening, [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        epoll_event event{EPOLLIN, {}};
        ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event);
        Child child(w, {[](World& c) {
                            pollfd entry{c.fd, POLLIN, 0};
                            c.said("poll", ::poll(&entry, 1, 20'000));
                            c.say("  %s", World::describe_events(entry.revents).c_str());
                        },
                        [](World& c) { c.said("shutdown", ::shutdown(c.fd, SHUT_RDWR)); }});
        child.begin_sleep();
        w.said("shutdown", ::shutdown(w.fd, SHUT_RDWR));
        child.finish();
        epoll_event got{};
        w.said("epoll_wait", ::epoll_wait(set, &got, 1, 20'000));
        w.say("  %s", World::describe_events(static_cast<int>(got.events)).c_str());
        child.step();
        ::close(set);
    }},
    {"listener_shut_with_some_waiting", listening, [](World& w) {
        Child child(w, {[](World& c) { c.said("shutdown", ::shutdown(c.fd, SHUT_RD)); }});
        w.peer("connect " + std::to_string(w.bound_port));
        w.await(POLLIN);
        child.step();
        look(w);
        w.said("accept", ::accept(w.fd, nullptr, nullptr));
        w.say("peer: %s", w.peer("receive_all").c_str());
    }},
    {"listener_shut_and_again", listening, [](World& w) {
        Child child(w, {[](World& c) { c.said("shutdown", ::shutdown(c.fd, SHUT_RD)); }, accept_and_greet, accept_and_greet});
        child.step();
        w.say("connect: %s", w.peer("connect_try " + std::to_string(w.bound_port)).c_str());
        w.said("listen", ::listen(w.fd, 4));
        learn_port(w);  // the kernel has chosen it, and chooses again
        look(w);
        serve_by_turns(w, child);
    }},
    {"listener_shut_by_shut_wr", listening, [](World& w) {
        Child child(w, {[](World& c) { c.said("shutdown", ::shutdown(c.fd, SHUT_WR)); }});
        child.step();
        w.peer("connect " + std::to_string(w.bound_port));
        accept_and_greet(w);
        w.say("peer: %s", w.peer("receive_all").c_str());
    }},
    {"made_by_the_child", listening, [](World& w) {  // a connection that only the child has
        Child child(w, {[](World& c) {
                            c.await(POLLIN);
                            const int connection = ::accept(c.fd, nullptr, nullptr);
                            c.become(connection);
                            write_some(c, "from the child");
                        },
                        close_it});
        w.peer("connect " + std::to_string(w.bound_port));
        child.step();
        close_it(w);
        w.say("peer: %s", w.peer("receive 14").c_str());
        child.step();
        w.say("peer: %s", w.peer("receive_all").c_str());
    }},
    {"udp_shared", bound_datagram, [](World& w) {
        Child child(w, {[](World& c) { read_some(c, 9); }, [](World& c) {
                            Name to = c.other(c.peer_port);
                            c.said("sendto", ::sendto(c.fd, "child", 5, 0, to.get(), to.length));
                        },
                        close_it});
        w.peer("udp_send 5");
        w.peer("udp_send 6");
        w.settle_datagrams();
        child.step();
        read_some(w, 9);
        child.step();
        w.say("peer: %s", w.peer("udp_receive").c_str());
        child.step();
        child.end();
        w.peer("udp_send 3");
        w.settle_datagrams();
        read_some(w, 9);
    }},
    {"udp_child_goes_on", bound_datagram, [](World& w) {
        Child child(w, {[](World& c) { c.await(POLLIN); read_some(c, 9); }});
        close_it(w);
        w.peer("udp_send 5");
        child.step();
        child.end();
        w.say("nobody left: %s", w.peer("udp_send_refused").c_str());
    }},
    {"epoll_shared", accepted, [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        epoll_event event{EPOLLIN, {}};
        w.said("ADD", ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event));
        const auto wait = [set](World& c) {
            epoll_event got;
            c.said("epoll_wait", ::epoll_wait(set, &got, 1, 0));
        };
        Child child(w, {wait, [=](World& c) { c.await_unread(3); wait(c); read_some(c, 9); wait(c); }, wait});
        child.step();
        wait(w);
        peer_sends(w, 3);
        child.step();
        wait(w);
        peer_sends(w, 2);
        wait(w);
        child.step();
        ::close(set);
    }},
    {"epoll_parent_closes", accepted, [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        epoll_event event{EPOLLIN, {}};
        w.said("ADD", ::epoll_ctl(set, EPOLL_CTL_ADD, w.fd, &event));
        Child child(w, {[set](World& c) {
            epoll_event got;
            c.await_unread(3);
            c.said("epoll_wait", ::epoll_wait(set, &got, 1, 5000));
            read_some(c, 9);
        }});
        ::close(set);
        close_it(w);
        w.peer("send 3");
        child.step();
    }},
    FOR_BOTH("set_changes_are_seen", [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        const int fd = w.fd;
        control(w, "ADD", set, EPOLL_CTL_ADD, fd, EPOLLIN, 1);
        peer_sends(w, 3);
        Child child(w, {[=](World& c) { wait_for_events(c, set); control(c, "DEL", set, EPOLL_CTL_DEL, fd, 0, 0); },
                        [=](World& c) {
                            control(c, "MOD", set, EPOLL_CTL_MOD, fd, EPOLLIN, 3);
                            control(c, "ADD", set, EPOLL_CTL_ADD, fd, EPOLLIN, 3);
                            wait_for_events(c, set);
                        },
                        [=](World& c) { wait_for_events(c, set); }});
        child.step();
        wait_for_events(w, set);
        control(w, "DEL", set, EPOLL_CTL_DEL, fd, 0, 0);
        control(w, "ADD", set, EPOLL_CTL_ADD, fd, EPOLLIN, 2);
        child.step();
        control(w, "MOD", set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT, 4);
        child.step();
        wait_for_events(w, set);
        read_some(w, 9);
        child.end();
        wait_for_events(w, set);
        control(w, "MOD", set, EPOLL_CTL_MOD, fd, EPOLLIN, 5);
        peer_sends(w, 2);
        wait_for_events(w, set);
        ::close(set);
    }),
    FOR_BOTH("set_changes_before_the_child_looks", [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 1);
        Child child(w, {[=](World& c) { wait_for_events(c, set); }, [=](World& c) { wait_for_events(c, set); }});
        control(w, "MOD", set, EPOLL_CTL_MOD, w.fd, EPOLLIN, 2);
        peer_sends(w, 3);
        const int other = second_connection(w);
        control(w, "ADD", set, EPOLL_CTL_ADD, other, EPOLLOUT, 3);
        ::close(w.fd);
        w.fd = other;
        child.step();
        wait_for_events(w, set);
        control(w, "DEL", set, EPOLL_CTL_DEL, other, 0, 0);
        child.step();
        ::close(set);
    }),
    {"set_with_a_socket_of_the_parent_alone", accepted, [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 1);
        const auto look_at_set = [=](World& c) { wait_for_events(c, set); };
        Child child(w, {look_at_set, look_at_set, look_at_set, look_at_set});
        child.step();
        const int other = second_connection(w);
        control(w, "ADD", set, EPOLL_CTL_ADD, other, EPOLLIN, 2);
        w.peer("send 5");
        await_data(w, other);
        child.step();
        read_some(w, 9, other);
        child.step();
        w.peer("send 5");
        await_data(w, other);
        ::close(other);  // nobody has it any more
        child.step();
        wait_for_events(w, set);
        ::close(set);
    }},
    FOR_BOTH("set_edge_is_told_to_one", [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN | kEdge, 1);
        const auto look_at_set = [=](World& c) { wait_for_events(c, set); };
        Child child(w, {look_at_set, look_at_set, look_at_set});
        child.step();
        wait_for_events(w, set);
        peer_sends(w, 3);
        child.step();
        wait_for_events(w, set);
        peer_sends(w, 3);
        wait_for_events(w, set);
        child.step();
        ::close(set);
    }),
    FOR_BOTH("set_one_shot_is_told_to_one", [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN | kOnce, 1);
        const auto look_at_set = [=](World& c) { wait_for_events(c, set); };
        const int fd = w.fd;
        Child child(w, {look_at_set, [=](World& c) { control(c, "MOD", set, EPOLL_CTL_MOD, fd, EPOLLIN | kOnce, 2); }, look_at_set});
        peer_sends(w, 3);
        wait_for_events(w, set);
        child.step();
        child.step();
        wait_for_events(w, set);
        child.step();
        ::close(set);
    }),
    FOR_BOTH("set_sleeper_is_woken", [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 1);
        const auto sleep_on_set = [=](World& c) { wait_for_events(c, set, 20'000); };
        Child child(w, {sleep_on_set, sleep_on_set, sleep_on_set});
        child.begin_sleep();
        w.peer("send 3");
        child.finish();
        read_some(w, 9);
        child.begin_sleep();
        control(w, "MOD", set, EPOLL_CTL_MOD, w.fd, EPOLLOUT, 2);
        child.finish();
        control(w, "DEL", set, EPOLL_CTL_DEL, w.fd, 0, 0);
        child.begin_sleep();
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 3);
        w.peer("send 3");
        child.finish();
        ::close(set);
    }),
    {"set_with_a_listener", listening, [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 1);
        Child child(w, {[=](World& c) { wait_for_events(c, set, 20'000); },
                        [=](World& c) { wait_for_events(c, set); accept_and_greet(c); wait_for_events(c, set); },
                        [=](World& c) { wait_for_events(c, set, 20'000); accept_and_greet(c); }});
        child.begin_sleep();
        w.peer("connect " + std::to_string(w.bound_port));
        child.finish();
        wait_for_events(w, set);
        child.step();
        wait_for_events(w, set);
        w.say("peer: %s", w.peer("receive_all").c_str());
        close_it(w);
        ::close(set);
        w.peer("connect " + std::to_string(w.bound_port));
        child.step();
        w.say("peer: %s", w.peer("receive_all").c_str());
        child.end();
        w.say("nobody left: %s", refused_in_the_end(w));
    }},
    {"set_with_udp", bound_datagram, [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 1);
        Child child(w, {[=](World& c) { wait_for_events(c, set, 20'000); read_some(c, 9); wait_for_events(c, set); },
                        [=](World& c) { control(c, "DEL", set, EPOLL_CTL_DEL, c.fd, 0, 0); }});
        child.begin_sleep();
        w.peer("udp_send 4");
        child.finish();
        wait_for_events(w, set);
        w.peer("udp_send 5");
        wait_for_events(w, set, 20'000);
        child.step();
        wait_for_events(w, set);
        ::close(set);
    }},
    FOR_BOTH("set_after_the_childs_close", [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 1);
        Child child(w, {[=](World& c) { close_it(c); }, [=](World& c) { wait_for_events(c, set); }});
        child.step();
        peer_sends(w, 3);
        child.step();
        wait_for_events(w, set);
        ::close(set);
    }),
    FOR_BOTH("set_after_the_parents_close", [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 1);
        Child child(w, {[=](World& c) { c.await_unread(3); wait_for_events(c, set); }, [=](World& c) { read_some(c, 9); close_it(c); },
                        [=](World& c) { wait_for_events(c, set); }});
        close_it(w);
        w.peer("send 3");
        child.step();
        wait_for_events(w, set);
        child.step();
        wait_for_events(w, set);
        child.step();
        ::close(set);
    }),
    FOR_BOTH("set_and_a_number_used_again", [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        const int number = w.fd;
        control(w, "ADD", set, EPOLL_CTL_ADD, number, EPOLLIN, 1);
        const int other = second_connection(w);
        Child child(w, {[=](World& c) {
                            ::dup2(other, number);
                            ::close(other);
                            control(c, "MOD", set, EPOLL_CTL_MOD, number, EPOLLOUT, 2);
                            control(c, "ADD", set, EPOLL_CTL_ADD, number, EPOLLOUT, 3);
                            wait_for_events(c, set);
                        }});
        child.step();
        wait_for_events(w, set);
        control(w, "MOD", set, EPOLL_CTL_MOD, number, EPOLLOUT, 4);
        wait_for_events(w, set);
        ::close(set);
    }),
    {"set_nested", accepted, [](World& w) {
        const int set = ::epoll_create1(EPOLL_CLOEXEC);
        const int outer = ::epoll_create1(EPOLL_CLOEXEC);
        control(w, "ADD", set, EPOLL_CTL_ADD, w.fd, EPOLLIN, 1);
        control(w, "ADD", outer, EPOLL_CTL_ADD, set, EPOLLIN, 2);
        Child child(w, {[=](World& c) { wait_for_events(c, outer); }, [=](World& c) { wait_for_events(c, outer, 20'000); },
                        [=](World& c) { read_some(c, 9); wait_for_events(c, outer); }});
        child.step();
        peer_sends(w, 3);
        child.step();
        wait_for_events(w, outer, 20'000);
        child.step();
        wait_for_events(w, outer);
        ::close(outer);
        ::close(set);
    }},
    {"grandchild", accepted, [](World& w) {
        Child child(w, {[](World& c) {
            Child grandchild(c, {[](World& g) { g.await_unread(3); read_some(g, 9); write_some(g, "grandchild"); }});
            close_it(c);
            grandchild.step();
        }});
        close_it(w);
        w.peer("send 3");
        child.step();
        w.say("peer: %s", w.peer("receive_all").c_str());
    }},
    {"many_children", accepted, [](World& w) {
        for (int i = 0; i < 4; ++i) {
            Child child(w, {[](World& c) { write_some(c, "c"); }});
            child.step();
        }
        write_some(w, "p");
        ::shutdown(w.fd, SHUT_WR);
        w.say("peer: %s", w.peer("receive_all").c_str());
    }},
};

}  // namespace

void add_fork_cases(Cases& cases) {
    for (const int family : {AF_INET, AF_INET6})
        for (const Named& named : kForks)
            cases.push_back({std::string("fork") + (family == AF_INET6 ? "6/" : "4/") + named.name, [=, &named](World& w) {
                                 w.family = family;
                                 named.enter(w);
                                 named.run(w);
                             }});
}

}  // namespace differential
