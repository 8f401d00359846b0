// What a seed decides before anything happens.
#include "daemon/stack/tcp/isn.h"
#include "daemon/wire/tcp.h"
#include "tests/sim/world.h"

namespace culvert::sim {
namespace {

/// Never owns anything: for the scratch connection of draw_start().
class Nobody final : public stack::tcp::ConnectionOwner {
public:
    void on_established(stack::tcp::Connection&) override {}
    std::uint32_t on_data(stack::tcp::Connection&, stack::Payload, std::uint32_t length) override { return length; }
    void on_end_of_stream(stack::tcp::Connection&) override {}
    void on_released(stack::tcp::Connection&, stack::SendChunk*) override {}
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t) override {}
    void on_closed(stack::tcp::Connection&, int) override {}
};

}  // namespace

Plan World::draw_plan() {
    Plan plan;
    plan.erratic = rng_.happens(0.4);
    plan.harsh = rng_.happens(0.4);
    plan.tight = rng_.happens(0.1);
    plan.routed = rng_.happens(0.25);
    plan.v6 = rng_.happens(0.5);
    plan.datagrams = rng_.happens(0.3);
    plan.crowd = rng_.happens(0.1);
    plan.mtu = rng_.happens(0.25) ? (rng_.happens(0.5) ? 9000u : 65535u) : 1500u;
    plan.connections = plan.crowd ? 100 + rng_.below(300) : 1 + rng_.below(10);
    plan.weather = draw_weather(plan.harsh);
    return plan;
}

Weather World::draw_weather(bool harsh) {
    const auto chance = [&](double most) { return rng_.happens(0.3) ? 0 : most * static_cast<double>(rng_.below(1000)) / 1000; };
    const auto span = [&](std::uint64_t ms) { return std::chrono::microseconds(rng_.below(ms * 1000 + 1)); };
    Weather w;
    w.loss = chance(harsh ? 0.3 : 0.08);
    if (harsh && rng_.happens(0.4)) {
        w.burst = chance(0.02);
        w.burst_more = chance(0.9);
    }
    w.duplicate = chance(0.05);
    w.reorder = chance(0.3);
    w.corrupt = chance(0.01);
    w.delay = span(rng_.happens(0.5) ? 1 : 40);
    w.jitter = span(20);
    if (rng_.happens(0.5)) {
        w.bytes_per_second = 200'000 + static_cast<double>(rng_.below(20'000'000));
        // Room for a few of the longest frames, or for up to 100 ms.
        w.longest_queue = 4.0 * (plan_.mtu + 100) + w.bytes_per_second * static_cast<double>(rng_.below(100)) / 1000;
        if (rng_.happens(0.5)) w.mark_above = w.longest_queue * static_cast<double>(rng_.below(100)) / 100;
    }
    return w;
}

stack::StackConfig World::draw_config() {
    stack::StackConfig config;
    config.max_connections = 1024;
    config.max_half_open = 512;
    config.max_time_wait = 1024;
    config.max_listeners = 4;
    config.max_udp_sockets = 4;
    config.max_bbr = rng_.happens(0.2) ? 2 : 1024;
    config.reassembly_chunks = rng_.happens(0.2) ? 32 : 1024;
    config.max_ip_reassemblies = rng_.happens(0.5) ? 4 : 64;
    config.ip_reassembly_chunks = 256;
    if (plan_.tight) {
        config.max_connections = static_cast<std::uint32_t>(1 + rng_.below(plan_.connections));
        config.max_half_open = static_cast<std::uint32_t>(1 + rng_.below(4));
        config.max_time_wait = static_cast<std::uint32_t>(1 + rng_.below(4));
    }
    if (rng_.happens(0.3)) config.default_receive_buffer = static_cast<std::uint32_t>(4096 + rng_.below(100'000));
    config.syn_cookies = static_cast<stack::tcp::SynCookiePolicy>(rng_.happens(0.2) ? 2 : rng_.below(2));
    config.ecn = static_cast<stack::tcp::EcnMode>(rng_.below(3));
    config.congestion = static_cast<stack::tcp::Congestion>(1 + rng_.below(4));
    config.fast_open_server = rng_.happens(0.5);
    config.secret[0] = rng_.next();
    config.secret[1] = rng_.next();
    return config;
}

void World::make_hosts() {
    const bool few = rng_.happens(0.2) && !plan_.crowd;  // frames hardly enough for one packet of each
    const auto frames = [&] { return few ? (plan_.mtu == 65535 ? 24u : 6u) : 8192u; };
    client_ = std::make_unique<SimHost>("client", draw_config(), frames(), rng_.next(), failures_);
    server_ = std::make_unique<SimHost>("server", draw_config(), frames(), rng_.next(), failures_);
    client_->add_interface(plan_.mtu, {{Address::v4(10, 0, 0, 1), 24, true}, {*Address::parse("fd00::1"), 64, true}});
    server_->add_interface(plan_.mtu, {{Address::v4(10, 0, 1, 2), 24, true}, {*Address::parse("fd00:1::2"), 64, true}});
    client_address_ = plan_.v6 ? *Address::parse("fd00::1") : Address::v4(10, 0, 0, 1);
    server_address_ = plan_.v6 ? *Address::parse("fd00:1::2") : Address::v4(10, 0, 1, 2);
    hosts_ = {client_.get(), server_.get()};
    if (!plan_.routed) return;
    router_ = std::make_unique<SimHost>("router", draw_config(), 8192, rng_.next(), failures_);
    router_->add_interface(plan_.mtu, {{Address::v4(10, 0, 0, 254), 24, true}, {*Address::parse("fd00::fe"), 64, true}});
    // The far side may be narrower from the beginning: the router tells, and cuts what may be cut.
    router_->add_interface(rng_.happens(0.3) ? 1280 : plan_.mtu, {{Address::v4(10, 0, 1, 254), 24, true}, {*Address::parse("fd00:1::fe"), 64, true}});
    router_->stack.set_forwarding(true, rng_.happens(0.5));
    hosts_.push_back(router_.get());
}

void World::connect_hosts() {
    const Address client[] = {Address::v4(10, 0, 0, 1), *Address::parse("fd00::1")};
    const Address server[] = {Address::v4(10, 0, 1, 2), *Address::parse("fd00:1::2")};
    const Address near_router[] = {Address::v4(10, 0, 0, 254), *Address::parse("fd00::fe")};
    const Address far_router[] = {Address::v4(10, 0, 1, 254), *Address::parse("fd00:1::fe")};
    const auto wire = [&](SimHost& a, std::uint32_t ia, SimHost& b, std::uint32_t ib) {
        const std::size_t first = wires_.size();
        wires_.push_back({&a, ia, &b, ib, first + 1, Link(plan_.weather, rng_)});
        wires_.push_back({&b, ib, &a, ia, first, Link(plan_.weather, rng_)});
    };
    const auto all_v4 = Address::v4(0, 0, 0, 0);
    if (!plan_.routed) {
        wire(*client_, 1, *server_, 1);
        client_->know(1, server, server_->mac(1));
        server_->know(1, client, client_->mac(1));
        for (SimHost* host : {client_.get(), server_.get()})
            host->set_routes({{.destination = all_v4, .interface = 1}, {.destination = Address(), .interface = 1}});
        return;
    }
    wire(*client_, 1, *router_, 1);
    wire(*router_, 2, *server_, 1);
    client_->know(1, near_router, router_->mac(1));
    server_->know(1, far_router, router_->mac(2));
    router_->know(1, client, client_->mac(1));
    router_->know(2, server, server_->mac(1));
    client_->set_routes({{.destination = all_v4, .gateway = near_router[0], .interface = 1},
                         {.destination = Address(), .gateway = near_router[1], .interface = 1}});
    server_->set_routes({{.destination = all_v4, .gateway = far_router[0], .interface = 1},
                         {.destination = Address(), .gateway = far_router[1], .interface = 1}});
    router_->set_routes({{.destination = Address::v4(10, 0, 0, 0), .prefix_length = 24, .interface = 1},
                         {.destination = Address::v4(10, 0, 1, 0), .prefix_length = 24, .interface = 2},
                         {.destination = *Address::parse("fd00::"), .prefix_length = 64, .interface = 1},
                         {.destination = *Address::parse("fd00:1::"), .prefix_length = 64, .interface = 2}});
}

void World::draw_disturbances() {
    const auto add = [&](Duration when, Disturbance disturbance) {
        disturbances_.push_back(disturbance);
        at(when, What::kDisturb, disturbances_.size() - 1);
        calm_since_ = std::max(calm_since_, now_ + when);
    };
    const auto moment = [&](std::uint64_t ms) { return std::chrono::milliseconds(rng_.below(ms)); };
    const std::size_t wire = rng_.below(wires_.size());
    const std::uint32_t narrow = static_cast<std::uint32_t>(plan_.v6 ? 1280 : 600) + static_cast<std::uint32_t>(rng_.below(plan_.mtu - 1280));
    using Kind = Disturbance::Kind;
    if (plan_.harsh && rng_.happens(0.4)) {
        const Duration begins = moment(10'000);
        const bool both = rng_.happens(0.6);
        add(begins, {Kind::kPartition, wire, both, true});
        add(begins + moment(rng_.happens(0.2) ? 400'000 : 20'000), {Kind::kPartition, wire, both, false});
    }
    if (rng_.happens(0.3)) {
        // Also in fair weather: connections find out by themselves. (A generator of its own: the other draws stay as they were.)
        const bool tells = plan_.harsh ? rng_.happens(0.6) : Rng(seed_ ^ 0xb1ac).happens(0.6);
        const Duration begins = moment(5'000);
        add(begins, {Kind::kPathMtu, wire, rng_.happens(0.5), true, narrow, tells});
        if (rng_.happens(0.4)) add(begins + moment(20'000), {Kind::kPathMtu, wire, true, true, Link::kNoLimit, true});
    }
    if (rng_.happens(0.2)) add(moment(5'000), {Kind::kHostMtu, wire, true, true, narrow, true});
}

void World::draw_pairs() {
    for (std::size_t i = 0; i < plan_.connections; ++i) {
        const auto bytes = [&] { return rng_.below(std::uint64_t{1} << (4 + rng_.below(plan_.crowd ? 10 : 17))); };
        const std::uint64_t stream = (kFirstPort + i) * 2;
        Pair pair;
        pair.dialogue = {stream, bytes(), stream + 1, bytes()};
        pair.crossed = rng_.happens(0.1);
        pairs_.push_back(pair);
        at(i == 0 ? Duration{} : Duration(std::chrono::milliseconds(rng_.below(2000))), What::kOpen, i);
    }
    open_left_ = pairs_.size();
    // Somebody who vanished without a trace, or whose SYN cookie's ACK was lost, must be noticed.
    keep_alive_ = !plan_.orderly() || server_->config.syn_cookies == stack::tcp::SynCookiePolicy::kAlways;
}

/// The clock starts anywhere; in a share of the worlds so that sequence numbers or timestamps of the first connection wrap
/// early. What its first segment would be is found out by sending it.
Instant World::draw_start() {
    const Instant usual{1h + Duration(static_cast<Duration::rep>(rng_.below(std::uint64_t{1} << 50)))};
    const double kind = static_cast<double>(rng_.below(100)) / 100;
    if (kind >= 0.5) return usual;
    Failures ignored;
    Nobody nobody;
    SimHost scratch("client", client_->config, 64, 1, ignored);
    scratch.add_interface(1500, {{client_address_, plan_.v6 ? 64u : 24u, true}});
    scratch.set_routes({{.destination = Address::any(client_address_.family()), .interface = 1}});
    scratch.know(1, std::span(&server_address_, 1), server_->mac(1));
    const auto made = scratch.stack.connect({client_address_, kFirstPort}, {server_address_, kServerPort}, {}, nobody, usual);
    CHECK(made.has_value());
    scratch.stack.flush(usual);
    const auto frames = scratch.take_frames(1);
    CHECK(frames.size() == 1);
    const auto view = wire::TcpView::parse(std::span(frames[0]).subspan(plan_.v6 ? 54 : 34));
    if (kind < 0.25) return usual + Duration(4000) * static_cast<Duration::rep>(static_cast<std::uint32_t>(-view->sequence() - rng_.below(20'000)));
    const std::uint32_t stamp = wire::TcpOptions::parse(view->options())->timestamps->value;
    return usual + 1ms * static_cast<Duration::rep>(static_cast<std::uint32_t>(-stamp - rng_.below(5000)));
}

}  // namespace culvert::sim
