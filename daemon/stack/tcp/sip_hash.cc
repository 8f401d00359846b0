#include "daemon/stack/tcp/sip_hash.h"

#include <sodium/crypto_shorthash.h>

#include <cstring>

namespace culvert::stack::tcp {

std::uint64_t sip_hash(const SipKey& key, std::span<const std::byte> message) {
    static_assert(crypto_shorthash_KEYBYTES == sizeof(SipKey) && crypto_shorthash_BYTES == sizeof(std::uint64_t));
    std::uint64_t hash = 0;
    crypto_shorthash(reinterpret_cast<unsigned char*>(&hash), reinterpret_cast<const unsigned char*>(message.data()),
                     message.size(), reinterpret_cast<const unsigned char*>(key.data()));
    return hash;
}

SipKey derive_key(const SipKey& secret, std::uint64_t use, std::uint64_t number) {
    SipKey key;
    for (std::uint64_t half = 0; half < 2; ++half) {
        const std::uint64_t name[] = {use, number, half};
        const std::uint64_t hash = sip_hash(secret, std::as_bytes(std::span(name)));
        std::memcpy(key.data() + 8 * half, &hash, sizeof hash);
    }
    return key;
}

SipKey sip_key(const std::uint64_t (&secret)[2]) {
    SipKey key;
    static_assert(sizeof key == sizeof secret);
    std::memcpy(key.data(), secret, sizeof key);
    return key;
}

void put_flow(const Endpoint& local, const Endpoint& remote, std::span<std::byte, 36> out) {
    std::memcpy(out.data(), local.address.bytes().data(), 16);
    std::memcpy(out.data() + 16, remote.address.bytes().data(), 16);
    std::memcpy(out.data() + 32, &local.port, 2);
    std::memcpy(out.data() + 34, &remote.port, 2);
}

}  // namespace culvert::stack::tcp
