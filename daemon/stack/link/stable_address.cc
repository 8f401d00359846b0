#include "daemon/stack/link/stable_address.h"

#include <sodium/crypto_shorthash.h>

#include <array>
#include <cstring>

#include "daemon/wire/bytes.h"
#include "shm/base/check.h"

namespace culvert::stack {

bool is_reserved_interface_id(std::uint64_t id) {
    return id == 0 || (id >= 0x02005efffe000000 && id <= 0x02005efffe005213) || id == 0x02005efffe005214 ||
           (id >= 0xfdffffffffffff80 && id <= 0xfdffffffffffffff);
}

Address stable_address(const Address& prefix, std::string_view interface, unsigned attempt,
                       const std::uint64_t (&secret)[2]) {
    // [RFC7217 5] RID = F(Prefix, Net_Iface, Network_ID, DAD_Counter, secret_key); there is no Network_ID on a wire.
    std::array<unsigned char, 8 + 16 + 4> input{};
    std::memcpy(input.data(), prefix.bytes().data(), 8);
    std::memcpy(input.data() + 8, interface.data(), std::min<std::size_t>(interface.size(), 16));
    std::array<std::byte, 16> address;
    std::memcpy(address.data(), prefix.bytes().data(), 8);
    std::uint64_t id = 0;
    static_assert(crypto_shorthash_KEYBYTES == sizeof secret && crypto_shorthash_BYTES == sizeof id);
    // An identifier that is reserved is passed over, as one that has been found taken is.
    for (std::uint32_t counter = attempt;; counter += 0x10000) {
        std::memcpy(input.data() + 24, &counter, 4);
        crypto_shorthash(reinterpret_cast<unsigned char*>(&id), input.data(), input.size(),
                         reinterpret_cast<const unsigned char*>(secret));
        if (!is_reserved_interface_id(id)) break;
    }
    wire::store_be32(address.data() + 8, static_cast<std::uint32_t>(id >> 32));
    wire::store_be32(address.data() + 12, static_cast<std::uint32_t>(id));
    return Address::from_v6(address);
}

}  // namespace culvert::stack
