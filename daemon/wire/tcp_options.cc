#include "daemon/wire/tcp_options.h"

#include <algorithm>

namespace culvert::wire {
namespace {

enum Kind : std::uint8_t {
    kEnd = 0,
    kNop = 1,
    kMss = 2,
    kWindowScale = 3,
    kSackPermitted = 4,
    kSack = 5,
    kTimestamps = 8,
    kFastOpen = 34,
};

/// One option with its kind and length bytes, the length known to be right. A length that the kind does not have makes
/// it an option we do not know.
void parse_option(std::span<const std::byte> option, TcpOptions& parsed) {
    const std::byte* data = option.data();
    switch (load_8(data)) {
        case kMss:
            if (option.size() == 4) parsed.mss = load_be16(data + 2);
            break;
        case kWindowScale:
            // [RFC7323 2.3] a shift above 14 MUST be taken as 14
            if (option.size() == 3) parsed.window_scale = std::min(load_8(data + 2), kMaxWindowScale);
            break;
        case kSackPermitted:
            if (option.size() == 2) parsed.sack_permitted = true;
            break;
        case kSack:
            if (option.size() < 10 || (option.size() - 2) % 8 != 0) break;
            parsed.sack_count = static_cast<std::uint8_t>((option.size() - 2) / 8);
            for (std::size_t i = 0; i < parsed.sack_count; ++i)
                parsed.sack_blocks[i] = {load_be32(data + 2 + 8 * i), load_be32(data + 6 + 8 * i)};
            break;
        case kTimestamps:
            if (option.size() == 10) parsed.timestamps = TcpTimestamps{load_be32(data + 2), load_be32(data + 6)};
            break;
        case kFastOpen:
            // [RFC7413 4.1.1] 4 to 16 bytes and even, or none: a request
            if (option.size() == 2 || (option.size() >= 6 && option.size() <= 18 && option.size() % 2 == 0))
                parsed.fast_open_cookie = option.subspan(2);
            break;
        default:
            break;
    }
}

std::size_t padded(std::size_t length) { return (length + 3) / 4 * 4; }

}  // namespace

/// [RFC9293 3.2 MUST-4, MUST-6, MUST-64, MUST-68] Byte by byte, whatever the alignment. What is not known is skipped by
/// its length: every kind but end and no-operation has one.
Drop TcpOptions::parse_list(std::span<const std::byte> options, TcpOptions& parsed) {
    while (!options.empty()) {
        const std::uint8_t kind = load_8(options.data());
        if (kind == kEnd) break;
        if (kind == kNop) {
            options = options.subspan(1);
            continue;
        }
        // [RFC9293 3.1 MUST-7] be prepared for an illegal length
        if (options.size() < 2) return Drop::kTcpOptionMalformed;
        const std::size_t length = load_8(options.data() + 1);
        if (length < 2 || length > options.size()) return Drop::kTcpOptionMalformed;
        parse_option(options.first(length), parsed);
        options = options.subspan(length);
    }
    return Drop::kNone;
}

// [RFC9293 3.1 MUST-69] The header ends where its options end: there is no padding that would have to be zero.
// The layout, each line a multiple of four bytes:
//   MSS | SACK-permitted TIMESTAMPS, or NOP NOP with one of them | NOP window scale | cookie NOPs | NOP NOP SACK
std::size_t emitted_length(const TcpOptions& options) {
    std::size_t length = 0;
    if (options.mss) length += 4;
    if (options.timestamps)
        length += kTcpTimestampsLength;
    else if (options.sack_permitted)
        length += 4;
    if (options.window_scale) length += 4;
    if (options.fast_open_cookie) length += padded(2 + options.fast_open_cookie->size());
    if (options.sack_count > 0) length += 4 + std::size_t{options.sack_count} * 8;
    return length;
}

void emit(const TcpOptions& options, std::span<std::byte> out) {
    [[maybe_unused]] const std::size_t length = emitted_length(options);
    DCHECK(length <= kMaxTcpOptionsLength && length <= out.size());
    std::byte* to = out.data();
    const auto word = [&to](std::uint32_t value) {
        store_be32(to, value);
        to += 4;
    };
    if (options.mss) word(std::uint32_t{kMss} << 24 | 4u << 16 | *options.mss);
    if (options.timestamps) {
        word(options.sack_permitted ? 0x0402080au : 0x0101080au);
        word(options.timestamps->value);
        word(options.timestamps->echo);
    } else if (options.sack_permitted) {
        word(0x01010402u);
    }
    if (options.window_scale) word(0x01030300u | *options.window_scale);
    if (options.fast_open_cookie) {
        const std::span<const std::byte> cookie = *options.fast_open_cookie;
        DCHECK(cookie.size() <= 16);
        const std::size_t used = 2 + cookie.size();
        store_8(to, kFastOpen);
        store_8(to + 1, static_cast<std::uint8_t>(used));
        std::copy(cookie.begin(), cookie.end(), to + 2);
        std::fill(to + used, to + padded(used), std::byte{kNop});
        to += padded(used);
    }
    if (options.sack_count > 0) {
        word(0x01010500u | (2u + options.sack_count * 8u));
        for (const SackBlock& block : options.sack()) {
            word(block.left);
            word(block.right);
        }
    }
}

}  // namespace culvert::wire
