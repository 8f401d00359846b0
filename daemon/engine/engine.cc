#include "daemon/engine/engine.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "daemon/engine/relay_device.h"
#include "daemon/engine/spin_policy.h"
#include "daemon/engine/time_slice.h"
#include "shm/base/check.h"
#include "shm/wakeup.h"

namespace culvert::engine {

namespace {

/// An engine wakes at least this often, so that a lost wake-up of the kernel's can never hang a connection for good.
constexpr Duration kLongestSleep = std::chrono::seconds(10);

Instant read_clock() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return Instant(std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec));
}

}  // namespace

Engine::Engine(const EngineConfig& config, stack::NeighborResolver& resolver, stack::PortOwner& ports,
               Exchange* exchange, std::uint32_t self)
    : config_(config),
      rng_(config.seed),
      peers_(exchange != nullptr ? std::make_unique<EnginePeers>(*exchange, self, counters_) : nullptr),
      stack_(config.stack, resolver, ports, counters_, rng_, peers_.get()),
      stand_ins_(counters_, commons_) {
    commons_.connections.limit = config.stack.max_connections;
    commons_.listeners.limit = config.stack.max_listeners;
    commons_.datagram_sockets.limit = config.stack.max_udp_sockets;
    now_ = read_clock();
    sleeper_.watch(stand_ins_.fd());
    if (peers_ == nullptr) return;
    peers_->set_own_addresses(stack_);
    exchange->set_sleeper(self, sleeper_);
}

Engine::~Engine() { stand_ins_.end_all(); }  // while the tenants are there to take their chunks back

void Engine::add_device(std::unique_ptr<device::Device> device, stack::Interface interface) {
    const auto known = std::ranges::find(ports_, interface.index, [](const Port& port) { return port.interface->index; });
    interface.tx = &device->tx();
    stack::Interface& served = known != ports_.end() ? *known->interface : stack_.add_interface(std::move(interface));
    if (loopback_ == nullptr) loopback_ = &stack_.add_interface(stack::loopback_interface(device->tx()));
    if (device->readiness_fd() >= 0) sleeper_.watch(device->readiness_fd());
    ports_.push_back({std::move(device), &served});
}

void Engine::add_relay(std::uint32_t owner, stack::Interface interface) {
    CHECK(peers_ != nullptr);
    interface.segmentation_limit = 0;  // what the other engine gets is a frame, and nothing is said about it
    interface.offloads_checksum = false;
    add_device(std::make_unique<RelayDevice>(*peers_, counters_, owner, interface.index, interface.name), interface);
}

TxQueue* Engine::tx_of(std::uint32_t interface) {
    for (const Port& port : ports_)
        if (port.interface->index == interface) return port.interface->tx;
    return nullptr;
}

tenant::Tenant& Engine::add_tenant(std::uint32_t id, std::string program, shm::Segment segment) {
    tenants_.push_back(
        std::make_unique<tenant::Tenant>(id, std::move(program), std::move(segment), stack_, counters_, commons_, config_.send_limits));
    return *tenants_.back();
}

tenant::Tenant* Engine::find_tenant(std::uint32_t id) {
    for (const auto& tenant : tenants_)
        if (tenant->id() == id) return tenant.get();
    return nullptr;
}

std::vector<Engine::ServedDevice> Engine::devices() {
    std::vector<ServedDevice> devices;
    for (const Port& port : ports_) devices.push_back({port.interface->index, port.device.get()});
    return devices;
}

void Engine::post(std::function<void(Engine&)> command) {
    {
        const std::lock_guard lock(command_mutex_);
        commands_.push_back(std::move(command));
    }
    commands_waiting_.store(true, std::memory_order_seq_cst);
    sleeper_.ring();
}

void Engine::stop() {
    stopping_.store(true, std::memory_order_seq_cst);
    sleeper_.ring();
}

bool Engine::run_commands() {
    if (!commands_waiting_.load(std::memory_order_relaxed)) return false;
    commands_waiting_.store(false, std::memory_order_seq_cst);
    std::vector<std::function<void(Engine&)>> commands;
    {
        const std::lock_guard lock(command_mutex_);
        commands.swap(commands_);
    }
    for (const auto& command : commands) command(*this);
    remove_finished_tenants();
    return true;
}

void Engine::remove_finished_tenants() {
    std::erase_if(tenants_, [](const auto& tenant) { return tenant->finished(); });
}

/// What other engines have for us: packets of our flows that reached them, and packets to be sent by our queues.
bool Engine::receive_handed_over() {
    return peers_->receive([this](const HandedOver& handed) {
        if (handed.note.interface == stack::kLoopbackIndex && handed.note.kind == HandOverNote::Kind::kOwn && loopback_ != nullptr)
            return stack_.input_passed(*loopback_, handed.packet, true, now_);
        const auto port = std::ranges::find(ports_, handed.note.interface, [](const Port& p) { return p.interface->index; });
        if (port == ports_.end()) return counters_.drop(Drop::kHandOverNoInterface);
        if (handed.note.kind == HandOverNote::Kind::kLinkMessage)
            return stack_.link_message(*port->interface, handed.packet.head, now_);
        if (handed.note.kind != HandOverNote::Kind::kToTransmit)
            return stack_.input_passed(*port->interface, handed.packet, handed.note.kind == HandOverNote::Kind::kOwn, now_);
        TxPacket packet;
        if (!port->interface->tx->reserve(handed.packet.length, packet)) return counters_.drop(Drop::kTxNoFrame);
        const std::byte* from = handed.packet.head.data();
        for (std::uint32_t i = 0; i < packet.count; from += packet.fragments[i].size(), ++i)
            std::memcpy(packet.fragments[i].data(), from, packet.fragments[i].size());
        port->interface->tx->commit(packet);
    }) != 0;
}

bool Engine::turn() {
    now_ = read_clock();
    bool busy = false;
    for (Port& port : ports_) {
        port.device->set_now(now_);
        const std::size_t count = port.device->receive(burst_);
        for (std::size_t i = 0; i < count; ++i) counters_.rx_bytes += burst_[i].length;
        stack_.input(*port.interface, std::span<const RxPacket>(burst_).first(count), now_);
        counters_.rx_frames += count;
        busy |= count != 0;
    }
    if (peers_ != nullptr) {
        peers_->ring_bells();  // now: the others need not wait until we have answered our own
        busy |= receive_handed_over();
    }
    busy |= run_commands();
    for (const auto& tenant : tenants_) busy |= tenant->poll(now_) != 0;
    busy |= stand_ins_.turn();
    if (stand_ins_.has_buried()) [[unlikely]]
        for (UniqueFd& theirs : stand_ins_.take_buried()) sleeper_.close_elsewhere(std::move(theirs));
    if (stack_.next_deadline() <= now_) {
        stack_.advance(now_);
        busy = true;
    }
    stack_.flush(now_);
    output_left_ = false;
    for (Port& port : ports_) {
        const auto pending = port.device->tx().pending();
        if (!pending.empty()) {
            busy = true;
            ++counters_.tx_kicks;
            for (const auto& descriptor : pending) {
                counters_.tx_bytes += descriptor.length;
                counters_.tx_frames += descriptor.more ? 0 : 1;
            }
        }
        output_left_ |= port.device->flush();
    }
    if (peers_ != nullptr) peers_->ring_bells();
    for (const auto& tenant : tenants_) tenant->deliver_events();
    return busy;
}

bool Engine::work_waits() {
    if (commands_waiting_.load(std::memory_order_seq_cst) || stopping_.load(std::memory_order_seq_cst)) return true;
    if (output_left_ || stand_ins_.has_work()) return true;
    if (peers_ != nullptr && peers_->any_waiting()) return true;
    for (const Port& port : ports_)
        if (port.device->has_input()) return true;
    return std::any_of(tenants_.begin(), tenants_.end(), [](const auto& tenant) { return tenant->has_requests(); });
}

void Engine::sleep() {
    for (const auto& tenant : tenants_) shm::announce_sleep(tenant->engine_asleep());
    if (peers_ != nullptr) shm::announce_sleep(peers_->asleep());
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!work_waits()) {
        Instant deadline = std::min(stack_.next_deadline(), now_ + kLongestSleep);
        for (const auto& tenant : tenants_) deadline = std::min(deadline, tenant->next_check());
        for (const Port& port : ports_) deadline = std::min(deadline, port.device->next_deadline());
        ++counters_.sleeps;
        sleeper_.wait(deadline - now_);
    }
    for (const auto& tenant : tenants_) shm::cancel_sleep(tenant->engine_asleep());
    if (peers_ != nullptr) shm::cancel_sleep(peers_->asleep());
}

void Engine::run() {
    if (config_.cpu >= 0) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(config_.cpu, &cpus);
        ::pthread_setaffinity_np(::pthread_self(), sizeof cpus, &cpus);
    }
    ask_for_slice(config_.slice);
    SpinPolicy spin(config_.spin);
    Instant last_work = read_clock();
    bool looking = false;
    while (!stopping_.load(std::memory_order_relaxed)) {
        ++counters_.turns;
        if (turn()) {
            ++counters_.busy_turns;
            if (std::exchange(looking, false)) spin.found();
            last_work = now_;
            continue;
        }
        if (now_ - last_work < spin.limit()) {
            looking = true;
            // The application may share this core: let it run, and find its request when it waits again.
            ::sched_yield();
            continue;
        }
        remove_finished_tenants();
        sleep();
        spin.slept();
        looking = false;
        last_work = read_clock();
    }
}

}  // namespace culvert::engine
