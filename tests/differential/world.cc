#include "world.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace differential {

Addresses addresses;

namespace {

constexpr int kPatienceMs = 30'000;
constexpr int kTimeoutMs = 60;  // SO_RCVTIMEO and SO_SNDTIMEO of Mode::kTimeout
constexpr int kSleepMs = 250;   // a call that is still there after so long sleeps

volatile sig_atomic_t broken_pipes = 0;
void note_broken_pipe(int) { broken_pipes = broken_pipes + 1; }
void interrupt(int) {}

long long now_us() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000LL + now.tv_nsec / 1000;
}

void handle(int number, void (*handler)(int)) {
    struct sigaction action{};
    action.sa_handler = handler;  // no SA_RESTART: what sleeps gives EINTR
    ::sigaction(number, &action, nullptr);
}

void tick(int milliseconds) {
    const itimerval timer{{0, milliseconds * 1000}, {0, milliseconds * 1000}};
    ::setitimer(ITIMER_REAL, &timer, nullptr);
}

}  // namespace

Name make_name(int family, const std::string& address, int port) {
    Name name;
    if (family == AF_INET6) {
        auto* in = reinterpret_cast<sockaddr_in6*>(&name.storage);
        in->sin6_family = AF_INET6;
        in->sin6_port = htons(static_cast<std::uint16_t>(port));
        ::inet_pton(AF_INET6, address.c_str(), &in->sin6_addr);
        name.length = sizeof *in;
    } else {
        auto* in = reinterpret_cast<sockaddr_in*>(&name.storage);
        in->sin_family = AF_INET;
        in->sin_port = htons(static_cast<std::uint16_t>(port));
        ::inet_pton(AF_INET, address.c_str(), &in->sin_addr);
        name.length = sizeof *in;
    }
    return name;
}

int port_of(const Name& name) { return ntohs(reinterpret_cast<const sockaddr_in&>(name.storage).sin_port); }

World::~World() {
    if (fd >= 0) ::close(fd);
}

// --- the transcript -------------------------------------------------------------------------------------------------------

void Transcript::say(const char* format, va_list arguments) {
    const int length = std::vsnprintf(text_ + used_, capacity_ - used_ - 1, format, arguments);
    used_ += std::min<std::size_t>(static_cast<std::size_t>(std::max(length, 0)), capacity_ - used_ - 2);
    text_[used_++] = '\n';
    text_[used_] = '\0';
}

void Transcript::say(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

void World::say(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    transcript_.say(format, arguments);
    va_end(arguments);
}

std::string World::describe_data(const void* data, std::size_t length) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    bool plain = length <= 40;
    std::uint32_t digest = 2166136261u;  // FNV-1a
    for (std::size_t i = 0; i < length; ++i) {
        plain = plain && bytes[i] >= ' ' && bytes[i] < 127;
        digest = (digest ^ bytes[i]) * 16777619u;
    }
    if (plain) return "\"" + std::string(reinterpret_cast<const char*>(bytes), length) + "\"";
    char text[32];
    std::snprintf(text, sizeof text, "#%08x", digest);
    return text;
}

long World::said(const std::string& what, long value, const void* data) {
    const int error = errno;
    std::string line = what + " = " + std::to_string(value);
    if (value == -1) line += std::string(" ") + (::strerrorname_np(error) != nullptr ? ::strerrorname_np(error) : "E?");
    if (value > 0 && data != nullptr) line += " " + describe_data(data, static_cast<std::size_t>(value));
    if (broken_pipes != 0) line += " SIGPIPE";
    broken_pipes = 0;
    say("%s", line.c_str());
    errno = error;
    return value;
}

long World::bounded(const std::string& what, const std::function<long()>& call, const void* data) {
    const long long before = now_us();
    if (mode != Mode::kNonblocking) tick(kSleepMs);
    const long value = call();
    const int error = errno;
    if (mode != Mode::kNonblocking) tick(0);
    const bool early = mode == Mode::kTimeout && value == -1 && (error == EAGAIN || error == EINPROGRESS) &&
                       now_us() - before < (kTimeoutMs - 1) * 1000;
    errno = error;
    const bool sends = what.starts_with("send") || what.starts_with("write") || what.starts_with("splice from");
    said(early ? what + " (at once)" : what, value, data);
    if (sends && value > 0 && resets_what_it_gets) {
        await(POLLERR | POLLHUP);
        resets_what_it_gets = false;
    }
    errno = error;
    return value;
}

std::string World::describe(const Name& name) const {
    if (name.length == 0) return "nothing";
    const int is = name.storage.ss_family;
    std::string text = is == AF_INET ? "v4 " : is == AF_INET6 ? "v6 " : "family " + std::to_string(is) + " ";
    char address[INET6_ADDRSTRLEN] = "";
    if (is == AF_INET) ::inet_ntop(is, &reinterpret_cast<const sockaddr_in&>(name.storage).sin_addr, address, sizeof address);
    if (is == AF_INET6) ::inet_ntop(is, &reinterpret_cast<const sockaddr_in6&>(name.storage).sin6_addr, address, sizeof address);
    const int port = port_of(name);
    text += address;
    text += port == 0 ? " 0" : port == bound_port ? " own" : port == peer_port ? " peer" : " port";
    return text + " length " + std::to_string(name.length);
}

std::string World::describe_events(int events) {
    constexpr struct {
        int bit;
        const char* name;
    } kBits[] = {{POLLIN, "IN"}, {POLLPRI, "PRI"}, {POLLOUT, "OUT"}, {POLLERR, "ERR"}, {POLLHUP, "HUP"}, {POLLNVAL, "NVAL"},
                 {POLLRDNORM, "RDNORM"}, {POLLRDBAND, "RDBAND"}, {POLLWRNORM, "WRNORM"}, {POLLWRBAND, "WRBAND"},
                 {POLLRDHUP, "RDHUP"}};
    std::string text;
    for (const auto& bit : kBits)
        if ((events & bit.bit) != 0) text += (text.empty() ? "" : "|") + std::string(bit.name);
    return text.empty() ? "none" : text;
}

// --- the peer -------------------------------------------------------------------------------------------------------------

std::string World::peer(const std::string& command) {
    static int control = -1;  // one peer for all cases of the child
    if (control < 0) {
        control = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        sockaddr_un name{};
        name.sun_family = AF_UNIX;
        std::strncpy(name.sun_path, addresses.control.c_str(), sizeof name.sun_path - 1);
        require(::connect(control, reinterpret_cast<sockaddr*>(&name), sizeof name) == 0, "the peer's control socket");
    }
    const std::string words = std::string(new_to_peer_ ? "new " : "same ") + (family == AF_INET6 ? "6 " : "4 ") + command;
    new_to_peer_ = false;
    require(::send(control, words.data(), words.size(), 0) == static_cast<ssize_t>(words.size()), "a command to the peer");
    char answer[4096];
    const ssize_t got = ::recv(control, answer, sizeof answer, 0);
    require(got > 0, "an answer of the peer");
    const std::string text(answer, static_cast<std::size_t>(got));
    require(!text.starts_with("error"), (command + ": " + text).c_str());
    return text;
}

// --- steps ----------------------------------------------------------------------------------------------------------------

void World::require(bool holds, const char* what) {
    if (holds) return;
    say("case broken: %s (%s)", what, std::strerror(errno));
    ::_exit(3);
}

int World::make_socket(int type) {
    handle(SIGPIPE, note_broken_pipe);
    handle(SIGALRM, interrupt);
    const int made = ::socket(family, type, 0);
    require(made >= 0, "socket");
    return made;
}

void World::become(int socket) {
    if (fd >= 0) ::close(fd);
    fd = socket;
}

void World::bind_and_listen(int backlog) {
    Name name = own();
    require(::bind(fd, name.get(), name.length) == 0, "bind");
    require(::listen(fd, backlog) == 0, "listen");
    name.length = sizeof name.storage;
    require(::getsockname(fd, name.get(), &name.length) == 0, "getsockname");
    bound_port = port_of(name);
}

void World::connect_out() {
    peer_port = std::stoi(peer("listen"));
    Name name = other(peer_port);
    require(::connect(fd, name.get(), name.length) == 0, "connect");
    peer("accept");
    name.length = sizeof name.storage;
    require(::getsockname(fd, name.get(), &name.length) == 0, "getsockname");
    bound_port = port_of(name);
    note_path();
}

void World::accept_one() {
    bind_and_listen();
    peer("connect " + std::to_string(bound_port));
    await(POLLIN);
    const int connection = ::accept(fd, nullptr, nullptr);
    require(connection >= 0, "accept");
    become(connection);
    note_path();
}

void World::set_mode() {
    const int flags = ::fcntl(fd, F_GETFL);
    require(::fcntl(fd, F_SETFL, mode == Mode::kNonblocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK) == 0, "O_NONBLOCK");
    if (mode != Mode::kTimeout) return;
    const timeval time{0, kTimeoutMs * 1000};
    require(::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0, "SO_RCVTIMEO");
    require(::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time) == 0, "SO_SNDTIMEO");
}

void World::await(int events, int socket) {
    pollfd entry{socket >= 0 ? socket : fd, static_cast<short>(events), 0};
    const long long end = now_us() + kPatienceMs * 1000LL;
    int ready = 0;
    do {
        entry.revents = 0;
        ready = ::poll(&entry, 1, kPatienceMs);
    } while (((ready < 0 && errno == EINTR) || (ready == 1 && (entry.revents & events) == 0)) && now_us() < end);
    require(ready == 1 && (entry.revents & events) != 0, ("poll for " + describe_events(events)).c_str());
}

void World::await_unread(int bytes, int socket) {
    const long long end = now_us() + kPatienceMs * 1000LL;
    int unread = 0;
    while (::ioctl(socket >= 0 ? socket : fd, FIONREAD, &unread) == 0 && unread < bytes && now_us() < end) {
        const timespec moment{0, 200'000};
        ::nanosleep(&moment, nullptr);
    }
    require(unread >= bytes, "bytes to read");
}

void World::settle_datagrams() {
    const int marker = make_socket(SOCK_DGRAM);
    Name name = own();
    require(::bind(marker, name.get(), name.length) == 0, "bind of a marker");
    name.length = sizeof name.storage;
    require(::getsockname(marker, name.get(), &name.length) == 0, "getsockname of a marker");
    peer("udp_mark " + std::to_string(port_of(name)));
    await(POLLIN, marker);
    ::close(marker);
}

void World::note_path(int socket) {
    Name name;
    name.length = sizeof name.storage;
    // libc's own function, not the one that is interposed: the kernel knows no peer of a Culvert connection.
    static const auto asks_kernel =
        reinterpret_cast<int (*)(int, sockaddr*, socklen_t*)>(::dlsym(::dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD), "getpeername"));
    say("@path %s", asks_kernel(socket >= 0 ? socket : fd, name.get(), &name.length) == 0 ? "kernel" : "culvert");
}

}  // namespace differential
