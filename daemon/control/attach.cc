#include "daemon/control/attach.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "daemon/control/foreign_socket.h"
#include "shm/base/check.h"
#include "shm/base/fault_point.h"

namespace culvert::control {
namespace {

constexpr std::uint32_t kQueues = 512;
constexpr std::uint32_t kProcesses = 256;
constexpr std::uint32_t kAcceptQueues = 128;

template <class Message>
std::optional<Message> parse_message(std::span<const std::byte> bytes) {
    if (bytes.size() != sizeof(Message)) return std::nullopt;
    Message message;
    std::memcpy(&message, bytes.data(), sizeof message);
    return message;
}

std::optional<shm::MessageKind> kind_of(std::span<const std::byte> bytes) {
    std::uint32_t kind = 0;
    if (bytes.size() < sizeof kind) return std::nullopt;
    std::memcpy(&kind, bytes.data(), sizeof kind);
    return static_cast<shm::MessageKind>(kind);
}

template <std::size_t N>
void copy_text(char (&to)[N], std::string_view from) {
    const std::size_t length = std::min(from.size(), N - 1);
    std::memcpy(to, from.data(), length);
    to[length] = '\0';
}

/// The printable part of a name that a stranger has given.
template <std::size_t N>
std::string clean_text(const char (&from)[N]) {
    std::string text(from, ::strnlen(from, N));
    std::ranges::replace_if(text, [](unsigned char c) { return c < 0x20 || c >= 0x7f; }, '?');
    return text;
}

bool is_eventfd(int fd) {
    char target[64] = {};
    const ssize_t length = ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), target, sizeof target - 1);
    return length > 0 && std::string_view(target) == "anon_inode:[eventfd]";
}

/// Of AF_UNIX and connected, so that it cannot become a listener, with a queue of strangers' sockets.
bool is_packet_socket(int fd) {
    int domain = 0;
    int type = 0;
    socklen_t length = sizeof(int);
    if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0) return false;
    length = sizeof(int);
    if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0) return false;
    sockaddr_storage peer{};
    length = sizeof peer;
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0) return false;
    return domain == AF_UNIX && type == SOCK_SEQPACKET;
}

/// The kind (shm::raw_kind) of a kernel's raw or ping socket; nothing if it is no such socket, or proves nothing here: in
/// a network namespace of their own all may make raw sockets.
std::optional<std::uint32_t> proven_raw_kind(int fd) {
    const auto domain = socket_option(fd, SOL_SOCKET, SO_DOMAIN);
    const auto type = socket_option(fd, SOL_SOCKET, SO_TYPE);
    const auto protocol = socket_option(fd, SOL_SOCKET, SO_PROTOCOL);
    if (!domain || !type || !protocol || (*domain != AF_INET && *domain != AF_INET6)) return std::nullopt;
    const bool v6 = *domain == AF_INET6;
    const bool ping = *type == SOCK_DGRAM && *protocol == (v6 ? int{IPPROTO_ICMPV6} : int{IPPROTO_ICMP});
    if (!ping && (*type != SOCK_RAW || *protocol < 0 || *protocol > 255)) return std::nullopt;
    if (!is_of_our_namespace(fd)) return std::nullopt;
    return shm::raw_kind(ping, v6, static_cast<std::uint8_t>(*protocol));
}

shm::Answer answer(std::int32_t error, std::uint32_t value = 0) {
    shm::Answer message;
    message.error = error;
    message.value = value;
    return message;
}

}  // namespace

shm::Geometry geometry_of(const LimitsConfig& limits) {
    const auto whole_words = [](std::uint32_t count) { return (count + 63) / 64 * 64; };
    shm::Geometry geometry;
    geometry.sockets = std::max(whole_words(limits.max_sockets), 128u);
    geometry.app_sockets = std::max(whole_words(geometry.sockets / 4), 64u);
    geometry.tx_blocks = limits.tx_blocks;
    geometry.rx_blocks = limits.rx_blocks;
    geometry.queues = kQueues;
    geometry.processes = kProcesses;
    geometry.accept_queues = kAcceptQueues;
    return geometry;
}

void AttachService::malformed(Connection& connection, const char* what) {
    ++statistics_.malformed;
    if (logged_.insert(what).second)
        spdlog::warn("connection of pid {} (uid {}) closed: {} (said once)", connection.peer().pid, connection.peer().uid, what);
    connection.close();
}

void AttachService::refuse(Connection& connection, shm::AttachStatus status, const std::string& reason) {
    shm::Welcome welcome;
    welcome.status = status;
    copy_text(welcome.version, CULVERT_VERSION);
    copy_text(welcome.reason, reason);
    connection.send_struct(welcome);
    connection.close_after_sending();
}

void AttachService::first_packet(Connection& connection, Packet packet, const Policy& policy) {
    const auto kind = kind_of(packet.bytes);
    if (packet.truncated || kind != shm::MessageKind::kHello || packet.bytes.size() < 16)
        return malformed(connection, "first message is no hello");
    // A Hello of another version may have another length: look at what all versions have in common first.
    shm::Hello message;
    std::memcpy(&message, packet.bytes.data(), std::min(packet.bytes.size(), sizeof message));
    if (message.magic != shm::kMagic) return malformed(connection, "hello with a wrong magic number");
    if (message.abi_version != shm::kAbiVersion) {
        ++statistics_.version_refused;
        const std::string reason = fmt::format("libculvert.so speaks ABI {}, culvertd {} speaks ABI {}; install the same version",
                                               message.abi_version, CULVERT_VERSION, shm::kAbiVersion);
        if (logged_.insert(reason).second) spdlog::warn("pid {} refused: {} (said once)", connection.peer().pid, reason);
        return refuse(connection, shm::AttachStatus::kVersion, reason);
    }
    if (packet.bytes.size() != sizeof message) return malformed(connection, "hello of a wrong length");
    hello(connection, message, policy);
}

/// The engine with the fewest programs; of several the next in turn.
std::uint32_t AttachService::least_busy_engine() {
    std::vector<std::uint32_t> programs(engines_.size());
    for (const auto& [id, tenant] : tenants_) ++programs[tenant->engine];
    std::uint32_t best = (last_engine_ + 1) % engines_.size();
    for (std::uint32_t i = 1; i < engines_.size(); ++i) {
        const std::uint32_t other = (last_engine_ + 1 + i) % engines_.size();
        if (programs[other] < programs[best]) best = other;
    }
    return last_engine_ = best;
}

void AttachService::refuse_full(Connection& connection, const shm::Hello& message, const std::string& reason) {
    if (!std::exchange(full_logged_, true))
        spdlog::warn("{} (pid {}) refused: {} (said once until one ends)", clean_text(message.program), connection.peer().pid, reason);
    refuse(connection, shm::AttachStatus::kFull, reason);
}

void AttachService::hello(Connection& connection, const shm::Hello& message, const Policy& policy) {
    const Peer& peer = connection.peer();
    if (tenants_.size() >= limits_.max_tenants) {
        ++statistics_.full_refused;
        return refuse_full(connection, message, fmt::format("{} programs attached already (limits.max_tenants)", tenants_.size()));
    }
    const shm::Geometry geometry = geometry_of(limits_);
    const std::uint64_t bytes = shm::Layout(geometry).size_bytes;
    if (limits_.memory_mb != 0 && (tenants_.size() + 1) * bytes > std::uint64_t{limits_.memory_mb} << 20) {
        ++statistics_.memory_refused;
        return refuse_full(connection, message, fmt::format("{} programs have {} MB of {} (limits.memory_mb)", tenants_.size(),
                                                            tenants_.size() * bytes >> 20, limits_.memory_mb));
    }
    auto tenant = std::make_shared<TenantRecord>();
    tenant->id = next_id_++;
    tenant->program = clean_text(message.program);
    tenant->uid = peer.uid;
    tenant->may_report = geometry.sockets;
    tenant->engine = least_busy_engine();
    const std::shared_ptr<const ProgramPolicy> rules = policy.of(peer, tenant->program);
    tenant::Permissions permissions;
    if (rules != nullptr) permissions.policy = {rules, &rules->rules};
    permissions.loopback = is_of_our_namespace(connection.fd());
    // Both shared because a std::function must be copyable.
    const auto memfd = std::make_shared<UniqueFd>();
    Result<shm::Segment> segment = shm::Segment::create(geometry, "culvert", *memfd);
    Result<shm::Segment> mapping = segment ? shm::Segment::open(memfd->get(), geometry) : std::unexpected(segment.error());
    if (!mapping) {
        ++statistics_.full_refused;
        spdlog::error("pid {} refused: {}", peer.pid, mapping.error().message());
        return refuse(connection, shm::AttachStatus::kFull, "no memory for another segment: " + mapping.error().message());
    }
    tenant->segment = std::make_shared<shm::Segment>(std::move(*mapping));
    CULVERT_FAULT_POINT(attach_segment_made);
    tenants_.emplace(tenant->id, tenant);
    connection.pause();
    auto handed_over = std::make_shared<shm::Segment>(std::move(*segment));
    engine_of(*tenant).post([this, tenant, handed_over, memfd, geometry, rules, permissions, pid = static_cast<std::uint32_t>(peer.pid),
                  self = connection.shared_from_this()](engine::Engine& engine) mutable {
        tenant::Tenant& fresh = engine.add_tenant(tenant->id, tenant->program, std::move(*handed_over));
        fresh.permit(permissions);
        const Result<std::uint32_t> slot = fresh.add_process(pid);
        mailbox_.post([this, tenant, memfd, geometry, rules, slot, self] {
            if (!slot) {
                tenants_.erase(tenant->id);
                return refuse(*self, shm::AttachStatus::kFull, slot.error().message());
            }
            ++statistics_.attached;
            CULVERT_FAULT_POINT(attach_added);
            spdlog::info("attached {} (pid {}, uid {}) as tenant {} of engine {}", tenant->program, self->peer().pid, tenant->uid,
                         tenant->id, tenant->engine);
            serve(self, {tenant, *slot});
            if (self->closed()) return;
            shm::Welcome welcome;
            welcome.process_slot = *slot;
            welcome.geometry = geometry;
            welcome.spin_us = static_cast<std::uint32_t>(spin_.count());
            copy_text(welcome.version, CULVERT_VERSION);
            welcome.has_policy = rules != nullptr;
            if (rules != nullptr) copy_text(welcome.policy, rules->text);
            std::vector<UniqueFd> fds;
            fds.push_back(std::move(*memfd));
            fds.emplace_back(::fcntl(engine_of(*tenant).doorbell_fd(), F_DUPFD_CLOEXEC, 0));
            self->send_struct(welcome, std::move(fds));
            self->resume();
        });
    });
}

/// From now on the connection stands for a process.
void AttachService::serve(const std::shared_ptr<Connection>& connection, const Process& process) {
    tenants_.try_emplace(process.tenant->id, process.tenant);  // its last other process may just have ended
    ++process.tenant->processes;
    process.tenant->slots.insert(process.slot);
    ++statistics_.processes;
    if (connection->closed()) return process_gone(process);  // it did not wait for the answer
    connection->start([this, process](Connection& from, Packet received) { packet(from, process, std::move(received)); },
                      [this, process](Connection&) { process_gone(process); });
}

void AttachService::process_gone(const Process& process) {
    TenantRecord& tenant = *process.tenant;
    --statistics_.processes;
    tenant.slots.erase(process.slot);
    if (--tenant.processes == 0) {
        spdlog::info("{} (tenant {}) has ended", tenant.program, tenant.id);
        tenants_.erase(tenant.id);
        full_logged_ = false;
    }
    engine_of(tenant).post([id = tenant.id, slot = process.slot](engine::Engine& engine) {
        if (tenant::Tenant* found = engine.find_tenant(id)) found->remove_process(slot, engine.now());
    });
}

void AttachService::packet(Connection& connection, const Process& process, Packet packet) {
    if (packet.truncated) return malformed(connection, "message too long");
    const auto kind = kind_of(packet.bytes);
    if (kind == shm::MessageKind::kAddQueue && parse_message<shm::AddQueue>(packet.bytes) && packet.fds.size() == 1)
        return add_queue(connection, process, std::move(packet.fds[0]));
    if (kind == shm::MessageKind::kAddProcess && parse_message<shm::AddProcess>(packet.bytes) && packet.fds.size() == 1)
        return add_process(connection, process, std::move(packet.fds[0]));
    if (kind == shm::MessageKind::kGrantRaw && parse_message<shm::GrantRaw>(packet.bytes) && packet.fds.size() == 1)
        return grant_raw(connection, process, packet.fds[0]);
    if (kind == shm::MessageKind::kAskStandIn && packet.fds.empty())
        if (const auto message = parse_message<shm::AskStandIn>(packet.bytes)) return ask_stand_in(connection, process, *message);
    if (kind == shm::MessageKind::kRestDatagrams && packet.fds.size() == 1)
        if (const auto message = parse_message<shm::RestDatagrams>(packet.bytes))
            return rest_datagrams(connection, process, *message, std::move(packet.fds[0]));
    if (kind == shm::MessageKind::kReportDead)
        if (const auto message = parse_message<shm::ReportDead>(packet.bytes); message && message->count <= shm::ReportDead::kMost)
            return report_dead(connection, process, *message, packet.fds);
    if (kind == shm::MessageKind::kRemoveQueue && packet.fds.empty()) {
        const auto message = parse_message<shm::RemoveQueue>(packet.bytes);
        if (!message || process.tenant->queues.erase(message->queue) == 0)
            return malformed(connection, "removes an event queue that is not there");
        engine_of(*process.tenant).post([id = process.tenant->id, queue = message->queue](engine::Engine& engine) {
            if (tenant::Tenant* tenant = engine.find_tenant(id)) tenant->remove_queue(queue);
        });
        return;
    }
    malformed(connection, "message of an unknown kind, or malformed");
}

void AttachService::add_queue(Connection& connection, const Process& process, ForeignFd eventfd) {
    // What is not an eventfd could be anything. That it stays non-blocking is not to be relied on (tenant/event_signal.h).
    if (!is_eventfd(eventfd.get()) || ::fcntl(eventfd.get(), F_SETFL, O_NONBLOCK) != 0)
        return malformed(connection, "event queue without an eventfd");
    connection.pause();
    const auto fd = std::make_shared<UniqueFd>(eventfd.release());
    engine_of(*process.tenant).post([this, process, fd, self = connection.shared_from_this()](engine::Engine& engine) {
        tenant::Tenant* tenant = engine.find_tenant(process.tenant->id);
        const Result<std::uint32_t> queue =
            tenant != nullptr ? tenant->add_queue(process.slot, std::move(*fd)) : fail(ESRCH, "tenant is gone");
        mailbox_.post([queue, process, self] {
            if (queue) process.tenant->queues.insert(*queue);
            self->send_struct(queue ? answer(0, *queue) : answer(queue.error().code));
            self->resume();
        });
    });
}

void AttachService::grant_raw(Connection& connection, const Process& process, const ForeignFd& socket) {
    const auto kind = proven_raw_kind(socket.get());
    if (!kind) {
        connection.send_struct(answer(EPERM));
        return;
    }
    connection.pause();
    engine_of(*process.tenant).post([this, process, kind, self = connection.shared_from_this()](engine::Engine& engine) {
        tenant::Tenant* tenant = engine.find_tenant(process.tenant->id);
        const Result<void> granted = tenant != nullptr ? tenant->grant_raw(*kind) : fail(ESRCH, "tenant is gone");
        mailbox_.post([granted, self] {
            self->send_struct(answer(granted ? 0 : granted.error().code));
            self->resume();
        });
    });
}

void AttachService::report_dead(Connection& connection, const Process& process, const shm::ReportDead& message,
                                std::span<const ForeignFd> proofs) {
    connection.pause();
    dead_flows_.report(message, proofs, process.tenant->may_report, process.tenant->engine,
                       [self = connection.shared_from_this()](std::uint32_t asked) {
                           self->send_struct(answer(0, asked));
                           self->resume();
                       });
}

/// The engine says what the connection is called, or that it has moved already.
void AttachService::ask_stand_in(Connection& connection, const Process& process, const shm::AskStandIn& message) {
    if (message.family != 4 && message.family != 6) return malformed(connection, "stand-in of an unknown family");
    connection.pause();
    engine_of(*process.tenant).post([this, process, message, self = connection.shared_from_this()](engine::Engine& engine) {
        tenant::Tenant* const tenant = engine.find_tenant(process.tenant->id);
        // Shared because a std::function must be copyable.
        const auto names = std::make_shared<Result<tenant::Leaving>>(
            tenant != nullptr ? tenant->leaving(message.record, message.generation) : fail(ESRCH, "tenant is gone"));
        mailbox_.post([this, process, message, names, self] {
            if (*names && !(*names)->made) return make_stand_in(*self, process, message, **names);
            std::vector<UniqueFd> fds;
            if (*names) fds.push_back(std::move((*names)->made));
            self->send_struct(answer(*names ? 0 : names->error().code), std::move(fds));
            self->resume();
        });
    });
}

/// The connection is paused.
void AttachService::make_stand_in(Connection& connection, const Process& process, const shm::AskStandIn& message,
                                  const tenant::Leaving& names) {
    Result<StandInMaker::Pair> made = stand_ins_ != nullptr ? stand_ins_->make(names.local, names.remote, message.family == 6)
                                                            : fail(EOPNOTSUPP, "stand-ins");
    if (!made) {
        connection.send_struct(answer(made.error().code));
        return connection.resume();
    }
    const auto pair = std::make_shared<StandInMaker::Pair>(std::move(*made));
    engine_of(*process.tenant).post([this, process, message, pair, self = connection.shared_from_this()](engine::Engine& engine) {
        tenant::Tenant* const tenant = engine.find_tenant(process.tenant->id);
        const auto given = std::make_shared<Result<UniqueFd>>(
            tenant != nullptr ? tenant->leave(message.record, message.generation, engine.stand_ins(), std::move(pair->ours),
                                              std::move(pair->theirs), engine.now())
                              : fail(ESRCH, "tenant is gone"));
        mailbox_.post([given, self] {
            std::vector<UniqueFd> fds;
            if (*given) fds.push_back(std::move(**given));
            self->send_struct(answer(*given ? 0 : given->error().code), std::move(fds));
            self->resume();
        });
    });
}

void AttachService::rest_datagrams(Connection& connection, const Process& process, const shm::RestDatagrams& message, ForeignFd half) {
    connection.pause();
    rests_.emplace(++next_rest_, Rest{process, message, std::move(half), connection.shared_from_this()});
    empty_rings(next_rest_);
}

/// From the first round on the port is the kernel's. The engine is asked again until it has found its devices empty in between, or has
/// taken more from them than they hold: then all that was steered to it before has been read, and lies with what is unread.
void AttachService::empty_rings(std::uint32_t id) {
    constexpr std::uint32_t kMostRounds = 256;
    const Rest& asked = rests_.at(id);
    engine_of(*asked.process.tenant).post([this, id, tenant_id = asked.process.tenant->id, message = asked.message](engine::Engine& engine) {
        tenant::Tenant* const tenant = engine.find_tenant(tenant_id);
        const Result<void> yielded =
            tenant != nullptr ? tenant->yield_port(message.record, message.generation) : fail(ESRCH, "tenant is gone");
        mailbox_.post([this, id, error = yielded ? 0 : yielded.error().code, frames = engine.counters().rx_frames] {
            if (error != 0) return rested(id, error, {});
            Rest& rest = rests_.at(id);
            const bool empty = rest.rounds != 0 && frames == rest.frames;
            rest.frames = frames;
            ++rest.rounds < kMostRounds && !empty ? empty_rings(id) : take_unread(id);
        });
    });
}

void AttachService::take_unread(std::uint32_t id) {
    const Rest& rest = rests_.at(id);
    engine_of(*rest.process.tenant).post([this, id, tenant_id = rest.process.tenant->id, message = rest.message](engine::Engine& engine) {
        tenant::Tenant* const tenant = engine.find_tenant(tenant_id);
        auto unread = tenant != nullptr ? tenant->rest_datagrams(message.record, message.generation)
                                        : Result<std::vector<tenant::UnreadDatagram>>(fail(ESRCH, "tenant is gone"));
        mailbox_.post([this, id, unread = std::move(unread)] {
            unread ? rested(id, 0, *unread) : rested(id, unread.error().code, {});
        });
    });
}

void AttachService::rested(std::uint32_t id, std::int32_t error, std::span<const tenant::UnreadDatagram> unread) {
    const auto found = rests_.extract(id);
    Rest& rest = found.mapped();
    const std::uint32_t given = datagram_return_.give(unread, rest.half.get());
    rest.connection->send_struct(answer(error, given));
    rest.connection->resume();
}

void AttachService::add_process(Connection& connection, const Process& process, ForeignFd socket) {
    if (!is_packet_socket(socket.get())) return malformed(connection, "process without a control socket");
    // io_uring answers EAGAIN at once for a non-blocking descriptor.
    (void)::fcntl(socket.get(), F_SETFL, 0);
    connection.pause();
    // Its credentials are the parent's; the child writes its pid into its process record.
    const auto child = std::make_shared<Connection>(loop_, socket.release(), connection.peer());
    engine_of(*process.tenant).post([this, process, child, self = connection.shared_from_this()](engine::Engine& engine) {
        tenant::Tenant* tenant = engine.find_tenant(process.tenant->id);
        const Result<std::uint32_t> slot = tenant != nullptr ? tenant->add_process(0) : fail(ESRCH, "tenant is gone");
        mailbox_.post([this, slot, process, child, self] {
            slot ? serve(child, {process.tenant, *slot}) : child->close();
            self->send_struct(slot ? answer(0, *slot) : answer(slot.error().code));
            self->resume();
        });
    });
}

}  // namespace culvert::control
