#include "tests/scripts/runner/culvert_world.h"

#include <charconv>
#include <deque>
#include <map>

#include "daemon/base/counters.h"
#include "daemon/base/frame_pool.h"
#include "daemon/base/packet.h"
#include "daemon/base/rng.h"
#include "daemon/base/timer_wheel.h"
#include "daemon/stack/stack.h"
#include "daemon/wire/ethernet.h"
#include "tests/scripts/runner/culvert_socket.h"

namespace culvert::script {
namespace {

constexpr MacAddress kOurMac{{2, 0, 0, 0, 0, 1}};
constexpr MacAddress kPeerMac{{2, 0, 0, 0, 0, 2}};

class NoResolver final : public stack::NeighborResolver {
public:
    void resolve(std::uint32_t, const Address&) override {}
};
class NoPorts final : public stack::PortOwner {
public:
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

std::uint64_t number(std::string_view text) {
    std::uint64_t value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    return value;
}

/// The sysctls that Culvert has a counterpart of.
void obey(const std::string& name, const std::string& value, stack::StackConfig& config) {
    if (name == "net.ipv4.tcp_congestion_control") {
        if (value == "reno") config.congestion = stack::tcp::Congestion::kNewReno;
        else if (value == "cubic") config.congestion = stack::tcp::Congestion::kCubic;
        else if (value == "bbr") config.congestion = stack::tcp::Congestion::kBbr;
        else if (value == "dctcp") config.congestion = stack::tcp::Congestion::kDctcp;
        else throw Unsupported("Culvert has no congestion control called " + value);
    } else if (name == "net.ipv4.tcp_ecn") {
        // 2: only if asked; 1: also ask; 0: never. 3 and above are AccECN, which we have not.
        if (number(value) > 2) throw Unsupported("Culvert has no AccECN (tcp_ecn=" + value + ")");
        config.ecn = number(value) == 0   ? stack::tcp::EcnMode::kOff
                     : number(value) == 1 ? stack::tcp::EcnMode::kOn
                                          : stack::tcp::EcnMode::kPassive;
    } else if (name == "net.ipv4.tcp_mtu_probing") {
        config.mtu_probing = number(value) == 0   ? stack::tcp::MtuProbing::kOff
                             : number(value) == 1 ? stack::tcp::MtuProbing::kBlackHole
                                                  : stack::tcp::MtuProbing::kOn;
    } else if (name == "net.ipv4.tcp_syncookies") {
        config.syn_cookies = number(value) == 0   ? stack::tcp::SynCookiePolicy::kOff
                             : number(value) == 1 ? stack::tcp::SynCookiePolicy::kAuto
                                                  : stack::tcp::SynCookiePolicy::kAlways;
    } else if (name == "net.ipv4.tcp_fastopen") {
        if (number(value) > 3) throw Unsupported("Culvert has no Fast Open without a cookie (tcp_fastopen=" + value + ")");
        config.fast_open_client = (number(value) & 1) != 0;
        config.fast_open_server = (number(value) & 2) != 0;
    } else if (name == "net.ipv4.tcp_fin_timeout") {
        config.fin_wait_2 = std::chrono::seconds(number(value));
    } else if (name == "net.ipv4.tcp_max_syn_backlog") {
        config.max_half_open = static_cast<std::uint32_t>(number(value));
    } else if (name == "net.ipv4.tcp_rmem") {
        const std::size_t second = value.find_first_of(" \t"), third = value.find_last_of(" \t");
        if (second == std::string::npos || third == second) throw Unsupported("tcp_rmem: expected three numbers");
        config.min_receive_buffer = static_cast<std::uint32_t>(number(std::string_view(value).substr(0, second)));
        config.default_receive_buffer = static_cast<std::uint32_t>(number(std::string_view(value).substr(second + 1)));
        config.max_receive_buffer = static_cast<std::uint32_t>(number(std::string_view(value).substr(third + 1)));
    } else {
        throw Unsupported("Culvert has no counterpart of " + name);
    }
}

stack::StackConfig config_for(const Setup& setup) {
    stack::StackConfig config;
    config.max_connections = 64;
    config.max_half_open = 64;
    config.max_time_wait = 16;
    config.max_listeners = 16;
    config.max_udp_sockets = 16;
    config.reassembly_chunks = 1024;
    config.secret[0] = 0x0123456789abcdef;
    config.secret[1] = 0xfedcba9876543210;
    for (const auto& [name, value] : setup.sysctls) obey(name, value, config);
    return config;
}

class CulvertWorld final : public World {
public:
    explicit CulvertWorld(const Setup& setup)
        : setup_(setup), stack_(config_for(setup), resolver_, ports_, counters_, rng_), sockets_{.stack = stack_, .setup = setup_, .now = now_, .open = {}, .closed = {}} {
        stack::Interface link;
        link.index = 1;
        link.name = "script0";
        link.mac = kOurMac;
        link.mtu = setup.mtu;
        link.up = true;
        link.tx = &tx_;
        link.addresses = {{setup.local.address, setup.ipv6 ? 64u : 16u}};
        link_ = &stack_.add_interface(std::move(link));
        stack_.routes().replace({{.destination = Address::any(setup.local.address.family()), .prefix_length = 0, .interface = 1}});
        stack_.neighbors().update(1, setup.remote.address, kPeerMac, stack::NeighborState::kReachable, tx_);
    }

    Duration now() const override { return now_ - kStart; }

    void run_until(Duration time) override {
        turn();
        const Instant target = kStart + time;
        while (step_towards(target)) {
        }
        now_ = std::max(now_, target);
        turn();
    }

    std::optional<Departed> next_packet(Duration deadline) override {
        turn();
        while (departed_.empty()) {
            if (step_towards(kStart + deadline)) continue;
            now_ = std::max(now_, kStart + deadline);
            turn();
            break;
        }
        if (departed_.empty()) return std::nullopt;
        Departed first = std::move(departed_.front());
        departed_.pop_front();
        return first;
    }

    void inject(const Bytes& packet) override {
        turn();
        Bytes frame(wire::kEthernetHeaderLength + packet.size());
        wire::emit(wire::EthernetHeader{kOurMac, kPeerMac, setup_.ipv6 ? wire::EtherType::kIpv6 : wire::EtherType::kIpv4}, frame);
        std::ranges::copy(packet, frame.begin() + wire::kEthernetHeaderLength);
        stack_.input(*link_, {.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size()), .checksum = ChecksumState::kUnverified}, now_);
        turn();
    }

    Ticket begin(const Call& call) override {
        turn();
        const Ticket ticket = next_ticket_++;
        Pending pending{.call = call, .started = now_, .finished = std::nullopt};
        attempt(pending, true);
        calls_.emplace(ticket, std::move(pending));
        turn();
        return ticket;
    }

    std::optional<Finished> finished(Ticket ticket, Duration deadline) override {
        Pending& pending = calls_.at(ticket);
        turn();
        while (!pending.finished && step_towards(kStart + deadline)) {
        }
        if (!pending.finished && now_ < kStart + deadline) {
            now_ = kStart + deadline;
            turn();
        }
        if (!pending.finished) return std::nullopt;
        Finished result = std::move(*pending.finished);
        calls_.erase(ticket);
        return result;
    }

    std::optional<std::int64_t> info(int fd, std::string_view field) override {
        const auto found = sockets_.open.find(fd);
        return found == sockets_.open.end() ? std::nullopt : found->second->info(field);
    }

private:
    struct Pending {
        Call call;
        Instant started;
        std::optional<Finished> finished;
    };

    void attempt(Pending& pending, bool first) {
        if (auto outcome = sockets_.attempt(pending.call, first, pending.started))
            pending.finished = Finished{std::move(*outcome), now()};
    }

    /// What is due now: timers, output, calls that can go on.
    void turn() {
        stack_.advance(now_);
        stack_.flush(now_);
        for (auto& [ticket, pending] : calls_)
            if (!pending.finished) attempt(pending, false);
        stack_.flush(now_);
        take_frames();
    }

    /// One timer's time further, but not beyond `target`. False: nothing is due by then.
    bool step_towards(Instant target) {
        Instant next = stack_.next_deadline();
        for (const auto& [ticket, pending] : calls_)
            if (!pending.finished && pending.call.name == Call::Name::kPoll && pending.call.second >= 0)
                next = std::min(next, pending.started + std::chrono::milliseconds(pending.call.second));
        if (next > target) return false;
        // A deadline that stands still (a timer within the same tick of the wheel) must not stop the clock.
        if (next <= now_) next = now_ + TimerWheel::kTick;
        if (next > target) return false;
        now_ = next;
        turn();
        return true;
    }

    void take_frames() {
        bool more = false;
        const std::size_t count = tx_.pending().size();
        for (const TxQueue::Descriptor& descriptor : tx_.pending()) {
            if (!more) departed_.push_back({.packet = {}, .at = now()});
            const std::byte* const data = pool_.data(descriptor.chunk);
            Bytes& packet = departed_.back().packet;
            packet.insert(packet.end(), data, data + descriptor.length);
            pool_.release(descriptor.chunk);
            more = descriptor.more;
            if (!more) packet.erase(packet.begin(), packet.begin() + wire::kEthernetHeaderLength);
        }
        tx_.consume(count);
    }

    static constexpr Instant kStart{std::chrono::hours(1)};
    const Setup setup_;
    Instant now_ = kStart;
    FramePool pool_{4096};
    TxQueue tx_{pool_};
    Counters counters_;
    Rng rng_{1};
    NoResolver resolver_;
    NoPorts ports_;
    stack::Stack stack_;
    CulvertSockets sockets_;
    stack::Interface* link_ = nullptr;
    std::deque<Departed> departed_;
    std::map<Ticket, Pending> calls_;
    Ticket next_ticket_ = 1;
};

}  // namespace

std::unique_ptr<World> make_culvert_world(const Setup& setup) { return std::make_unique<CulvertWorld>(setup); }

}  // namespace culvert::script
