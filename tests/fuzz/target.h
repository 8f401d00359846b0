// What a fuzz target is, and how its input is read: the same for libFuzzer and for the replay program.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace culvert::fuzz {

/// Reads an input front to back; behind its end everything is zero.
class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : left_(reinterpret_cast<const std::byte*>(data), size) {}
    bool done() const { return left_.empty(); }
    std::uint8_t u8() {
        if (left_.empty()) return 0;
        const auto value = std::to_integer<std::uint8_t>(left_[0]);
        left_ = left_.subspan(1);
        return value;
    }
    std::uint16_t u16() {
        const auto high = u8();
        return static_cast<std::uint16_t>(high << 8 | u8());
    }
    std::int16_t i16() { return static_cast<std::int16_t>(u16()); }
    std::span<const std::byte> bytes(std::size_t length) {
        const auto taken = left_.first(std::min(length, left_.size()));
        left_ = left_.subspan(taken.size());
        return taken;
    }

private:
    std::span<const std::byte> left_;
};

}  // namespace culvert::fuzz
