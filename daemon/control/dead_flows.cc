#include "daemon/control/dead_flows.h"

#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "daemon/control/foreign_socket.h"
#include "daemon/tenant/sockets.h"

namespace culvert::control {
namespace {

constexpr std::uint32_t kRounds = 3;
constexpr std::uint32_t kMostATick = 4096;  // of second and third rounds: a burst that devices take
constexpr std::size_t kMostWaiting = 65536;
/// Of all programs together: as many at once as a busy host has connections, then ten thousand a second.
constexpr std::uint32_t kBurst = 131072;
constexpr Duration kInterval = std::chrono::microseconds(100);

Instant now() { return Instant(std::chrono::duration_cast<Duration>(std::chrono::steady_clock::now().time_since_epoch())); }

}  // namespace

bool holds_port(int fd, const Endpoint& local) {
    const auto domain = socket_option(fd, SOL_SOCKET, SO_DOMAIN);
    const auto protocol = socket_option(fd, SOL_SOCKET, SO_PROTOCOL);
    if (!domain || !protocol || *protocol != IPPROTO_TCP || (*domain != AF_INET && *domain != AF_INET6)) return false;
    sockaddr_storage name{};
    socklen_t length = sizeof name;
    // A connection shares its listener's port, and may have come from anybody.
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0) return false;
    length = sizeof name;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0 || !is_of_our_namespace(fd)) return false;
    if (*domain == AF_INET) {
        const auto& bound = reinterpret_cast<const sockaddr_in&>(name);
        const Address address = Address::from_v4(std::as_bytes(std::span(&bound.sin_addr.s_addr, 1)).first<4>());
        return ntohs(bound.sin_port) == local.port && local.port != 0 && local.address.is_v4() &&
               (address.is_unspecified() || address == local.address);
    }
    const auto& bound = reinterpret_cast<const sockaddr_in6&>(name);
    const Address address = Address::from_v6(std::as_bytes(std::span(bound.sin6_addr.s6_addr)).first<16>());
    if (ntohs(bound.sin6_port) != local.port || local.port == 0) return false;
    if (address != Address::any(Family::kIpv6)) return address == local.address;
    return !local.address.is_v4() || socket_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 0;
}

void DeadFlows::report(const shm::ReportDead& message, std::span<const ForeignFd> proofs, std::uint32_t& left, std::uint32_t engine,
                       std::function<void(std::uint32_t)> done) {
    std::vector<Flow> flows;
    for (const shm::DeadFlow& dead : std::span(message.flows).first(message.count)) {
        ++statistics_.reported;
        const Flow flow{tenant::from_wire(dead.local), tenant::from_wire(dead.remote)};
        if (dead.proof >= proofs.size() || !holds_port(proofs[dead.proof].get(), flow.local)) {
            ++statistics_.unproved;
        } else if (left == 0 || !bucket_.take(now(), kInterval, kBurst)) {
            if (statistics_.limited++ == 0) spdlog::warn("more dead connections reported at once than their peers will be told of (said once)");
        } else {
            --left;
            flows.push_back(flow);
        }
    }
    probe(std::move(flows), engine, kRounds, std::move(done));
}

std::vector<DeadFlows::Flow> DeadFlows::without_living(std::vector<Flow> flows) {
    if (flows.empty()) return flows;
    const Result<std::vector<bool>> living = ask_kernel_(flows);
    if (!living) {
        spdlog::warn("cannot ask which connections the kernel has: {}", living.error().message());
        return {};
    }
    std::vector<Flow> dead;
    for (std::size_t i = 0; i < flows.size(); ++i) (*living)[i] ? void(++statistics_.alive) : dead.push_back(flows[i]);
    return dead;
}

void DeadFlows::probe(std::vector<Flow> flows, std::uint32_t engine, std::uint32_t rounds, std::function<void(std::uint32_t)> done) {
    engines_[engine].post([this, flows = without_living(std::move(flows)), engine, rounds, done = std::move(done)](engine::Engine& sender) {
        std::vector<Flow> sent;
        std::uint32_t alive = 0;
        for (const Flow& flow : flows) {
            const Result<void> probed = sender.stack().probe_dead_flow(flow.local, flow.remote, sender.now());
            if (probed) sent.push_back(flow);
            else if (probed.error().code == EISCONN) ++alive;
        }
        mailbox_.post([this, sent = std::move(sent), alive, engine, rounds, done] {
            statistics_.alive += alive;
            if (rounds == kRounds) statistics_.probed += sent.size();
            for (const Flow& flow : sent)
                if (rounds > 1 && again_.size() < kMostWaiting) again_.push_back({flow, engine, rounds - 1, ticks_ + 1});
            done(static_cast<std::uint32_t>(sent.size()));
        });
    });
}

void DeadFlows::tick() {
    ++ticks_;
    std::uint32_t asked = 0;
    while (!again_.empty() && again_.front().due <= ticks_ && asked < kMostATick) {
        const std::uint32_t engine = again_.front().engine;
        const std::uint32_t rounds = again_.front().rounds;
        std::vector<Flow> flows;
        while (!again_.empty() && again_.front().due <= ticks_ && again_.front().engine == engine && again_.front().rounds == rounds &&
               flows.size() < shm::ReportDead::kMost) {
            flows.push_back(again_.front().flow);
            again_.pop_front();
        }
        asked += static_cast<std::uint32_t>(flows.size());
        probe(std::move(flows), engine, rounds, [](std::uint32_t) {});
    }
}

}  // namespace culvert::control
