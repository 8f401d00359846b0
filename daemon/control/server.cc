#include "daemon/control/server.h"

#include <spdlog/spdlog.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <systemd/sd-daemon.h>

#include <csignal>
#include <cstring>

namespace culvert::control {
namespace {

static_assert(sizeof(signalfd_siginfo) == 128);

constexpr time_t kTickSeconds = 2;               // well below half of WatchdogSec=30s
constexpr std::uint32_t kSilentTicks = 2;        // 2 to 4 s: a shim says hello at once, and waits no longer than that itself
constexpr std::size_t kMostSilent = 256;          // then the eldest goes at once

}  // namespace

Server::Server(Parts parts, const Config& config, ListeningSocket socket, Policy policy)
    : parts_(std::move(parts)),
      config_(config),
      socket_(std::move(socket)),
      policy_(std::move(policy)),
      attach_(parts_.loop, parts_.mailbox, parts_.engines, config, parts_.stand_ins),
      admin_(parts_.mailbox, parts_.engines, attach_, parts_.interfaces, [this] { return numbers(); }),
      watchdog_(sd_watchdog_enabled(0, nullptr) > 0) {}

Result<std::unique_ptr<Server>> Server::create(Parts parts, const Config& config, ListeningSocket socket, Policy policy) {
    std::unique_ptr<Server> server(new Server(std::move(parts), config, std::move(socket), std::move(policy)));
    sigset_t signals;
    sigemptyset(&signals);
    for (const int number : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, number);
    if (const int code = ::pthread_sigmask(SIG_BLOCK, &signals, nullptr); code != 0) return fail(code, "block signals");
    server->signals_.reset(::signalfd(-1, &signals, SFD_CLOEXEC));
    if (!server->signals_) return fail_errno("signalfd");
    server->timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
    const itimerspec period{{kTickSeconds, 0}, {kTickSeconds, 0}};
    if (!server->timer_ || ::timerfd_settime(server->timer_.get(), 0, &period, nullptr) != 0) return fail_errno("timerfd");
    return server;
}

void Server::run() {
    accept_next();
    watch_mailbox();
    watch_netlink();
    read_signal();
    read_timer();
    parts_.loop.run();
}

void Server::accept_next() {
    parts_.loop.accept(socket_.fd(), [this](int result) { accepted(result); });
}

void Server::accepted(int result) {
    if (result < 0) {
        if (result == -EMFILE || result == -ENFILE) {
            // At the next tick again, instead of spinning on a backlog that we cannot take.
            spdlog::warn("cannot accept a control connection: {}", std::strerror(-result));
            accept_later_ = true;
            return;
        }
        return accept_next();
    }
    UniqueFd fd(result);
    accept_next();
    ++connections_;
    Result<Peer> peer = peer_of(fd.get());
    if (!peer) return;
    spdlog::debug("control connection of pid {} (uid {}, gid {})", peer->pid, peer->uid, peer->gid);
    const auto connection = std::make_shared<Connection>(parts_.loop, std::move(fd), std::move(*peer));
    connection->start([this](Connection& from, Packet packet) { first_packet(from, std::move(packet)); }, [](Connection&) {});
    silent_.emplace_back(connection, ticks_);
    close_silent();
}

/// A connection costs us a descriptor before it has said who it is: not for long, and not many.
void Server::close_silent() {
    while (!silent_.empty()) {
        const std::shared_ptr<Connection> connection = silent_.front().first.lock();
        const bool speaks = connection == nullptr || connection->closed() || connection->heard();
        if (!speaks && ticks_ - silent_.front().second < kSilentTicks && silent_.size() <= kMostSilent) return;
        silent_.pop_front();
        if (speaks) continue;
        if (silent_closed_++ == 0) spdlog::warn("pid {} connected and said nothing; closed (said once)", connection->peer().pid);
        connection->close();
    }
}

void Server::first_packet(Connection& connection, Packet packet) {
    const bool admin = !packet.bytes.empty() && packet.bytes.front() == std::byte{'{'};
    const Peer& peer = connection.peer();
    if (!policy_.allows(peer)) {
        if (denied_++ == 0)
            spdlog::warn("pid {} (uid {}) denied: neither its user nor its groups are in socket.allow_users / allow_groups (said once)",
                         peer.pid, peer.uid);
        const std::string reason = "your user is not allowed to use this culvertd (socket.allow_users, socket.allow_groups)";
        if (admin) return admin_.refuse(connection, reason);
        return attach_.refuse(connection, shm::AttachStatus::kDenied, reason);
    }
    if (!admin) return attach_.first_packet(connection, std::move(packet), policy_);
    if (packet.truncated) return attach_.malformed(connection, "administrator's request too long");
    admin_.request(connection, {reinterpret_cast<const char*>(packet.bytes.data()), packet.bytes.size()});
}

void Server::watch_mailbox() {
    parts_.loop.poll_readable(parts_.mailbox.fd(), [this](int) {
        parts_.mailbox.run();
        watch_mailbox();
    });
}

void Server::watch_netlink() {
    parts_.loop.poll_readable(parts_.mirror.fd(), [this](int) {
        parts_.feed.process();
        watch_netlink();
    });
}

void Server::read_signal() {
    parts_.loop.read(signals_.get(), signal_buffer_, [this](int result) {
        signalfd_siginfo info{};
        if (result == static_cast<int>(sizeof info)) {
            std::memcpy(&info, signal_buffer_.data(), sizeof info);
            if (info.ssi_signo != SIGHUP) {
                spdlog::info("ending on {}", strsignal(static_cast<int>(info.ssi_signo)));
                return parts_.loop.stop();
            }
            reload();
        }
        read_signal();
    });
}

void Server::read_timer() {
    parts_.loop.read(timer_.get(), timer_buffer_, [this](int) {
        // The watchdog is told by the engines' hands: a daemon with an engine that hangs shall be restarted.
        if (watchdog_ && !std::exchange(watchdog_asked_, true))
            parts_.engines.all_have([](engine::Engine&) {}, [this] {
                sd_notify(0, "WATCHDOG=1");
                parts_.mailbox.post([this] { watchdog_asked_ = false; });
            });
        if (std::exchange(accept_later_, false)) accept_next();
        close_silent();
        ++ticks_;
        attach_.dead_flows().tick();
        parts_.steering.forget_finished_flows();  // asks the kernel only while there are some
        read_timer();
    });
}

void Server::reload() {
    sd_notify(0, "RELOADING=1");
    const Result<Config> fresh = parts_.reload();
    Result<Policy> policy = fresh ? Policy::create(*fresh) : std::unexpected(fresh.error());
    if (!policy) {
        spdlog::error("reload refused, nothing changed: {}", policy.error().message());
    } else {
        policy_ = std::move(*policy);
        spdlog::set_level(spdlog::level::from_str(fresh->log_level));
        if (const Result<void> filter = parts_.set_filter(fresh->filter); !filter)
            spdlog::error("filter rules not changed: {}", filter.error().message());
        spdlog::info("reloaded: log level {}, who may attach, policies of programs that attach from now on, {} filter rules; everything else takes effect at the next start",
                     fresh->log_level, fresh->filter.rules.size());
    }
    sd_notify(0, "READY=1");
}

std::vector<device::Statistic> Server::numbers() const {
    const AttachService::Statistics& attach = attach_.statistics();
    const Steering::Statistics steering = parts_.steering.statistics();
    const DeadFlows::Statistics& dead = attach_.dead_flows().statistics();
    const DatagramReturn::Statistics& returned = attach_.datagram_return().statistics();
    return {{"connections", connections_},
            {"attached_programs", attach.attached},
            {"processes", attach.processes},
            {"denied", denied_},
            {"version_refused", attach.version_refused},
            {"full_refused", attach.full_refused},
            {"memory_refused", attach.memory_refused},
            {"silent_closed", silent_closed_},
            {"malformed_messages", attach.malformed},
            {"dead_flows_reported", dead.reported},
            {"dead_flows_probed", dead.probed},
            {"dead_flows_alive", dead.alive},
            {"dead_flows_unproved", dead.unproved},
            {"dead_flows_limited", dead.limited},
            {"datagrams_returned", returned.given},
            {"datagrams_return_refused", returned.refused},
            {"datagrams_return_lost", returned.lost},
            {"netlink_overruns", parts_.mirror.overruns()},
            {"addresses", steering.addresses},
            {"addresses_refused", steering.addresses_refused},
            {"ports_taken", steering.ports},
            {"kernel_flows", steering.kernel_flows},
            {"kernel_flows_refused", steering.kernel_flows_refused}};
}

}  // namespace culvert::control
