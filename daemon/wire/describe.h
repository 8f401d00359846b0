// A frame as one line of text, for test failures and debugging. Never on the data path.
//
//   10.0.0.1:40000 > 10.0.0.2:80 tcp SYN seq 100 win 65535 <mss 1460, sack ok, ts 1/0, wscale 7> len 0
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace culvert::wire {

/// From the Ethernet header on. What cannot be parsed is named by its drop reason.
std::string describe(std::span<const std::byte> frame);
/// From the IP header on (version taken from the first byte).
std::string describe_ip(std::span<const std::byte> packet);

}  // namespace culvert::wire
