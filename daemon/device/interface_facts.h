// What the kernel says about a network interface, asked once at startup.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/wire/address.h"
#include "shm/base/error.h"

namespace culvert::device {

struct InterfaceFacts {
    std::string name;
    int ifindex = 0;
    std::uint32_t mtu = 0;
    MacAddress mac;
    std::string driver;           // "veth", "ixgbe", ...; empty when the driver does not say
    bool virtual_device = false;  // no hardware below: senders on this host hand over partial checksums
    bool up = false;
    std::uint32_t queues = 1;  // receive queues
    bool takes_tags_off = false;  // 802.1Q tags of received frames are taken off by the device
};

/// Errors: ENODEV no such interface (in this thread's network namespace).
Result<InterfaceFacts> interface_facts(const std::string& name);

}  // namespace culvert::device
