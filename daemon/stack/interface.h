// An interface as the stack sees it: a name, a MAC, an MTU, the addresses that are ours, and a queue for output.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "daemon/base/packet.h"
#include "daemon/wire/address.h"

namespace culvert::stack {

struct InterfaceAddress {
    Address address;
    unsigned prefix_length = 0;
};

/// Owned by the Stack; changed only on the engine's thread.
struct Interface {
    std::uint32_t index = 0;  // the kernel's ifindex
    std::string name;
    MacAddress mac;
    std::uint32_t mtu = 1500;
    bool up = false;
    std::vector<InterfaceAddress> addresses;
    TxQueue* tx = nullptr;  // of this engine's queue of the device
};

}  // namespace culvert::stack
