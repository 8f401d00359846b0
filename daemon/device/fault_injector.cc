#include "daemon/device/fault_injector.h"

#include <algorithm>
#include <array>
#include <utility>

#include "shm/base/check.h"

namespace culvert::device {
namespace {

constexpr std::size_t kBurst = 64;

}  // namespace

void FaultPipe::push(Packet packet, Instant now) {
    ++counts_.packets;
    if (rng_.happens(faults_.loss)) {
        ++counts_.lost;
        return;
    }
    if (rng_.happens(faults_.duplicate)) {
        ++counts_.duplicated;
        enqueue(packet, now);
    }
    if (!packet.bytes.empty() && rng_.happens(faults_.corrupt)) {
        ++counts_.corrupted;
        const std::uint64_t bit = rng_.below(std::uint64_t{packet.bytes.size()} * 8);
        packet.bytes[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    }
    enqueue(std::move(packet), now);
}

void FaultPipe::enqueue(Packet packet, Instant now) {
    Duration delay = faults_.delay_min;
    if (faults_.delay_max > faults_.delay_min) {
        const auto spread = static_cast<std::uint64_t>((faults_.delay_max - faults_.delay_min).count());
        delay += Duration(static_cast<Duration::rep>(rng_.below(spread + 1)));
    }
    if (rng_.happens(faults_.reorder)) {
        ++counts_.reordered;
        delay += faults_.reorder_hold;
    }
    waiting_.emplace(std::pair(now + delay, sequence_++), std::move(packet));
}

FaultPipe::Packet FaultPipe::pop() {
    DCHECK(!waiting_.empty());
    return std::move(waiting_.extract(waiting_.begin()).mapped());
}

FaultInjector::FaultInjector(Device& inner, const Faults& receive, const Faults& transmit, std::uint64_t seed)
    : inner_(inner), tx_(inner.tx().pool()), receive_(receive, seed), transmit_(transmit, ~seed) {}

FaultInjector::FaultInjector(std::unique_ptr<Device> inner, const Faults& receive, const Faults& transmit, std::uint64_t seed)
    : FaultInjector(*inner, receive, transmit, seed) {
    owned_ = std::move(inner);
}

void FaultInjector::set_faults(const Faults& receive, const Faults& transmit) {
    receive_.set_faults(receive);
    transmit_.set_faults(transmit);
}

std::size_t FaultInjector::receive(std::span<RxPacket> burst) {
    shown_.clear();
    std::array<RxPacket, kBurst> arrived;
    while (const std::size_t count = inner_.receive(arrived)) {
        for (const RxPacket& packet : std::span(arrived).first(count)) {
            FaultPipe::Packet held{.checksum = packet.checksum, .segment_size = packet.segment_size};
            for_each_piece(packet, 0, packet.length, [&](std::span<const std::byte> piece) {
                held.bytes.insert(held.bytes.end(), piece.begin(), piece.end());
            });
            receive_.push(std::move(held), now_);
        }
    }
    while (shown_.size() < burst.size() && receive_.due(now_)) shown_.push_back(receive_.pop());
    for (std::size_t i = 0; i < shown_.size(); ++i) {
        const FaultPipe::Packet& packet = shown_[i];
        burst[i] = {.head = packet.bytes,
                    .rest = {},
                    .length = static_cast<std::uint32_t>(packet.bytes.size()),
                    .checksum = packet.checksum,
                    .segment_size = packet.segment_size};
    }
    return shown_.size();
}

bool FaultInjector::flush() {
    FramePool& pool = tx_.pool();
    const std::span<const TxQueue::Descriptor> pending = tx_.pending();
    FaultPipe::Packet packet;
    for (const TxQueue::Descriptor& descriptor : pending) {
        if (packet.bytes.empty()) {  // the first descriptor speaks for the packet
            packet.segment_size = descriptor.segment_size;
            packet.transport_offset = descriptor.transport_offset;
        }
        const std::byte* data = pool.data(descriptor.chunk);
        packet.bytes.insert(packet.bytes.end(), data, data + descriptor.length);
        pool.release(descriptor.chunk);
        if (!descriptor.more) transmit_.push(std::exchange(packet, {}), now_);
    }
    tx_.consume(pending.size());

    while (transmit_.due(now_)) {
        const FaultPipe::Packet held = transmit_.pop();
        const std::vector<std::byte>& bytes = held.bytes;
        TxPacket out;
        if (!inner_.tx().reserve(static_cast<std::uint32_t>(bytes.size()), out)) {
            inner_.flush();  // gives chunks back
            if (!inner_.tx().reserve(static_cast<std::uint32_t>(bytes.size()), out))
                continue;  // lost: it is a bad link
        }
        auto from = bytes.begin();
        for (std::uint32_t i = 0; i < out.count; ++i) {
            const auto size = static_cast<std::ptrdiff_t>(out.fragments[i].size());
            std::copy(from, from + size, out.fragments[i].begin());
            from += size;
        }
        out.segment_size = held.segment_size;
        out.transport_offset = held.transport_offset;
        inner_.tx().commit(out);
    }
    return inner_.flush();
}

std::vector<Statistic> FaultInjector::statistics() const {
    std::vector<Statistic> result = inner_.statistics();
    const auto add = [&result](const std::string& direction, const FaultPipe::Counts& counts) {
        result.push_back({"fault_" + direction + "_lost", counts.lost});
        result.push_back({"fault_" + direction + "_duplicated", counts.duplicated});
        result.push_back({"fault_" + direction + "_corrupted", counts.corrupted});
        result.push_back({"fault_" + direction + "_reordered", counts.reordered});
    };
    add("rx", receive_.counts());
    add("tx", transmit_.counts());
    return result;
}

}  // namespace culvert::device
