// Between sockaddr and the endpoints of the shared segment.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <optional>

#include "shm/socket_record.h"

namespace culvert::preload {

/// The endpoint that `address` names, for a socket of `family` (AF_INET or AF_INET6). Nothing: too short or another
/// family.
std::optional<shm::WireEndpoint> to_wire(const sockaddr* address, socklen_t length, int family) noexcept;
/// Writes `endpoint` as a socket of `family` reports it; cuts to *length and sets it to the full size, as the kernel.
void from_wire(const shm::WireEndpoint& endpoint, int family, sockaddr* address, socklen_t* length) noexcept;

bool is_unspecified(const shm::WireEndpoint& endpoint) noexcept;
bool is_loopback(const shm::WireEndpoint& endpoint) noexcept;
bool is_multicast(const shm::WireEndpoint& endpoint) noexcept;
bool is_mapped(const shm::WireEndpoint& endpoint) noexcept;

}  // namespace culvert::preload
