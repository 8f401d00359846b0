// Where frames come from and go to. One virtual call per burst, never per packet.
//
// A device belongs to one engine and is used by its thread only.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/packet.h"

namespace culvert::device {

/// Named numbers of a device ("xsk_rx_dropped"), for `culvert stat`.
struct Statistic {
    std::string name;
    std::uint64_t value;
};

class Device {
public:
    virtual ~Device() = default;

    /// The time of the turn that begins. Wrappers want it; a device that only carries has no clock.
    virtual void set_now(Instant) {}
    /// When a packet that is held back on purpose falls due; kNever: none is.
    virtual Instant next_deadline() const { return kNever; }

    /// Takes up to burst.size() packets that have arrived. The packets stay valid until the next call of receive();
    /// their memory goes back to the device then. Returns how many.
    virtual std::size_t receive(std::span<RxPacket> burst) = 0;

    /// Packets that the stack commits here are sent by flush().
    virtual TxQueue& tx() = 0;

    /// Hands everything committed to the device with at most one wake-up, and collects what has been sent before.
    /// What does not fit stays queued for the next call. Returns true while something is left over.
    virtual bool flush() = 0;

    /// To be waited on (POLLIN) by a sleeping engine; -1 when the device has none.
    virtual int readiness_fd() const = 0;

    /// True when receive() would find something now, without a syscall: the second look before sleeping.
    virtual bool has_input() const = 0;

    /// "af_xdp veth0 queue 0, native copy mode"
    virtual std::string describe() const = 0;
    virtual std::vector<Statistic> statistics() const = 0;
};

}  // namespace culvert::device
