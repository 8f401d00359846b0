#include "daemon/stack/tcp/isn.h"

#include <sodium/crypto_shorthash.h>

#include <cstring>

namespace culvert::stack::tcp {

std::uint32_t IsnGenerator::generate(const Endpoint& local, const Endpoint& remote, Instant now) const {
    std::array<unsigned char, 36> flow{};
    std::memcpy(flow.data(), local.address.bytes().data(), 16);
    std::memcpy(flow.data() + 16, remote.address.bytes().data(), 16);
    std::memcpy(flow.data() + 32, &local.port, 2);
    std::memcpy(flow.data() + 34, &remote.port, 2);

    static_assert(crypto_shorthash_KEYBYTES == sizeof(Key) && crypto_shorthash_BYTES == sizeof(std::uint64_t));
    std::array<unsigned char, crypto_shorthash_KEYBYTES> key;
    std::memcpy(key.data(), key_.data(), key.size());
    std::array<unsigned char, crypto_shorthash_BYTES> digest;
    crypto_shorthash(digest.data(), flow.data(), flow.size(), key.data());
    std::uint64_t hash = 0;
    std::memcpy(&hash, digest.data(), sizeof hash);

    const auto timer = static_cast<std::uint64_t>(now.time_since_epoch().count()) / 4000;  // [RFC9293 3.4.1] 4 us
    return static_cast<std::uint32_t>(timer + hash);
}

}  // namespace culvert::stack::tcp
