#include "daemon/device/memory.h"

#include <algorithm>
#include <utility>

#include "shm/base/check.h"

namespace culvert::device {

MemoryDevice::MemoryDevice(FramePool& pool, const Options& options)
    : options_(options), tx_(pool), inbox_(options.inbox_packets) {
    CHECK(options.inbox_packets > 0);
}

void MemoryDevice::connect(MemoryDevice& a, MemoryDevice& b) {
    a.peer_ = &b;
    b.peer_ = &a;
}

std::vector<std::byte>* MemoryDevice::next_buffer() {
    if (filled_ == inbox_.size()) {
        ++inbox_full_;
        return nullptr;
    }
    std::vector<std::byte>& buffer = inbox_[(head_ + filled_++) % inbox_.size()];
    buffer.clear();
    return &buffer;
}

bool MemoryDevice::inject(std::span<const std::byte> packet) {
    CHECK(!packet.empty());
    std::vector<std::byte>* buffer = next_buffer();
    if (buffer == nullptr) return false;
    buffer->assign(packet.begin(), packet.end());
    return true;
}

std::vector<std::vector<std::byte>> MemoryDevice::take_sent() { return std::exchange(sent_, {}); }

std::size_t MemoryDevice::receive(std::span<RxPacket> burst) {
    head_ = (head_ + shown_) % inbox_.size();
    filled_ -= shown_;
    shown_ = std::min(filled_, burst.size());
    fragments_.clear();
    const std::size_t piece = options_.rx_fragment_size;
    if (piece != 0) {
        std::size_t pieces = 0;  // reserved first: RxPacket::rest must not move
        for (std::size_t i = 0; i < shown_; ++i) pieces += inbox_[(head_ + i) % inbox_.size()].size() / piece;
        fragments_.reserve(pieces);
    }
    for (std::size_t i = 0; i < shown_; ++i) {
        const std::span<const std::byte> bytes = inbox_[(head_ + i) % inbox_.size()];
        RxPacket& packet = burst[i];
        packet.length = static_cast<std::uint32_t>(bytes.size());
        packet.checksum = options_.checksum;
        packet.head = piece == 0 ? bytes : bytes.first(std::min(piece, bytes.size()));
        const std::size_t first = fragments_.size();
        for (std::size_t at = packet.head.size(); at < bytes.size(); at += piece)
            fragments_.push_back(bytes.subspan(at, std::min(piece, bytes.size() - at)));
        packet.rest = {fragments_.data() + first, fragments_.size() - first};
    }
    received_ += shown_;
    return shown_;
}

bool MemoryDevice::flush() {
    FramePool& pool = tx_.pool();
    const std::span<const TxQueue::Descriptor> pending = tx_.pending();
    std::vector<std::byte>* packet = nullptr;
    bool start = true;
    for (const TxQueue::Descriptor& descriptor : pending) {
        if (start) {
            packet = peer_ != nullptr ? peer_->next_buffer() : &sent_.emplace_back();
            ++transmitted_;
        }
        const std::byte* data = pool.data(descriptor.chunk);
        if (packet != nullptr) packet->insert(packet->end(), data, data + descriptor.length);
        pool.release(descriptor.chunk);
        start = !descriptor.more;
    }
    tx_.consume(pending.size());
    return false;
}

std::vector<Statistic> MemoryDevice::statistics() const {
    return {{"memory_received", received_}, {"memory_sent", transmitted_}, {"memory_inbox_full", inbox_full_}};
}

}  // namespace culvert::device
