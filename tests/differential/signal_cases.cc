// Signal-driven input and output: F_SETOWN and its like, O_ASYNC, F_SETSIG, and what comes of them.
//
//   signal?/io/...       SIGIO (or the signal that was chosen, with what it says) when there is something
//   signal?/urgent/...   SIGURG, and where the octet lies for a reader who was told so
//   signal?/owner/...    what can be set, what is read back, and of which socket
//
// Signals are blocked and waited for. A signal of the kernel's for one event may come once or several times: a case hears one, says
// what it carried, and swallows the others.

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "states.h"

namespace differential {

using namespace states;

namespace {

constexpr unsigned long kSetOwner = 0x8901, kGetOwner = 0x8903;  // FIOSETOWN, FIOGETOWN
constexpr unsigned long kSetGroup = 0x8902, kGetGroup = 0x8904;  // SIOCSPGRP, SIOCGPGRP
const int kChosen = SIGRTMIN + 3;

sigset_t those() {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int number : {SIGIO, SIGURG, kChosen}) ::sigaddset(&set, number);
    return set;
}

/// Blocks the signals for one case.
class Listening {
public:
    Listening() {
        const sigset_t set = those();
        ::sigprocmask(SIG_BLOCK, &set, &before_);
    }
    ~Listening() {
        while (next(0) > 0) {
        }
        ::sigprocmask(SIG_SETMASK, &before_, nullptr);
    }
    int next(int patience_s, siginfo_t* info = nullptr) {
        const sigset_t set = those();
        const timespec patience{patience_s, 0};
        siginfo_t own{};
        return ::sigtimedwait(&set, info != nullptr ? info : &own, &patience);
    }

private:
    sigset_t before_;
};

const char* name_of(int number) {
    return number == SIGIO ? "SIGIO" : number == SIGURG ? "SIGURG" : number == kChosen ? "the chosen one" : "none";
}

/// The next signal, for which it waits, and what it says.
void hear(World& w, Listening& signals, const char* what) {
    siginfo_t info{};
    const int number = signals.next(10, &info);
    std::string said = name_of(number);
    if (number == kChosen) {
        said += info.si_fd == w.fd ? " of our descriptor" : " of another descriptor";
        said += info.si_code == POLL_IN ? " POLL_IN " : info.si_code == POLL_HUP ? " POLL_HUP " : info.si_code == POLL_ERR ? " POLL_ERR " : " code ";
        said += World::describe_events(static_cast<int>(info.si_band));
    }
    w.say("%s: %s", what, said.c_str());
    while (signals.next(0) > 0) {
    }
}
/// What is to come has come, if it comes at all.
void hear_nothing(World& w, Listening& signals, const char* what) { w.say("%s: %s", what, name_of(signals.next(0))); }

long set_flags(World& w, int flags) {
    return w.said((flags & O_ASYNC) != 0 ? "O_ASYNC" : "no flags", ::fcntl(w.fd, F_SETFL, flags));
}
void own(World& w) { w.said("F_SETOWN", ::fcntl(w.fd, F_SETOWN, ::getpid())); }
void choose(World& w) { w.said("F_SETSIG", ::fcntl(w.fd, F_SETSIG, kChosen)); }

const char* who(int pid) { return pid == 0 ? "nobody" : pid == ::getpid() ? "we" : pid == -::getpgrp() ? "our group" : "another"; }
void say_owner(World& w, int fd = -1) {
    if (fd < 0) fd = w.fd;
    f_owner_ex owner{};
    int by_ioctl = 0;
    w.said("F_GETOWN_EX", ::fcntl(fd, F_GETOWN_EX, &owner));
    w.say("  type %d %s", owner.type, who(owner.type == F_OWNER_PGRP ? -owner.pid : owner.pid));
    w.said("FIOGETOWN", ::ioctl(fd, kGetOwner, &by_ioctl));
    w.say("  %s", who(by_ioctl));
    w.said("SIOCGPGRP", ::ioctl(fd, kGetGroup, &by_ioctl));
    w.say("  %s", who(by_ioctl));
    w.say("F_GETOWN = %s", who(::fcntl(fd, F_GETOWN)));
    w.say("F_GETSIG = %s", ::fcntl(fd, F_GETSIG) == 0 ? "0" : ::fcntl(fd, F_GETSIG) == kChosen ? "chosen" : "?");
    w.say("O_ASYNC %d", (::fcntl(fd, F_GETFL) & O_ASYNC) != 0);
}

long take(World& w, const char* what, std::size_t most, int flags = MSG_DONTWAIT) {
    char data[64] = {};
    return w.said(what, ::recv(w.fd, data, most, flags), data);
}
void say_mark(World& w) {
    int at = -1;
    w.said("SIOCATMARK", ::ioctl(w.fd, SIOCATMARK, &at));
    w.say("  %d", at);
}

/// The bytes have come, and the program has not been told by a signal only because it asked later.
void something_comes(World& w, int bytes) {
    w.peer("send " + std::to_string(bytes));
}

using Run = void (*)(World&, Listening&);
struct Named {
    const char* name;
    Run run;
};

constexpr Named kInput[] = {
    {"own_then_async", [](World& w, Listening& signals) {
         own(w);
         set_flags(w, O_ASYNC | O_NONBLOCK);
         hear_nothing(w, signals, "before");
         something_comes(w, 5);
         hear(w, signals, "data");
         w.await_unread(5);
         take(w, "recv", 64);
         take(w, "recv again", 64);
         something_comes(w, 3);
         hear(w, signals, "more data");
         w.await_unread(3);
         take(w, "recv", 64);
         say_owner(w);
     }},
    {"async_then_own", [](World& w, Listening& signals) {
         set_flags(w, O_ASYNC);
         own(w);
         something_comes(w, 5);
         hear(w, signals, "data");
         say_owner(w);
     }},
    {"chosen_signal", [](World& w, Listening& signals) {
         choose(w);
         own(w);
         set_flags(w, O_ASYNC);
         something_comes(w, 5);
         hear(w, signals, "data");
         say_owner(w);
     }},
    {"chosen_last", [](World& w, Listening& signals) {
         own(w);
         set_flags(w, O_ASYNC);
         choose(w);
         something_comes(w, 5);
         hear(w, signals, "data");
     }},
    {"by_ioctl", [](World& w, Listening& signals) {
         int me = ::getpid(), on = 1;
         w.said("FIOSETOWN", ::ioctl(w.fd, kSetOwner, &me));
         w.said("FIOASYNC", ::ioctl(w.fd, FIOASYNC, &on));
         something_comes(w, 5);
         hear(w, signals, "data");
         say_owner(w);
     }},
    {"group", [](World& w, Listening& signals) {
         int group = -::getpgrp(), on = 1;
         w.said("FIOASYNC", ::ioctl(w.fd, FIOASYNC, &on));
         w.said("SIOCSPGRP", ::ioctl(w.fd, kSetGroup, &group));
         say_owner(w);
         group = 0;
         w.said("SIOCSPGRP of nobody", ::ioctl(w.fd, kSetGroup, &group));
         something_comes(w, 5);
         w.await_unread(5);
         hear_nothing(w, signals, "data");
         say_owner(w);
     }},
    {"thread", [](World& w, Listening& signals) {
         f_owner_ex owner{F_OWNER_TID, ::gettid()};
         w.said("F_SETOWN_EX", ::fcntl(w.fd, F_SETOWN_EX, &owner));
         set_flags(w, O_ASYNC);
         something_comes(w, 5);
         hear(w, signals, "data");
         say_owner(w);
     }},
    {"data_before", [](World& w, Listening& signals) {
         something_comes(w, 5);
         w.await_unread(5);
         own(w);
         set_flags(w, O_ASYNC | O_NONBLOCK);
         hear_nothing(w, signals, "what was there");
         take(w, "recv", 2);
         something_comes(w, 3);
         hear(w, signals, "data");
         w.await_unread(6);
         take(w, "recv", 64);
     }},
    {"data_before_async_first", [](World& w, Listening& signals) {
         set_flags(w, O_ASYNC | O_NONBLOCK);
         something_comes(w, 5);
         w.await_unread(5);
         own(w);
         hear_nothing(w, signals, "what was there");
         take(w, "recv", 64);
     }},
    {"switched_off", [](World& w, Listening& signals) {
         own(w);
         set_flags(w, O_ASYNC);
         set_flags(w, 0);
         something_comes(w, 5);
         w.await_unread(5);
         hear_nothing(w, signals, "data");
         say_owner(w);
     }},
    {"nobody", [](World& w, Listening& signals) {
         set_flags(w, O_ASYNC);
         something_comes(w, 5);
         w.await_unread(5);
         hear_nothing(w, signals, "data");
         say_owner(w);
     }},
    {"read_and_write", [](World& w, Listening& signals) {
         own(w);
         set_flags(w, O_ASYNC | O_NONBLOCK);
         w.said("send", ::send(w.fd, "hello", 5, 0));
         w.say("peer got %s", w.peer("receive 5").c_str());
         something_comes(w, 5);
         hear(w, signals, "data");
         w.said("shutdown", ::shutdown(w.fd, SHUT_WR));
         w.say("peer got %s", w.peer("receive_all").c_str());
     }},
};

/// Of streams only.
constexpr Named kStream[] = {
    {"end_of_stream", [](World& w, Listening& signals) {
         own(w);
         set_flags(w, O_ASYNC | O_NONBLOCK);
         w.peer("shut");
         hear(w, signals, "FIN");
         w.await(POLLRDHUP);
         take(w, "recv", 64);
     }},
    {"reset", [](World& w, Listening& signals) {
         own(w);
         set_flags(w, O_ASYNC | O_NONBLOCK);
         w.peer("reset");
         hear(w, signals, "RST");
         w.await(POLLERR | POLLHUP);
         take(w, "recv", 64);
     }},
    {"room", [](World& w, Listening& signals) {
         own(w);
         set_flags(w, O_ASYNC | O_NONBLOCK);
         static char data[1 << 16];
         long sent = 0;
         for (ssize_t more = 0; (more = ::send(w.fd, data, sizeof data, 0)) > 0;) sent += more;
         w.peer("receive " + std::to_string(sent));
         hear(w, signals, "room");
         w.await(POLLOUT);
     }},
    {"after_the_end", [](World& w, Listening& signals) {
         w.peer("reset");
         w.await(POLLERR | POLLHUP);
         own(w);
         set_flags(w, O_ASYNC | O_NONBLOCK);
         hear_nothing(w, signals, "what was");
         take(w, "recv", 64);
         take(w, "recv", 64);
     }},
};

constexpr Named kUrgent[] = {
    {"told", [](World& w, Listening& signals) {
         own(w);
         w.peer("send 3");
         w.peer("urgent");
         hear(w, signals, "urgent");
         w.await(POLLPRI);
         take(w, "recv of OOB", 1, MSG_OOB);
         say_mark(w);
         w.peer("send 2");
         take(w, "recv", 64);
         say_mark(w);
         take(w, "recv", 64, 0);
         take(w, "recv", 64);
     }},
    {"alone", [](World& w, Listening& signals) {
         own(w);
         w.peer("urgent");
         hear(w, signals, "urgent");
         w.await(POLLPRI);
         say_mark(w);
         take(w, "recv of OOB", 1, MSG_OOB);
         take(w, "recv", 64);
     }},
    {"twice", [](World& w, Listening& signals) {
         own(w);
         w.peer("urgent");
         hear(w, signals, "urgent");
         w.await(POLLPRI);
         take(w, "recv of OOB", 1, MSG_OOB);
         w.peer("send 2");
         w.peer("urgent");
         hear(w, signals, "urgent");
         w.await(POLLPRI);
         take(w, "recv", 64);
         say_mark(w);
         take(w, "recv of OOB", 1, MSG_OOB);
     }},
    {"nobody", [](World& w, Listening& signals) {
         w.peer("urgent");
         w.await(POLLPRI);
         hear_nothing(w, signals, "urgent");
     }},
    {"before_own", [](World& w, Listening& signals) {
         w.peer("send 3");
         w.peer("urgent");
         w.await(POLLPRI);
         w.peer("send 2");
         w.await_unread(3);
         own(w);
         w.await(POLLPRI);
         hear_nothing(w, signals, "what was there");
         take(w, "recv", 64);
         say_mark(w);
         take(w, "recv of OOB", 1, MSG_OOB);
         take(w, "recv", 64, 0);
     }},
    {"read_before_own", [](World& w, Listening&) {
         w.peer("send 3");
         w.peer("urgent");
         w.await(POLLPRI);
         w.peer("send 2");
         w.await_unread(3);
         take(w, "recv of OOB", 1, MSG_OOB);
         own(w);
         take(w, "recv", 3);
         take(w, "recv", 64, 0);
     }},
    {"in_line", [](World& w, Listening& signals) {
         const int on = 1;
         w.said("SO_OOBINLINE", ::setsockopt(w.fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
         own(w);
         w.peer("send 3");
         w.peer("urgent");
         hear(w, signals, "urgent");
         w.await_unread(4);
         take(w, "recv", 64);
         say_mark(w);
         take(w, "recv", 64);
     }},
    {"sent", [](World& w, Listening&) {
         own(w);
         w.said("send", ::send(w.fd, "abc", 3, 0));
         w.said("send of OOB", ::send(w.fd, "!", 1, MSG_OOB));
         w.say("peer's octet: %s", w.peer("receive_urgent").c_str());
         w.said("send", ::send(w.fd, "de", 2, 0));
         w.say("peer got %s", w.peer("receive 5").c_str());
     }},
};

constexpr Named kOwner[] = {
    {"fresh", [](World& w, Listening&) { say_owner(w); }},
    {"read_back", [](World& w, Listening&) {
         own(w);
         say_owner(w);
         choose(w);
         say_owner(w);
         w.said("F_SETSIG 0", ::fcntl(w.fd, F_SETSIG, 0));
         w.said("F_SETOWN 0", ::fcntl(w.fd, F_SETOWN, 0));
         say_owner(w);
     }},
    {"signal_only", [](World& w, Listening&) {
         choose(w);
         say_owner(w);
         w.said("F_SETSIG 0", ::fcntl(w.fd, F_SETSIG, 0));
         say_owner(w);
     }},
    {"wrong", [](World& w, Listening&) {
         w.said("F_SETSIG 99", ::fcntl(w.fd, F_SETSIG, 99));
         w.said("F_SETSIG -1", ::fcntl(w.fd, F_SETSIG, -1));
         w.said("F_SETOWN of no process", ::fcntl(w.fd, F_SETOWN, 0x3fffffff));
         w.said("F_SETOWN of no group", ::fcntl(w.fd, F_SETOWN, -0x3fffffff));
         w.said("F_SETOWN INT_MIN", ::fcntl(w.fd, F_SETOWN, INT32_MIN));
         f_owner_ex owner{static_cast<__pid_type>(7), 1};
         w.said("F_SETOWN_EX of what", ::fcntl(w.fd, F_SETOWN_EX, &owner));
         w.said("F_SETOWN_EX of nothing", ::fcntl(w.fd, F_SETOWN_EX, nullptr));
         w.said("FIOSETOWN of nothing", ::ioctl(w.fd, kSetOwner, nullptr));
         int nobody = 0x3fffffff;
         w.said("FIOSETOWN of no process", ::ioctl(w.fd, kSetOwner, &nobody));
         w.said("SIOCSPGRP of no process", ::ioctl(w.fd, kSetGroup, &nobody));
         say_owner(w);
     }},
    {"duplicate", [](World& w, Listening&) {
         const int copy = ::dup(w.fd);
         w.said("F_SETOWN", ::fcntl(copy, F_SETOWN, ::getpid()));
         say_owner(w);
         ::close(copy);
         w.said("send", ::send(w.fd, "hello", 5, 0));
         w.say("peer got %s", w.peer("receive 5").c_str());
     }},
    {"in_a_child", [](World& w, Listening&) {
         const pid_t parent = ::getpid();
         const pid_t child = ::fork();
         if (child == 0) ::_exit(::fcntl(w.fd, F_SETOWN, parent) == 0 ? 0 : 1);
         int status = -1;
         ::waitpid(child, &status, 0);
         w.say("child: %d", status);
         say_owner(w);
         w.said("send", ::send(w.fd, "hello", 5, 0));
         w.say("peer got %s", w.peer("receive 5").c_str());
     }},
};

/// What an accepted connection's neighbour has set is none of its business.
void neighbours(World& w) {
    Listening signals;
    w.fd = w.make_socket(SOCK_STREAM);
    w.bind_and_listen();
    int both[2] = {};
    for (int i = 0; i < 2; ++i) {
        if (i == 1) w.peer("switch 1");
        w.peer("connect " + std::to_string(w.bound_port));
        w.await(POLLIN);
        both[i] = ::accept(w.fd, nullptr, nullptr);
        w.require(both[i] >= 0, "accept");
    }
    w.note_path(both[0]);
    w.said("F_SETOWN", ::fcntl(both[0], F_SETOWN, ::getpid()));
    w.said("F_SETSIG", ::fcntl(both[0], F_SETSIG, kChosen));
    say_owner(w, both[0]);
    say_owner(w, both[1]);
    for (const int fd : both) ::close(fd);
}

void listener_signals(World& w, bool owner_first, bool listening_before) {
    Listening signals;
    w.fd = w.make_socket(SOCK_STREAM);
    if (listening_before) w.bind_and_listen();
    if (owner_first) own(w);
    choose(w);
    set_flags(w, O_ASYNC | O_NONBLOCK);
    if (!owner_first) own(w);
    if (!listening_before) w.bind_and_listen();
    hear_nothing(w, signals, "before");
    w.peer("connect " + std::to_string(w.bound_port));
    hear(w, signals, "connection");
    w.await(POLLIN);
    const int connection = ::accept(w.fd, nullptr, nullptr);
    w.require(connection >= 0, "accept");
    w.say("accepted:");
    say_owner(w, connection);
    say_owner(w);
    w.said("send", ::send(connection, "hello", 5, 0));
    w.say("peer got %s", w.peer("receive 5").c_str());
    ::close(connection);
}

void before_connect(World& w) {
    Listening signals;
    w.fd = w.make_socket(SOCK_STREAM);
    choose(w);
    own(w);
    set_flags(w, O_ASYNC);
    w.connect_out();
    while (signals.next(0) > 0) {  // the handshake
    }
    something_comes(w, 5);
    hear(w, signals, "data");
    w.peer("urgent");
    hear(w, signals, "urgent");
    w.await(POLLPRI);
    take(w, "recv of OOB", 1, MSG_OOB);
    say_owner(w);
}

void datagram_signals(World& w, bool bound_before, bool owner_first) {
    Listening signals;
    w.fd = w.make_socket(SOCK_DGRAM);
    const auto bind = [&] {
        Name name = w.own();
        w.require(::bind(w.fd, name.get(), name.length) == 0, "bind");
        meet_udp_peer(w);
    };
    if (bound_before) bind();
    if (owner_first) own(w);
    choose(w);
    set_flags(w, O_ASYNC | O_NONBLOCK);
    if (!owner_first) own(w);
    if (!bound_before) bind();
    w.peer("udp_send 7");
    hear(w, signals, "datagram");
    w.await(POLLIN);
    take(w, "recv", 64);
    say_owner(w);
}

}  // namespace

void add_signal_cases(Cases& cases) {
    for (const int family : {AF_INET, AF_INET6}) {
        const std::string prefix = family == AF_INET6 ? "signal6/" : "signal4/";
        const auto add = [&](const std::string& name, void (*enter)(World&), Run run) {
            cases.push_back({prefix + name, [=](World& w) {
                                 w.family = family;
                                 enter(w);
                                 Listening signals;
                                 run(w, signals);
                             }});
        };
        const auto add_plain = [&](const std::string& name, std::function<void(World&)> run) {
            cases.push_back({prefix + name, [=](World& w) {
                                 w.family = family;
                                 run(w);
                             }});
        };
        for (const auto& [suffix, enter] : {std::pair{"/accepted", &accepted}, std::pair{"/connected", &connected}}) {
            for (const Named& one : kInput) add("io/" + std::string(one.name) + suffix, enter, one.run);
            for (const Named& one : kStream) add("io/" + std::string(one.name) + suffix, enter, one.run);
            for (const Named& one : kUrgent) add("urgent/" + std::string(one.name) + suffix, enter, one.run);
            for (const Named& one : kOwner) add("owner/" + std::string(one.name) + suffix, enter, one.run);
        }
        add_plain("owner/neighbours", &neighbours);
        add_plain("io/before_connect", &before_connect);
        for (const bool first : {false, true})
            for (const bool before : {false, true}) {
                const std::string order = std::string(first ? "/own_first" : "/own_last") + (before ? "/after" : "/before");
                add_plain("io/listener" + order, [=](World& w) { listener_signals(w, first, before); });
                add_plain("io/datagram" + order, [=](World& w) { datagram_signals(w, before, first); });
            }
    }
}

}  // namespace differential
