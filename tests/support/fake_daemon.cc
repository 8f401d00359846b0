#include "tests/support/fake_daemon.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "shm/attach_protocol.h"
#include "shm/block_list.h"
#include "shm/urgent.h"
#include "shm/wakeup.h"

namespace culvert::test {

namespace {

shm::WireEndpoint v4(const std::uint8_t (&address)[4], std::uint16_t port, std::uint16_t family) {
    shm::WireEndpoint wire{};
    wire.address[10] = wire.address[11] = 0xff;
    std::memcpy(wire.address + 12, address, 4);
    wire.port = port;
    wire.family = family;
    return wire;
}

constexpr std::uint8_t kPeer[4] = {10, 77, 0, 9};

void answer(int fd, const void* data, std::size_t size, const int* fds, std::size_t count) {
    iovec part{const_cast<void*>(data), size};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
    if (count != 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof(int));
        std::memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    (void)::sendmsg(fd, &message, MSG_NOSIGNAL);
}

}  // namespace

FakeDaemon::FakeDaemon() : FakeDaemon(Options{}) {}

FakeDaemon::FakeDaemon(Options options) : options_(options) {
    auto segment = shm::Segment::create(options_.geometry, "fake", memory_);
    if (!segment) throw std::runtime_error(segment.error().message());
    segment_.emplace(std::move(*segment));
    doorbell_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    const shm::Geometry& g = options_.geometry;
    for (std::uint32_t i = 0; i < g.app_sockets; ++i) segment_->free_sockets().set(i);
    for (std::uint32_t i = 0; i < g.sockets; ++i) segment_->socket(i).daemon.send_limit.store(64 * 1024);
    for (std::uint32_t i = g.sockets; i > g.app_sockets; --i) free_records_.push_back(i - 1);
    shm::TaggedStack pool(segment_->header().tx_free, segment_->block_meta(), g.tx_blocks);
    for (std::uint32_t i = g.tx_blocks; i > 0; --i) pool.push(i - 1);
    for (std::uint32_t i = g.blocks(); i > g.tx_blocks; --i) free_receive_.push_back(i - 1);
    queues_.resize(g.queues);
    thread_ = std::thread([this] { run(); });
}

FakeDaemon::~FakeDaemon() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    shm::signal_eventfd(wake_.get());
    thread_.join();
}

preload::Client* FakeDaemon::attach() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return nullptr;
    {
        const std::lock_guard lock(mutex_);
        controls_.push_back({UniqueFd(ends[1]), shm::kNoIndex});
    }
    shm::signal_eventfd(wake_.get());
    preload::Client* client = preload::Client::attach_over(ends[0]);
    preload::Client::install(client);
    return client;
}

void FakeDaemon::die() {
    {
        const std::lock_guard lock(mutex_);
        dead_ = true;
        controls_.clear();
    }
    shm::signal_eventfd(wake_.get());
}

// --- the thread -------------------------------------------------------------------------------------------------------

void FakeDaemon::run() {
    for (;;) {
        std::vector<pollfd> polls{{wake_.get(), POLLIN, 0}, {doorbell_.get(), POLLIN, 0}};
        {
            const std::lock_guard lock(mutex_);
            if (stopping_) return;
            for (const Control& control : controls_) polls.push_back({control.fd.get(), POLLIN, 0});
            if (!dead_) turn();
        }
        changed_.notify_all();
        shm::announce_sleep(segment_->header().engine_asleep);
        if (dead_ || !segment_->dirty().any()) ::poll(polls.data(), polls.size(), -1);
        shm::cancel_sleep(segment_->header().engine_asleep);
        std::uint64_t count = 0;
        (void)!::read(wake_.get(), &count, sizeof count);
        (void)!::read(doorbell_.get(), &count, sizeof count);
        const std::lock_guard lock(mutex_);
        for (std::size_t i = 2; i < polls.size(); ++i) {
            if (polls[i].revents == 0) continue;
            const auto found = std::find_if(controls_.begin(), controls_.end(),
                                            [&](const Control& c) { return c.fd.get() == polls[i].fd; });
            if (found == controls_.end()) continue;
            bool gone = false;
            const int fd = found->fd.get();
            serve(*found, gone);
            if (!gone) continue;
            const auto again =
                std::find_if(controls_.begin(), controls_.end(), [&](const Control& c) { return c.fd.get() == fd; });
            const std::uint32_t slot = again->slot;
            controls_.erase(again);
            process_gone(slot);
        }
    }
}

void FakeDaemon::turn() {
    segment_->dirty().collect([&](std::uint32_t record) { look(record); });
}

void FakeDaemon::serve(Control& control, bool& gone) {
    union {
        shm::Hello hello;
        shm::RemoveQueue remove;
        shm::AskStandIn stand_in;
        shm::ReportDead dead;
        shm::RestDatagrams rest;
    } request{};
    iovec part{&request, sizeof request};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char buffer[CMSG_SPACE(shm::ReportDead::kMost * sizeof(int))] = {};
    message.msg_control = buffer;
    message.msg_controllen = sizeof buffer;
    const int fd = control.fd.get();
    const ssize_t got = ::recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got <= 0) {
        gone = got == 0 || errno != EAGAIN;
        return;
    }
    std::vector<UniqueFd> all_passed;
    if (cmsghdr* header = CMSG_FIRSTHDR(&message))
        for (std::size_t i = 0; i < (header->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
            int number = -1;
            std::memcpy(&number, CMSG_DATA(header) + i * sizeof number, sizeof number);
            all_passed.emplace_back(number);
        }
    UniqueFd passed;
    if (all_passed.size() == 1) passed = std::move(all_passed[0]);
    const auto free_slot = [&] {
        for (std::uint32_t slot = 0; slot < options_.geometry.processes; ++slot)
            if (segment_->process(slot).live.load() == 0) {
                segment_->process(slot).live.store(1);
                return slot;
            }
        return shm::kNoIndex;
    };
    shm::Answer reply;
    switch (request.hello.kind) {
        case shm::MessageKind::kHello: {
            shm::Welcome welcome;
            welcome.geometry = options_.geometry;
            welcome.spin_us = options_.spin_us;
            welcome.has_policy = options_.policy.has_value();
            if (options_.policy) options_.policy->copy(welcome.policy, shm::kMostPolicyText);
            control.slot = welcome.process_slot = free_slot();
            const int fds[2] = {memory_.get(), doorbell_.get()};
            return answer(fd, &welcome, sizeof welcome, fds, 2);
        }
        case shm::MessageKind::kAddQueue: {
            reply.error = ENOSPC;
            if (nonsense_) return answer(fd, &reply, 1, nullptr, 0);
            for (std::uint32_t queue = 0; queue < queues_.size(); ++queue) {
                if (queues_[queue]) continue;
                queues_[queue] = std::move(passed);
                queue_owners_[queue] = control.slot;
                reply.error = 0;
                reply.value = queue;
                break;
            }
            return answer(fd, &reply, sizeof reply, nullptr, 0);
        }
        case shm::MessageKind::kRemoveQueue: queues_.at(request.remove.queue).reset(); return;
        case shm::MessageKind::kAddProcess: {
            const std::uint32_t slot = free_slot();
            reply.error = slot == shm::kNoIndex ? ENOSPC : 0;
            reply.value = slot;
            if (slot != shm::kNoIndex) controls_.push_back({std::move(passed), slot});
            return answer(fd, &reply, sizeof reply, nullptr, 0);
        }
        case shm::MessageKind::kGrantRaw: {
            int type = 0;
            socklen_t length = sizeof type;
            if (::getsockopt(passed.get(), SOL_SOCKET, SO_TYPE, &type, &length) == 0) granted_type = type;
            ++grants;
            reply.error = grant_answer;
            return answer(fd, &reply, sizeof reply, nullptr, 0);
        }
        case shm::MessageKind::kRestDatagrams: {
            shm::SocketRecord& resting = segment_->socket(request.rest.record);
            if (resting.daemon.generation.load() != request.rest.generation || !passed) reply.error = EBADF;
            else resting.daemon.status.fetch_or(shm::kStatusResting);
            return answer(fd, &reply, sizeof reply, nullptr, 0);
        }
        case shm::MessageKind::kReportDead: {
            for (const shm::DeadFlow& flow : std::span(request.dead.flows).first(request.dead.count)) {
                sockaddr_storage name{};
                socklen_t length = sizeof name;
                const int proof = all_passed.size() == 1 ? passed.get() : all_passed.at(flow.proof).get();
                (void)::getsockname(proof, reinterpret_cast<sockaddr*>(&name), &length);
                reported_.push_back({flow, ntohs(reinterpret_cast<sockaddr_in&>(name).sin_port)});
            }
            reply.value = request.dead.count;
            return answer(fd, &reply, sizeof reply, nullptr, 0);
        }
        case shm::MessageKind::kAskStandIn: {
            if (refuse_stand_ins) {
                reply.error = ENOBUFS;
                return answer(fd, &reply, sizeof reply, nullptr, 0);
            }
            make_stand_in(request.stand_in.record);
            const int theirs = stand_ins_[request.stand_in.record].theirs.get();
            return answer(fd, &reply, sizeof reply, &theirs, 1);
        }
        default: return;
    }
}

/// Under the lock.
void FakeDaemon::make_stand_in(std::uint32_t record) {
    if (stand_ins_.contains(record)) return;
    int ends[2] = {-1, -1};
    (void)::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
    stand_ins_[record] = {UniqueFd(ends[0]), UniqueFd(ends[1])};
    segment_->socket(record).daemon.status.fetch_or(shm::kStatusMoved);
    notify(record);
}

std::vector<FakeDaemon::Reported> FakeDaemon::reported() {
    const std::lock_guard lock(mutex_);
    return reported_;
}

int FakeDaemon::stand_in(std::uint32_t record, bool by_another) {
    const std::lock_guard lock(mutex_);
    if (by_another) make_stand_in(record);
    const auto found = stand_ins_.find(record);
    return found != stand_ins_.end() ? found->second.ours.get() : -1;
}

void FakeDaemon::process_gone(std::uint32_t slot) {
    if (slot == shm::kNoIndex) return;
    segment_->process(slot).live.store(0);
    for (std::uint32_t queue = 0; queue < queues_.size(); ++queue) {
        if (!queues_[queue] || queue_owners_[queue] != slot) continue;
        shm::signal_eventfd(queues_[queue].get());
        queues_[queue].reset();
    }
    shm::SocketBitmap held = segment_->holders(slot);
    std::vector<std::uint32_t> records;
    held.for_each([&](std::uint32_t record) { records.push_back(record); });
    for (const std::uint32_t record : records) {
        held.clear(record);
        bool other = false;
        for (std::uint32_t i = 0; i < options_.geometry.processes; ++i)
            other = other || (segment_->process(i).live.load() != 0 && segment_->holders(i).test(record));
        if (!other) free_record(record);
        for (auto* lock : {&segment_->socket(record).app.tx_lock, &segment_->socket(record).app.rx_lock}) {
            std::uint32_t owner = slot + 1;
            lock->compare_exchange_strong(owner, 0);
        }
    }
}

void FakeDaemon::free_record(std::uint32_t record) {
    peers_[record].closed = true;
    shm::SocketRecord& shared = segment_->socket(record);
    const std::uint32_t generation = shared.daemon.generation.load() + 1;
    if (record >= options_.geometry.app_sockets) {
        shared.daemon.generation.store(generation);
        shared.daemon.status.store(shm::kStatusDead);
        return;  // never used again: a test can look at it
    }
    std::memset(static_cast<void*>(&shared), 0, sizeof shared);
    shared.daemon.generation.store(generation);
    shared.daemon.send_limit.store(64 * 1024);
    peers_[record].operation_done = 0;
    segment_->free_sockets().set(record);
}

void FakeDaemon::operation(std::uint32_t record) {
    shm::SocketRecord& shared = segment_->socket(record);
    Peer& peer = peers_[record];
    const std::uint32_t sequence = shared.app.operation_sequence.load(std::memory_order_acquire);
    if (sequence == peer.operation_done) return;
    peer.operation_done = sequence;
    if (sequence == 1) {  // a new life of the record
        peer = {};
        peer.operation_done = sequence;
    }
    const auto code = static_cast<shm::Operation>(shared.operation.code.load());
    const shm::WireEndpoint remote = shared.operation.remote;
    int result = refuse_;
    if (result == 0) switch (code) {
            case shm::Operation::kRoute:
                if (remote.address[12] == 10 && remote.address[13] == 77)
                    shared.local = v4(kSource, 0, remote.family), shared.info.path_mtu = path_mtu_;
                else
                    result = EHOSTUNREACH;
                break;
            case shm::Operation::kConnect:
                peer.stream = true;
                shared.local = shared.operation.local;
                shared.remote = remote;
                shared.daemon.window_position.store(32 * 1024);
                if (remote.port == kRefusingPort) {
                    shared.daemon.error.store(ECONNREFUSED);
                    shared.daemon.status.store(shm::kStatusDead | shm::kStatusPeerClosed);
                } else {
                    shared.daemon.status.store(remote.port == kSilentPort ? shm::kStatusConnecting : shm::kStatusReady);
                }
                break;
            case shm::Operation::kListen:
                shared.local = shared.operation.local;
                if ((shared.daemon.status.load() & shm::kStatusResting) == 0) shared.accept_queue.store(next_accept_queue_++);
                shared.daemon.status.store(shm::kStatusReady);
                break;
            case shm::Operation::kRest: shared.daemon.status.fetch_or(shm::kStatusResting); break;
            case shm::Operation::kBindDatagram:
                peer.datagram = true;
                if ((shared.daemon.status.load() & shm::kStatusResting) == 0) shared.local = shared.operation.local;
                shared.daemon.status.store(shm::kStatusReady);
                break;
            case shm::Operation::kBindRaw:
            case shm::Operation::kFilterTypes:
            case shm::Operation::kChecksumOffset:
                raw_calls_.push_back({code, shared.operation.argument.load(), shared.operation.local, remote});
                if (code != shm::Operation::kBindRaw) break;
                ++raw_binds;
                result = bind_raw_answer;
                if (result != 0) break;
                peer.datagram = true;
                shared.local = shared.operation.local;
                shared.daemon.status.store(shm::kStatusReady);
                break;
            case shm::Operation::kConnectDatagram:
                shared.remote = remote;
                shared.daemon.path_mtu.store(path_mtu_);
                break;
            case shm::Operation::kJoinGroup:
            case shm::Operation::kLeaveGroup:
            case shm::Operation::kJoinSource:
            case shm::Operation::kLeaveSource:
            case shm::Operation::kBlockSource:
            case shm::Operation::kUnblockSource:
                group_calls_.push_back({code, shared.operation.argument.load(), remote, shared.operation.local});
                result = group_answer;
                break;
            case shm::Operation::kRefreshInfo: shared.info.tcp_state = 1, shared.info.srtt_us = 777, shared.info.receive_buffer = 123456; break;
            default: result = EINVAL; break;
        }
    shared.daemon.operation_result.store(result);
    shared.daemon.operation_done.store(sequence, std::memory_order_release);
    notify(record);
}

void FakeDaemon::look(std::uint32_t record) {
    shm::SocketRecord& shared = segment_->socket(record);
    const std::uint32_t flags = shared.app.flags.load(std::memory_order_acquire);
    operation(record);
    Peer& peer = peers_[record];
    ++peer.looks;
    peer.consumed = shared.app.rx_consumed.load(std::memory_order_acquire);
    std::vector<std::uint32_t> chain;
    std::uint32_t link = shm::take_all(shared.app.tx_list);
    while (link != shm::kEmptyList) {
        chain.push_back(link - 1);
        link = segment_->block_meta()[link - 1].next.load();
    }
    std::reverse(chain.begin(), chain.end());
    std::string fresh;
    std::string datagram;
    for (const std::uint32_t block : chain) {
        const shm::BlockMeta& meta = segment_->block_meta()[block];
        const std::string bytes(reinterpret_cast<const char*>(segment_->block(block)) + meta.offset.load(),
                                meta.length.load());
        fresh += bytes;
        if ((meta.flags.load() & shm::kBlockUrgent) != 0) peer.urgent_end = peer.received.size() + fresh.size();
        datagram += bytes;
        if (peer.datagram && (meta.flags.load() & shm::kBlockMore) == 0) peer.datagrams.push_back(std::exchange(datagram, {}));
        peer.kept.push_back(block);
    }
    peer.received += fresh;
    peer.unacknowledged += fresh.size();
    bool news = false;
    const bool starved = peer.datagram && segment_->header().tx_starved.load() != 0;
    if (!peer.holding && !peer.kept.empty()) {
        shm::TaggedStack pool(segment_->header().tx_free, segment_->block_meta(), options_.geometry.tx_blocks);
        for (const std::uint32_t block : peer.kept) pool.push(block);
        peer.kept.clear();
        shared.daemon.tx_released.fetch_add(peer.unacknowledged);
        peer.unacknowledged = 0;
        if (starved) {  // as Tenant::wake_starved
            segment_->header().tx_starved.store(0);
            shared.app.flags.fetch_and(~shm::kAppWantWrite);
            news = true;
        }
    }
    if ((flags & shm::kAppShutWrite) != 0 && !peer.write_shut) {
        peer.write_shut = true;
        shared.daemon.status.fetch_or(shm::kStatusWriteClosed);
        news = true;
    }
    if (!peer.datagram && (shared.app.flags.load() & shm::kAppWantWrite) != 0) {
        const std::uint64_t in_flight = shared.app.tx_queued.load() - shared.daemon.tx_released.load();
        if (in_flight * 3 <= shared.daemon.send_limit.load() * 2ull) {
            shared.app.flags.fetch_and(~shm::kAppWantWrite);
            news = true;
        }
    }
    if (news) notify(record);
    if (peer.echo && !fresh.empty()) push(record, {fresh}, fresh.size(), false);
    if ((flags & shm::kAppClosed) != 0) free_record(record);
}

void FakeDaemon::notify(std::uint32_t record) {
    shm::SocketRecord& shared = segment_->socket(record);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (shared.app.waiters.load() != 0) {
        shared.daemon.event_sequence.fetch_add(1);
        shm::futex_wake_all(shared.daemon.event_sequence);
    }
    for (std::uint32_t queue = 0; queue < queues_.size(); ++queue) {
        if (!queues_[queue] || !segment_->watched(queue).test(record)) continue;
        segment_->ready(queue).post(record);
        if (shm::must_wake(segment_->queue(queue).asleep)) shm::signal_eventfd(queues_[queue].get());
    }
}

void FakeDaemon::collect_returned() {
    std::uint32_t link = shm::take_all(segment_->header().rx_returned);
    while (link != shm::kEmptyList) {
        const std::uint32_t next = segment_->block_meta()[link - 1].next.load();
        free_receive_.push_back(link - 1);
        link = next;
    }
}

std::uint32_t FakeDaemon::take_receive_block() {
    if (free_receive_.empty()) collect_returned();
    if (free_receive_.empty()) throw std::runtime_error("fake daemon: no receive block");
    const std::uint32_t block = free_receive_.back();
    free_receive_.pop_back();
    return block;
}

void FakeDaemon::push(std::uint32_t record, const std::vector<std::string>& blocks, std::uint64_t counted, bool datagram) {
    shm::BlockMeta* meta = segment_->block_meta();
    std::uint32_t oldest = shm::kNoIndex;
    std::uint32_t newest = shm::kNoIndex;
    for (const std::string& run : blocks)
        for (std::size_t at = 0; at < run.size(); at += shm::kBlockSize) {
            const std::uint32_t block = take_receive_block();
            const std::size_t size = std::min<std::size_t>(run.size() - at, shm::kBlockSize);
            std::memcpy(segment_->block(block), run.data() + at, size);
            meta[block].length.store(static_cast<std::uint32_t>(size));
            meta[block].offset.store(0);
            meta[block].flags.store(datagram && at + size < run.size() ? shm::kBlockMore : 0);
            meta[block].next.store(newest == shm::kNoIndex ? shm::kEmptyList : newest + 1);
            if (oldest == shm::kNoIndex) oldest = block;
            newest = block;
        }
    shm::SocketRecord& shared = segment_->socket(record);
    if (newest != shm::kNoIndex) shm::push_chain(shared.daemon.rx_list, meta, newest, oldest);
    shared.daemon.rx_delivered.fetch_add(counted);
    notify(record);
}

// --- the network ------------------------------------------------------------------------------------------------------

std::optional<std::uint32_t> FakeDaemon::arrive(std::uint32_t listener, std::uint16_t remote_port) {
    const std::lock_guard lock(mutex_);
    if (free_records_.empty()) return std::nullopt;
    const std::uint32_t record = free_records_.back();
    free_records_.pop_back();
    shm::SocketRecord& listening = segment_->socket(listener);
    shm::SocketRecord& shared = segment_->socket(record);
    shared.local = listening.local;
    shared.remote = v4(kPeer, remote_port, listening.local.family);
    shared.protocol.store(IPPROTO_TCP);
    shared.options = listening.options;
    shared.daemon.window_position.store(32 * 1024);
    shared.daemon.status.store(shm::kStatusReady);
    peers_[record].stream = true;
    shm::AcceptQueueRecord& queue = segment_->accept_queue(listening.accept_queue.load());
    std::uint32_t& tail = tails_[listener];
    queue.entries[tail % shm::kAcceptQueueLength].store(record);
    queue.tail.store(++tail);
    notify(listener);
    return record;
}

void FakeDaemon::deliver(std::uint32_t record, const std::string& bytes, std::uint32_t bytes_per_block) {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> runs;
    for (std::size_t at = 0; at < bytes.size(); at += bytes_per_block) runs.push_back(bytes.substr(at, bytes_per_block));
    push(record, runs, bytes.size(), false);
}

void FakeDaemon::deliver_datagram(std::uint32_t record, std::uint16_t remote_port, const std::string& bytes) {
    shm::DatagramHeader header{};
    header.remote.port = remote_port;
    deliver_datagram(record, header, bytes);
}

void FakeDaemon::deliver_datagram(std::uint32_t record, shm::DatagramHeader header, const std::string& bytes) {
    const std::lock_guard lock(mutex_);
    if (header.remote.family == 0) header.remote = v4(kPeer, header.remote.port, segment_->socket(record).local.family);
    if (std::all_of(std::begin(header.local_address), std::end(header.local_address), [](auto b) { return b == 0; })) {
        header.local_address[10] = header.local_address[11] = 0xff;
        std::memcpy(header.local_address + 12, kSource, 4);
    }
    header.length = static_cast<std::uint32_t>(bytes.size());
    push(record, {std::string(reinterpret_cast<const char*>(&header), sizeof header) + bytes}, bytes.size(), true);
}

void FakeDaemon::deliver_error(std::uint32_t record, shm::DatagramErrorHeader header, const std::string& bytes) {
    const std::lock_guard lock(mutex_);
    header.length = static_cast<std::uint32_t>(bytes.size());
    const std::uint32_t block = take_receive_block();
    std::memcpy(segment_->block(block), &header, sizeof header);
    std::memcpy(segment_->block(block) + sizeof header, bytes.data(), bytes.size());
    shm::BlockMeta& meta = segment_->block_meta()[block];
    meta.length.store(static_cast<std::uint32_t>(sizeof header + bytes.size()));
    meta.offset.store(0);
    meta.flags.store(0);
    shm::DaemonLine& line = segment_->socket(record).daemon;
    shm::push_block(line.error_list, segment_->block_meta(), block);
    line.error.store(header.error);
    notify(record);
}

std::vector<FakeDaemon::RawCall> FakeDaemon::raw_calls() {
    const std::lock_guard lock(mutex_);
    return raw_calls_;
}
std::vector<FakeDaemon::GroupCall> FakeDaemon::group_calls() {
    const std::lock_guard lock(mutex_);
    return group_calls_;
}

void FakeDaemon::announce_urgent(std::uint32_t record, std::uint64_t position, std::optional<char> octet) {
    const std::lock_guard lock(mutex_);
    shm::SocketRecord& shared = segment_->socket(record);
    std::uint64_t word = shm::urgent_word(position);
    if (octet) word = shm::with_octet(word, static_cast<std::uint8_t>(*octet));
    shared.urgent.store(word);
    shared.daemon.status.fetch_or(shm::kStatusUrgent);
    notify(record);
}

void FakeDaemon::establish(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    segment_->socket(record).daemon.status.store(shm::kStatusReady);
    notify(record);
}

void FakeDaemon::peer_closes(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    segment_->socket(record).daemon.status.fetch_or(shm::kStatusPeerClosed);
    notify(record);
}

void FakeDaemon::reset(std::uint32_t record, int error) {
    const std::lock_guard lock(mutex_);
    shm::DaemonLine& line = segment_->socket(record).daemon;
    line.error.store(error);
    line.status.store(shm::kStatusDead | shm::kStatusPeerClosed);
    notify(record);
}

void FakeDaemon::echo(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    peers_[record].echo = true;
}

void FakeDaemon::hold_acknowledgements(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    peers_[record].holding = true;
}

void FakeDaemon::resume(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    peers_[record].holding = false;
    look(record);
}

// --- what the application did -------------------------------------------------------------------------------------------

std::size_t FakeDaemon::urgent_end(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    return peers_[record].urgent_end;
}

std::string FakeDaemon::received(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    return peers_[record].received;
}
std::vector<std::string> FakeDaemon::datagrams(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    return peers_[record].datagrams;
}
bool FakeDaemon::closed(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    return peers_[record].closed;
}
bool FakeDaemon::write_shut(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    return peers_[record].write_shut;
}
shm::SocketOptions FakeDaemon::options(std::uint32_t record) { return segment_->socket(record).options; }

bool FakeDaemon::wait_until(const std::function<bool()>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), condition);
}
bool FakeDaemon::wait_received(std::uint32_t record, std::size_t bytes) {
    return wait_until([&] { return peers_[record].received.size() >= bytes; });
}
bool FakeDaemon::wait_datagrams(std::uint32_t record, std::size_t count) {
    return wait_until([&] { return peers_[record].datagrams.size() >= count; });
}
bool FakeDaemon::wait_closed(std::uint32_t record) {
    return wait_until([&] { return peers_[record].closed; });
}
bool FakeDaemon::wait_consumed(std::uint32_t record, std::uint64_t bytes) {
    return wait_until([&] { return peers_[record].consumed >= bytes; });
}
std::uint32_t FakeDaemon::looks(std::uint32_t record) {
    const std::lock_guard lock(mutex_);
    return peers_[record].looks;
}
bool FakeDaemon::wait_process_gone(std::uint32_t slot) {
    return wait_until([&] { return segment_->process(slot).live.load() == 0; });
}
std::size_t FakeDaemon::free_receive_blocks() {
    const std::lock_guard lock(mutex_);
    collect_returned();
    return free_receive_.size();
}

}  // namespace culvert::test
