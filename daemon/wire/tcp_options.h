// TCP options: the list behind the fixed header (RFC 9293 3.2), as one value.
//
//   kind 0 end   1 nop   2 MSS (4)   3 window scale (3)   4 SACK permitted (2)   5 SACK (2 + 8n)
//        8 timestamps (10)   34 Fast Open cookie (2, or 6-18)                    (length in bytes)
//
// Nearly every segment of an open connection carries exactly NOP NOP TIMESTAMPS: that layout has a path of its own.
// What may stand in a SYN only is for TCP to judge; parsing takes it anywhere.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>

#include "daemon/base/drop.h"
#include "daemon/wire/bytes.h"

namespace culvert::wire {

inline constexpr std::size_t kMaxTcpOptionsLength = 40;
inline constexpr std::size_t kMaxSackBlocks = 4;         // 3 beside timestamps [RFC2018 3]
inline constexpr std::uint8_t kMaxWindowScale = 14;      // [RFC7323 2.3]
inline constexpr std::size_t kTcpTimestampsLength = 12;  // as emitted alone: NOP NOP TIMESTAMPS

struct TcpTimestamps {
    std::uint32_t value = 0;  // TSval
    std::uint32_t echo = 0;   // TSecr

    friend bool operator==(const TcpTimestamps&, const TcpTimestamps&) = default;
};

/// Sequence numbers [left, right) received out of order.
struct SackBlock {
    std::uint32_t left = 0;
    std::uint32_t right = 0;

    friend bool operator==(const SackBlock&, const SackBlock&) = default;
};

struct TcpOptions {
    std::optional<TcpTimestamps> timestamps;
    std::optional<std::uint16_t> mss;
    std::optional<std::uint8_t> window_scale;  // at most kMaxWindowScale
    bool sack_permitted = false;
    std::uint8_t sack_count = 0;  // of sack_blocks in use
    std::array<SackBlock, kMaxSackBlocks> sack_blocks{};
    std::optional<std::span<const std::byte>> fast_open_cookie;  // empty: a request for one. Borrowed from the packet

    std::span<const SackBlock> sack() const { return {sack_blocks.data(), sack_count}; }

    /// `options` is all between the fixed header and the payload. Refuses only a list that cannot be walked
    /// [RFC9293 3.1 MUST-7]. Skips an option of unknown kind [MUST-6], or with a length that its kind does not have.
    static std::expected<TcpOptions, Drop> parse(std::span<const std::byte> options) {
        std::expected<TcpOptions, Drop> parsed(std::in_place);
        const Drop drop = parse_into(options, *parsed);
        if (drop != Drop::kNone) [[unlikely]]
            return std::unexpected(drop);
        return parsed;
    }
    /// The same in place, into default-initialised options: on the way of every segment, where copying what has just been
    /// written piece by piece would wait for the pieces to leave the store buffer. kNone: accepted.
    static Drop parse_into(std::span<const std::byte> options, TcpOptions& parsed) {
        if (options.size() == kTcpTimestampsLength && load_be32(options.data()) == 0x0101080a) [[likely]] {
            parsed.timestamps.emplace(load_be32(options.data() + 4), load_be32(options.data() + 8));
            return Drop::kNone;
        }
        return options.empty() ? Drop::kNone : parse_list(options, parsed);
    }

private:
    static Drop parse_list(std::span<const std::byte> options, TcpOptions& parsed);
};

/// Bytes that `emit` will write: a multiple of 4, at most kMaxTcpOptionsLength for every set of options that TCP may
/// send (checked by `emit`).
std::size_t emitted_length(const TcpOptions& options);

/// How many SACK blocks fit beside the timestamps.
constexpr std::size_t max_sack_blocks(bool timestamps) { return timestamps ? 3 : 4; }

/// Writes emitted_length(options) bytes. Requires: room for them.
void emit(const TcpOptions& options, std::span<std::byte> out);

}  // namespace culvert::wire
