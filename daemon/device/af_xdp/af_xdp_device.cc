#include "daemon/device/af_xdp/af_xdp_device.h"

#include <sys/socket.h>

#include <utility>

namespace culvert::device {
namespace {

constexpr std::uint64_t kChunkMask = ~std::uint64_t{FramePool::kChunkSize - 1};

// Wake-ups in one flush(). One moves tx_budget() descriptors; kernels without XDP_MAX_TX_SKB_BUDGET move 32, so a full
// ring of 2048 needs 64 of them.
constexpr int kMaxWakeups = 64;

/// Ethernet, IP and TCP with timestamps are 66 bytes: the second line holds the end of the options and the start of the
/// payload. The frame was written by another core, so each line not asked for in time is a stall of its own.
void prefetch_headers(const std::byte* frame) {
    __builtin_prefetch(frame);
    __builtin_prefetch(frame + 64);
}

}  // namespace

Result<std::unique_ptr<AfXdpDevice>> AfXdpDevice::create(FramePool& pool, SteeringProgram& program,
                                                         const Options& options) {
    InterfaceFacts facts = TRY(interface_facts(program.interface()));
    if (!facts.up) return fail(ENETDOWN, facts.name + ": cannot receive");
    if (pool.available() <= options.rings.fill)
        return fail(ENOMEM, facts.name + ": frame pool of " + std::to_string(pool.available()) +
                                " chunks is too small, more than " + std::to_string(options.rings.fill) +
                                " are needed");
    std::unique_ptr<XskSocket> socket = TRY(
        XskSocket::open(pool, facts.name, options.queue, options.rings, program.mode() == XdpMode::kNative, facts.mtu));
    std::unique_ptr<AfXdpDevice> device(new AfXdpDevice(pool, program, std::move(facts), std::move(socket), options));
    // Where the kernel sends within our call, both ways out keep one order; a NIC has queues, and cuts nothing it is not told to.
    if (device->facts_.virtual_device && !device->mode().zero_copy)
        device->super_packets_ = TRY(SuperPacketSocket::open(device->facts_));
    TRY_VOID(program.add_socket(options.queue, device->socket_->fd()));
    return device;
}

AfXdpDevice::AfXdpDevice(FramePool& pool, SteeringProgram& program, InterfaceFacts facts,
                         std::unique_ptr<XskSocket> socket, const Options& options)
    : pool_(pool),
      base_(pool.base()),
      program_(program),
      facts_(std::move(facts)),
      queue_(options.queue),
      checksum_(facts_.virtual_device ? ChecksumState::kMaybePartial : ChecksumState::kUnverified),
      socket_(std::move(socket)),
      fill_(socket_->umem().fill()),
      completion_(socket_->umem().completion()),
      rx_(socket_->rx()),
      tx_(socket_->tx()),
      tx_queue_(pool) {
    shown_.reserve(options.rings.rx);
    fragments_.resize(options.rings.rx);
    // The receive side's chunks take their first turn through `shown_`.
    const std::uint32_t count = fill_.free(options.rings.fill);
    for (std::uint32_t i = 0; i < count; ++i) fill_.at(i) = std::uint64_t{pool_.allocate()} * FramePool::kChunkSize;
    fill_.submit(count);
}

AfXdpDevice::~AfXdpDevice() { program_.remove_socket(queue_); }

void AfXdpDevice::refill() {
    const auto count = static_cast<std::uint32_t>(shown_.size());
    if (count == 0) return;
    DCHECK(fill_.free(count) == count);  // the ring has room for every chunk of the receive side
    for (std::uint32_t i = 0; i < count; ++i) fill_.at(i) = shown_[i];
    fill_.submit(count);
    shown_.clear();
    if (fill_.needs_wakeup()) ::recvfrom(socket_->fd(), nullptr, 0, MSG_DONTWAIT, nullptr, nullptr);
}

std::size_t AfXdpDevice::receive(std::span<RxPacket> burst) {
    refill();
    const auto limit = static_cast<std::uint32_t>(shown_.capacity());
    const std::uint32_t available = rx_.available(limit);
    if (available == 0) return 0;
    prefetch_headers(base_ + rx_.peek(0).addr);

    std::size_t packets = 0;
    std::uint32_t taken = 0;           // descriptors of whole packets
    std::uint32_t fragments_used = 0;  // of fragments_
    while (taken < available && packets < burst.size()) {
        const xdp_desc& first = rx_.peek(taken);
        RxPacket& packet = burst[packets];
        packet.head = {base_ + first.addr, first.len};
        packet.length = first.len;
        packet.checksum = checksum_;
        packet.rest = {};
        std::uint32_t end = taken + 1;
        if ((first.options & XDP_PKT_CONTD) != 0) [[unlikely]] {
            const std::uint32_t first_fragment = fragments_used;
            bool more = true;
            while (more && end < available) {
                const xdp_desc& next = rx_.peek(end++);
                fragments_[fragments_used++] = {base_ + next.addr, next.len};
                packet.length += next.len;
                more = (next.options & XDP_PKT_CONTD) != 0;
            }
            if (more) break;  // the rest of it has not arrived: left in the ring
            packet.rest = {fragments_.data() + first_fragment, fragments_used - first_fragment};
            ++counts_.rx_multi_buffer;
        }
        if (end < available) prefetch_headers(base_ + rx_.peek(end).addr);
        for (; taken < end; ++taken) shown_.push_back(rx_.peek(taken).addr & kChunkMask);
        if (packet.rest.size() >= kMaxFragments) [[unlikely]] {
            ++counts_.rx_too_many_buffers;  // its chunks go back with the others
            continue;
        }
        ++packets;
    }
    rx_.release(taken);
    counts_.rx_packets += packets;
    return packets;
}

void AfXdpDevice::reap() {
    const std::uint32_t count = completion_.available(UINT32_MAX);
    if (count == 0) return;
    for (std::uint32_t i = 0; i < count; ++i)
        pool_.release(static_cast<ChunkIndex>(completion_.peek(i) / FramePool::kChunkSize));
    completion_.release(count);
}

// Whole packets only: the kernel drops a packet whose end is not in the ring, without completing its chunks. Up to the first
// super-packet, which cannot go this way.
void AfXdpDevice::queue_packets() {
    const std::span<const TxQueue::Descriptor> pending = tx_queue_.pending();
    if (pending.empty()) return;
    const std::uint32_t room = tx_.free(static_cast<std::uint32_t>(pending.size()));
    std::uint32_t whole = 0;
    for (std::uint32_t i = 0; i < room; ++i) {
        const TxQueue::Descriptor& from = pending[i];
        if (from.segment_size != 0 && whole == i) break;
        xdp_desc& to = tx_.at(i);
        to.addr = std::uint64_t{from.chunk} * FramePool::kChunkSize;
        to.len = from.length;
        to.options = from.more ? XDP_PKT_CONTD : 0;
        if (!from.more) {
            whole = i + 1;
            ++counts_.tx_packets;
        }
    }
    if (whole == 0) return;
    tx_.submit(whole);
    tx_queue_.consume(whole);
}

// Copy mode sends within the syscall, as long as it makes progress; zero-copy only needs to know that there is work.
AfXdpDevice::Output AfXdpDevice::wake_for_output() {
    if (!tx_.needs_wakeup()) return Output::kDone;
    for (int i = 0; i < kMaxWakeups; ++i) {
        const std::uint32_t before = tx_.unread();
        if (before == 0) return Output::kDone;
        ++(i == 0 ? counts_.tx_wakeups : counts_.tx_wakeups_again);
        const ssize_t sent = ::sendto(socket_->fd(), nullptr, 0, MSG_DONTWAIT, nullptr, 0);
        if (socket_->mode().zero_copy) return Output::kDone;
        // EAGAIN: budget spent, completion ring or send buffer full. EBUSY: the last packet was dropped below us, go
        // on.
        if (sent < 0 && errno != EAGAIN && errno != EBUSY) {
            ++counts_.tx_refused;
            return Output::kRefused;
        }
        reap();
        if (tx_.unread() == before) return Output::kStuck;
    }
    return tx_.unread() != 0 ? Output::kStuck : Output::kDone;
}

/// Those that are next in the queue. The ring is empty: what stood before them has left.
AfXdpDevice::Output AfXdpDevice::send_super_packets() {
    for (;;) {
        const std::span<const TxQueue::Descriptor> pending = tx_queue_.pending();
        if (pending.empty() || pending[0].segment_size == 0) return Output::kDone;
        std::size_t count = 1;
        while (pending[count - 1].more) ++count;
        switch (super_packets_->send(pool_, pending.first(count))) {
            case SuperPacketSocket::Outcome::kLater: return Output::kStuck;
            case SuperPacketSocket::Outcome::kRefused: ++counts_.tx_refused; return Output::kRefused;
            case SuperPacketSocket::Outcome::kImpossible: ++counts_.tx_super_packets_lost; break;
            case SuperPacketSocket::Outcome::kTaken: ++counts_.tx_super_packets; break;
        }
        for (std::size_t i = 0; i < count; ++i) pool_.release(pending[i].chunk);
        tx_queue_.consume(count);
    }
}

bool AfXdpDevice::flush() {
    reap();
    if (tx_queue_.pending().empty() && tx_.unread() == 0) return false;
    // The queue may hold more than the ring: go on while something leaves.
    Output output;
    std::size_t before;
    do {
        before = tx_queue_.pending().size();
        queue_packets();
        output = wake_for_output();
        if (output == Output::kDone && super_packets_) output = send_super_packets();
    } while (output == Output::kDone && tx_queue_.pending().size() < before && !tx_queue_.pending().empty());
    if (output == Output::kRefused) return false;  // a link that is down: calling again at once would not help
    const bool left = output == Output::kStuck || !tx_queue_.pending().empty();
    if (left) ++counts_.tx_left_over;
    return left;
}

std::string AfXdpDevice::describe() const {
    std::string text = "af_xdp " + facts_.name + " queue " + std::to_string(queue_);
    text += program_.mode() == XdpMode::kNative ? ", native" : ", generic";
    text += socket_->mode().zero_copy ? " zero-copy mode" : " copy mode";
    if (!socket_->mode().multi_buffer) text += ", no multi-buffer";
    return text;
}

std::vector<Statistic> AfXdpDevice::statistics() const {
    std::vector<Statistic> result = {
        {"xsk_rx_packets", counts_.rx_packets},
        {"xsk_rx_multi_buffer", counts_.rx_multi_buffer},
        {"xsk_rx_too_many_buffers", counts_.rx_too_many_buffers},
        {"xsk_tx_packets", counts_.tx_packets},
        {"xsk_tx_wakeups", counts_.tx_wakeups},
        {"xsk_tx_wakeups_again", counts_.tx_wakeups_again},
        {"xsk_tx_left_over", counts_.tx_left_over},
        {"xsk_tx_refused", counts_.tx_refused},
        {"xsk_tx_super_packets", counts_.tx_super_packets},
        {"xsk_tx_super_packets_lost", counts_.tx_super_packets_lost},
        {"xsk_tx_budget", socket_->tx_budget()},
    };
    xdp_statistics kernel{};
    socklen_t size = sizeof kernel;
    if (::getsockopt(socket_->fd(), SOL_XDP, XDP_STATISTICS, &kernel, &size) == 0) {
        result.push_back({"xsk_rx_dropped", kernel.rx_dropped});
        result.push_back({"xsk_rx_invalid_descs", kernel.rx_invalid_descs});
        result.push_back({"xsk_tx_invalid_descs", kernel.tx_invalid_descs});
        result.push_back({"xsk_rx_ring_full", kernel.rx_ring_full});
        result.push_back({"xsk_rx_fill_ring_empty", kernel.rx_fill_ring_empty_descs});
    }
    return result;
}

}  // namespace culvert::device
