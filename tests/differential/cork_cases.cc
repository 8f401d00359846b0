// Datagrams that are put together from several sends, and what the error queue says of those that were not sent or were not copied:
//
//   datagrams?/cork/...      MSG_MORE and UDP_CORK: what goes out, what it returns, what is refused and lost
//   datagrams?/too_long/...  EMSGSIZE of what may not be cut: returned, and in the error queue with IP_RECVERR
//   datagrams?/copies/...    SO_ZEROCOPY and MSG_ZEROCOPY

#include <netinet/udp.h>
#include <time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/errqueue.h>  // needs timespec

#include <cerrno>
#include <cstring>

#include "states.h"

namespace differential {

using namespace states;

namespace {

char data[70'000];

void fill_data() {
    for (std::size_t i = 0; i < sizeof data; ++i) data[i] = static_cast<char>('a' + i % 26);
}

long put(World& w, const char* what, std::size_t length, int flags) { return w.said(what, ::send(w.fd, data, length, flags)); }
long put_to(World& w, const char* what, std::size_t length, int flags, int port = 0) {
    Name to = w.other(port != 0 ? port : w.peer_port);
    return w.said(what, ::sendto(w.fd, data, length, flags, to.get(), to.length));
}
void set_int(World& w, const char* what, int level, int name, int value) {
    w.said(std::string(what) + " " + std::to_string(value), ::setsockopt(w.fd, level, name, &value, sizeof value));
}
void cork(World& w, int on) {
    set_int(w, "UDP_CORK", IPPROTO_UDP, UDP_CORK, on);
    int now = -1;
    socklen_t length = sizeof now;
    w.said("get UDP_CORK", ::getsockopt(w.fd, IPPROTO_UDP, UDP_CORK, &now, &length));
    w.say("  %d", now);
}
void got(World& w) { w.say("peer got %s", w.peer("udp_receive").c_str()); }
/// Nothing but this has come.
void end(World& w) {
    put_to(w, "last", 4, 0);
    got(w);
}
void want_errors(World& w) {
    if (w.family == AF_INET6)
        set_int(w, "IPV6_RECVERR", IPPROTO_IPV6, IPV6_RECVERR, 1);
    else
        set_int(w, "IP_RECVERR", IPPROTO_IP, IP_RECVERR, 1);
}
void never_cut(World& w) {
    if (w.family == AF_INET6)
        set_int(w, "IPV6_MTU_DISCOVER", IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO);
    else
        set_int(w, "IP_MTU_DISCOVER", IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
}
void say_poll(World& w) {
    pollfd entry{w.fd, POLLIN | POLLPRI, 0};
    w.said("poll", ::poll(&entry, 1, 0));
    w.say("  %s", World::describe_events(entry.revents).c_str());
}
long read_errors(World& w) {
    char bytes[64] = {};
    alignas(cmsghdr) char control[256];
    Name name;
    iovec part{bytes, sizeof bytes};
    msghdr message{};
    message.msg_name = name.get();
    message.msg_namelen = sizeof name.storage;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const long length = w.said("error queue", ::recvmsg(w.fd, &message, MSG_ERRQUEUE), bytes);
    if (length < 0) return length;
    name.length = message.msg_namelen;
    w.say("  from %s%s%s", w.describe(name).c_str(), (message.msg_flags & MSG_ERRQUEUE) != 0 ? " ERRQUEUE" : "",
          (message.msg_flags & MSG_TRUNC) != 0 ? " TRUNC" : "");
    for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
        w.say("  control level %d type %d length %zu", at->cmsg_level, at->cmsg_type, static_cast<std::size_t>(at->cmsg_len));
        if (at->cmsg_len < CMSG_LEN(sizeof(sock_extended_err) + sizeof(sockaddr_in))) continue;
        sock_extended_err error{};
        sockaddr_in offender{};
        std::memcpy(&error, CMSG_DATA(at), sizeof error);
        std::memcpy(&offender, CMSG_DATA(at) + sizeof error, sizeof offender);
        w.say("  errno %u origin %u type %u code %u info %u data %u offender family %d", error.ee_errno, error.ee_origin, error.ee_type,
              error.ee_code, error.ee_info, error.ee_data, offender.sin_family);
    }
    return length;
}
void say_error(World& w) {
    int error = -1;
    socklen_t length = sizeof error;
    w.said("SO_ERROR", ::getsockopt(w.fd, SOL_SOCKET, SO_ERROR, &error, &length));
    w.say("  %d", error);
}

using Run = void (*)(World&);
struct Named {
    const char* name;
    Run run;
};

constexpr Named kCork[] = {
    {"two_parts", [](World& w) {
         put_to(w, "more", 3, MSG_MORE);
         put_to(w, "rest", 5, 0);
         got(w);
         end(w);
     }},
    {"many_parts", [](World& w) {
         for (int i = 0; i < 20; ++i) put_to(w, "more", 26, MSG_MORE);
         put_to(w, "nothing more", 0, 0);
         got(w);
         end(w);
     }},
    {"empty_parts", [](World& w) {
         put_to(w, "nothing", 0, MSG_MORE);
         put_to(w, "nothing", 0, MSG_MORE);
         put_to(w, "nothing", 0, 0);
         got(w);
         end(w);
     }},
    {"option", [](World& w) {
         cork(w, 1);
         put_to(w, "first", 3, 0);
         put_to(w, "second", 4, MSG_MORE);
         put_to(w, "third", 5, 0);
         cork(w, 0);
         got(w);
         end(w);
     }},
    {"option_and_nothing", [](World& w) {
         cork(w, 1);
         cork(w, 0);
         end(w);
     }},
    {"option_after_more", [](World& w) {
         put_to(w, "first", 3, MSG_MORE);
         cork(w, 0);
         got(w);
         end(w);
     }},
    {"option_during_more", [](World& w) {
         put_to(w, "first", 3, MSG_MORE);
         cork(w, 1);
         put_to(w, "second", 3, 0);
         cork(w, 0);
         got(w);
         end(w);
     }},
    {"another_destination", [](World& w) {
         put_to(w, "first", 3, MSG_MORE);
         put_to(w, "to another", 4, 0, 9);
         got(w);
         end(w);
     }},
    {"no_destination", [](World& w) {
         put_to(w, "first", 3, MSG_MORE);
         put(w, "to whom", 4, 0);
         got(w);
         end(w);
     }},
    {"long", [](World& w) {
         put_to(w, "first", 20'000, MSG_MORE);
         put_to(w, "second", 20'000, MSG_MORE);
         put_to(w, "third", 777, 0);
         got(w);
         end(w);
     }},
    {"too_long", [](World& w) {
         put_to(w, "first", 40'000, MSG_MORE);
         put_to(w, "second", 40'000, MSG_MORE);
         put_to(w, "third", 7, 0);
         got(w);
         end(w);
     }},
    {"far_too_long", [](World& w) {
         put_to(w, "first", 10, MSG_MORE);
         put_to(w, "second", 70'000, 0);
         put_to(w, "third", 7, 0);
         got(w);
         end(w);
     }},
    {"just_long_enough", [](World& w) {
         const std::size_t most = w.family == AF_INET6 ? 65527 : 65507;
         put_to(w, "first", most - 7, MSG_MORE);
         put_to(w, "second", 7, 0);
         got(w);
         put_to(w, "first", most - 7, MSG_MORE);
         put_to(w, "second", 8, 0);
         end(w);
     }},
    {"whole_only", [](World& w) {
         never_cut(w);
         want_errors(w);
         put_to(w, "first", 1000, MSG_MORE);
         put_to(w, "second", 1000, 0);
         read_errors(w);
         put_to(w, "third", 7, 0);
         got(w);
         end(w);
     }},
    {"gathered", [](World& w) {
         Name to = w.other(w.peer_port);
         iovec parts[3] = {{data, 3}, {data + 10, 0}, {data + 20, 4}};
         msghdr message{};
         message.msg_name = to.get();
         message.msg_namelen = to.length;
         message.msg_iov = parts;
         message.msg_iovlen = 3;
         w.said("sendmsg", ::sendmsg(w.fd, &message, MSG_MORE));
         w.said("sendmsg", ::sendmsg(w.fd, &message, 0));
         got(w);
         end(w);
     }},
    {"many_messages", [](World& w) {
         Name to = w.other(w.peer_port);
         iovec parts[2] = {{data, 3}, {data + 20, 4}};
         mmsghdr messages[2]{};
         for (int i = 0; i < 2; ++i) {
             messages[i].msg_hdr.msg_name = to.get();
             messages[i].msg_hdr.msg_namelen = to.length;
             messages[i].msg_hdr.msg_iov = &parts[i];
             messages[i].msg_hdr.msg_iovlen = 1;
         }
         w.said("sendmmsg", ::sendmmsg(w.fd, messages, 2, MSG_MORE));
         put_to(w, "rest", 2, 0);
         got(w);
         end(w);
     }},
    {"out_of_band", [](World& w) {
         put_to(w, "first", 3, MSG_MORE);
         put_to(w, "out of band", 1, MSG_OOB);
         put_to(w, "rest", 2, 0);
         got(w);
         end(w);
     }},
    {"closed", [](World& w) {
         const int copy = ::dup(w.fd);
         put_to(w, "first", 3, MSG_MORE);
         ::close(copy);
         put_to(w, "rest", 2, 0);
         got(w);
         end(w);
     }},
};

/// Of a socket with a peer.
constexpr Named kCorkConnected[] = {
    {"connected", [](World& w) {
         put(w, "first", 3, MSG_MORE);
         put(w, "rest", 5, 0);
         got(w);
         cork(w, 1);
         w.said("write", ::write(w.fd, data, 4));
         w.said("write", ::write(w.fd, data, 5));
         cork(w, 0);
         got(w);
         end(w);
     }},
    {"connected_too_long", [](World& w) {
         never_cut(w);
         want_errors(w);
         put(w, "first", 1000, MSG_MORE);
         put(w, "second", 1000, MSG_MORE);
         read_errors(w);
         put(w, "third", 10, 0);
         got(w);
         end(w);
     }},
    {"shut_down", [](World& w) {
         put(w, "first", 3, MSG_MORE);
         w.said("shutdown", ::shutdown(w.fd, SHUT_WR));
         put(w, "second", 3, MSG_MORE);
         put(w, "third", 3, 0);
     }},
};

constexpr Named kTooLong[] = {
    {"not_asked_for", [](World& w) {
         never_cut(w);
         put_to(w, "too long", 3000, 0);
         say_poll(w);
         read_errors(w);
         say_error(w);
         end(w);
     }},
    {"asked_for", [](World& w) {
         never_cut(w);
         want_errors(w);
         put_to(w, "too long", 3000, 0);
         say_poll(w);
         say_error(w);
         say_poll(w);
         read_errors(w);
         say_poll(w);
         read_errors(w);
         end(w);
     }},
    {"several", [](World& w) {
         never_cut(w);
         want_errors(w);
         for (const std::size_t length : {2000, 3000, 60'000}) put_to(w, "too long", length, 0);
         for (int i = 0; i < 4; ++i) read_errors(w);
         end(w);
     }},
    {"longer_than_any", [](World& w) {
         want_errors(w);
         put_to(w, "too long", w.family == AF_INET6 ? 65528 : 65508, 0);
         read_errors(w);
         put_to(w, "far too long", 70'000, 0);
         read_errors(w);
         end(w);
     }},
    {"may_be_cut", [](World& w) {
         want_errors(w);
         put_to(w, "long", 3000, 0);
         got(w);
         read_errors(w);
     }},
    {"switched_off", [](World& w) {
         never_cut(w);
         want_errors(w);
         put_to(w, "too long", 3000, 0);
         if (w.family == AF_INET6)
             set_int(w, "IPV6_RECVERR", IPPROTO_IPV6, IPV6_RECVERR, 0);
         else
             set_int(w, "IP_RECVERR", IPPROTO_IP, IP_RECVERR, 0);
         read_errors(w);
         end(w);
     }},
};

/// Waits until `count` sends have been told of, and says their numbers.
void notices(World& w, unsigned count) {
    unsigned next = 0;
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
        w.require(error.ee_errno == 0 && error.ee_code == SO_EE_CODE_ZEROCOPY_COPIED, "a copy");
        next = error.ee_data + 1;
    }
    w.say("told of sends 0 to %u", count - 1);
    w.said("no more", ::recv(w.fd, nullptr, 0, MSG_ERRQUEUE));
}

constexpr Named kCopies[] = {
    {"not_asked_for", [](World& w) {
         put_to(w, "send", 10, MSG_ZEROCOPY);
         got(w);
         say_poll(w);
         read_errors(w);
     }},
    {"one", [](World& w) {
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1);
         put_to(w, "send", 10, MSG_ZEROCOPY);
         got(w);
         w.await(POLLERR);
         say_poll(w);
         say_error(w);
         read_errors(w);
         say_poll(w);
         read_errors(w);
     }},
    {"several", [](World& w) {
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1);
         for (int i = 0; i < 3; ++i) put_to(w, "send", 100, MSG_ZEROCOPY);
         put_to(w, "without the flag", 10, 0);
         put_to(w, "send", 1, MSG_ZEROCOPY);
         for (int i = 0; i < 5; ++i) got(w);
         notices(w, 4);
     }},
    {"long", [](World& w) {
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1);
         put_to(w, "send", 1400, MSG_ZEROCOPY);
         got(w);
         notices(w, 1);
     }},
    {"nothing", [](World& w) {
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1);
         put_to(w, "send", 0, MSG_ZEROCOPY);
         got(w);
         say_poll(w);
         read_errors(w);
     }},
    {"refused", [](World& w) {
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1);
         never_cut(w);
         put_to(w, "too long", 3000, MSG_ZEROCOPY);
         put_to(w, "send", 10, MSG_ZEROCOPY);
         got(w);
         notices(w, 1);
     }},
    {"switched_off", [](World& w) {
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 1);
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 0);
         set_int(w, "SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, 2);
         put_to(w, "send", 10, MSG_ZEROCOPY);
         got(w);
         read_errors(w);
     }},
};

}  // namespace

void add_cork_cases(Cases& cases) {
    fill_data();
    for (const int family : {AF_INET, AF_INET6}) {
        const std::string prefix = family == AF_INET6 ? "datagrams6/" : "datagrams4/";
        const auto add = [&](const std::string& name, Run enter, Run run) {
            cases.push_back({prefix + name, [=](World& w) {
                                 w.family = family;
                                 enter(w);
                                 run(w);
                             }});
        };
        for (const auto& [suffix, enter] : {std::pair{"/bound", &bound_datagram}, std::pair{"/connected", &connected_datagram}}) {
            for (const Named& one : kCork)
                if (enter == &bound_datagram || std::strcmp(one.name, "another_destination") != 0) add("cork/" + std::string(one.name) + suffix, enter, one.run);
            for (const Named& one : kTooLong) add("too_long/" + std::string(one.name) + suffix, enter, one.run);
            for (const Named& one : kCopies) add("copies/" + std::string(one.name) + suffix, enter, one.run);
        }
        for (const Named& one : kCorkConnected) add("cork/" + std::string(one.name), &connected_datagram, one.run);
    }
}

}  // namespace differential
