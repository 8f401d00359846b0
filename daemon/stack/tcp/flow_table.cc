#include "daemon/stack/tcp/flow_table.h"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>

namespace culvert::stack::tcp {

FlowTable::FlowTable(std::uint32_t capacity, Peers* peers) : limit_(capacity), peers_(peers) {
    const std::uint64_t slots = std::bit_ceil(std::uint64_t{capacity} * 3 / 2 + 2);
    CHECK(slots <= std::uint64_t{1} << 31);
    mask_ = static_cast<std::uint32_t>(slots - 1);
    // Anonymous memory reads as zero, which is an empty slot, and costs nothing until it is touched.
    void* memory = ::mmap(nullptr, slots * sizeof(Slot), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "flow table: mmap");
    slots_ = static_cast<Slot*>(memory);
}

FlowTable::~FlowTable() {
    if (peers_ != nullptr)
        for (std::uint32_t slot = 0; slot <= mask_; ++slot)
            if (slots_[slot].what != 0) peers_->flow_ended(slots_[slot].hash);
    ::munmap(slots_, (std::size_t{mask_} + 1) * sizeof(Slot));
}

FlowTable::Inserted FlowTable::insert(std::uint32_t hash, FlowRef ref, bool share_hash) {
    if (size_ == limit_) return Inserted::kFull;
    if (peers_ != nullptr && !peers_->flow_began(hash, share_hash)) return Inserted::kElsewhere;
    std::uint32_t slot = hash & mask_;
    while (slots_[slot].what != 0) slot = (slot + 1) & mask_;
    slots_[slot] = {hash, pack(ref)};
    ++size_;
    return Inserted::kYes;
}

std::uint32_t FlowTable::slot_of(std::uint32_t hash, FlowRef ref) const {
    const std::uint32_t what = pack(ref);
    std::uint32_t slot = hash & mask_;
    while (slots_[slot].what != what) {
        CHECK(slots_[slot].what != 0);
        slot = (slot + 1) & mask_;
    }
    return slot;
}

void FlowTable::erase(std::uint32_t hash, FlowRef ref) {
    std::uint32_t gap = slot_of(hash, ref);
    // Every follower that is not nearer to its home than the gap is moves into the gap; so no tombstone is needed.
    for (std::uint32_t next = (gap + 1) & mask_; slots_[next].what != 0; next = (next + 1) & mask_) {
        const std::uint32_t home = slots_[next].hash & mask_;
        if (((next - home) & mask_) >= ((next - gap) & mask_)) {
            slots_[gap] = slots_[next];
            gap = next;
        }
    }
    slots_[gap] = {};
    --size_;
    if (peers_ != nullptr) peers_->flow_ended(hash);
}

}  // namespace culvert::stack::tcp
