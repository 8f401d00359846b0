#include "daemon/tenant/tenant.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "daemon/stack/tcp/listener.h"
#include "daemon/tenant/sockets.h"
#include "daemon/tenant/stand_in.h"
#include "shm/base/check.h"
#include "shm/wakeup.h"
#include "shm/base/fault_point.h"

namespace culvert::tenant {

namespace {

/// How long an accepted connection may be held by nobody, between a worker's accept() and its mark in the bitmap.
constexpr Duration kSuspicion = std::chrono::seconds(1);

/// Requests of one program that are looked at in a turn, and records that are searched for senders that wait for blocks: a
/// twentieth of a millisecond or so each, whatever a program posts. What is left is looked at in the next turn.
constexpr std::uint32_t kRequestsPerTurn = 512;
constexpr std::uint32_t kStarvedPerTurn = 2048;

}  // namespace

/// Owner of connections whose socket is closed: they finish on their own, and only their blocks still matter.
class Tenant::OrphanOwner final : public stack::tcp::ConnectionOwner {
public:
    explicit OrphanOwner(Tenant& tenant) : tenant_(tenant) {}
    void on_established(stack::tcp::Connection&) override {}
    std::uint32_t on_data(stack::tcp::Connection&, stack::Payload, std::uint32_t) override { return 0; }
    void on_end_of_stream(stack::tcp::Connection&) override {}
    void on_released(stack::tcp::Connection&, stack::SendChunk* first) override {
        tenant_.ledger_.release(first);
        tenant_.wake_starved();
    }
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t) override {}
    void on_closed(stack::tcp::Connection&, int) override {
        --tenant_.orphans_;
        tenant_.connections_.give();
    }

private:
    Tenant& tenant_;
};

Tenant::Tenant(std::uint32_t id, std::string program, shm::Segment segment, stack::Stack& stack, Counters& counters,
               Commons& commons, SendLimits send_limits)
    : id_(id),
      program_(std::move(program)),
      segment_(std::move(segment)),
      stack_(stack),
      counters_(counters),
      ledger_(segment_, counters),
      dirty_(segment_.dirty()),
      orphan_(std::make_unique<OrphanOwner>(*this)),
      slots_(std::make_unique<Slot[]>(segment_.geometry().sockets)),
      send_limits_(send_limits),
      commons_(commons),
      connections_(commons, commons.connections),
      listeners_(commons, commons.listeners),
      datagram_sockets_(commons, commons.datagram_sockets) {
    ++commons_.tenants;
    const shm::Geometry& geometry = segment_.geometry();
    for (std::uint32_t index = 0; index < geometry.sockets; ++index) slots_[index].stream.init(*this, index);
    shm::SocketBitmap free = segment_.free_sockets();
    for (std::uint32_t index = 0; index < geometry.app_sockets; ++index) {
        reset_record(index);
        free.set(index);
    }
    // Lowest first: a few sockets touch few pages.
    for (std::uint32_t index = geometry.sockets; index > geometry.app_sockets; --index)
        free_records_.push_back(index - 1);
    for (std::uint32_t queue = geometry.accept_queues; queue > 0; --queue) free_accept_queues_.push_back(queue - 1);
    changed_.reserve(geometry.sockets);
    records_to_wake_.reserve(geometry.sockets);
    queues_to_wake_.reserve(geometry.queues);
    queue_fds_.resize(geometry.queues);
    queue_process_.resize(geometry.queues);
    live_.resize(geometry.processes);
    raw_grants_.reserve(kMaxRawSockets);
}

Tenant::~Tenant() {
    for (std::uint32_t index = 0; index < segment_.geometry().sockets; ++index) close_socket(index);
    --commons_.tenants;
}

void Tenant::drop(Drop reason) {
    counters_.drop(reason);
    own_counters_.drop(reason);
}

stack::tcp::ConnectionOwner* Tenant::orphan() const { return orphan_.get(); }

// --- processes and queues -------------------------------------------------------------------------------------------

Result<std::uint32_t> Tenant::add_process(std::uint32_t pid) {
    for (std::uint32_t slot = 0; slot < segment_.geometry().processes; ++slot) {
        shm::ProcessRecord& process = segment_.process(slot);
        if (live_[slot]) continue;
        live_[slot] = true;
        process.pid.store(pid, std::memory_order_relaxed);
        process.live.store(1, std::memory_order_release);
        processes_used_ = std::max(processes_used_, slot + 1);
        ++live_processes_;
        return slot;
    }
    return fail(ENOSPC, "no free process slot");
}

void Tenant::remove_process(std::uint32_t slot, Instant now) {
    if (slot >= processes_used_ || !live_[slot]) return;
    live_[slot] = false;
    segment_.process(slot).live.store(0, std::memory_order_seq_cst);
    --live_processes_;
    shm::SocketBitmap holders = segment_.holders(slot);
    for (std::uint32_t word = 0; word < shm::ReadyBitmap::words(holders.bits()); ++word)
        holders.words()[word].store(0, std::memory_order_seq_cst);
    for (std::uint32_t queue = 0; queue < queues_used_; ++queue)
        if (queue_fds_[queue] && queue_process_[queue] == slot) {
            commons_.signal.signal(queue_fds_[queue].get());  // others may wait on it (a set shared over a fork): one of them takes over
            remove_queue(queue);
        }
    release_locks(slot);
    CULVERT_FAULT_POINT(process_removed);
    close_unheld(false);
    if (live_processes_ != 0) next_check_ = now + kSuspicion;
}

void Tenant::release_locks(std::uint32_t slot) {
    // A sender or receiver that was killed while it held a socket's lock must not block the others.
    for (std::uint32_t index = 0; index < segment_.geometry().sockets; ++index) {
        if (slots_[index].kind == Kind::kFree) continue;
        shm::AppLine& app = segment_.socket(index).app;
        for (std::atomic<std::uint32_t>* lock : {&app.tx_lock, &app.rx_lock}) {
            std::uint32_t expected = slot + 1;
            if (lock->compare_exchange_strong(expected, 0)) shm::futex_wake_all(*lock);
        }
    }
}

bool Tenant::held_by_live_process(std::uint32_t index) {
    for (std::uint32_t slot = 0; slot < processes_used_; ++slot)
        if (live_[slot] && segment_.holders(slot).test(index)) return true;
    return false;
}

void Tenant::close_unheld(bool only_suspects) {
    const shm::Geometry& geometry = segment_.geometry();
    shm::SocketBitmap free = segment_.free_sockets();
    for (std::uint32_t index = 0; index < geometry.sockets; ++index) {
        Slot& slot = slots_[index];
        const bool suspect = slot.suspect;
        slot.suspect = false;
        if (only_suspects && !suspect) continue;
        if (slot.kind == Kind::kFree) {
            // Taken by a process that died before its first request.
            if (index < geometry.app_sockets && !free.test(index) && !held_by_live_process(index)) free_record(index);
            continue;
        }
        if (held_by_live_process(index)) continue;
        const AcceptTicket& ticket = slot.stream.ticket;
        if (slot.kind == Kind::kStream && ticket.listener != shm::kNoIndex && live_processes_ != 0) {
            const Slot& listener = slots_[ticket.listener];
            if (listener.listen != nullptr && !listener.listen->taken(ticket.position)) continue;  // waits for accept
            if (!suspect) {
                slot.suspect = true;  // somebody may be accepting it right now: look again in a second
                continue;
            }
        }
        close_socket(index);
    }
}

Result<std::uint32_t> Tenant::add_queue(std::uint32_t process, UniqueFd eventfd) {
    for (std::uint32_t queue = 0; queue < segment_.geometry().queues; ++queue) {
        if (queue_fds_[queue]) continue;
        queue_fds_[queue] = std::move(eventfd);
        queue_process_[queue] = process;
        queues_used_ = std::max(queues_used_, queue + 1);
        segment_.queue(queue).asleep.store(0, std::memory_order_relaxed);
        segment_.ready(queue).collect([](std::uint32_t) {});
        return queue;
    }
    return fail(ENOSPC, "no free event queue");
}

void Tenant::remove_queue(std::uint32_t queue) {
    if (queue >= queues_used_ || !queue_fds_[queue]) return drop(Drop::kTenantBadRequest);
    queue_fds_[queue].reset();
    shm::SocketBitmap watched = segment_.watched(queue);
    for (std::uint32_t index = 0; index < segment_.geometry().sockets; ++index)
        if (slots_[index].kind == Kind::kListener && watched.test(index)) tell_another(index);
    for (std::uint32_t word = 0; word < shm::ReadyBitmap::words(watched.bits()); ++word)
        watched.words()[word].store(0, std::memory_order_relaxed);
    while (queues_used_ > 0 && !queue_fds_[queues_used_ - 1]) --queues_used_;
}

bool Tenant::finished() const {
    return live_processes_ == 0 && orphans_ == 0 && ledger_.transmitting() == 0;
}

// --- connections that leave --------------------------------------------------------------------------------------------

Result<Leaving> Tenant::leaving(std::uint32_t index, std::uint32_t generation) {
    const auto bad = [this](int code) {
        drop(Drop::kTenantBadSocket);
        return fail(code, "connection that leaves");
    };
    if (index >= segment_.geometry().sockets) return bad(EBADF);
    const Slot& slot = slots_[index];
    if (segment_.socket(index).daemon.generation.load(std::memory_order_relaxed) != generation) return bad(EBADF);
    Leaving leaving;
    if (slot.kind == Kind::kMoved) {
        leaving.made.reset(::fcntl(moved_.at(index).theirs.get(), F_DUPFD_CLOEXEC, 0));
        if (!leaving.made) return fail_errno("stand-in");
        return leaving;
    }
    if (slot.kind != Kind::kStream) return bad(ENOTCONN);
    if (const stack::tcp::Connection* const connection = slot.stream.connection()) {
        using State = stack::tcp::State;
        if (connection->state() == State::kSynSent || connection->state() == State::kSynReceived) return fail(ENOTCONN, "connection that leaves");
        leaving.local = connection->local();
        leaving.remote = connection->remote();
    }
    return leaving;
}

Result<UniqueFd> Tenant::leave(std::uint32_t index, std::uint32_t generation, StandIns& stand_ins, UniqueFd ours, UniqueFd theirs,
                               Instant now) {
    Leaving again = TRY(leaving(index, generation));
    if (again.made) return std::move(again.made);  // somebody else of the program was quicker
    look(index, now);
    Slot& slot = slots_[index];
    if (slot.kind != Kind::kStream) return fail(EBADF, "connection that leaves");
    UniqueFd answer(::fcntl(theirs.get(), F_DUPFD_CLOEXEC, 0));
    if (!answer) return fail_errno("stand-in");
    StandIn* const stand_in = stand_ins.add(*this, std::move(ours));
    if (stand_in == nullptr) return fail(ENOBUFS, "stand-ins");
    if (const int error = slot.stream.move_to(*stand_in); error != 0) {
        stand_ins.cancel(*stand_in);
        return fail(error, "connection that leaves");
    }
    for (std::uint32_t process = 0; process < processes_used_ && stand_in->pid == 0; ++process)
        if (live_[process] && segment_.holders(process).test(index))
            stand_in->pid = segment_.process(process).pid.load(std::memory_order_relaxed);
    slot.kind = Kind::kMoved;
    moved_[index] = {std::move(theirs), &stand_ins};
    segment_.socket(index).daemon.status.fetch_or(shm::kStatusMoved, std::memory_order_seq_cst);
    mark_changed(index);
    return answer;
}

DatagramSocket* Tenant::datagram_to_rest(std::uint32_t index, std::uint32_t generation) {
    if (index < segment_.geometry().sockets && slots_[index].kind == Kind::kDatagram &&
        segment_.socket(index).daemon.generation.load(std::memory_order_relaxed) == generation)
        return slots_[index].datagram.get();
    drop(Drop::kTenantBadSocket);
    return nullptr;
}

Result<void> Tenant::yield_port(std::uint32_t index, std::uint32_t generation) {
    const DatagramSocket* const datagram = datagram_to_rest(index, generation);
    if (datagram == nullptr) return fail(EBADF, "datagram socket that is passed on");
    if (datagram->socket != nullptr) stack_.yield_port(*datagram->socket);
    return {};
}

Result<std::vector<UnreadDatagram>> Tenant::rest_datagrams(std::uint32_t index, std::uint32_t generation) {
    DatagramSocket* const datagram = datagram_to_rest(index, generation);
    if (datagram == nullptr) return fail(EBADF, "datagram socket that is passed on");
    std::vector<UnreadDatagram> unread = datagram->rest();
    segment_.socket(index).daemon.status.fetch_or(shm::kStatusResting, std::memory_order_seq_cst);
    mark_changed(index);
    return unread;
}

void Tenant::forget_moved(std::uint32_t index) {
    const auto moved = moved_.find(index);
    moved->second.all->bury(std::move(moved->second.theirs));
    moved_.erase(moved);
}

void Tenant::take_back(stack::SendChunk* first) {
    ledger_.release(first);
    wake_starved();
}

// --- records ----------------------------------------------------------------------------------------------------------

void Tenant::reset_record(std::uint32_t index) {
    shm::SocketRecord& record = segment_.socket(index);
    const std::uint32_t generation = record.daemon.generation.load(std::memory_order_relaxed) + 1;
    std::memset(static_cast<void*>(&record), 0, sizeof record);
    record.daemon.generation.store(generation, std::memory_order_relaxed);
    record.daemon.send_limit.store(send_limits_.standard, std::memory_order_relaxed);
    Slot& slot = slots_[index];
    slot.operation_done = 0;
    slot.options_version = 0;
    slot.linger_zero = false;
    slot.suspect = false;
    slot.answered = false;
    slot.stream.ticket = {};
}

std::uint32_t Tenant::allocate_record() {
    if (free_records_.empty()) return shm::kNoIndex;
    const std::uint32_t index = free_records_.back();
    free_records_.pop_back();
    reset_record(index);
    return index;
}

void Tenant::free_record(std::uint32_t index) {
    slots_[index].kind = Kind::kFree;
    for (std::uint32_t queue = 0; queue < queues_used_; ++queue) {
        shm::SocketBitmap watched = segment_.watched(queue);
        if (watched.test(index)) watched.clear(index);
    }
    if (index >= segment_.geometry().app_sockets) {
        // Anybody who still looks at it sees a dead socket of another generation.
        shm::SocketRecord& record = segment_.socket(index);
        record.daemon.generation.fetch_add(1, std::memory_order_relaxed);
        record.daemon.status.store(shm::kStatusDead, std::memory_order_release);
        free_records_.push_back(index);
        return;
    }
    reset_record(index);
    segment_.free_sockets().set(index);
}

/// Connections that nobody has accepted go with their listener, as in Linux (inet_csk_listen_stop), or to its heir.
void Tenant::refuse_waiting(std::uint32_t index, stack::tcp::ListenerOwner* heir) {
    const ListenSocket& listen = *slots_[index].listen;
    for (std::uint32_t other = segment_.geometry().app_sockets; other < segment_.geometry().sockets; ++other) {
        Slot& slot = slots_[other];
        if (slot.kind != Kind::kStream || slot.stream.ticket.listener != index) continue;
        const bool waiting = !listen.taken(slot.stream.ticket.position);
        slot.stream.ticket = {};
        if (waiting) {
            if (heir == nullptr || !slot.stream.hand_to(*heir)) slot.stream.close(true);
            free_record(other);
        }
    }
}

void Tenant::close_listener(std::uint32_t index) {
    const ListenSocket& listen = *slots_[index].listen;
    // If another program holds the kernel's listener, too, and so serves this port in its own segment, they wait on there, as in the
    // kernel's queue.
    refuse_waiting(index, listen.listener != nullptr ? stack_.heir_of(*listen.listener) : nullptr);
    slots_[index].listen.reset();
}

/// shutdown() of a listener that several processes hold: it ends for all of them. The record stays theirs, and its accept queue,
/// since one may be looking at it; a kListen begins anew.
void Tenant::shut_listener(std::uint32_t index) {
    ListenSocket& listen = *slots_[index].listen;
    refuse_waiting(index, nullptr);
    stack_.close(*std::exchange(listen.listener, nullptr));
    mark_changed(index);
}

void Tenant::close_socket(std::uint32_t index) {
    CULVERT_FAULT_POINT(socket_closing);
    Slot& slot = slots_[index];
    switch (slot.kind) {
        case Kind::kFree: return;
        case Kind::kIdle: break;
        case Kind::kStream: slot.stream.close(slot.linger_zero); break;
        case Kind::kListener: close_listener(index); break;
        case Kind::kDatagram: slot.datagram.reset(); break;
        case Kind::kRaw: raw_sockets_.erase(index); break;
        case Kind::kMoved: forget_moved(index); break;
    }
    free_record(index);
}

// --- the turn ---------------------------------------------------------------------------------------------------------

std::uint32_t Tenant::poll(Instant now) {
    if (now >= next_check_) {
        next_check_ = kNever;
        close_unheld(true);
    }
    const std::uint32_t looked = dirty_.collect_some(kRequestsPerTurn, next_request_, [&](std::uint32_t index) { look(index, now); });
    counters_.requests += looked;
    own_counters_.requests += looked;
    return looked;
}

void Tenant::look(std::uint32_t index, Instant now) {
    Slot& slot = slots_[index];
    const shm::AppLine& app = segment_.socket(index).app;
    // The flags first: what they promise (FIN, close) comes after everything that is in tx_list by then.
    const std::uint32_t flags = app.flags.load(std::memory_order_acquire);
    const std::uint32_t operation = app.operation_sequence.load(std::memory_order_acquire);
    if (slot.kind == Kind::kFree) {
        if (index >= segment_.geometry().app_sockets) return;  // closed meanwhile: a late request
        if (operation == 0) {
            if ((flags & shm::kAppClosed) != 0 && !segment_.free_sockets().test(index)) free_record(index);
            return;
        }
        slot.kind = Kind::kIdle;
    }
    if (slot.kind == Kind::kListener && (flags & shm::kAppShutRead) != 0 && slot.listen->listener != nullptr) shut_listener(index);
    if (slot.kind == Kind::kListener && (flags & shm::kAppTellAnother) != 0) {
        segment_.socket(index).app.flags.fetch_and(~shm::kAppTellAnother, std::memory_order_seq_cst);
        tell_another(index);
    }
    if (operation != slot.operation_done) run_operation(index, operation, now);
    if (app.options_version.load(std::memory_order_relaxed) != slot.options_version) apply_options(index);
    if (slot.kind == Kind::kStream) slot.stream.look(flags);
    if (slot.kind == Kind::kDatagram) {
        slot.datagram->look(now);
        if ((flags & shm::kAppWantWrite) != 0) mark_changed(index);
    }
    if (slot.kind == Kind::kRaw) {
        raw_sockets_.at(index)->look(now);
        if ((flags & shm::kAppWantWrite) != 0) mark_changed(index);
    }
    if ((flags & shm::kAppClosed) != 0) close_socket(index);
}

/// A set that may have been the only one told of connections at this listener will not accept them.
void Tenant::tell_another(std::uint32_t listener) {
    const bool exclusive = (segment_.socket(listener).app.flags.load(std::memory_order_relaxed) & shm::kAppExclusive) != 0;
    if (exclusive && slots_[listener].listen->waiting() != 0) mark_changed(listener);
}

void Tenant::mark_changed(std::uint32_t index) {
    if (slots_[index].changed) return;
    slots_[index].changed = true;
    changed_.push_back(index);
}

void Tenant::deliver_events() {
    if (starved_left_ != 0) [[unlikely]]
        tell_starved();
    for (const std::uint32_t index : changed_) {
        slots_[index].changed = false;
        publish(index);
    }
    changed_.clear();
    CULVERT_FAULT_POINT(events_published);
    // Waking may hand this core to the application at once, so everything is published before: otherwise it would find one
    // socket, answer, sleep again, and be woken again for the next.
    for (const std::uint32_t index : records_to_wake_)
        shm::futex_wake_all(segment_.socket(index).daemon.event_sequence);
    counters_.app_wakeups += records_to_wake_.size();
    records_to_wake_.clear();
    for (const std::uint32_t queue : queues_to_wake_) {
        if (!queue_fds_[queue] || !shm::must_wake(segment_.queue(queue).asleep)) continue;
        ++counters_.app_wakeups;
        commons_.signal.signal(queue_fds_[queue].get());
    }
    queues_to_wake_.clear();
}

void Tenant::publish(std::uint32_t index) {
    Slot& slot = slots_[index];
    const std::uint32_t flags = segment_.socket(index).app.flags.load(std::memory_order_seq_cst);
    bool news = std::exchange(slot.answered, false);
    switch (slot.kind) {
        case Kind::kFree: return;
        case Kind::kIdle: break;
        case Kind::kStream: news |= slot.stream.publish(flags); break;
        case Kind::kListener: news = true; break;
        case Kind::kDatagram: news |= slot.datagram->publish(flags); break;
        case Kind::kRaw: news |= raw_sockets_.at(index)->publish(flags); break;
        case Kind::kMoved: news = true; break;
    }
    if (news) notify(index, flags);
}

void Tenant::notify(std::uint32_t index, std::uint32_t app_flags) {
    shm::SocketRecord& record = segment_.socket(index);
    // What was published must be visible before we ask who waits for it (the other half is in the shim's waits).
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (record.app.waiters.load(std::memory_order_seq_cst) != 0) {
        record.daemon.event_sequence.fetch_add(1, std::memory_order_seq_cst);
        records_to_wake_.push_back(index);
    }
    const std::uint32_t watch = record.app.watch.load(std::memory_order_seq_cst);
    if (watch == shm::kWatchNone) return;
    if (watch != shm::kWatchMany) {
        if (watch > queues_used_) return;  // a queue that has gone
        segment_.ready(watch - 1).post(index);
        return wake_later(watch - 1);
    }
    // With EPOLLEXCLUSIVE as on Linux: of the sets that somebody waits for, one is told, and in turn; those that are busy before it find it
    // when they wait next. One of them alone would not do: it may be busy for long, or close its listener before it looks.
    const bool exclusive = (app_flags & shm::kAppExclusive) != 0;
    const std::uint32_t first = exclusive ? next_exclusive_ : 0;
    bool enough = false;
    for (std::uint32_t i = 0; i < queues_used_; ++i) {
        const std::uint32_t queue = (first + i) % queues_used_;
        if (!queue_fds_[queue] || !segment_.watched(queue).test(index)) continue;
        const bool of_call = !exclusive || segment_.queue(queue).of_call.load(std::memory_order_relaxed) != 0;
        if (enough && !of_call) continue;
        const bool sleeps = segment_.queue(queue).asleep.load(std::memory_order_seq_cst) != 0;
        segment_.ready(queue).post(index);
        wake_later(queue);
        // It may have left meanwhile (kAppTellAnother), without having seen what waits.
        if (of_call || enough || !sleeps || !segment_.watched(queue).test(index)) continue;
        next_exclusive_ = queue + 1;
        enough = true;
    }
}

void Tenant::wake_later(std::uint32_t queue) {
    // Usually the same queue many times in a row; a repeated entry costs one look at its flag.
    if (queues_to_wake_.empty() || queues_to_wake_.back() != queue) queues_to_wake_.push_back(queue);
}

void Tenant::wake_starved() {
    std::atomic<std::uint32_t>& starved = segment_.header().tx_starved;
    if (starved.load(std::memory_order_seq_cst) == 0) return;
    starved.store(0, std::memory_order_seq_cst);
    starved_left_ = segment_.geometry().sockets;
}

/// A part of the search that wake_starved() has ordered: the flag is the application's, and so is how often it is set.
void Tenant::tell_starved() {
    for (std::uint32_t count = std::min(starved_left_, kStarvedPerTurn); count != 0; --count) {
        --starved_left_;
        const std::uint32_t index = starved_next_++ % segment_.geometry().sockets;
        const Kind kind = slots_[index].kind;
        if (kind != Kind::kStream && kind != Kind::kDatagram && kind != Kind::kRaw) continue;
        if ((segment_.socket(index).app.flags.load(std::memory_order_relaxed) & shm::kAppWantWrite) != 0)
            mark_changed(index);
    }
}

/// False: the application's pool is empty, and wake_starved() will be called for when something comes back. Telling a sender
/// to go on would only make it ask again.
bool Tenant::has_transmit_blocks() {
    shm::SegmentHeader& header = segment_.header();
    const auto any = [&] {
        return static_cast<std::uint32_t>(header.tx_free.load(std::memory_order_seq_cst)) != shm::kEmptyList;
    };
    if (any()) return true;
    header.tx_starved.store(1, std::memory_order_seq_cst);
    return any();
}

void Tenant::apply_options(std::uint32_t index) {
    Slot& slot = slots_[index];
    const shm::SocketRecord& record = segment_.socket(index);
    const std::uint32_t version = record.app.options_version.load(std::memory_order_acquire);
    if ((version & 1) != 0) return;  // being written; the writer marks the socket again
    const stack::tcp::Options options = read_options(index);
    const shm::SocketOptions raw = record.options;
    if (record.app.options_version.load(std::memory_order_acquire) != version) return;
    slot.options_version = version;
    if (slot.kind == Kind::kStream && slot.stream.connection() != nullptr) {
        slot.stream.connection()->set_options(options);
        slot.stream.limit_sending(raw.send_buffer, raw.notsent_lowat);
        mark_changed(index);  // who waits may have room now
    }
    if (slot.kind == Kind::kDatagram) slot.datagram->set_options(raw);
    if (slot.kind == Kind::kRaw) raw_sockets_.at(index)->set_options(raw);
    if (slot.listen != nullptr && slot.listen->listener != nullptr) slot.listen->listener->set_options(read_listener_options(index));
}

}  // namespace culvert::tenant
