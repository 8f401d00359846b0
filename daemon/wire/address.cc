#include "daemon/wire/address.h"

#include <arpa/inet.h>

#include <cstdio>

namespace culvert {

std::string MacAddress::to_string() const {
    char text[18];
    std::snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", bytes[0], bytes[1], bytes[2], bytes[3], bytes[4],
                  bytes[5]);
    return text;
}

std::optional<Address> Address::parse(std::string_view text) {
    char buffer[INET6_ADDRSTRLEN];
    if (text.size() >= sizeof buffer || text.find('\0') != std::string_view::npos) return std::nullopt;
    text.copy(buffer, text.size());
    buffer[text.size()] = '\0';
    std::array<std::byte, 16> bytes;
    if (inet_pton(AF_INET, buffer, bytes.data()) == 1) return from_v4(std::span(bytes).first<4>());
    if (inet_pton(AF_INET6, buffer, bytes.data()) != 1) return std::nullopt;
    const Address address = from_v6(bytes);
    // "::ffff:10.0.0.1" would silently become IPv4
    if (address.is_v4()) return std::nullopt;
    return address;
}

bool Address::is_link_local() const {
    if (is_v4()) return low() >> 16 == 0xffff'a9fe;
    return high() >> 54 == 0xfe80 >> 6;
}

bool Address::in(const Address& network, unsigned prefix_length) const {
    if (is_v4() != network.is_v4()) return false;
    const std::size_t bits = prefix_length + (is_v4() ? 96u : 0u);
    if (bits > 128) return false;
    const std::size_t whole = bits / 8;
    const auto own = bytes(), other = network.bytes();
    if (std::memcmp(own.data(), other.data(), whole) != 0) return false;
    const std::size_t left = bits % 8;
    return left == 0 || ((own[whole] ^ other[whole]) >> (8 - left)) == 0;
}

std::string Address::to_string() const {
    char text[INET6_ADDRSTRLEN];
    const bool four = is_v4();
    inet_ntop(four ? AF_INET : AF_INET6, wire_bytes().data(), text, sizeof text);
    return text;
}

std::string Endpoint::to_string() const {
    const std::string host = address.to_string();
    return (address.is_v4() ? host : "[" + host + "]") + ":" + std::to_string(port);
}

}  // namespace culvert
