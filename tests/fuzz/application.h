// The application of a fuzzed stack: all its sockets in one. It keeps the contract of owner.h under watch and proves streams.
//
// Both ways each octet is the low byte of its place, so a stream proves itself without a copy of it: what the application
// reads counts on by one (wherever it began), and what leaves is the distance from the SYN.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <vector>

#include "daemon/stack/owner.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/udp.h"
#include "shm/base/check.h"

namespace culvert::fuzz {

class Application final : public stack::tcp::ListenerOwner, public stack::tcp::ConnectionOwner, public stack::udp::SocketOwner {
    using Connection = stack::tcp::Connection;

public:
    static constexpr std::size_t kMaxLive = 16;

    bool can_accept() override { return accepting && live_.size() < kMaxLive; }
    ConnectionOwner* on_accept(Connection& c) override {
        if (refusing) return nullptr;
        add(c);
        return this;
    }
    void on_established(Connection& c) override { CHECK(live_.count(&c) == 1); }
    std::uint32_t on_data(Connection& c, stack::Payload payload, std::uint32_t length) override {
        Stream& stream = live_.at(&c);
        CHECK(!stream.closing && !stream.ended);
        std::uint32_t sum = 0;
        for (const auto piece : payload) sum += static_cast<std::uint32_t>(piece.size());
        CHECK(sum == length);
        const std::uint32_t taken = std::min(length, appetite);
        read(stream, payload, taken);
        stream.unread += taken;
        CHECK(stream.unread <= c.receive_buffer() + 65536);
        if (reading) take(c, stream, stream.unread);
        return taken;
    }
    void on_urgent(Connection& c, std::uint64_t ahead) override {
        CHECK(!live_.at(&c).closing && ahead <= 65536 + (std::uint64_t{65535} << 14));
    }
    void on_end_of_stream(Connection& c) override {
        CHECK(!live_.at(&c).ended);
        live_.at(&c).ended = true;
    }
    void on_released(Connection&, stack::SendChunk* first) override {
        for (; first != nullptr; first = first->next) {
            CHECK(first->tag == 1 && sent_chunks_ > 0);
            first->tag = 0;
            --sent_chunks_;
        }
    }
    void on_acknowledged(Connection& c, std::uint32_t bytes) override {
        Stream& stream = live_.at(&c);
        CHECK(bytes <= stream.unacknowledged);
        stream.unacknowledged -= bytes;
    }
    void on_closed(Connection& c, int) override { CHECK(live_.erase(&c) == 1); }
    bool on_datagram(stack::udp::Socket& socket, const stack::udp::DatagramInfo& info, stack::Payload payload,
                     std::uint32_t length) override {
        std::uint32_t sum = 0;
        for (const auto piece : payload) sum += static_cast<std::uint32_t>(piece.size());
        CHECK(sum == length && length <= stack::udp::kMaxPayload);
        CHECK(info.segment_size == 0 || (socket.options().merged && length > info.segment_size));
        CHECK(!socket.remote() || *socket.remote() == info.remote);
        return accepting;
    }
    void on_error(stack::udp::Socket& socket, const stack::udp::DatagramError& e) override {
        CHECK(e.error != 0);
        CHECK(e.queued == socket.options().errors);
    }

    void add(Connection& c) { CHECK(live_.emplace(&c, Stream{}).second); }
    bool full() const { return live_.size() >= kMaxLive; }
    bool gone(Connection* c) const { return live_.count(c) == 0; }
    bool holds_nothing() const { return live_.empty() && sent_chunks_ == 0; }

    /// Those that it still uses, by local port and remote, so that a run does not depend on addresses in memory.
    std::vector<Connection*> usable() const {
        std::vector<Connection*> all;
        for (const auto& [c, stream] : live_)
            if (!stream.closing) all.push_back(c);
        std::sort(all.begin(), all.end(), [](const auto* a, const auto* b) {
            return std::pair(a->local(), a->remote()) < std::pair(b->local(), b->remote());
        });
        return all;
    }
    Connection* pick(std::uint8_t n) const {
        const auto all = usable();
        return all.empty() ? nullptr : all[n % all.size()];
    }

    void send(Connection& c, std::uint32_t length) {
        static const std::array<std::byte, 65536 + 256> kPattern = [] {
            std::array<std::byte, 65536 + 256> bytes{};
            for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
            return bytes;
        }();
        Stream& stream = live_.at(&c);
        if (stream.shut || stream.unacknowledged > 1 << 20) return;
        const auto free = std::ranges::find(chunks_, 0u, &stack::SendChunk::tag);
        stack::SendChunk& chunk = free != chunks_.end() ? *free : chunks_.emplace_back();
        chunk = {.next = nullptr, .data = kPattern.data() + stream.sent % 256, .length = std::max(length, 1u), .tag = 1};
        ++sent_chunks_;
        stream.sent += chunk.length;
        stream.unacknowledged += chunk.length;
        c.send(&chunk, &chunk);
    }
    void urge(Connection& c, std::uint64_t behind) {
        const Stream& stream = live_.at(&c);
        if (!stream.shut && stream.unacknowledged != 0) c.mark_urgent(behind % stream.unacknowledged);
    }
    void consume(Connection& c, std::uint32_t bytes) {
        Stream& stream = live_.at(&c);
        take(c, stream, std::min(bytes, stream.unread));
    }
    void shut(Connection& c) {
        live_.at(&c).shut = true;
        c.shutdown_write();
    }
    void close(Connection& c, bool unread, bool linger_zero) {
        Stream& stream = live_.at(&c);
        stream.closing = stream.shut = true;
        c.close(*this, unread || stream.unread != 0, linger_zero);
    }

    bool accepting = true;
    bool refusing = false;
    bool reading = true;             // at once
    bool forged = false;             // the peer has sent bytes that are not the pattern: a stream proves nothing any more
    std::uint32_t appetite = UINT32_MAX;

private:
    struct Stream {
        bool closing = false, shut = false, ended = false;
        bool begun = false;
        std::uint8_t next = 0;       // the octet that comes next, once it has begun
        std::uint32_t unread = 0;
        std::uint64_t sent = 0, unacknowledged = 0;
    };

    void read(Stream& stream, stack::Payload payload, std::uint32_t length) const {
        for (const auto piece : payload) {
            for (const std::byte octet : piece.first(std::min<std::size_t>(length, piece.size()))) {
                CHECK(forged || !stream.begun || octet == std::byte{stream.next});
                stream.begun = true;
                stream.next = static_cast<std::uint8_t>(std::to_integer<unsigned>(octet) + 1);
            }
            length -= static_cast<std::uint32_t>(std::min<std::size_t>(length, piece.size()));
        }
    }
    static void take(Connection& c, Stream& stream, std::uint32_t bytes) {
        stream.unread -= bytes;
        if (bytes != 0) c.consumed(bytes);
    }

    std::map<Connection*, Stream> live_;
    std::size_t sent_chunks_ = 0;
    std::deque<stack::SendChunk> chunks_;
};

}  // namespace culvert::fuzz
