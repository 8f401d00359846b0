// The table of the tests of several engines: stacks behind EnginePeers on one interface, and a host at the other end.
// Virtual time, one thread; what the rings do under two threads is in tests/stress.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "daemon/engine/engine_peers.h"
#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/connection.h"
#include "tests/support/tcp_host.h"

namespace culvert::test {

inline constexpr std::uint32_t kEth0 = 1;
inline constexpr MacAddress kOurMac{{2, 0, 0, 0, 0, 1}};
inline constexpr MacAddress kPeerMac{{2, 0, 0, 0, 0, 2}};

struct Addresses {
    Address ours;
    Address peers;
    Address group;
};
inline const Addresses kV4{Address::v4(10, 0, 0, 1), Address::v4(10, 0, 0, 2), Address::v4(239, 1, 1, 1)};
inline const Addresses kV6{*Address::parse("fd00::1"), *Address::parse("fd00::2"), *Address::parse("ff05::1234")};

class StackNode : public stack::tcp::ListenerOwner, public stack::udp::SocketOwner {
public:
    /// `exchange` null: a host by itself. eth0 is the test's to add, from interface().
    StackNode(engine::Exchange* exchange, std::uint32_t self, const stack::StackConfig& config)
        : rng(self + 1),
          peers(exchange != nullptr ? std::make_unique<engine::EnginePeers>(*exchange, self, counters) : nullptr),
          stack(config, resolver, ports, counters, rng, peers.get()) {
        if (peers) peers->set_own_addresses(stack);
    }
    /// eth0, up, with our transmit queue.
    stack::Interface interface(const MacAddress& mac) {
        stack::Interface interface;
        interface.index = kEth0;
        interface.name = "eth0";
        interface.mac = mac;
        interface.up = true;
        interface.tx = &tx;
        return interface;
    }

    bool can_accept() override { return true; }
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& connection) override {
        accepted.push_back({&connection, std::make_unique<App>()});
        return accepted.back().app.get();
    }
    bool on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo&, stack::Payload payload, std::uint32_t) override {
        std::string text;
        for (const auto piece : payload) text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
        datagrams.push_back(text);
        return true;
    }
    void on_error(stack::udp::Socket&, const stack::udp::DatagramError& error) override { errors.push_back(error.error); }

    /// Everything committed so far, each packet in one piece.
    std::vector<Bytes> take_sent() {
        std::vector<Bytes> packets;
        Bytes packet;
        for (const TxQueue::Descriptor& part : tx.pending()) {
            const std::byte* data = pool.data(part.chunk);
            packet.insert(packet.end(), data, data + part.length);
            if (!part.more) packets.push_back(std::exchange(packet, {}));
            pool.release(part.chunk);
        }
        tx.consume(tx.pending().size());
        return packets;
    }
    void input(const Bytes& frame, Instant now) {
        stack.input(*eth0, {.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())}, now);
    }

    struct Accepted {
        stack::tcp::Connection* connection;
        std::unique_ptr<App> app;
    };

    Counters counters;
    Rng rng;
    NoResolver resolver;
    struct CountingPorts final : stack::PortOwner {
        void take_port(Protocol, const Address&, Port) override { ++held; }
        void release_port(Protocol, const Address&, Port) override { --held; }
        int held = 0;
    } ports;
    FramePool pool{8192};
    TxQueue tx{pool};
    std::unique_ptr<engine::EnginePeers> peers;
    stack::Stack stack;
    stack::Interface* eth0 = nullptr;
    std::vector<Accepted> accepted;
    std::vector<std::string> datagrams;
    std::vector<int> errors;
};

/// Two engines on one interface and a peer; frames take a turn from one to the other. Which queue a frame of the peer's falls on
/// is `queue`'s to say: by chance, if nobody says. Derived tests own the nodes and name them in `engines` and `other_end`.
class TwoEngines : public ::testing::TestWithParam<Addresses> {
protected:
    TwoEngines() {
        for (std::uint32_t i = 0; i < 2; ++i) exchange.set_sleeper(i, sleepers_[i]);
    }
    /// Everybody takes in what was sent, and sends.
    void turn(Duration step = 1ms) {
        now += step;
        for (const Bytes& frame : std::exchange(to_us_, {})) engines[queue(frame)]->input(frame, now);
        for (StackNode* engine : engines) {
            if (engine == deaf) continue;
            engine->peers->receive([&](const engine::HandedOver& handed) { take_in(*engine, handed); });
            finish(*engine);
            engine->peers->ring_bells();
        }
        for (const Bytes& frame : std::exchange(to_peer_, {})) other_end->input(frame, now);
        finish(*other_end);
        for (StackNode* engine : engines)
            for (Bytes& frame : engine->take_sent()) to_peer_.push_back(std::move(frame));
        for (Bytes& frame : other_end->take_sent()) to_us_.push_back(std::move(frame));
    }
    bool turns_until(const std::function<bool()>& done, int limit = 20000) {
        for (int i = 0; i < limit && !done(); ++i) turn();
        return done();
    }
    Endpoint ours(Port port) const { return {GetParam().ours, port}; }
    Endpoint peers_end(Port port) const { return {GetParam().peers, port}; }

    Rng dice{42};
    std::function<std::size_t(const Bytes&)> queue = [this](const Bytes&) { return dice.below(2); };
    Instant now = Instant{} + 1h;
    engine::Exchange exchange{2, 4096};
    std::array<StackNode*, 2> engines{};
    StackNode* other_end = nullptr;
    StackNode* deaf = nullptr;  // does not get round to its turn

private:
    void take_in(StackNode& engine, const engine::HandedOver& handed) const {
        using Kind = engine::HandOverNote::Kind;
        ASSERT_NE(handed.note.kind, Kind::kToTransmit);
        if (handed.note.kind == Kind::kLinkMessage) return engine.stack.link_message(*engine.eth0, handed.packet.head, now);
        engine.stack.input_passed(*engine.eth0, handed.packet, handed.note.kind == Kind::kOwn, now);
    }
    void finish(StackNode& node) const {
        node.stack.advance(now);
        node.stack.flush(now);
    }

    engine::Sleeper sleepers_[2];
    std::vector<Bytes> to_us_;
    std::vector<Bytes> to_peer_;
};

inline std::string family_name(const ::testing::TestParamInfo<Addresses>& instance) {
    return instance.param.ours.is_v4() ? "IPv4" : "IPv6";
}

}  // namespace culvert::test
