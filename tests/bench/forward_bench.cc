// Forwarding in memory: 64-byte frames from one interface to another, in place, the memory of both devices shared.
//
//   chunks of the pool --burst--> Stack::input(eth0) --> tx queue of eth1 --taken and given back as new arrivals-->
//
// The goal is 14.88 million packets a second, what 10 Gbit/s Ethernet carries. "Destinations" is to how many places the
// packets go, "routes" how many the table has.
#include <benchmark/benchmark.h>
#include <time.h>

#include <array>
#include <memory>
#include <vector>

#include "daemon/stack/stack.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "shm/base/check.h"

namespace culvert::bench {
namespace {

constexpr std::size_t kBurst = 64;
constexpr std::size_t kFrame = 60;  // 64 with the checksum that the device adds

class Router final : public stack::NeighborResolver, public stack::PortOwner {
public:
    Router(bool v4, std::size_t route_count, std::size_t destinations)
        : v4_(v4), stack_(config(), *this, *this, counters_, rng_) {
        in_ = &add(2, tx_[0]);
        add(3, tx_[1]);
        const Address gateway = v4 ? Address::v4(10, 1, 0, 254) : *Address::parse("fd01::fe");
        stack_.set_addresses(2, {{v4 ? Address::v4(10, 0, 0, 1) : *Address::parse("fd00::1"), v4 ? 24u : 64u}});
        stack_.set_addresses(3, {{v4 ? Address::v4(10, 1, 0, 1) : *Address::parse("fd01::1"), v4 ? 24u : 64u}});
        stack_.neighbors().update(3, gateway, MacAddress{{2, 0, 0, 0, 9, 9}}, stack::NeighborState::kReachable, tx_[1]);
        std::vector<stack::Route> routes{{.destination = Address::any(v4 ? Family::kIpv4 : Family::kIpv6),
                                          .prefix_length = 0,
                                          .gateway = gateway,
                                          .interface = 3}};
        while (routes.size() < route_count)
            routes.push_back({.destination = somewhere(),
                              .prefix_length = static_cast<unsigned>(v4 ? 16 + rng_.below(9) : 32 + rng_.below(17)),
                              .gateway = gateway,
                              .interface = 3});
        stack_.routes().replace(std::move(routes));
        stack_.set_forwarding(true, false);
        for (std::size_t i = 0; i < destinations; ++i) to_.push_back(somewhere());
        for (std::size_t i = 0; i < kBurst; ++i) chunks_[i] = pool_.allocate();
    }

    /// 64 packets arrive. Writing them is the sender's work, done outside of the measured time.
    void arrive() {
        for (std::size_t i = 0; i < kBurst; ++i) {
            const std::span<std::byte> frame(pool_.data(chunks_[i]), kFrame);
            const Address& to = to_[next_++ % to_.size()];
            wire::emit(wire::EthernetHeader{in_->mac, MacAddress{{2, 0, 0, 0, 5, 5}},
                                            v4_ ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6},
                       frame);
            if (v4_) {
                wire::emit(wire::Ipv4Header{.source = Address::v4(10, 0, 0, 2), .destination = to, .protocol = wire::IpProtocol::kUdp},
                           kFrame - 34, frame.subspan(14));
            } else {
                wire::emit(wire::Ipv6Header{.source = source6_, .destination = to, .protocol = wire::IpProtocol::kUdp},
                           kFrame - 54, frame.subspan(14));
            }
            burst_[i] = {.head = frame, .rest = {}, .length = kFrame};
            burst_[i].pool = &pool_;
            burst_[i].loan = &chunks_[i];
        }
    }
    void forward() {
        stack_.input(*in_, burst_, now_);
    }
    /// The sending device is done: its chunks are the receiving one's again.
    void sent() {
        const auto pending = tx_[1].pending();
        CHECK(pending.size() == kBurst);
        for (std::size_t i = 0; i < kBurst; ++i) {
            CHECK(chunks_[i] == kNoChunk);
            chunks_[i] = pending[i].chunk;
        }
        tx_[1].consume(kBurst);
    }
    std::uint64_t forwarded() const { return counters_.ip_forwarded; }

    void resolve(std::uint32_t, const Address&) override {}
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}

private:
    static stack::StackConfig config() {
        stack::StackConfig config;
        config.max_connections = config.max_half_open = config.max_time_wait = 64;
        return config;
    }
    stack::Interface& add(std::uint32_t index, TxQueue& tx) {
        stack::Interface made;
        made.index = index;
        made.mac = MacAddress{{2, 0, 0, 0, 0, static_cast<std::uint8_t>(index)}};
        made.up = true;
        made.tx = &tx;
        return stack_.add_interface(made);
    }
    Address somewhere() {
        std::array<std::byte, 16> bytes{};
        for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng_.below(256));
        bytes[0] = std::byte{0x20};
        if (v4_) {
            bytes[0] = static_cast<std::byte>(11 + rng_.below(100));
            return Address::from_v4(std::span<const std::byte, 4>(bytes.data(), 4));
        }
        return Address::from_v6(bytes);
    }

    const bool v4_;
    const Address source6_ = *Address::parse("fd00::2");
    Counters counters_;
    Rng rng_{1};
    FramePool pool_{1024};
    TxQueue tx_[2] = {TxQueue(pool_), TxQueue(pool_)};
    stack::Stack stack_;
    stack::Interface* in_ = nullptr;
    std::vector<Address> to_;
    std::size_t next_ = 0;
    std::array<ChunkIndex, kBurst> chunks_{};
    std::array<RxPacket, kBurst> burst_{};
    Instant now_{std::chrono::hours(1)};
};

/// Time that this thread has run: what else runs on the machine does not count.
std::chrono::nanoseconds cpu_time() {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

void Forward(benchmark::State& state, bool v4) {
    const auto router = std::make_unique<Router>(v4, static_cast<std::size_t>(state.range(0)), static_cast<std::size_t>(state.range(1)));
    std::chrono::nanoseconds spent{};
    for (auto _ : state) {
        router->arrive();
        const auto begin = cpu_time();
        router->forward();
        spent += cpu_time() - begin;
        router->sent();
    }
    const auto packets = static_cast<double>(router->forwarded());
    CHECK(router->forwarded() == static_cast<std::uint64_t>(state.iterations()) * kBurst);
    state.counters["ns/packet"] = static_cast<double>(spent.count()) / packets;
    state.counters["Mpackets/s"] = packets * 1000 / static_cast<double>(spent.count());
}
BENCHMARK_CAPTURE(Forward, Ipv4, true)->ArgNames({"routes", "destinations"})->Args({1, 1})->Args({1000, 1000})->Args({100000, 65536});
BENCHMARK_CAPTURE(Forward, Ipv6, false)->ArgNames({"routes", "destinations"})->Args({1, 1})->Args({1000, 1000})->Args({100000, 65536});

}  // namespace
}  // namespace culvert::bench

BENCHMARK_MAIN();
