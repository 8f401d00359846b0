#include "preload/address.h"

#include <algorithm>
#include <cstring>

namespace culvert::preload {

namespace {
constexpr std::uint8_t kMappedPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

bool all_zero(const std::uint8_t* begin, std::size_t count) noexcept {
    return std::all_of(begin, begin + count, [](std::uint8_t byte) { return byte == 0; });
}
}  // namespace

bool is_mapped(const shm::WireEndpoint& endpoint) noexcept {
    return std::memcmp(endpoint.address, kMappedPrefix, sizeof kMappedPrefix) == 0;
}

std::optional<shm::WireEndpoint> to_wire(const sockaddr* address, socklen_t length, int family) noexcept {
    if (address == nullptr || length < sizeof(sa_family_t)) return std::nullopt;
    shm::WireEndpoint wire{};
    wire.family = family == AF_INET6 ? 6 : 4;
    if (address->sa_family == AF_INET && length >= sizeof(sockaddr_in)) {
        sockaddr_in in{};
        std::memcpy(&in, address, sizeof in);
        std::memcpy(wire.address, kMappedPrefix, sizeof kMappedPrefix);
        std::memcpy(wire.address + 12, &in.sin_addr, 4);
        wire.port = ntohs(in.sin_port);
        return wire;
    }
    if (address->sa_family == AF_INET6 && family == AF_INET6 && length >= 24) {  // SIN6_LEN_RFC2133
        sockaddr_in6 in{};
        std::memcpy(&in, address, std::min<std::size_t>(length, sizeof in));
        std::memcpy(wire.address, &in.sin6_addr, 16);
        wire.port = ntohs(in.sin6_port);
        wire.interface = in.sin6_scope_id;
        return wire;
    }
    return std::nullopt;
}

void from_wire(const shm::WireEndpoint& endpoint, int family, sockaddr* address, socklen_t* length) noexcept {
    if (address == nullptr || length == nullptr) return;
    union {
        sockaddr_in v4;
        sockaddr_in6 v6;
    } out{};
    socklen_t size = 0;
    if (family == AF_INET6) {
        out.v6 = {};
        out.v6.sin6_family = AF_INET6;
        out.v6.sin6_port = htons(endpoint.port);
        std::memcpy(&out.v6.sin6_addr, endpoint.address, 16);
        out.v6.sin6_scope_id = endpoint.interface;
        size = sizeof out.v6;
    } else {
        out.v4 = {};
        out.v4.sin_family = AF_INET;
        out.v4.sin_port = htons(endpoint.port);
        std::memcpy(&out.v4.sin_addr, endpoint.address + 12, 4);
        size = sizeof out.v4;
    }
    std::memcpy(address, &out, std::min(*length, size));
    *length = size;
}

bool is_unspecified(const shm::WireEndpoint& endpoint) noexcept {
    return all_zero(endpoint.address, 16) || (is_mapped(endpoint) && all_zero(endpoint.address + 12, 4));
}

bool is_loopback(const shm::WireEndpoint& endpoint) noexcept {
    if (is_mapped(endpoint)) return endpoint.address[12] == 127;
    return all_zero(endpoint.address, 15) && endpoint.address[15] == 1;
}

bool is_multicast(const shm::WireEndpoint& endpoint) noexcept {
    if (is_mapped(endpoint)) return (endpoint.address[12] & 0xf0) == 0xe0;
    return endpoint.address[0] == 0xff;
}

}  // namespace culvert::preload
