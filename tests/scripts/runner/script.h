// What a packet script says, as values: the outcome of parse.h, the input of runner.h. Nothing here knows sockets or bytes.
//
//   0.000 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3            Syscall
//   +.010 < S 0:0(0) win 32792 <mss 1000,nop,nop,sackOK>       Packet, inbound
//   +0    > S. 0:0(0) ack 1 <...>                              Packet, outbound
//   +0    `sysctl -q net.ipv4.tcp_ecn=1`                       Command
//   +0    %{ assert tcpi_snd_cwnd == 10 }%                     Assertion
//    `-- When
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace culvert::script {

using Duration = std::chrono::nanoseconds;

/// A place in the file, counted from 1.
struct Place {
    std::uint32_t line = 1;
    std::uint32_t column = 1;
    friend bool operator==(const Place&, const Place&) = default;
};

/// When an event happens, or when what is expected may happen.
struct When {
    enum class Base : std::uint8_t { kStart, kPrevious, kAnyTime };
    Base base = Base::kStart;
    Duration earliest{};
    Duration latest{};             // == earliest unless "0.1~0.2"
    std::optional<Duration> ends;  // "0.1...0.3": a call that blocks until then, from the same base
};

// --- packets --------------------------------------------------------------------------------------------------------

struct Mss { std::uint16_t bytes = 0; friend bool operator==(const Mss&, const Mss&) = default; };
struct WindowScale { std::uint8_t shift = 0; friend bool operator==(const WindowScale&, const WindowScale&) = default; };
struct SackPermitted { friend bool operator==(const SackPermitted&, const SackPermitted&) = default; };
struct Timestamps {
    std::uint32_t value = 0, echo = 0;
    friend bool operator==(const Timestamps&, const Timestamps&) = default;
};
struct Sack {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> blocks;
    friend bool operator==(const Sack&, const Sack&) = default;
};
/// Kind 34. `captured`: TFO_COOKIE, the one that the stack under test has given out.
struct FastOpen {
    std::vector<std::uint8_t> cookie;
    bool captured = false;
    friend bool operator==(const FastOpen&, const FastOpen&) = default;
};
struct NoOperation { friend bool operator==(const NoOperation&, const NoOperation&) = default; };
struct EndOfOptions { friend bool operator==(const EndOfOptions&, const EndOfOptions&) = default; };
/// Any other kind, with its bytes behind kind and length.
struct OtherOption {
    std::uint8_t kind = 0;
    std::vector<std::uint8_t> data;
    friend bool operator==(const OtherOption&, const OtherOption&) = default;
};
using Option = std::variant<NoOperation, EndOfOptions, Mss, WindowScale, SackPermitted, Timestamps, Sack, FastOpen, OtherOption>;

/// The ECN field of the IP header; kEct01: either.
enum class EcnField : std::uint8_t { kNotEct, kEct1, kEct0, kCe, kEct01 };

struct IpFields {
    std::optional<EcnField> ecn;
    std::optional<std::uint8_t> tos;
    std::optional<std::uint8_t> ttl;
};

struct TcpPacket {
    std::uint8_t flags = 0;  // as in the header
    std::uint32_t first = 0, last = 0, length = 0;
    std::optional<std::uint32_t> ack{};
    std::optional<std::uint16_t> window{};
    std::uint16_t urgent = 0;
    std::vector<Option> options{};
    bool any_options = false;  // <...>
};
struct UdpPacket {
    std::uint32_t length = 0;
};
/// An error about a packet of the stack under test.
struct IcmpPacket {
    std::string type, code;  // "unreachable", "frag_needed"
    std::optional<std::uint32_t> mtu;
    std::variant<TcpPacket, UdpPacket> about;  // only first, last, length of a TcpPacket
};
struct Packet {
    bool inbound = false;
    IpFields ip;
    std::variant<TcpPacket, UdpPacket, IcmpPacket> content;
};

// --- calls ----------------------------------------------------------------------------------------------------------

/// An argument or result: number, name, names joined by |, string, "...", [list], {field = value}, call(values).
struct Expression {
    enum class Kind : std::uint8_t { kNumber, kName, kOr, kString, kAnything, kList, kStruct, kCall };
    Kind kind = Kind::kAnything;
    Place place;
    std::int64_t number = 0;
    std::string text;                   // name, string, or function
    std::vector<Expression> items;      // of kOr, kList, kStruct, kCall
    std::vector<std::string> fields;    // of kStruct: names beside items
};
struct Syscall {
    std::string name;
    std::vector<Expression> arguments;
    Expression result;
    std::string error;  // EINPROGRESS; empty: none
};
struct Command {
    std::string text;
};
struct Assertion {
    std::string text;
};

struct Event {
    Place place;
    When when;
    std::variant<Packet, Syscall, Command, Assertion> what;
    std::string source;  // as written, without the comment
};

/// "// kernel: ..." : what the script says about the referee.
struct KernelMark {
    enum class Kind : std::uint8_t { kAgrees, kDiffers, kSkip };
    Kind kind = Kind::kAgrees;
    std::string reason;
};

struct Script {
    std::map<std::string, std::string> settings;  // --mtu=1500
    KernelMark kernel;
    std::vector<Event> events;
};

/// What is wrong with a script, and where.
struct Complaint {
    Place place;
    std::string text;  // "expected a window: win NUMBER"
};

}  // namespace culvert::script
