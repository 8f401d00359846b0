// Attaching, and what passes through the segment apart from the bytes themselves.

#include "preload/client.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "preload/confined.h"
#include "preload/dead_flows.h"
#include "preload/environment.h"
#include "preload/fd_table.h"
#include "preload/libc.h"
#include "preload/own_fd.h"
#include "preload/signals_off.h"
#include "preload/socket_lock.h"
#include "shm/attach_protocol.h"
#include "shm/base/unique_fd.h"
#include "shm/base/fault_point.h"

namespace culvert::preload {

namespace {

constexpr std::int64_t kRetryNs = 1'000'000'000;     // an absent daemon is asked for again after this
constexpr std::int64_t kLongestPauseNs = 60'000'000'000;  // and one that refuses or says nothing after up to this
constexpr std::int64_t kAttachTimeoutNs = 2'000'000'000;  // socket() waits for it
constexpr std::int64_t kAnswerTimeoutNs = 5'000'000'000;

constinit std::atomic<Client*> installed{nullptr};
constinit std::atomic<std::int64_t> next_attempt_ns{0};
constinit std::atomic<std::int64_t> refusal_pause_ns{kRetryNs};  // grows with every refusal in a row
constinit std::atomic<std::uint32_t> orphans{0};
constinit char program_name[sizeof(shm::Hello::program)] = {};
constinit pthread_mutex_t attach_mutex = PTHREAD_MUTEX_INITIALIZER;

/// Room for every record number that a real segment may have for a listener or a UDP socket: a thread that looks while another
/// one revives the socket may see the client of before and the record of now. Address space, nothing of it in memory.
constexpr shm::Geometry kNobodysGeometry{16384, 64, 1, 1, 1, 1, 1};

/// Held during conversations with the daemon; a handler that forked in between would wait for itself.
class MutexGuard {
public:
    explicit MutexGuard(pthread_mutex_t& mutex) noexcept : mutex_(mutex) { ::pthread_mutex_lock(&mutex_); }
    ~MutexGuard() { ::pthread_mutex_unlock(&mutex_); }
    MutexGuard(const MutexGuard&) = delete;
    MutexGuard& operator=(const MutexGuard&) = delete;

private:
    const SignalsOff signals_off_;
    pthread_mutex_t& mutex_;
};

timespec to_timespec(std::int64_t ns) noexcept {
    return {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
}

bool wait_readable(int fd, std::int64_t timeout_ns) noexcept {
    const std::int64_t deadline = now_ns() + timeout_ns;
    for (;;) {
        const std::int64_t left = deadline - now_ns();
        if (left <= 0) return false;
        pollfd poll{fd, POLLIN, 0};
        const timespec timeout = to_timespec(left);
        const int count = raw::ppoll(&poll, 1, &timeout, nullptr);
        if (count > 0) return true;
        if (count < 0 && errno != EINTR) return false;
    }
}

bool send_with_fds(int socket, const void* data, std::size_t size, const int* fds, std::size_t fd_count) noexcept {
    iovec part{const_cast<void*>(data), size};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(shm::ReportDead::kMost * sizeof(int))] = {};
    if (fd_count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        std::memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));
    }
    for (;;) {
        const long sent = ::syscall(SYS_sendmsg, socket, &message, MSG_NOSIGNAL);
        if (sent >= 0) return static_cast<std::size_t>(sent) == size;
        if (errno != EINTR) return false;
    }
}

bool send_with_fd(int socket, const void* data, std::size_t size, int fd) noexcept {
    return send_with_fds(socket, data, size, &fd, fd >= 0 ? 1 : 0);
}

/// Receives one message of exactly `size` bytes and up to `wanted` descriptors (-1 where none came).
bool receive_with_fds(int socket, void* data, std::size_t size, int* fds, std::size_t wanted,
                      std::int64_t timeout_ns) noexcept {
    constexpr std::size_t kMaxFds = 4;
    iovec part{data, size};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    for (std::size_t i = 0; i < wanted; ++i) fds[i] = -1;
    if (!wait_readable(socket, timeout_ns)) return false;
    const long got = ::syscall(SYS_recvmsg, socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    std::size_t found = 0;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr && got >= 0; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
            if (found < wanted)
                fds[found++] = fd;
            else
                raw::close(fd);
        }
    }
    return got == static_cast<long>(size);
}

/// A control connection to the daemon, or -1.
int dial() noexcept {
    const char* path = environment(shm::kSocketPathVariable);
    if (path == nullptr || *path == '\0') path = shm::kDefaultSocketPath;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::size_t length = std::strlen(path);
    if (length >= sizeof address.sun_path) return -1;
    std::memcpy(address.sun_path, path, length + 1);
    const int fd = static_cast<int>(::syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (fd < 0) return -1;
    // A listener whose queue is full would block: a daemon that does not accept is an absent one.
    const int flags = raw::fcntl(fd, F_GETFL, 0);
    raw::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    if (::syscall(SYS_connect, fd, &address, sizeof address) != 0) {
        raw::close(fd);
        return -1;
    }
    raw::fcntl(fd, F_SETFL, flags);
    return fd;
}

}  // namespace

Client::Client(shm::Segment&& segment, std::uint32_t slot, std::uint32_t spin_us, int control, int doorbell) noexcept
    : segment_(std::move(segment)), slot_(slot), spin_us_(spin_us), control_(control), doorbell_(doorbell) {}

Client* Client::current() noexcept { return installed.load(std::memory_order_acquire); }
void Client::install(Client* client) noexcept {
    installed.store(client, std::memory_order_release);
    if (client == nullptr) return;
    next_attempt_ns.store(0, std::memory_order_relaxed);
    refusal_pause_ns.store(kRetryNs, std::memory_order_relaxed);
}

void Client::lock_attaching() noexcept { ::pthread_mutex_lock(&attach_mutex); }
void Client::unlock_attaching() noexcept { ::pthread_mutex_unlock(&attach_mutex); }

Client* Client::nobody() noexcept {
    static constinit std::atomic<Client*> made{nullptr};
    Client* known = made.load(std::memory_order_acquire);
    if (known != nullptr || is_confined()) return known;
    const KeepErrno keep;
    void* const memory = ::mmap(nullptr, sizeof(Client), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    try {
        UniqueFd unused;
        if (auto segment = shm::Segment::create(kNobodysGeometry, "culvert-none", unused)) {
            auto* const fresh = ::new (memory) Client(std::move(*segment), 0, 0, -1, -1);
            fresh->gone_.store(true, std::memory_order_relaxed);
            if (made.compare_exchange_strong(known, fresh, std::memory_order_acq_rel)) return fresh;
            fresh->~Client();
        }
    } catch (...) {  // out of memory while describing an error
    }
    ::munmap(memory, sizeof(Client));
    return known;
}

bool Client::attempt_is_due() noexcept {
    const Client* const client = current();
    return (client != nullptr && !client->daemon_gone()) || now_ns() >= next_attempt_ns.load(std::memory_order_relaxed);
}

std::int64_t Client::until_next_attempt_ns() noexcept {
    constexpr std::int64_t kLeastNs = 1'000'000;
    const Client* const client = current();
    if (client != nullptr && !client->daemon_gone()) return kLeastNs;
    return std::max(next_attempt_ns.load(std::memory_order_relaxed) - now_ns(), kLeastNs);
}

std::uint32_t Client::orphan_epoch() noexcept { return orphans.load(std::memory_order_acquire); }
void Client::note_orphan() noexcept { orphans.fetch_add(1, std::memory_order_acq_rel); }

void Client::mark_gone() noexcept {
    if (!gone_.exchange(true, std::memory_order_acq_rel)) note_orphan();
}

/// Gives back what a client holds whose daemon has gone, all but the addresses: sockets may still refer to its memory, and read
/// zeroes there. Called when its successor's successor comes, so nobody is in the middle of a call that began when it lived.
void Client::retire() noexcept {
    close_own(control_.exchange(-1, std::memory_order_relaxed));
    close_own(std::exchange(doorbell_, -1));
    close_pooled_queues();
    const std::size_t bytes = segment_.layout().size_bytes;
    // In one step: there is no moment without memory.
    ::mmap(&segment_.header(), bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void Client::close_pooled_queues() noexcept {
    for (std::atomic<std::uint64_t>& place : pooled_)
        if (const std::uint64_t queue = place.exchange(0, std::memory_order_relaxed))
            close_own(static_cast<int>(queue & UINT32_MAX) - 1);
}

void Client::remember_name() noexcept {
    if (program_name[0] == '\0' && program_invocation_short_name != nullptr)
        std::strncpy(program_name, program_invocation_short_name, sizeof program_name - 1);
}

bool Client::strict() noexcept {
    const char* value = environment(shm::kStrictVariable);
    return value != nullptr && std::strcmp(value, "1") == 0;
}

Client* Client::attached() noexcept {
    Client* client = current();
    if (client != nullptr && !client->daemon_gone()) [[likely]]
        return client;
    if (now_ns() < next_attempt_ns.load(std::memory_order_relaxed)) return nullptr;
    const KeepErrno keep;
    if (in_borrowed_memory()) return nullptr;
    if (is_confined()) {  // never again: who waits for a daemon must not wake for it each millisecond
        next_attempt_ns.store(now_ns() + kLongestPauseNs, std::memory_order_relaxed);
        return nullptr;
    }
    const MutexGuard guard(attach_mutex);
    client = current();
    if (client != nullptr && !client->daemon_gone()) return client;
    if (now_ns() < next_attempt_ns.load(std::memory_order_relaxed)) return nullptr;
    // Other threads do not queue up behind this attempt. Its end decides when the next one is due: counted from the
    // beginning, the pause after a daemon that says nothing would be over before the attempt is.
    next_attempt_ns.store(now_ns() + kAttachTimeoutNs + kRetryNs, std::memory_order_relaxed);
    const int control = dial();
    if (control < 0) {
        next_attempt_ns.store(now_ns() + kRetryNs, std::memory_order_relaxed);
        return nullptr;
    }
    Client* fresh = attach_over(control);
    if (fresh == nullptr) {
        const std::int64_t pause = refusal_pause_ns.load(std::memory_order_relaxed);
        next_attempt_ns.store(now_ns() + pause, std::memory_order_relaxed);
        refusal_pause_ns.store(std::min(pause * 4, kLongestPauseNs), std::memory_order_relaxed);
        return nullptr;
    }
    fresh->predecessor_ = client;
    if (client != nullptr && client->predecessor_ != nullptr) std::exchange(client->predecessor_, nullptr)->retire();
    install(fresh);
    if (client != nullptr) report_dead_flows(*client, *fresh);
    return fresh;
}

Client* Client::attach_over(int control) noexcept {
    const KeepErrno keep;
    claim_memory();
    control = move_away(control);
    int fds[2] = {-1, -1};
    shm::Hello hello;
    hello.pid = static_cast<std::uint32_t>(::syscall(SYS_getpid));
    remember_name();
    std::memcpy(hello.program, program_name, sizeof hello.program);
    std::strncpy(hello.version, CULVERT_VERSION, sizeof hello.version - 1);
    shm::Welcome welcome;
    void* memory = MAP_FAILED;
    bool good = send_with_fd(control, &hello, sizeof hello, -1) &&
                receive_with_fds(control, &welcome, sizeof welcome, fds, 2, kAttachTimeoutNs) &&
                welcome.kind == shm::MessageKind::kWelcome && welcome.status == shm::AttachStatus::kOk &&
                welcome.abi_version == shm::kAbiVersion && fds[0] >= 0 && fds[1] >= 0 &&
                welcome.process_slot < welcome.geometry.processes;
    CULVERT_FAULT_POINT(attach_welcomed);
    shm::Policy policy;
    if (good && welcome.has_policy) {
        shm::PolicyError error;
        welcome.policy[sizeof welcome.policy - 1] = '\0';
        good = policy.parse(welcome.policy, error);
    }
    if (good) {
        memory = ::mmap(nullptr, sizeof(Client), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        good = memory != MAP_FAILED;
    }
    if (good) {
        try {
            auto segment = shm::Segment::open(fds[0], welcome.geometry);
            if (segment) {
                raw::close(fds[0]);
                auto* const client = ::new (memory) Client(std::move(*segment), welcome.process_slot, welcome.spin_us,
                                                           control, move_away(fds[1]));
                client->has_policy_ = welcome.has_policy;
                client->policy_ = policy;
                return client;
            }
        } catch (...) {  // out of memory while describing an error
        }
        ::munmap(memory, sizeof(Client));
    }
    for (const int fd : fds)
        if (fd >= 0) raw::close(fd);
    close_own(control);
    return nullptr;
}

// --- facts ------------------------------------------------------------------------------------------------------------

shm::Segment& Client::segment() noexcept { return segment_; }
std::uint32_t Client::process_slot() const noexcept { return slot_.load(std::memory_order_relaxed); }
std::uint32_t Client::spin_us() const noexcept { return spin_us_; }
int Client::control_fd() const noexcept { return control_.load(std::memory_order_relaxed); }
bool Client::daemon_gone() const noexcept { return gone_.load(std::memory_order_acquire); }

bool Client::check_daemon() noexcept {
    if (daemon_gone()) return true;
    const KeepErrno keep;
    // Only looked at: an answer may be under way. By poll, which is all that a confined process may do.
    pollfd control{control_fd(), POLLRDHUP, 0};
    const timespec now{};
    if (raw::ppoll(&control, 1, &now, nullptr) <= 0) return false;
    mark_gone();
    return true;
}

void Client::post(std::uint32_t record) noexcept {
    segment_.dirty().post(record);
    if (shm::must_wake(segment_.header().engine_asleep)) shm::signal_eventfd(doorbell_);
}

void Client::tell_another(std::uint32_t record) noexcept {
    if (record >= segment_.geometry().sockets) return;
    segment_.socket(record).app.flags.fetch_or(shm::kAppTellAnother, std::memory_order_seq_cst);
    post(record);
}

void Client::note_reason(int fd, shm::KernelReason reason) noexcept {
    if (fd < 0 || static_cast<std::uint32_t>(fd) >= shm::kReasonTableLength || daemon_gone()) return;
    segment_.process(process_slot()).reasons[fd].store(static_cast<std::uint8_t>(reason), std::memory_order_relaxed);
}

void Client::inherit_reason(int fd, int listener) noexcept {
    if (listener < 0 || static_cast<std::uint32_t>(listener) >= shm::kReasonTableLength) return;
    const auto reason = segment_.process(process_slot()).reasons[listener].load(std::memory_order_relaxed);
    note_reason(fd, static_cast<shm::KernelReason>(reason));
}

// --- records ------------------------------------------------------------------------------------------------------------

std::optional<std::uint32_t> Client::take_record() noexcept {
    const SpinGuard guard(holds_lock_);
    shm::SocketBitmap free = segment_.free_sockets();
    shm::SocketBitmap held = segment_.holders(process_slot());
    const std::uint32_t words = segment_.geometry().app_sockets / 64;
    const std::uint32_t start = next_record_word_.load(std::memory_order_relaxed) % words;
    for (std::uint32_t i = 0; i < words; ++i) {
        const std::uint32_t word = (start + i) % words;
        std::uint64_t bits = free.words()[word].load(std::memory_order_acquire);
        while (bits != 0) {
            const std::uint32_t record = word * 64 + static_cast<std::uint32_t>(std::countr_zero(bits));
            bits &= bits - 1;
            // The hold before the claim: a process killed in between leaves nothing that nobody holds.
            held.set(record);
            CULVERT_FAULT_POINT(record_held);
            if (free.clear(record)) {
                CULVERT_FAULT_POINT(record_claimed);
                next_record_word_.store(word, std::memory_order_relaxed);
                return record;
            }
            held.clear(record);
        }
    }
    return std::nullopt;
}

bool Client::hold(std::uint32_t record) noexcept {
    const SpinGuard guard(holds_lock_);
    return !segment_.holders(process_slot()).set(record);
}

void Client::unhold(std::uint32_t record) noexcept {
    const SpinGuard guard(holds_lock_);
    segment_.holders(process_slot()).clear(record);
}

bool Client::held_by_others(std::uint32_t record) noexcept {
    const std::uint32_t processes = segment_.geometry().processes;
    for (std::uint32_t slot = 0; slot < processes; ++slot)
        if (slot != process_slot() && segment_.holders(slot).test(record) &&
            segment_.process(slot).live.load(std::memory_order_relaxed) != 0)
            return true;
    return false;
}

void Client::let_go(std::uint32_t record, bool may_be_shared) noexcept {
    if (daemon_gone()) return;
    let_go_of(record, segment_.socket(record).daemon.generation.load(std::memory_order_acquire), may_be_shared);
}

void Client::let_go_of(std::uint32_t record, std::uint32_t generation, bool may_be_shared) noexcept {
    if (daemon_gone()) return;
    shm::SocketRecord& shared = segment_.socket(record);
    if (shared.daemon.generation.load(std::memory_order_acquire) != generation) return;
    bool last = true;
    if (may_be_shared) {
        // Of several processes that let go at once, exactly one must find nobody else: the lock orders them, and as long
        // as our bit stands the record cannot be used again.
        const SocketLock lock(*this, shared.app.rx_lock);
        const SpinGuard guard(holds_lock_);
        last = segment_.holders(process_slot()).clear(record) && !held_by_others(record);
    } else {
        const SpinGuard guard(holds_lock_);
        last = segment_.holders(process_slot()).clear(record);
    }
    CULVERT_FAULT_POINT(close_let_go);
    if (!last || shared.daemon.generation.load(std::memory_order_acquire) != generation) return;
    shared.app.flags.fetch_or(shm::kAppClosed, std::memory_order_seq_cst);
    CULVERT_FAULT_POINT(close_said);
    post(record);
}

// --- blocks -------------------------------------------------------------------------------------------------------------

std::uint32_t Client::take_block() noexcept {
    return shm::TaggedStack(segment_.header().tx_free, segment_.block_meta(), segment_.geometry().tx_blocks).pop();
}

void Client::untake_block(std::uint32_t block) noexcept {
    shm::TaggedStack(segment_.header().tx_free, segment_.block_meta(), segment_.geometry().tx_blocks).push(block);
}

void Client::return_block(std::uint32_t block) noexcept { return_blocks(block, block); }

void Client::return_blocks(std::uint32_t first, std::uint32_t last) noexcept {
    shm::push_chain(segment_.header().rx_returned, segment_.block_meta(), first, last);
}

// --- event queues -------------------------------------------------------------------------------------------------------

bool Client::send_message(const void* request, std::size_t size, int fd) noexcept {
    return send_with_fd(control_fd(), request, size, fd);
}

/// `received`: a descriptor that comes with the answer, or -1.
bool Client::ask(const void* request, std::size_t size, int fd, std::uint32_t& value, int* received) noexcept {
    return ask_with(request, size, &fd, fd >= 0 ? 1 : 0, value, received);
}

bool Client::ask_with(const void* request, std::size_t size, const int* fds, std::size_t fd_count, std::uint32_t& value,
                      int* received) noexcept {
    if (daemon_gone() || is_confined()) return false;
    const MutexGuard guard(control_mutex_);
    shm::Answer answer;
    if (!send_with_fds(control_fd(), request, size, fds, fd_count) ||
        !receive_with_fds(control_fd(), &answer, sizeof answer, received, received != nullptr ? 1 : 0, kAnswerTimeoutNs) ||
        answer.kind != shm::MessageKind::kAnswer) {
        // No answer, or not one: what comes later could not be told from the next answer. The daemon must hear of it, or
        // it would serve for ever a process that has turned away.
        mark_gone();
        ::syscall(SYS_shutdown, control_fd(), SHUT_RDWR);
        return false;
    }
    if (answer.error != 0) return false;
    value = answer.value;
    return true;
}

bool Client::grant_raw(int fd) noexcept {
    const KeepErrno keep;
    const shm::GrantRaw request;
    std::uint32_t unused = 0;
    return ask(&request, sizeof request, fd, unused);
}

std::optional<std::uint32_t> Client::report_dead(const shm::ReportDead& report, const int* fds, std::uint32_t fd_count) noexcept {
    const KeepErrno keep;
    std::uint32_t asked = 0;
    if (ask_with(&report, sizeof report, fds, fd_count, asked, nullptr)) return asked;
    return std::nullopt;
}

int Client::ask_stand_in(std::uint32_t record, std::uint32_t generation, int family) noexcept {
    const KeepErrno keep;
    shm::AskStandIn request;
    request.record = record;
    request.generation = generation;
    request.family = family == AF_INET6 ? 6 : 4;
    std::uint32_t unused = 0;
    int received = -1;
    if (ask(&request, sizeof request, -1, unused, &received)) return received;
    if (received >= 0) raw::close(received);
    return -1;
}

bool Client::ask_to_rest(std::uint32_t record, std::uint32_t generation, int fd) noexcept {
    const KeepErrno keep;
    shm::RestDatagrams request;
    request.record = record;
    request.generation = generation;
    std::uint32_t unused = 0;
    return ask(&request, sizeof request, fd, unused);
}

std::uint32_t Client::add_queue_with(int eventfd) noexcept {
    if (daemon_gone() || is_confined()) return shm::kNoIndex;
    const KeepErrno keep;
    const shm::AddQueue request;
    std::uint32_t index = shm::kNoIndex;
    if (!ask(&request, sizeof request, eventfd, index) || index >= segment_.geometry().queues) return shm::kNoIndex;
    return index;
}

std::optional<EventQueue> Client::add_queue(bool of_call) noexcept {
    if (daemon_gone() || is_confined()) return std::nullopt;
    const KeepErrno keep;
    EventQueue queue;
    queue.eventfd = move_away(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (queue.eventfd < 0) return std::nullopt;
    queue.index = add_queue_with(queue.eventfd);
    if (queue.index == shm::kNoIndex) {
        close_own(queue.eventfd);
        return std::nullopt;
    }
    segment_.queue(queue.index).of_call.store(of_call ? 1 : 0, std::memory_order_relaxed);
    return queue;
}

void Client::remove_queue(EventQueue queue) noexcept {
    const KeepErrno keep;
    shm::RemoveQueue request;
    request.queue = queue.index;
    if (!daemon_gone() && !is_confined()) {
        const MutexGuard guard(control_mutex_);
        send_message(&request, sizeof request, -1);
    }
    close_own(queue.eventfd);
}

std::optional<EventQueue> Client::borrow_poll_queue() noexcept {
    for (std::atomic<std::uint64_t>& place : pooled_) {
        if (place.load(std::memory_order_relaxed) == 0) continue;
        const std::uint64_t found = place.exchange(0, std::memory_order_acquire);
        if (found != 0) return EventQueue{static_cast<std::uint32_t>(found >> 32), static_cast<int>(found & UINT32_MAX) - 1};
    }
    return add_queue(true);
}

void Client::give_back_poll_queue(EventQueue queue) noexcept {
    const KeepErrno keep;
    shm::cancel_sleep(segment_.queue(queue.index).asleep);
    std::uint64_t count = 0;
    (void)raw::read(queue.eventfd, &count, sizeof count);
    segment_.ready(queue.index).collect([](std::uint32_t) {});
    const std::uint64_t packed = std::uint64_t{queue.index} << 32 | (static_cast<std::uint32_t>(queue.eventfd) + 1);
    for (std::atomic<std::uint64_t>& place : pooled_) {
        std::uint64_t empty = 0;
        if (place.compare_exchange_strong(empty, packed, std::memory_order_release, std::memory_order_relaxed)) return;
    }
    remove_queue(queue);
}

void Client::watch(std::uint32_t queue, std::uint32_t record) noexcept {
    segment_.watched(queue).set(record);
    std::atomic<std::uint32_t>& word = segment_.socket(record).app.watch;
    std::uint32_t old = word.load(std::memory_order_seq_cst);
    for (;;) {
        if (old == queue + 1 || old == shm::kWatchMany) return;
        const std::uint32_t fresh = old == shm::kWatchNone ? queue + 1 : shm::kWatchMany;
        if (word.compare_exchange_weak(old, fresh, std::memory_order_seq_cst)) return;
    }
}

void Client::unwatch(std::uint32_t queue, std::uint32_t record) noexcept {
    segment_.watched(queue).clear(record);
    // kWatchMany stays: the daemon then looks at the bitmaps, which tell the truth.
    std::uint32_t mine = queue + 1;
    segment_.socket(record).app.watch.compare_exchange_strong(mine, shm::kWatchNone, std::memory_order_seq_cst);
}

}  // namespace culvert::preload
