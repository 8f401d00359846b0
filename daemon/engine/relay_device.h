// An interface of which this engine has no queue: what it sends there leaves through an engine that has one.
//
//   stack --> TxQueue --flush()--> ring(me, owner) --> owner's turn --> the owner's own queue of the interface
//
// Nothing is received here: a packet for one of this engine's connections is handed over by the engine that gets it.
#pragma once

#include <string>
#include <vector>

#include "daemon/device/device.h"
#include "daemon/engine/engine_peers.h"

namespace culvert::engine {

class RelayDevice final : public device::Device {
public:
    /// `owner`: the engine with a queue of `interface` (ifindex, and its name for people).
    RelayDevice(EnginePeers& peers, Counters& counters, std::uint32_t owner, std::uint32_t interface, std::string name)
        : peers_(peers), counters_(counters), owner_(owner), interface_(interface), name_(std::move(name)) {}

    std::size_t receive(std::span<RxPacket>) override { return 0; }
    TxQueue& tx() override { return tx_; }
    bool flush() override;
    int readiness_fd() const override { return -1; }
    bool has_input() const override { return false; }
    std::string describe() const override { return name_ + " through engine " + std::to_string(owner_); }
    std::vector<device::Statistic> statistics() const override { return {{"relay_tx_packets", packets_}}; }

private:
    static constexpr std::uint32_t kChunks = 2048;

    EnginePeers& peers_;
    Counters& counters_;
    const std::uint32_t owner_;
    const std::uint32_t interface_;
    const std::string name_;
    FramePool pool_{kChunks};
    TxQueue tx_{pool_};
    std::uint64_t packets_ = 0;
};

}  // namespace culvert::engine
