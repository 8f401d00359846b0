// The application's hand on a segment: what the shim does, done plainly, for tests of the daemon's side.
//
// It can also do what the shim never would: every structure is open to the test.
#pragma once

#include <optional>
#include <string>

#include "shm/accept_queue.h"
#include "shm/block_list.h"
#include "shm/segment.h"

namespace culvert::test {

class AppSide {
public:
    AppSide(shm::Segment shared, std::uint32_t slot) : segment(std::move(shared)), slot_(slot) {}

    /// Takes a record of the application's range; it must have one.
    std::uint32_t socket() {
        shm::SocketBitmap free = segment.free_sockets();
        for (std::uint32_t index = 0; index < segment.geometry().app_sockets; ++index) {
            if (!free.test(index)) continue;
            hold(index);
            if (free.clear(index)) return index;
        }
        return shm::kNoIndex;
    }
    void hold(std::uint32_t socket) { segment.holders(slot_).set(socket); }

    /// Submits an operation; the answer is there after the daemon's next turn.
    void submit(std::uint32_t socket, shm::Operation code, const shm::WireEndpoint& local,
                const shm::WireEndpoint& remote, std::uint32_t argument = 0) {
        shm::SocketRecord& record = segment.socket(socket);
        record.operation.code.store(static_cast<std::uint32_t>(code));
        record.operation.argument.store(argument);
        record.operation.local = local;
        record.operation.remote = remote;
        record.app.operation_sequence.fetch_add(1);
        segment.dirty().post(socket);
    }
    bool answered(std::uint32_t socket) {
        const shm::SocketRecord& record = segment.socket(socket);
        return record.daemon.operation_done.load() == record.app.operation_sequence.load();
    }
    int answer(std::uint32_t socket) { return segment.socket(socket).daemon.operation_result.load(); }
    std::uint32_t status(std::uint32_t socket) { return segment.socket(socket).daemon.status.load(); }

    /// As many bytes as there are blocks for. `urgent`: the last of them, as MSG_OOB does.
    std::size_t send(std::uint32_t socket, std::string_view bytes, bool urgent = false) {
        shm::SocketRecord& record = segment.socket(socket);
        shm::TaggedStack pool(segment.header().tx_free, segment.block_meta(), segment.geometry().tx_blocks);
        std::size_t sent = 0;
        while (sent < bytes.size()) {
            const std::uint32_t block = pool.pop();
            if (block == shm::kNoIndex) break;
            const std::string_view part = bytes.substr(sent, shm::kBlockSize);
            std::memcpy(segment.block(block), part.data(), part.size());
            segment.block_meta()[block].length.store(static_cast<std::uint32_t>(part.size()));
            segment.block_meta()[block].offset.store(0);
            segment.block_meta()[block].flags.store(urgent && sent + part.size() == bytes.size() ? shm::kBlockUrgent : 0);
            record.app.tx_queued.fetch_add(part.size());
            shm::push_block(record.app.tx_list, segment.block_meta(), block);
            sent += part.size();
        }
        segment.dirty().post(socket);
        return sent;
    }

    /// Everything that has arrived.
    std::string receive(std::uint32_t socket) {
        shm::SocketRecord& record = segment.socket(socket);
        std::string bytes;
        for (std::uint32_t link = shm::take_all(record.daemon.rx_list); link != shm::kEmptyList;) {
            const std::uint32_t block = link - 1;
            const shm::BlockMeta& meta = segment.block_meta()[block];
            link = meta.next.load();
            const auto* begin = reinterpret_cast<const char*>(segment.block(block)) + meta.offset.load();
            bytes.insert(0, begin, meta.length.load());
            shm::push_block(segment.header().rx_returned, segment.block_meta(), block);
        }
        record.app.rx_consumed.fetch_add(bytes.size());
        return bytes;
    }

    std::optional<std::uint32_t> accept(std::uint32_t listener) {
        shm::AcceptQueueConsumer queue(segment.accept_queue(segment.socket(listener).accept_queue.load()));
        const auto socket = queue.take();
        if (socket) hold(*socket);
        return socket;
    }
    void set_flags(std::uint32_t socket, std::uint32_t flags) {
        segment.socket(socket).app.flags.fetch_or(flags);
        segment.dirty().post(socket);
    }
    void close(std::uint32_t socket) {
        segment.holders(slot_).clear(socket);
        set_flags(socket, shm::kAppClosed);
    }

    shm::Segment segment;

private:
    std::uint32_t slot_;
};

}  // namespace culvert::test
