// One end of a test link: the real TCP on the real IP, with a frame pool and a virtual clock, and nothing of an engine.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/base/frame_pool.h"
#include "daemon/base/packet.h"
#include "daemon/base/rng.h"
#include "daemon/stack/ip_input.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/listener.h"
#include "daemon/stack/tcp/tcp.h"

namespace culvert::test {

using namespace std::chrono_literals;
using Bytes = std::vector<std::byte>;

inline Bytes bytes_of(std::string_view text) {
    const auto* data = reinterpret_cast<const std::byte*>(text.data());
    return {data, data + text.size()};
}

/// An application that keeps what it gets and can say everything that happened to it.
class App final : public stack::tcp::ConnectionOwner {
public:
    void on_established(stack::tcp::Connection&) override { established = true; }
    std::uint32_t on_data(stack::tcp::Connection& connection, stack::Payload payload, std::uint32_t length) override {
        std::uint32_t left = std::min(length, accept_limit);
        const std::uint32_t taken = left;
        for (const auto& piece : payload) {
            const std::size_t n = std::min<std::size_t>(left, piece.size());
            received.append(reinterpret_cast<const char*>(piece.data()), n);
            left -= static_cast<std::uint32_t>(n);
        }
        EXPECT_EQ(left, 0u) << "the fragments are shorter than the length";
        if (reads) connection.consumed(taken);
        return taken;
    }
    void on_urgent(stack::tcp::Connection&, std::uint64_t ahead) override { urgent_at.push_back(received.size() + ahead); }
    void on_end_of_stream(stack::tcp::Connection&) override {
        EXPECT_FALSE(end_of_stream);
        end_of_stream = true;
    }
    void on_released(stack::tcp::Connection&, stack::SendChunk* first) override {
        while (first != nullptr) {
            stack::SendChunk* const next = first->next;
            EXPECT_EQ(chunks_.erase(first), 1u) << "a chunk came back that was not out";
            first = next;
        }
    }
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t bytes) override { acknowledged += bytes; }
    void on_soft_error(stack::tcp::Connection&, int code) override { soft_errors.push_back(code); }
    void on_closed(stack::tcp::Connection&, int code) override {
        EXPECT_FALSE(closed) << "on_closed twice";
        EXPECT_TRUE(chunks_.empty()) << "on_closed before every chunk was released";
        closed = true;
        error = code;
    }

    /// Appends one chunk.
    void send(stack::tcp::Connection& connection, std::string_view text, bool more = false) {
        auto entry = std::make_unique<Entry>();
        entry->bytes = bytes_of(text);
        entry->chunk.data = entry->bytes.data();
        entry->chunk.length = static_cast<std::uint32_t>(entry->bytes.size());
        stack::SendChunk* const chunk = &entry->chunk;
        chunks_.emplace(chunk, std::move(entry));
        connection.send(chunk, chunk, more);
    }
    /// Takes over what `other` has given to send.
    void adopt(App& other) { chunks_.merge(other.chunks_); }
    std::size_t chunks_out() const { return chunks_.size(); }

    std::string received;
    std::vector<int> soft_errors;
    std::vector<std::uint64_t> urgent_at;     // where in the stream, each time we were told
    std::uint64_t acknowledged = 0;
    std::uint32_t accept_limit = UINT32_MAX;  // bytes on_data takes
    bool reads = true;                        // consumes at once
    bool established = false;
    bool end_of_stream = false;
    bool closed = false;
    int error = -1;

private:
    struct Entry {
        stack::SendChunk chunk;
        Bytes bytes;
    };
    std::map<stack::SendChunk*, std::unique_ptr<Entry>> chunks_;
};

class RecordingPorts final : public stack::PortOwner {
public:
    void take_port(Protocol, const Address& address, Port port) override { EXPECT_TRUE(held.emplace(Endpoint{address, port}, 1).second); }
    void release_port(Protocol, const Address& address, Port port) override {
        EXPECT_EQ(held.erase({address, port}), 1u);
    }
    bool is_elsewhere(const Endpoint&, const Endpoint& remote) override { return elsewhere.contains(remote); }
    std::map<Endpoint, int> held;
    std::set<Endpoint> elsewhere;  // by their remote ends
};

class NoResolver final : public stack::NeighborResolver {
public:
    void resolve(std::uint32_t, const Address&) override {}
};

struct HostConfig {
    Address address4 = Address::v4(10, 0, 0, 1);
    Address address6 = *Address::parse("fd00::1");
    MacAddress mac{{2, 0, 0, 0, 0, 1}};
    MacAddress peer_mac{{2, 0, 0, 0, 0, 2}};
    std::uint32_t mtu = 1500;
    std::uint32_t frames = 4096;
    std::uint64_t seed = 1;
    stack::StackConfig stack{};
};

inline stack::StackConfig small_stack_config() {
    stack::StackConfig config;
    config.max_connections = 4096;
    config.max_half_open = 64;
    config.max_time_wait = 1024;
    config.secret[0] = 0x0123456789abcdef;
    config.secret[1] = 0xfedcba9876543210;
    return config;
}

class TcpHost {
public:
    explicit TcpHost(const HostConfig& config)
        : pool(config.frames),
          tx(pool),
          rng(config.seed),
          neighbors(resolver, counters),
          output(routes, neighbors, counters),
          input_(output.local_addresses()),
          tcp(config.stack, output, ports, counters, rng) {
        eth0.index = 1;
        eth0.name = "eth0";
        eth0.mac = config.mac;
        eth0.mtu = config.mtu;
        eth0.up = true;
        eth0.tx = &tx;
        eth0.addresses = {{config.address4, 24}, {config.address6, 64}};
        stack::Interface* all[] = {&eth0};
        output.set_interfaces(all);
        routes.replace({{.destination = Address::v4(10, 0, 0, 0), .prefix_length = 24, .interface = 1},
                        {.destination = *Address::parse("fd00::"), .prefix_length = 64, .interface = 1}});
        for (int last = 1; last < 4; ++last) {
            neighbors.update(1, Address::v4(10, 0, 0, static_cast<std::uint8_t>(last)), config.peer_mac,
                             stack::NeighborState::kReachable, tx);
            neighbors.update(1, *Address::parse("fd00::" + std::to_string(last)), config.peer_mac,
                             stack::NeighborState::kReachable, tx);
        }
    }

    /// `pieces`: the frame as it lies in several buffers (the first holds the headers).
    void receive(std::span<const std::byte> frame, Instant now, std::size_t first_piece = SIZE_MAX) {
        // A copy of exactly this size, so that a sanitizer sees every step beyond it.
        const Bytes copy(frame.begin(), frame.end());
        const std::size_t head = std::min(first_piece, copy.size());
        const std::span<const std::byte> rest[] = {std::span(copy).subspan(head)};
        const RxPacket packet{.head = std::span(copy).first(head),
                              .rest = head < copy.size() ? std::span<const std::span<const std::byte>>(rest)
                                                         : std::span<const std::span<const std::byte>>{},
                              .length = static_cast<std::uint32_t>(copy.size()),
                              .checksum = ChecksumState::kUnverified};
        const auto ip = input_.accept(eth0, packet, false);
        if (!ip) return counters.drop(ip.error());
        tcp.input(*ip, now);
    }

    std::vector<Bytes> take_frames() {
        std::vector<Bytes> frames;
        bool more = false;
        const std::size_t count = tx.pending().size();
        for (const TxQueue::Descriptor& descriptor : tx.pending()) {
            if (!more) frames.emplace_back();
            const std::byte* const data = pool.data(descriptor.chunk);
            frames.back().insert(frames.back().end(), data, data + descriptor.length);
            pool.release(descriptor.chunk);
            more = descriptor.more;
        }
        tx.consume(count);
        return frames;
    }

    FramePool pool;
    TxQueue tx;
    Counters counters;
    Rng rng;
    NoResolver resolver;
    RecordingPorts ports;
    stack::RouteTable routes;
    stack::NeighborTable neighbors;
    stack::IpOutput output;
    stack::Interface eth0;

private:
    stack::IpInput input_;

public:
    stack::tcp::Tcp tcp;
};

}  // namespace culvert::test
