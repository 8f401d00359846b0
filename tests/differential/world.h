// What a differential case works with: its transcript, its socket, and its peer in the other namespace.
//
//   case (forked child, kernel sockets or libculvert.so) ------ TCP, UDP ------ its peer (kernel sockets)
//          |                                                                       ^
//          +--------------- UNIX SOCK_SEQPACKET: "send 5", "reset", ... -----------+
//
// A transcript is one line a call: what was asked, what it returned, the name of errno, the data. It holds nothing that may
// differ between two runs on the kernel: no time, no port, no descriptor number.
#pragma once

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdarg>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace differential {

enum class Mode { kNonblocking, kBlocking, kTimeout };
inline constexpr const char* kModeNames[] = {"nonblocking", "blocking", "timeout"};

/// Where the two ends live; from the command line.
struct Addresses {
    std::string own[2];   // [0] IPv4, [1] IPv6
    std::string peer[2];
    std::string control;  // path of the peer's UNIX socket
};
extern Addresses addresses;

struct Name {  // a socket address of either family
    sockaddr_storage storage{};
    socklen_t length = 0;
    sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};
Name make_name(int family, const std::string& address, int port);
int port_of(const Name& name);

/// Lines of text in memory that outlives the case.
class Transcript {
public:
    Transcript(char* text, std::size_t capacity) : text_(text), capacity_(capacity) {}
    void say(const char* format, ...) __attribute__((format(printf, 2, 3)));
    void say(const char* format, va_list arguments);

private:
    char* const text_;
    const std::size_t capacity_;
    std::size_t used_ = 0;
};

class World {
public:
    explicit World(Transcript& transcript) : transcript_(transcript) {}
    ~World();

    int family = AF_INET;
    Mode mode = Mode::kNonblocking;
    int fd = -1;  // the socket under test

    // The transcript.
    void say(const char* format, ...) __attribute__((format(printf, 2, 3)));
    /// Writes "what = value ERRNO" and returns value. Call it at once: errno is read. `prefix` of data follows if value > 0.
    long said(const std::string& what, long value, const void* data = nullptr);
    /// The same for calls that may sleep: those that do are ended by a signal (EINTR) after a while.
    long bounded(const std::string& what, const std::function<long()>& call, const void* data = nullptr);
    /// A socket address that a call has filled in: which it is, not its number.
    std::string describe(const Name& name) const;
    static std::string describe_events(int events);
    static std::string describe_data(const void* data, std::size_t length);

    // The peer. A command that fails ends the case with "peer: ..." in the transcript.
    std::string peer(const std::string& command);
    int family_index() const { return family == AF_INET6 ? 1 : 0; }
    Name own(int port = 0) const { return make_name(family, addresses.own[family_index()], port); }
    Name other(int port) const { return make_name(family, addresses.peer[family_index()], port); }

    // Steps on the way to a state; a failure ends the case.
    int make_socket(int type);
    void bind_and_listen(int backlog = 8);  // fd listens on a port that only it has
    void connect_out();                     // fd is connected to the peer
    void accept_one();                      // the peer connects to fd's port, fd becomes the accepted connection
    void become(int socket);                // fd is closed, and the other one is under test from here on
    void set_mode();                        // puts `mode` into effect
    /// Waits (30 s at most) until poll says one of `events`.
    void await(int events, int socket = -1);
    void await_unread(int bytes, int socket = -1);
    /// Waits until all datagrams that the peer has sent so far are here: one to another socket overtakes none.
    void settle_datagrams();
    void require(bool holds, const char* what);

    /// "kernel" or "culvert": does the kernel know the peer? A note for the driver; it is not compared.
    void note_path(int socket = -1);

    bool resets_what_it_gets = false;  // the peer: then a call that has sent something is followed by its reset

    int bound_port = 0;  // the port that describe() calls "own"
    int peer_port = 0;

private:
    Transcript& transcript_;
    bool new_to_peer_ = true;
};

struct Case {
    std::string name;
    std::function<void(World&)> run;
};
using Cases = std::vector<Case>;

void add_stream_cases(Cases& cases);
void add_option_cases(Cases& cases);
void add_datagram_cases(Cases& cases);
void add_readiness_cases(Cases& cases);
void add_descriptor_cases(Cases& cases);
void add_thread_cases(Cases& cases);
void add_fork_cases(Cases& cases);
void add_extra_cases(Cases& cases);
void add_signal_cases(Cases& cases);
void add_cork_cases(Cases& cases);

/// The peer's side; never returns.
[[noreturn]] void serve_as_peer();

}  // namespace differential
