// A bad link: any device, with packets lost, doubled, reordered, damaged and delayed, in both directions.
//
//   inner.receive() ---> [ pipe ] ---> receive()          tx() ---> [ pipe ] ---> inner.tx()
//
// Everything follows from the seed and from the times given by set_now(); the same run gives the same faults.
// For tests: it copies every packet and allocates. What the devices know about a packet beside its bytes (checksum state,
// segment size) stays with it; a bit that is flipped in a packet whose checksum is partial is found by nobody.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "daemon/base/instant.h"
#include "daemon/base/rng.h"
#include "daemon/device/device.h"

namespace culvert::device {

struct Faults {
    double loss = 0;  // each a chance per packet, 0 to 1
    double duplicate = 0;
    double corrupt = 0;  // one bit flipped
    double reorder = 0;  // held back for reorder_hold longer than others
    Duration reorder_hold = std::chrono::milliseconds(1);
    Duration delay_min{0};  // uniform between the two; different delays reorder as well
    Duration delay_max{0};
};

/// One direction of a bad link.
class FaultPipe {
public:
    struct Counts {
        std::uint64_t packets = 0, lost = 0, duplicated = 0, corrupted = 0, reordered = 0;
    };

    struct Packet {
        std::vector<std::byte> bytes = {};
        ChecksumState checksum = ChecksumState::kUnverified;  // received
        std::uint16_t segment_size = 0;                       // RxPacket's or TxPacket's
        std::uint16_t transport_offset = 0;                   // TxPacket's
    };

    FaultPipe(const Faults& faults, std::uint64_t seed) : faults_(faults), rng_(seed) {}

    void push(Packet packet, Instant now);
    /// True while pop() would return a packet.
    bool due(Instant now) const { return !waiting_.empty() && waiting_.begin()->first.first <= now; }
    /// The packet whose turn it is. Requires: due(now).
    Packet pop();
    /// When the next packet falls due; kNever when none waits.
    Instant poll_at() const { return waiting_.empty() ? kNever : waiting_.begin()->first.first; }
    const Counts& counts() const { return counts_; }
    void set_faults(const Faults& faults) { faults_ = faults; }

private:
    void enqueue(Packet packet, Instant now);

    Faults faults_;
    Rng rng_;
    std::uint64_t sequence_ = 0;
    std::map<std::pair<Instant, std::uint64_t>, Packet> waiting_;  // by due time, then by arrival
    Counts counts_;
};

class FaultInjector final : public Device {
public:
    /// `inner` must outlive this; its tx() must not be used by others.
    FaultInjector(Device& inner, const Faults& receive, const Faults& transmit, std::uint64_t seed);

    /// The same, and the injector keeps the device.
    FaultInjector(std::unique_ptr<Device> inner, const Faults& receive, const Faults& transmit, std::uint64_t seed);

    /// The time for what follows. Must not go back.
    void set_now(Instant now) override {
        now_ = now;
        inner_.set_now(now);
    }
    /// When a delayed packet of either direction falls due.
    Instant next_deadline() const override {
        return std::min({receive_.poll_at(), transmit_.poll_at(), inner_.next_deadline()});
    }
    /// From now on. Packets under way keep their fate.
    void set_faults(const Faults& receive, const Faults& transmit);
    const FaultPipe::Counts& receive_counts() const { return receive_.counts(); }
    const FaultPipe::Counts& transmit_counts() const { return transmit_.counts(); }

    std::size_t receive(std::span<RxPacket> burst) override;
    TxQueue& tx() override { return tx_; }
    bool flush() override;
    int readiness_fd() const override { return inner_.readiness_fd(); }
    bool has_input() const override { return receive_.due(now_) || inner_.has_input(); }
    std::string describe() const override { return inner_.describe() + ", with faults"; }
    std::vector<Statistic> statistics() const override;

private:
    std::unique_ptr<Device> owned_;  // null: somebody else's
    Device& inner_;
    TxQueue tx_;
    FaultPipe receive_;
    FaultPipe transmit_;
    Instant now_{};
    std::vector<FaultPipe::Packet> shown_;  // lent to the stack until the next receive()
};

}  // namespace culvert::device
