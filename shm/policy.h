// Which sockets of a program go through Culvert: rules that a person writes, read once into a bounded table.
//
//   culvert run --policy '...'  --CULVERT_POLICY-->  shim: the program's own policy   --+
//   [[program]] policy = '...'  --Welcome---------->  shim: the daemon's policy        --+--> Culvert only if both allow it
//                               \------------------> daemon: refuses what that forbids, whatever the shim says
//
//   policy   = [ rule ] { ( ";" | newline ) [ rule ] }                "#": a comment, to the end of the line
//   rule     = [ protocol { "," protocol } ] [ "listen" | "connect" ] [ "not" ] target
//   protocol = "tcp" | "udp" | "icmp" | "raw"
//   target   = "all" | "none" | ports | network { "," network } [ "port" ports ]
//   network  = ADDRESS [ "/" LENGTH ] | "loopback"                    loopback: 127.0.0.0/8 and ::1
//   ports    = NUMBER [ "-" NUMBER ] { "," NUMBER [ "-" NUMBER ] }
//
// Without protocols a rule speaks of all four, without listen and connect of both; "none" is "not all". A rule with ports
// says nothing of icmp and raw, which have none.
//
//   listen   tcp: listen(), by the address and port bound to. Others: bind(), and then all that the socket sends.
//   connect  connect(), and what an unbound udp, icmp or raw socket sends; by the address and port of the peer.
//
// The first rule that fits decides: Culvert, or with "not" the kernel. Where none fits, the answer is the kernel if there is
// a rule without "not" for that protocol and call, else Culvert: who says what shall go through Culvert means that and no
// more, and who says nothing means everything. Loopback addresses are apart: only networks that lie in 127.0.0.0/8 or are
// ::1 fit them, such a rule says nothing about other addresses, and without one they are the kernel's.
//
// Nothing here allocates, throws or makes a system call: the shim parses before main() and asks on every connect().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace culvert::shm {

/// The environment: a policy for this program and whatever it starts.
inline constexpr char kPolicyVariable[] = "CULVERT_POLICY";
/// Bytes of text, comments taken out. What fits here fits the messages and tables that carry it.
inline constexpr std::size_t kMostPolicyText = 1000;

/// What is wrong with a text: where (bytes from its beginning), and a sentence for a person.
struct PolicyError {
    std::size_t at = 0;
    const char* text = "";
};

/// Of `offset` in `text`, both from 1.
struct TextPosition {
    std::size_t line = 1;
    std::size_t column = 1;
};
TextPosition position_in(std::string_view text, std::size_t offset) noexcept;

class Policy {
public:
    enum class Protocol : std::uint8_t { kTcp, kUdp, kIcmp, kRaw };
    enum class Call : std::uint8_t { kListen, kConnect };
    /// IPv6, or IPv4 mapped into it, in network order.
    using AddressBytes = std::uint8_t[16];

    static constexpr std::size_t kMostRules = 32;
    static constexpr std::size_t kMostNetworks = 64;
    static constexpr std::size_t kMostPorts = 64;

    /// No rules: everything but loopback goes through Culvert.
    Policy() = default;

    /// Replaces the rules by those of `text`. False: `error` says why, and there are no rules.
    bool parse(std::string_view text, PolicyError& error) noexcept;

    bool allows(Protocol protocol, Call call, const AddressBytes& address, std::uint16_t port) const noexcept;
    /// False: whatever the address and port, no such socket goes through Culvert.
    bool possible(Protocol protocol, Call call) const noexcept;
    bool possible(Protocol protocol) const noexcept {
        return possible(protocol, Call::kListen) || possible(protocol, Call::kConnect);
    }

private:
    struct Network {
        AddressBytes address{};
        std::uint8_t bits = 0;  // of the 128
        bool v4 = false;
        bool loopback = false;
    };
    struct Ports {
        std::uint16_t first = 0;
        std::uint16_t last = 0;
    };
    struct Rule {
        std::uint8_t scope = 0;  // bit protocol * 2 + call
        bool culvert = true;
        bool everywhere = false;      // "all": no networks, no ports
        bool only_loopback = false;   // every network of it is one of loopback
        std::uint8_t first_network = 0, networks = 0;
        std::uint8_t first_ports = 0, ports = 0;
    };
    class Parser;

    static unsigned scope_bit(Protocol protocol, Call call) noexcept {
        return 1u << (static_cast<unsigned>(protocol) * 2 + static_cast<unsigned>(call));
    }
    bool fits(const Rule& rule, const AddressBytes& address, bool v4, bool loopback, std::uint16_t port) const noexcept;

    std::array<Rule, kMostRules> rules_{};
    std::array<Network, kMostNetworks> networks_{};
    std::array<Ports, kMostPorts> ports_{};
    std::size_t rule_count_ = 0;
    std::size_t network_count_ = 0;
    std::size_t port_count_ = 0;
};

/// Copies `text` without comments, and with one space where there were several, into `out`, which holds kMostPolicyText + 1
/// bytes, and ends it with NUL. False: it does not fit.
bool compact_policy(std::string_view text, char* out) noexcept;

}  // namespace culvert::shm
