#include "daemon/engine/hand_over_ring.h"

#include <sys/mman.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>

#include "shm/base/check.h"

namespace culvert::engine {

HandOverRing::HandOverRing(std::size_t bytes) : size_(std::bit_ceil(bytes)) {
    void* memory = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "hand-over ring: mmap");
    memory_ = static_cast<std::byte*>(memory);
}

HandOverRing::~HandOverRing() { ::munmap(memory_, size_); }

bool HandOverRing::push(const HandOverNote& note, const RxPacket& packet) {
    const std::size_t bytes = record_bytes(packet.length);
    std::uint64_t tail = tail_.load(std::memory_order_relaxed);
    const std::size_t to_end = size_ - (tail & (size_ - 1));
    const std::size_t skipped = bytes > to_end ? to_end : 0;
    const auto fits = [&] { return tail + skipped + bytes - head_seen_ <= size_; };
    if (!fits()) {
        head_seen_ = head_.load(std::memory_order_acquire);  // what the reader has read, it has read
        if (!fits()) return false;
    }
    if (skipped != 0) {
        ::new (at(tail)) Header{.note = {}, .length = kToTheStart, .zero = 0};
        tail += skipped;
    }
    ::new (at(tail)) Header{.note = note, .length = packet.length, .zero = 0};
    std::byte* to = at(tail) + sizeof(Header);
    std::memcpy(to, packet.head.data(), packet.head.size());
    to += packet.head.size();
    for (const std::span<const std::byte> fragment : packet.rest) {
        std::memcpy(to, fragment.data(), fragment.size());
        to += fragment.size();
    }
    // seq_cst: ordered before the writer's look at the reader's sleep flag (shm/wakeup.h).
    tail_.store(tail + bytes, std::memory_order_seq_cst);
    return true;
}

std::size_t HandOverRing::take(std::span<HandedOver> burst) {
    DCHECK(next_ == head_.load(std::memory_order_relaxed));
    const std::uint64_t tail = tail_.load(std::memory_order_acquire);
    std::size_t count = 0;
    while (next_ != tail && count < burst.size()) {
        const auto* header = reinterpret_cast<const Header*>(at(next_));
        if (header->length == kToTheStart) {
            next_ += size_ - (next_ & (size_ - 1));
            continue;
        }
        HandedOver& shown = burst[count++];
        shown.note = header->note;
        shown.packet = {.head = {at(next_) + sizeof(Header), header->length},
                        .rest = {},
                        .length = header->length,
                        .checksum = header->note.checksum,
                        .segment_size = header->note.segment_size};
        next_ += record_bytes(header->length);
    }
    return count;
}

void HandOverRing::done() { head_.store(next_, std::memory_order_release); }

}  // namespace culvert::engine
