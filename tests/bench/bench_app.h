// The application's side of a segment, as the shim does it, without its locks and descriptor tables: one epoll queue that
// watches every socket, requests of fixed size, and the same few atomic operations per request.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "shm/accept_queue.h"
#include "shm/block_list.h"
#include "shm/segment.h"
#include "tests/bench/bench_host.h"

namespace culvert::bench {

inline shm::WireEndpoint endpoint(const Address& address, Port port) {
    shm::WireEndpoint wire{};
    std::memcpy(wire.address, address.bytes().data(), 16);
    wire.port = port;
    wire.family = 4;
    return wire;
}

class App {
public:
    static constexpr shm::Geometry kGeometry{.sockets = 2048, .app_sockets = 1024, .tx_blocks = 4096, .rx_blocks = 4096,
                                             .queues = 4, .processes = 4, .accept_queues = 4};

    /// Attaches to a new tenant of `host`.
    explicit App(Host& host) : segment_(attach(host)), received_(kGeometry.sockets) {
        slot_ = *host.tenant->add_process(100);
        queue_ = *host.tenant->add_queue(slot_, UniqueFd(::dup(2)));  // never asleep, so never written to
    }

    std::uint32_t submit(shm::Operation code, const shm::WireEndpoint& local, std::uint32_t argument) {
        shm::SocketBitmap free = segment_.free_sockets();
        std::uint32_t socket = 0;
        while (!free.clear(socket)) ++socket;
        hold(socket);
        shm::SocketRecord& record = segment_.socket(socket);
        record.operation.code.store(static_cast<std::uint32_t>(code));
        record.operation.argument.store(argument);
        record.operation.local = local;
        record.app.operation_sequence.fetch_add(1);
        segment_.dirty().post(socket);
        return socket;
    }
    void watch(std::uint32_t socket) {
        segment_.watched(queue_).set(socket);
        segment_.socket(socket).app.watch.store(queue_ + 1);
    }
    std::uint32_t accept(std::uint32_t listener) {
        shm::AcceptQueueConsumer queue(segment_.accept_queue(segment_.socket(listener).accept_queue.load()));
        const auto socket = queue.take();
        if (!socket) return shm::kNoIndex;
        hold(*socket);
        watch(*socket);
        received_[*socket] = 0;
        return *socket;
    }
    void close(std::uint32_t socket) {
        segment_.holders(slot_).clear(socket);
        segment_.socket(socket).app.flags.fetch_or(shm::kAppClosed);
        segment_.dirty().post(socket);
    }
    /// Calls visit(socket) for each socket with news.
    template <class Visit>
    void wait(Visit&& visit) {
        segment_.ready(queue_).collect(visit);
    }
    std::uint32_t status(std::uint32_t socket) { return segment_.socket(socket).daemon.status.load(); }

    /// Reads everything that is there; returns the number of bytes.
    std::uint32_t receive(std::uint32_t socket) {
        shm::SocketRecord& record = segment_.socket(socket);
        shm::BlockMeta* meta = segment_.block_meta();
        std::uint32_t bytes = 0;
        for (std::uint32_t link = shm::take_all(record.daemon.rx_list); link != shm::kEmptyList;) {
            const std::uint32_t block = link - 1;
            link = meta[block].next.load(std::memory_order_relaxed);
            const std::uint32_t length = meta[block].length.load(std::memory_order_relaxed);
            std::memcpy(buffer_, segment_.block(block), length);
            bytes += length;
            shm::push_block(segment_.header().rx_returned, meta, block);
        }
        if (bytes == 0) return 0;
        const std::uint64_t consumed = record.app.rx_consumed.load(std::memory_order_relaxed) + bytes;
        record.app.rx_consumed.store(consumed, std::memory_order_release);
        if (consumed >= record.daemon.window_position.load(std::memory_order_relaxed)) segment_.dirty().post(socket);
        return bytes;
    }
    /// At most `bytes`; fewer when the pool is empty or the send limit is reached.
    std::uint32_t send(std::uint32_t socket, std::uint32_t bytes) {
        shm::SocketRecord& record = segment_.socket(socket);
        shm::BlockMeta* meta = segment_.block_meta();
        shm::TaggedStack pool(segment_.header().tx_free, meta, kGeometry.tx_blocks);
        std::uint32_t sent = 0;
        while (sent < bytes) {
            const std::uint32_t block = pool.pop();
            if (block == shm::kNoIndex) break;
            const std::uint32_t part = std::min(bytes - sent, shm::kBlockSize);
            std::memcpy(segment_.block(block), buffer_, part);
            meta[block].length.store(part, std::memory_order_relaxed);
            meta[block].offset.store(0, std::memory_order_relaxed);
            meta[block].flags.store(0, std::memory_order_relaxed);
            record.app.tx_queued.store(record.app.tx_queued.load(std::memory_order_relaxed) + part, std::memory_order_relaxed);
            shm::push_block(record.app.tx_list, meta, block);
            sent += part;
        }
        if (sent != 0) segment_.dirty().post(socket);
        return sent;
    }
    std::uint64_t in_flight(std::uint32_t socket) {
        const shm::SocketRecord& record = segment_.socket(socket);
        return record.app.tx_queued.load() - record.daemon.tx_released.load();
    }
    /// Counts towards a request of `size` bytes; true when it is complete.
    bool request(std::uint32_t socket, std::uint32_t bytes, std::uint32_t size) {
        received_[socket] += bytes;
        if (received_[socket] < size) return false;
        received_[socket] -= size;
        return true;
    }

private:
    static shm::Segment attach(Host& host) {
        UniqueFd fd;
        auto segment = shm::Segment::create(kGeometry, "bench", fd);
        auto shared = shm::Segment::open(fd.get(), kGeometry);
        CHECK(segment && shared);
        host.tenant = std::make_unique<tenant::Tenant>(1, "bench", std::move(*segment), host.stack, host.counters, host.commons);
        return std::move(*shared);
    }
    void hold(std::uint32_t socket) { segment_.holders(slot_).set(socket); }

    shm::Segment segment_;
    std::uint32_t slot_ = 0;
    std::uint32_t queue_ = 0;
    std::vector<std::uint32_t> received_;
    std::byte buffer_[shm::kBlockSize * 32] = {};
};

}  // namespace culvert::bench
