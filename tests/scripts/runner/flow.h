// The conversation that a script describes: its small numbers against those on the wire.
//
//   stack under test   local    sequence numbers relative to its ISN, learned from its SYN
//   the script         remote   ours to choose: kRemoteIsn, so that every conversation crosses the wrap of 2^32
//
// Payload is a pattern of the position in its stream, and compared: a stack that sends the right lengths with the wrong
// bytes fails.
#pragma once

#include <cstdint>
#include <expected>
#include <map>
#include <optional>
#include <string>

#include "tests/scripts/runner/packet.h"

namespace culvert::script {

/// The byte at a position of a stream (the SYN has 0).
constexpr std::byte pattern(std::uint32_t position) {
    return static_cast<std::byte>(position * 31 + (position >> 8) * 7 + (position >> 16));
}

class Flow {
public:
    static constexpr std::uint32_t kRemoteIsn = 0xfffffe00;

    /// `ts_tick`: if not zero, our TS values must be this far apart for each unit that the script's are.
    Flow(const Endpoint& local, const Endpoint& remote, Duration ts_tick) : local_(local), remote_(remote), ts_tick_(ts_tick) {}

    /// The stack is about to choose a new ISN, and perhaps a port: connect() was called.
    void new_active_open() {
        expect_isn_ = true;
        expect_port_ = true;
    }
    /// The IP packet that the script wants the stack to receive.
    std::expected<Bytes, std::string> build(const Packet& packet);
    /// What is different between what the script expects and what left; nothing if it fits. Learns ISN, port, timestamps
    /// and Fast Open cookie.
    std::optional<std::string> match(const Packet& wanted, const WirePacket& got, Duration at);
    /// In the dialect, with the script's numbers as far as they are known.
    std::string describe(const WirePacket& packet) const;

    bool allows_extra_push = false;  // Play::extra_push
    bool ignores_payload = false;  // urgent data has no place in the stream

private:
    std::expected<Bytes, std::string> build_tcp(const TcpPacket& tcp, const IpFields& ip);
    std::optional<std::string> match_tcp(const TcpPacket& wanted, const WirePacket& got, Duration at);
    std::optional<std::string> match_options(const TcpPacket& wanted, const TcpPacket& got, Duration at);
    TcpPacket to_script(const TcpPacket& live) const;
    std::uint32_t to_live_echo(std::uint32_t value) const;
    std::uint32_t to_script_stamp(std::uint32_t live) const;
    Address router() const { return remote_.address; }

    Endpoint local_, remote_;
    Duration ts_tick_;
    std::uint32_t local_base_ = 0;     // live - script
    std::uint32_t local_first_ = 0;    // the script's number of our SYN
    std::uint32_t remote_base_ = kRemoteIsn;
    std::uint32_t remote_first_ = 0;   // the script's number of its SYN
    std::optional<std::uint32_t> last_remote_syn_;
    bool expect_isn_ = true;
    bool expect_port_ = false;
    std::map<std::uint32_t, std::uint32_t> stamps_;  // script -> live
    struct Stamp {
        std::uint32_t script, live;
        Duration at;
    };
    std::optional<Stamp> first_stamp_;
    std::vector<std::uint8_t> cookie_;
};

}  // namespace culvert::script
