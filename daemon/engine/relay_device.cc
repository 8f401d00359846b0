#include "daemon/engine/relay_device.h"

#include <array>

namespace culvert::engine {

bool RelayDevice::flush() {
    const std::span<const TxQueue::Descriptor> pending = tx_.pending();
    std::array<std::span<const std::byte>, kMaxFragments> fragments;
    std::size_t count = 0;
    std::uint32_t length = 0;
    for (const TxQueue::Descriptor& descriptor : pending) {
        fragments[count++] = {pool_.data(descriptor.chunk), descriptor.length};
        length += descriptor.length;
        if (descriptor.more) continue;
        const RxPacket packet{.head = fragments[0], .rest = std::span(fragments).subspan(1, count - 1), .length = length};
        if (peers_.transmit_by(owner_, interface_, packet)) {
            ++packets_;
        } else {
            counters_.drop(Drop::kHandOverFull);  // lost, as on a full link: what needs it sends it again
        }
        count = 0;
        length = 0;
    }
    for (const TxQueue::Descriptor& descriptor : pending) pool_.release(descriptor.chunk);
    tx_.consume(pending.size());
    return false;
}

}  // namespace culvert::engine
