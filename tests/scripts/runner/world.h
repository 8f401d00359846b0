// Where a script is played: sockets on one side, a wire on the other, and a clock. Two there are: Culvert's stack in
// virtual time (culvert_world.h) and the kernel's behind a TUN device in real time (kernel_world.h).
#pragma once

#include <poll.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tests/scripts/runner/packet.h"
#include "tests/scripts/runner/script.h"

namespace culvert::script {

/// A system call, arguments evaluated. `fd` and poll's fds are the world's own numbers.
struct Call {
    enum class Name : std::uint8_t {
        kSocket, kBind, kListen, kAccept, kConnect, kReceive, kSend, kClose, kShutdown, kSetOption, kGetOption, kFcntl,
        kIoctl, kPoll
    };
    Name name = Name::kSocket;
    int fd = -1;
    int first = 0;   // socket: type; listen: backlog; shutdown: how; options: level; fcntl, ioctl: command; send, receive: flags
    int second = 0;  // socket: protocol; options: name; fcntl: argument; poll: timeout, ms; accept: flags
    std::optional<Endpoint> address{}; // bind, connect, sendto
    Bytes data{};                     // send; the value of an option that is set
    std::size_t length = 0;           // receive
    std::vector<pollfd> poll{};
};

struct Outcome {
    std::int64_t value = 0;
    int error = 0;
    Bytes data{};         // received; the value of an option
    std::vector<pollfd> poll{};
    int number = 0;       // ioctl
};

/// The script asks for something that this world has not: not a failure of the stack.
struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// How the script wants its world.
struct Setup {
    bool ipv6 = false;
    std::uint32_t mtu = 1500;
    Endpoint local;   // where bind(3, ..., ...) binds
    Endpoint remote;  // where connect(3, ..., ...) connects, and where the script's packets come from
    std::map<std::string, std::string> sysctls;
};

class World {
public:
    virtual ~World() = default;
    /// Since the script began.
    virtual Duration now() const = 0;
    /// Time passes; packets that leave are kept.
    virtual void run_until(Duration time) = 0;
    struct Departed {
        Bytes packet;
        Duration at;
    };
    /// The next packet that left or leaves until `deadline`.
    virtual std::optional<Departed> next_packet(Duration deadline) = 0;
    virtual void inject(const Bytes& packet) = 0;

    using Ticket = std::uint32_t;
    /// Starts a call; it may block for as long as it likes.
    virtual Ticket begin(const Call& call) = 0;
    struct Finished {
        Outcome outcome;
        Duration at;
    };
    /// Its outcome, if it has come back by `deadline`. Once.
    virtual std::optional<Finished> finished(Ticket ticket, Duration deadline) = 0;
    /// A field of struct tcp_info by name.
    virtual std::optional<std::int64_t> info(int fd, std::string_view field) = 0;
};

/// Makes a world; throws Unsupported for a sysctl that it cannot obey.
using MakeWorld = std::unique_ptr<World> (*)(const Setup& setup);

}  // namespace culvert::script
