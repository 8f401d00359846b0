#include "tests/sim/world.h"

#include <algorithm>

#include "daemon/wire/describe.h"

namespace culvert::sim {

World::World(std::uint64_t seed, std::string traced) : seed_(seed), rng_(seed), traced_(std::move(traced)) {
    plan_ = draw_plan();
    make_hosts();
    now_ = start_ = draw_start();
    connect_hosts();
    draw_pairs();
    draw_disturbances();
}
World::~World() = default;

void World::at(Duration from_now, What what, std::size_t index) { agenda_.push({now_ + from_now, order_++, what, index}); }

void World::run() {
    auto made = server_->stack.listen({server_address_, kServerPort}, false,
                                      [&] {
                                          stack::tcp::ListenerOptions options(Application::draw_options(rng_, keep_alive_));
                                          options.fast_open_queue = static_cast<std::uint32_t>(rng_.below(20));
                                          return options;
                                      }(),
                                      *this);
    CHECK(made.has_value());
    listener_ = *made;
    if (plan_.datagrams) {
        const Endpoint client{client_address_, Datagrams::kPort}, server{server_address_, Datagrams::kPort};
        const std::uint64_t copies = plan_.routed ? 4 : 2;
        client_datagrams_ = std::make_unique<Datagrams>(*client_, client, server, copies, rng_, failures_);
        server_datagrams_ = std::make_unique<Datagrams>(*server_, server, client, copies, rng_, failures_);
        client_datagrams_->peer = server_datagrams_.get();
        server_datagrams_->peer = client_datagrams_.get();
        at(Duration{}, What::kDatagram, 0);
    }
    at(10s, What::kLook);
    const Instant horizon = start_ + 3h;
    while (!all_done() && failures_.none() && now_ < horizon) step();
    failures_.expect(now_ < horizon, "did not end within three hours of virtual time");
    if (!failures_.none()) return;
    check_pairs();
    wind_up();
    count();
}

bool World::all_done() const { return open_left_ == 0 && alive_ == 0; }

Instant World::next() const {
    Instant at = agenda_.empty() ? kNever : agenda_.top().at;
    for (const Wire& wire : wires_) at = std::min(at, wire.link.next());
    for (const SimHost* host : hosts_) at = std::min(at, host->stack.next_deadline());
    return at;
}

void World::step() {
    now_ = std::max(now_ + Duration(1), next());
    for (Wire& wire : wires_) {
        std::vector<Bytes> burst;
        for (Bytes frame = wire.link.arrive(now_); !frame.empty(); frame = wire.link.arrive(now_)) burst.push_back(std::move(frame));
        if (wire.to == router_.get())
            for (const Bytes& frame : burst) wire.to->receive(wire.to_index, frame, true, now_);
        else if (!burst.empty())
            wire.to->receive(wire.to_index, burst, now_);
    }
    while (!agenda_.empty() && agenda_.top().at <= now_) {
        const Item item = agenda_.top();
        agenda_.pop();
        do_item(item);
    }
    for (SimHost* host : hosts_) {
        host->stack.advance(now_);
        host->stack.flush(now_);
    }
    send_frames();
}

void World::do_item(const Item& item) {
    switch (item.what) {
        case What::kOpen: return open(item.index);
        case What::kAct: {
            Application& application = *applications_[item.index];
            if (application.closed()) {
                --alive_;
                return;
            }
            application.act();
            return at(std::chrono::microseconds(100 + rng_.below(rng_.happens(0.01) ? 3'000'000 : 10'000)), What::kAct, item.index);
        }
        case What::kDatagram:
            (rng_.happens(0.5) ? client_datagrams_ : server_datagrams_)->send(now_);
            if (!winding_up_ && now_ < start_ + 60s) at(std::chrono::microseconds(rng_.below(200'000)), What::kDatagram);
            return;
        case What::kDisturb: return disturb(disturbances_[item.index]);
        case What::kLook: return look();
    }
}

void World::look() {
    for (SimHost* host : hosts_) host->check_budgets();
    if (winding_up_) return;
    check_stalls();
    at(10s, What::kLook);
}

Application& World::make_application(const char* who, std::size_t pair, const Dialogue& dialogue) {
    applications_.push_back(std::make_unique<Application>(std::string(who) + ":" + std::to_string(kFirstPort + pair), dialogue,
                                                          plan_.erratic, keep_alive_, rng_, failures_));
    Application& made = *applications_.back();
    made.progressed_at = now_;
    ++alive_;
    at(std::chrono::microseconds(rng_.below(rng_.happens(0.5) ? 1 : 2000)), What::kAct, applications_.size() - 1);
    return made;
}

void World::open(std::size_t index) {
    --open_left_;
    Pair& pair = pairs_[index];
    const Port port = static_cast<Port>(kFirstPort + index);
    const Endpoint here{client_address_, port};
    const Endpoint there{server_address_, pair.crossed ? static_cast<Port>(kFirstCrossedPort + index) : kServerPort};
    const auto connect = [&](SimHost& host, const char* who, const Endpoint& from, const Endpoint& to, const Dialogue& dialogue) -> Application* {
        Application& application = make_application(who, index, dialogue);
        const auto opened = host.stack.connect(from, to, Application::draw_options(rng_, keep_alive_), application, now_);
        if (opened) {
            application.connection = *opened;
            return &application;
        }
        failures_.expect(plan_.tight, std::string(who) + ": connect failed with " + std::to_string(opened.error().code));
        application.never_opened();
        return nullptr;
    };
    pair.client = connect(*client_, "client", here, there, pair.dialogue);
    if (!pair.crossed) return;
    ++totals_.both_active;
    if (auto* const other = connect(*server_, "server", there, here, pair.dialogue.reversed())) pair.servers.push_back(other);
}

bool World::can_accept() {
    if (now_ < accepts_again_) return false;
    if (rng_.happens(plan_.crowd ? 0.001 : 0.02)) accepts_again_ = now_ + std::chrono::milliseconds(rng_.below(3000));
    return !rng_.happens(0.03);
}

stack::tcp::ConnectionOwner* World::on_accept(stack::tcp::Connection& opened) {
    if (plan_.erratic && rng_.happens(0.02)) return nullptr;
    const std::size_t index = opened.remote().port - kFirstPort;
    if (index >= pairs_.size()) {
        failures_.add("accepted a connection that nobody opened");
        return nullptr;
    }
    Application& made = make_application("server", index, pairs_[index].dialogue.reversed());
    made.connection = &opened;
    pairs_[index].servers.push_back(&made);
    return &made;
}

void World::disturb(const Disturbance& disturbance) {
    Wire& wire = wires_[disturbance.wire];
    Wire& back = wires_[wire.back];
    switch (disturbance.kind) {
        case Disturbance::Kind::kPartition:
            wire.link.cut_off = disturbance.on;
            if (disturbance.both) back.link.cut_off = disturbance.on;
            return;
        case Disturbance::Kind::kPathMtu:
            wire.link.path_mtu = disturbance.mtu;
            wire.link.tells = disturbance.tells;
            if (!disturbance.both) return;
            back.link.path_mtu = disturbance.mtu;
            back.link.tells = disturbance.tells;
            return;
        case Disturbance::Kind::kHostMtu: return wire.from->set_mtu(wire.from_index, disturbance.mtu);
    }
}

void World::send_frames() {
    for (Wire& wire : wires_)
        for (Bytes& frame : wire.from->take_frames(wire.from_index)) put_on(wire, std::move(frame));
}

void World::put_on(Wire& wire, Bytes frame) {
    Bytes copy;
    if (!traced_.empty() || frame.size() > 14 + wire.link.path_mtu) copy = frame;
    const Link::Fate fate = wire.link.carry(std::move(frame), now_);
    if (!traced_.empty()) note(wire, copy, fate);
    if (fate != Link::Fate::kTooLong || !wire.link.tells) return;
    Bytes answer = too_big(copy, wire.link.path_mtu);
    if (answer.empty()) return;
    ++totals_.told_too_big;
    Wire& back = wires_[wire.back];
    if (!traced_.empty()) note(back, answer, Link::Fate::kSent);
    back.link.carry(std::move(answer), now_);
}

void World::note(const Wire& wire, const Bytes& frame, Link::Fate fate) {
    static constexpr const char* kFates[] = {"", "  (lost)", "  (cut off)", "  (too long)", "  (queue full)"};
    std::string line = wire::describe(frame);
    if (traced_ != "all" && line.find(traced_) == std::string::npos) return;
    const auto us = std::chrono::duration_cast<std::chrono::microseconds>(now_ - start_).count();
    transcript_.push_back(std::to_string(us) + " us " + wire.from->name + ": " + line + kFates[static_cast<int>(fate)]);
    if (transcript_.size() > kTranscriptLines) transcript_.pop_front();
}

std::string World::transcript() const {
    std::string all;
    for (const std::string& line : transcript_) all += line + "\n";
    return all;
}

}  // namespace culvert::sim
