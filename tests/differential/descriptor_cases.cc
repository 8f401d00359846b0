// Descriptors: every socket call on what is no socket, or no descriptor at all; duplicates and their flags; what files can and
// sockets cannot; stdio on a socket; copying between descriptors; closing many at once.

#include <dirent.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio_ext.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "world.h"

namespace differential {

namespace {

// --- wrong descriptors --------------------------------------------------------------------------------------------------------

struct Wrong {
    const char* name;
    int (*make)(World&);  // a descriptor that is to be closed, or none
};

int file_with(const char* text) {
    const int file = ::memfd_create("file", MFD_CLOEXEC);
    if (::write(file, text, std::strlen(text)) < 0 || ::lseek(file, 0, SEEK_SET) != 0) return -1;
    return file;
}

constexpr Wrong kWrong[] = {
    {"minus_one", [](World&) { return -1; }},
    {"never_open", [](World&) { return 61; }},
    {"beyond_the_limit", [](World&) { return 0x7fffffff; }},
    {"closed_socket", [](World& w) {
        const int fd = w.make_socket(SOCK_STREAM);
        ::close(fd);
        return fd;
    }},
    {"closed_connection", [](World& w) {
        w.fd = w.make_socket(SOCK_STREAM);
        w.accept_one();
        const int fd = w.fd;
        ::close(fd);
        w.fd = -1;
        return fd;
    }},
    {"pipe", [](World& w) {
        int ends[2];
        w.require(::pipe2(ends, O_CLOEXEC) == 0, "pipe");
        return ends[0];
    }},
    {"file", [](World&) { return file_with("0123456789"); }},
    {"epoll", [](World&) { return ::epoll_create1(EPOLL_CLOEXEC); }},
    {"path_only", [](World&) { return ::open("/", O_PATH | O_CLOEXEC); }},
};

/// Every call of the socket API.
void call_everything(World& w, int fd) {
    Name name = w.other(9);
    char data[16] = "data";
    iovec part{data, 4};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    mmsghdr many{};
    many.msg_hdr = message;
    int number = 0;
    socklen_t length = sizeof number;
    Name got;
    got.length = sizeof got.storage;
    w.said("bind", ::bind(fd, name.get(), name.length));
    w.said("listen", ::listen(fd, 1));
    w.said("accept", ::accept(fd, nullptr, nullptr));
    w.said("accept4", ::accept4(fd, nullptr, nullptr, SOCK_NONBLOCK));
    w.said("accept4 with bad flags", ::accept4(fd, nullptr, nullptr, 1));
    w.said("connect", ::connect(fd, name.get(), name.length));
    w.said("connect to nothing", ::connect(fd, nullptr, 0));
    w.said("shutdown", ::shutdown(fd, SHUT_RDWR));
    w.said("getsockname", ::getsockname(fd, got.get(), &got.length));
    w.said("getpeername", ::getpeername(fd, got.get(), &got.length));
    w.said("getsockopt", ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &number, &length));
    w.said("setsockopt", ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &number, sizeof number));
    w.said("send", ::send(fd, data, 4, MSG_NOSIGNAL));
    w.said("send 0", ::send(fd, data, 0, MSG_NOSIGNAL));
    w.said("sendto", ::sendto(fd, data, 4, MSG_NOSIGNAL, name.get(), name.length));
    w.said("sendto with a bad length", ::sendto(fd, data, 4, MSG_NOSIGNAL, name.get(), socklen_t(-1)));
    w.said("sendmsg", ::sendmsg(fd, &message, MSG_NOSIGNAL));
    w.said("sendmmsg", ::sendmmsg(fd, &many, 1, MSG_NOSIGNAL));
    w.said("recv", ::recv(fd, data, 4, MSG_DONTWAIT));
    w.said("recvfrom", ::recvfrom(fd, data, 4, MSG_DONTWAIT, got.get(), &got.length));
    w.said("recvmsg", ::recvmsg(fd, &message, MSG_DONTWAIT));
    w.said("recvmmsg", ::recvmmsg(fd, &many, 1, MSG_DONTWAIT, nullptr));
    w.said("sockatmark", ::sockatmark(fd));
    w.said("isfdtype", ::isfdtype(fd, S_IFSOCK));
    w.said("ioctl FIONBIO", ::ioctl(fd, FIONBIO, &number));
    w.said("ioctl SIOCATMARK", ::ioctl(fd, SIOCATMARK, &number));
    w.said("fcntl F_GETFD", ::fcntl(fd, F_GETFD) >= 0 ? 0 : -1);
    w.said("fcntl F_GETFL", ::fcntl(fd, F_GETFL) >= 0 ? 0 : -1);
    w.said("fcntl F_SETFL", ::fcntl(fd, F_SETFL, O_NONBLOCK));
    w.said("fcntl F_DUPFD", ::fcntl(fd, F_DUPFD, 300) >= 0 ? 0 : -1);
    w.said("dup", ::dup(fd) >= 0 ? 0 : -1);
    w.said("dup2", ::dup2(fd, 301) >= 0 ? 0 : -1);
    w.said("dup3", ::dup3(fd, 302, O_CLOEXEC) >= 0 ? 0 : -1);
    w.said("dup2 onto itself", ::dup2(fd, fd) >= 0 ? 0 : -1);
    w.said("dup3 onto itself", ::dup3(fd, fd, 0));
    pollfd entry{fd, POLLIN | POLLOUT, 0};
    w.said("poll", ::poll(&entry, 1, 0));
    w.say("  %s", World::describe_events(entry.revents).c_str());
    const int set = ::epoll_create1(EPOLL_CLOEXEC);
    epoll_event event{EPOLLIN, {}};
    w.said("epoll_ctl ADD", ::epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    w.said("epoll_ctl DEL", ::epoll_ctl(set, EPOLL_CTL_DEL, fd, &event));
    ::close(set);
    struct stat status{};
    w.said("fstat", ::fstat(fd, &status));
    w.said("read 0", ::read(fd, data, 0));
    w.said("write 0", ::write(fd, data, 0));
    w.said("close", ::close(fd));
    w.said("close again", ::close(fd));
    for (const int copy : {300, 301, 302}) ::close(copy);
}

// --- a connection ---------------------------------------------------------------------------------------------------------------

void hear(World& w, const char* what) { w.say("peer (%s): %s", what, w.peer("receive_all").c_str()); }

void say_flags(World& w, const char* what, int fd) {
    const int status = ::fcntl(fd, F_GETFL);
    const int own = ::fcntl(fd, F_GETFD);
    w.say("%s: F_GETFL %x F_GETFD %x", what, static_cast<unsigned>(status), static_cast<unsigned>(own));
}

struct Named {
    const char* name;
    void (*run)(World&);
};

constexpr Named kOnAConnection[] = {
    {"dup_flags", [](World& w) {
        say_flags(w, "fresh", w.fd);
        const int copy = ::dup(w.fd);
        const int cloexec = ::fcntl(w.fd, F_DUPFD_CLOEXEC, 100);
        const int third = ::dup3(w.fd, 150, O_CLOEXEC);
        say_flags(w, "dup", copy);
        say_flags(w, "F_DUPFD_CLOEXEC", cloexec);
        say_flags(w, "dup3", third);
        w.say("numbers %d %d", cloexec >= 100, third == 150);
        w.said("F_SETFL on the copy", ::fcntl(copy, F_SETFL, ::fcntl(copy, F_GETFL) | O_NONBLOCK | O_APPEND));
        say_flags(w, "the first", w.fd);  // one description, one set of flags
        w.said("F_SETFD on the copy", ::fcntl(copy, F_SETFD, FD_CLOEXEC));
        say_flags(w, "the first", w.fd);
        const int off = 0;
        w.said("FIONBIO", ::ioctl(third, FIONBIO, &off));
        say_flags(w, "the copy", copy);
        const int on = 1;
        w.said("FIOASYNC", ::ioctl(third, FIOASYNC, &on));
        say_flags(w, "after FIOASYNC", w.fd);
        w.said("FIOASYNC off", ::ioctl(third, FIOASYNC, &off));
        say_flags(w, "after FIOASYNC", w.fd);
        w.said("O_DIRECT", ::fcntl(copy, F_SETFL, O_DIRECT));
        w.said("O_ASYNC", ::fcntl(copy, F_SETFL, O_ASYNC));
        say_flags(w, "after O_ASYNC", w.fd);
        for (const int fd : {copy, cloexec, third}) ::close(fd);
    }},
    {"dup_share", [](World& w) {  // one position in the stream, one end of it
        const int copy = ::dup(w.fd);
        w.peer("send 6");
        w.await_unread(6);
        char data[8];
        w.said("read 2", ::read(w.fd, data, 2), data);
        w.said("read 2 of the copy", ::read(copy, data, 2), data);
        w.said("close the first", ::close(w.fd));
        w.said("read 2 of the first", ::read(w.fd, data, 2));
        w.fd = copy;
        w.said("read 2 of the copy", ::read(copy, data, 2), data);
        w.said("write", ::write(copy, "still here", 10));
        const int another = ::dup2(copy, 180);
        w.said("shutdown of the other", ::shutdown(another, SHUT_WR));
        hear(w, "after shutdown");
        w.said("send", ::send(copy, "x", 1, MSG_NOSIGNAL));
        ::close(another);
    }},
    {"dup2_over", [](World& w) {
        const int file = file_with("file");
        const int copy = ::dup(w.fd);
        w.say("dup2 of a file over the connection %d", ::dup2(file, w.fd) == w.fd);
        char data[8];
        w.said("read", ::read(w.fd, data, 8), data);
        w.said("getpeername", ::getpeername(w.fd, nullptr, nullptr));
        w.said("write to the copy", ::write(copy, "copy", 4));
        w.say("dup2 of the connection over the file %d", ::dup2(copy, file) == file);
        w.said("write to what was the file", ::write(file, "file", 4));
        ::close(copy);
        ::close(file);
        hear(w, "all copies closed");
    }},
    {"dup_errors", [](World& w) {
        w.said("dup2 to -1", ::dup2(w.fd, -1));
        w.said("dup2 beyond", ::dup2(w.fd, 0x7fffffff));
        w.said("dup3 with bad flags", ::dup3(w.fd, 170, 1));
        w.said("F_DUPFD beyond", ::fcntl(w.fd, F_DUPFD, 0x7fffffff));
        w.said("F_DUPFD -1", ::fcntl(w.fd, F_DUPFD_CLOEXEC, -1));
        w.said("dup2 of a closed one", ::dup2(62, w.fd));
        w.said("write", ::write(w.fd, "alive", 5));
    }},
    {"like_a_file", [](World& w) {
        struct stat status{};
        w.said("fstat", ::fstat(w.fd, &status));
        w.say("  socket %d size %ld links %ld", S_ISSOCK(status.st_mode), static_cast<long>(status.st_size), static_cast<long>(status.st_nlink));
        char data[64];
        iovec part{data, 8};
        w.said("lseek", ::lseek(w.fd, 0, SEEK_CUR));
        w.said("pread", ::pread(w.fd, data, 8, 0));
        w.said("pwrite", ::pwrite(w.fd, data, 8, 0));
        w.said("preadv", ::preadv(w.fd, &part, 1, 0));
        w.said("pwritev", ::pwritev(w.fd, &part, 1, 0));
        w.said("preadv2 at 3", ::preadv2(w.fd, &part, 1, 3, 0));
        w.said("pwritev2 at 3", ::pwritev2(w.fd, &part, 1, 3, 0));
        w.said("preadv2 with strange flags", ::preadv2(w.fd, &part, 1, -1, 0x4000));
        w.said("preadv2 without waiting", ::preadv2(w.fd, &part, 1, -1, RWF_NOWAIT));
        w.said("pwritev2", ::pwritev2(w.fd, &part, 1, -1, 0));
        w.said("ftruncate", ::ftruncate(w.fd, 0));
        w.said("fallocate", ::fallocate(w.fd, 0, 0, 10));
        w.said("fsync", ::fsync(w.fd));
        w.said("fdatasync", ::fdatasync(w.fd));
        w.said("fchmod", ::fchmod(w.fd, 0600));
        w.said("isatty", ::isatty(w.fd));
        w.said("getdents", ::syscall(SYS_getdents64, w.fd, data, 64));
        w.said("posix_fadvise", ::posix_fadvise(w.fd, 0, 0, POSIX_FADV_NORMAL));
        void* const mapped = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, w.fd, 0);
        w.said("mmap", mapped == MAP_FAILED ? -1 : 0);
        char path[64], link[64] = "";
        std::snprintf(path, sizeof path, "/proc/self/fd/%d", w.fd);
        w.said("readlink", ::readlink(path, link, sizeof link - 1) > 0 ? 0 : -1);
        w.say("  %.8s", link);
        w.said("open of the link", ::open(path, O_RDWR));
        w.said("F_GETLK", [&] { struct flock lock{}; lock.l_type = F_WRLCK; return ::fcntl(w.fd, F_GETLK, &lock); }());
        w.said("flock", ::lockf(w.fd, F_TEST, 0));
    }},
    {"stdio", [](World& w) {
        FILE* const out = ::fdopen(::dup(w.fd), "w");
        FILE* const in = ::fdopen(::dup(w.fd), "r");
        w.say("fprintf %d fputs %d", std::fprintf(out, "one %d\n", 1), std::fputs("two\n", out) >= 0);
        w.said("fflush", std::fflush(out));
        w.said("dprintf", ::dprintf(w.fd, "%s-%d", "three", 3));
        w.peer("send 10");
        w.await_unread(10);
        char text[8];
        w.say("fgets %s", std::fgets(text, 6, in));
        w.say("fread %zu", std::fread(text, 1, 5, in));
        w.peer("shut");
        w.await(POLLRDHUP);
        w.say("getc %d eof %d", std::getc(in), std::feof(in));
        w.said("fseek", std::fseek(in, 0, SEEK_SET));
        w.said("fclose", std::fclose(out));
        w.said("fclose", std::fclose(in));
        w.said("write", ::write(w.fd, "!", 1));
        ::shutdown(w.fd, SHUT_WR);
        hear(w, "all");
    }},
    {"stdio_both_ways", [](World& w) {
        FILE* const both = ::fdopen(w.fd, "r+");
        w.peer("send 3");
        w.await_unread(3);
        w.say("getc %c", std::getc(both));
        w.say("fputs %d", std::fputs("answer", both) >= 0);
        w.said("fclose", std::fclose(both));
        w.fd = -1;
        hear(w, "closed by fclose");
    }},
    {"sendfile_kinds", [](World& w) {
        const int file = file_with("0123456789");
        int pipe[2];
        w.require(::pipe2(pipe, O_CLOEXEC | O_NONBLOCK) == 0, "pipe");
        off_t offset = 2;
        w.said("sendfile from a file", ::sendfile(w.fd, file, &offset, 3));
        w.said("sendfile from a pipe", ::sendfile(w.fd, pipe[0], nullptr, 3));
        w.said("sendfile from itself", ::sendfile(w.fd, w.fd, nullptr, 3));
        w.said("sendfile from the connection to a file", ::sendfile(file, w.fd, nullptr, 3));
        w.said("sendfile of a closed one", ::sendfile(w.fd, 62, nullptr, 3));
        w.said("sendfile to a closed one", ::sendfile(62, file, nullptr, 3));
        const int write_only = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
        w.said("sendfile from what cannot be read", ::sendfile(w.fd, write_only, nullptr, 3));
        const int directory = ::open("/", O_RDONLY | O_CLOEXEC);
        w.said("sendfile from a directory", ::sendfile(w.fd, directory, nullptr, 3));
        w.said("sendfile from /dev/zero", ::sendfile(w.fd, ::open("/dev/zero", O_RDONLY | O_CLOEXEC), nullptr, 3));
        ::shutdown(w.fd, SHUT_WR);
        hear(w, "all");
        for (const int fd : {file, pipe[0], pipe[1], write_only, directory}) ::close(fd);
    }},
    {"splice_kinds", [](World& w) {
        const int file = file_with("0123456789");
        int pipe[2];
        w.require(::pipe2(pipe, O_CLOEXEC | O_NONBLOCK) == 0, "pipe");
        off64_t offset = 0;
        w.said("splice between a file and the connection", ::splice(file, nullptr, w.fd, nullptr, 3, 0));
        w.said("splice from itself", ::splice(w.fd, nullptr, w.fd, nullptr, 3, 0));
        w.said("splice with an offset", ::splice(w.fd, &offset, pipe[1], nullptr, 3, 0));
        w.said("splice to it with an offset", ::splice(pipe[0], nullptr, w.fd, &offset, 3, 0));
        w.said("splice from an empty pipe", ::splice(pipe[0], nullptr, w.fd, nullptr, 3, SPLICE_F_NONBLOCK));
        w.said("splice nothing", ::splice(w.fd, nullptr, pipe[1], nullptr, 0, 0));
        w.said("splice with strange flags", ::splice(w.fd, nullptr, pipe[1], nullptr, 3, 0x1000));
        w.said("splice to the wrong end", ::splice(w.fd, nullptr, pipe[0], nullptr, 3, SPLICE_F_NONBLOCK));
        w.said("splice from the wrong end", ::splice(pipe[1], nullptr, w.fd, nullptr, 3, SPLICE_F_NONBLOCK));
        w.said("splice of a closed one", ::splice(62, nullptr, w.fd, nullptr, 3, 0));
        w.said("tee", ::tee(w.fd, pipe[1], 3, SPLICE_F_NONBLOCK));
        w.said("vmsplice", [&] { char data[4] = "abc"; iovec part{data, 3}; return ::vmsplice(w.fd, &part, 1, 0); }());
        w.said("copy_file_range", ::copy_file_range(file, nullptr, w.fd, nullptr, 3, 0));
        w.said("copy_file_range from it", ::copy_file_range(w.fd, nullptr, file, nullptr, 3, 0));
        w.peer("send 6");
        w.await_unread(6);
        w.said("splice to a pipe", ::splice(w.fd, nullptr, pipe[1], nullptr, 4, SPLICE_F_MOVE));
        w.said("splice to a pipe", ::splice(w.fd, nullptr, pipe[1], nullptr, 4, SPLICE_F_MOVE));
        w.said("splice back", ::splice(pipe[0], nullptr, w.fd, nullptr, 64, SPLICE_F_MORE));
        ::shutdown(w.fd, SHUT_WR);
        hear(w, "all");
        for (const int fd : {file, pipe[0], pipe[1]}) ::close(fd);
    }},
    {"close_range", [](World& w) {
        const int a = ::dup2(w.fd, 210);
        const int b = ::dup2(w.fd, 211);
        const int set = ::fcntl(::epoll_create1(EPOLL_CLOEXEC), F_DUPFD_CLOEXEC, 212);
        w.said("close_range cloexec", ::close_range(210, 220, CLOSE_RANGE_CLOEXEC));
        say_flags(w, "a", a);
        w.said("close_range backwards", ::close_range(211, 210, 0));
        w.said("close_range with strange flags", ::close_range(210, 211, 64));
        w.said("write", ::write(b, "before ", 7));
        w.said("close_range", ::close_range(210, 220, 0));
        char data[8];
        w.said("read a", ::read(a, data, 8));
        w.said("write b", ::write(b, "x", 1));
        epoll_event event{};
        w.said("epoll_wait", ::epoll_wait(set, &event, 1, 0));
        w.said("write the first", ::write(w.fd, "after", 5));
        ::shutdown(w.fd, SHUT_WR);
        hear(w, "all");
    }},
    {"closefrom", [](World& w) {
        const int number = ::dup2(w.fd, 230);
        ::close(w.fd);
        w.fd = 5;
        ::dup2(number, 5);
        ::closefrom(200);
        w.said("write to what was closed", ::write(number, "x", 1));
        w.said("write to what was not", ::write(5, "alive", 5));
        Name name;
        name.length = sizeof name.storage;
        w.said("getpeername", ::getpeername(5, name.get(), &name.length));
        const int another = ::socket(w.family, SOCK_STREAM, 0);  // the machinery below it is still there
        w.said("another socket", another >= 0 ? 0 : -1);
        ::close(another);
    }},
    {"ioctl_numbers", [](World& w) {
        w.peer("send 7");
        w.await_unread(7);
        int number = 99;
        w.said("FIONREAD", ::ioctl(w.fd, FIONREAD, &number));
        w.say("  %d", number);
        char data[4];
        w.said("read", ::read(w.fd, data, 3), data);
        w.said("SIOCINQ", ::ioctl(w.fd, 0x541B, &number));
        w.say("  %d", number);
        w.said("SIOCOUTQ", ::ioctl(w.fd, TIOCOUTQ, &number));
        w.say("  %d", number);
        w.said("SIOCOUTQNSD", ::ioctl(w.fd, 0x894B, &number));
        w.say("  %d", number);
        w.said("FIOQSIZE", ::ioctl(w.fd, 0x5460, &number));
        w.said("SIOCGIFINDEX", [&] { char request[40] = "lo"; return ::ioctl(w.fd, 0x8933, request); }());
        w.said("SIOCGSTAMP", [&] { char request[40]; return ::ioctl(w.fd, 0x8906, request); }());
        w.said("SIOCSPGRP of nothing", ::ioctl(w.fd, 0x8902, nullptr));
    }},
    {"emfile", [](World& w) {
        std::vector<int> many;
        int fd = -1;
        while ((fd = ::dup(w.fd)) >= 0 && many.size() < 60'000) many.push_back(fd);
        w.said("dup", fd);
        w.said("socket", ::socket(w.family, SOCK_STREAM, 0));
        w.said("F_DUPFD", ::fcntl(w.fd, F_DUPFD, 0));
        w.said("write", ::write(w.fd, "full", 4));
        for (const int one : many) ::close(one);
        const int free_again = ::dup(w.fd);
        w.said("dup", free_again >= 0 ? 0 : -1);
        ::close(free_again);
    }},
};

}  // namespace

void add_descriptor_cases(Cases& cases) {
    for (const Wrong& wrong : kWrong)
        cases.push_back({std::string("descriptor4/wrong/") + wrong.name, [&wrong](World& w) {
            w.fd = w.make_socket(SOCK_STREAM);
            ::close(w.fd);
            w.fd = -1;
            call_everything(w, wrong.make(w));
        }});
    for (const int family : {AF_INET, AF_INET6})
        for (const bool accepted : {false, true})
            for (const Named& named : kOnAConnection) {
                if (family == AF_INET6 && !accepted) continue;
                cases.push_back({std::string("descriptor") + (family == AF_INET6 ? "6/" : "4/") + (accepted ? "accepted/" : "connected/") +
                                     named.name,
                                 [=, &named](World& w) {
                                     w.family = family;
                                     w.fd = w.make_socket(SOCK_STREAM);
                                     if (accepted)
                                         w.accept_one();
                                     else
                                         w.connect_out();
                                     named.run(w);
                                 }});
            }
}

}  // namespace differential
