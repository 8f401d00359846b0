// Two network namespaces joined by a veth pair: `culv0` in ours, `peer0` in theirs, IPv4 and IPv6 on both.
//
//   ours: culv0 10.99.0.1/24 fd99::1/64  <---- veth ---->  theirs: peer0 10.99.0.2/24 fd99::2/64
//
// The namespaces have no name: descriptors hold them, and they vanish with the process, however it ends.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "daemon/wire/address.h"
#include "shm/base/unique_fd.h"

namespace culvert::platform {

using Bytes = std::vector<std::byte>;

class VethPair {
public:
    /// Makes namespaces and interfaces, and moves this thread into ours. Throws std::runtime_error.
    explicit VethPair(unsigned mtu = 1500);
    /// Moves the thread back.
    ~VethPair();
    VethPair(const VethPair&) = delete;
    VethPair& operator=(const VethPair&) = delete;

    static constexpr const char* kOurs = "culv0";
    static constexpr const char* kTheirs = "peer0";
    const Address our_address = Address::v4(10, 99, 0, 1);
    const Address their_address = Address::v4(10, 99, 0, 2);

    /// A kernel UDP socket bound to the port on all addresses (0: any), with a large receive buffer.
    UniqueFd our_udp_socket(Port port) { return udp_socket(port); }
    UniqueFd their_udp_socket(Port port);
    /// Runs `work` in their namespace.
    void in_their_namespace(const std::function<void()>& work);

private:
    static UniqueFd udp_socket(Port port);
    void enter(const UniqueFd& space);

    UniqueFd home_;
    UniqueFd ours_;
    UniqueFd theirs_;
};

/// Waits until `ready` holds, looking again after every event on `fd` (or every millisecond, fd -1). False: 5 s passed.
bool eventually(int fd, const std::function<bool()>& ready);

/// Sends to an address; IPv4 or IPv6. The socket is one of the above (dual stack).
void send_to(const UniqueFd& socket, const Address& address, Port port, std::span<const std::byte> payload);
/// The next datagram; waits for it. Empty after `milliseconds` without one.
Bytes receive_from(const UniqueFd& socket, int milliseconds);

/// Runs a program; throws when it fails.
void run(const std::vector<std::string>& command);

}  // namespace culvert::platform
