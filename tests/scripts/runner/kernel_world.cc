#include "tests/scripts/runner/kernel_world.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <deque>
#include <thread>

#include "shm/base/unique_fd.h"
#include "tests/scripts/runner/tun.h"

namespace culvert::script {
namespace {

std::pair<sockaddr_storage, socklen_t> to_sockaddr(const Endpoint& endpoint) {
    sockaddr_storage storage{};
    if (endpoint.address.is_v4()) {
        sockaddr_in in{};
        in.sin_family = AF_INET;
        in.sin_port = htons(endpoint.port);
        std::memcpy(&in.sin_addr, endpoint.address.wire_bytes().data(), 4);
        std::memcpy(&storage, &in, sizeof in);
        return {storage, sizeof in};
    }
    sockaddr_in6 in6{};
    in6.sin6_family = AF_INET6;
    in6.sin6_port = htons(endpoint.port);
    std::memcpy(&in6.sin6_addr, endpoint.address.bytes().data(), 16);
    std::memcpy(&storage, &in6, sizeof in6);
    return {storage, sizeof in6};
}

/// The call itself, on whatever thread.
Outcome make(const Call& call, bool ipv6) {
    using Name = Call::Name;
    Outcome outcome;
    long result = -1;
    switch (call.name) {
        case Name::kSocket: result = ::socket(ipv6 ? AF_INET6 : AF_INET, call.first, call.second); break;
        case Name::kBind: {
            const auto [address, length] = to_sockaddr(*call.address);
            result = ::bind(call.fd, reinterpret_cast<const sockaddr*>(&address), length);
            break;
        }
        case Name::kConnect: {
            const auto [address, length] = to_sockaddr(*call.address);
            result = ::connect(call.fd, reinterpret_cast<const sockaddr*>(&address), length);
            break;
        }
        case Name::kListen: result = ::listen(call.fd, call.first); break;
        case Name::kAccept: result = ::accept4(call.fd, nullptr, nullptr, call.second); break;
        case Name::kReceive:
            outcome.data.resize(call.length);
            result = ::recv(call.fd, outcome.data.data(), call.length, call.first);
            outcome.data.resize(result > 0 ? static_cast<std::size_t>(result) : 0);
            break;
        case Name::kSend: {
            const auto destination = to_sockaddr(call.address.value_or(Endpoint{}));
            result = ::sendto(call.fd, call.data.data(), call.data.size(), call.first | MSG_NOSIGNAL,
                              call.address ? reinterpret_cast<const sockaddr*>(&destination.first) : nullptr,
                              call.address ? destination.second : 0);
            break;
        }
        case Name::kClose: result = ::close(call.fd); break;
        case Name::kShutdown: result = ::shutdown(call.fd, call.first); break;
        case Name::kSetOption:
            result = ::setsockopt(call.fd, call.first, call.second, call.data.data(), static_cast<socklen_t>(call.data.size()));
            break;
        case Name::kGetOption: {
            outcome.data.resize(256);
            socklen_t length = 256;
            result = ::getsockopt(call.fd, call.first, call.second, outcome.data.data(), &length);
            outcome.data.resize(length);
            break;
        }
        case Name::kFcntl: result = ::fcntl(call.fd, call.first, call.second); break;
        case Name::kIoctl: result = ::ioctl(call.fd, static_cast<unsigned long>(call.first), &outcome.number); break;
        case Name::kPoll:
            outcome.poll = call.poll;
            result = ::poll(outcome.poll.data(), outcome.poll.size(), call.second);
            break;
    }
    outcome.value = result;
    outcome.error = result < 0 ? errno : 0;
    return outcome;
}

bool may_block(const Call& call) {
    using Name = Call::Name;
    return call.name == Name::kAccept || call.name == Name::kConnect || call.name == Name::kReceive ||
           call.name == Name::kSend || call.name == Name::kPoll || call.name == Name::kClose;
}

struct InfoField {
    std::string_view name;
    std::size_t offset;
    std::size_t size;
};
#define FIELD(name) InfoField{#name, offsetof(tcp_info, name), sizeof(tcp_info{}.name)}
constexpr InfoField kInfoFields[] = {
    FIELD(tcpi_state), FIELD(tcpi_ca_state), FIELD(tcpi_retransmits), FIELD(tcpi_probes), FIELD(tcpi_backoff), FIELD(tcpi_options),
    FIELD(tcpi_rto), FIELD(tcpi_ato), FIELD(tcpi_snd_mss), FIELD(tcpi_rcv_mss), FIELD(tcpi_unacked), FIELD(tcpi_sacked),
    FIELD(tcpi_lost), FIELD(tcpi_retrans), FIELD(tcpi_pmtu), FIELD(tcpi_rcv_ssthresh), FIELD(tcpi_rtt), FIELD(tcpi_rttvar),
    FIELD(tcpi_snd_ssthresh), FIELD(tcpi_snd_cwnd), FIELD(tcpi_advmss), FIELD(tcpi_reordering), FIELD(tcpi_total_retrans),
    FIELD(tcpi_bytes_acked), FIELD(tcpi_bytes_received), FIELD(tcpi_segs_out), FIELD(tcpi_segs_in), FIELD(tcpi_notsent_bytes),
    FIELD(tcpi_min_rtt), FIELD(tcpi_delivered), FIELD(tcpi_delivered_ce), FIELD(tcpi_dsack_dups), FIELD(tcpi_snd_wnd)};
#undef FIELD

class KernelWorld final : public World {
public:
    explicit KernelWorld(const Setup& setup) : setup_(setup), tun_(open_tun(setup)), wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
        ::prctl(PR_SET_TIMERSLACK, 1000);
        // Before everything else that runs here: on a busy machine the script must still be on time. It sleeps mostly. Where
        // it is refused, the tolerance has to do.
        const sched_param first{.sched_priority = 1};
        ::sched_setscheduler(0, SCHED_RR, &first);
        drain();  // what the device says on its own when it comes up
        departed_.clear();
        start_ = clock();
    }
    ~KernelWorld() override {
        for (auto& [ticket, running] : calls_)
            if (running->thread.joinable()) running->thread.detach();
    }

    Duration now() const override { return clock() - start_; }

    void run_until(Duration time) override {
        while (now() < time) wait(time);
        drain();
    }
    std::optional<Departed> next_packet(Duration deadline) override {
        drain();
        while (departed_.empty() && now() < deadline) wait(deadline);
        if (departed_.empty()) return std::nullopt;
        Departed first = std::move(departed_.front());
        departed_.pop_front();
        return first;
    }
    void inject(const Bytes& packet) override {
        if (::write(tun_.get(), packet.data(), packet.size()) != static_cast<ssize_t>(packet.size()))
            throw std::runtime_error(std::string("writing to the TUN device: ") + std::strerror(errno));
        drain();
    }

    Ticket begin(const Call& call) override {
        const Ticket ticket = next_ticket_++;
        auto running = std::make_unique<Running>();
        Running& state = *running;
        calls_.emplace(ticket, std::move(running));
        if (!may_block(call)) {
            Outcome outcome = make(call, setup_.ipv6);
            if (call.name == Call::Name::kSocket && outcome.value >= 0 && (call.first & 0xf) == SOCK_STREAM)
                choose_congestion(static_cast<int>(outcome.value));
            state.result = {std::move(outcome), now()};
            state.is_done = true;
            drain();
            return ticket;
        }
        // Never freed before it is done: finished() joins, and the process leaves by _exit.
        state.thread = std::thread([this, call, &state] {
            Outcome outcome = make(call, setup_.ipv6);
            state.result = {std::move(outcome), now()};
            state.is_done.store(true, std::memory_order_release);
            const std::uint64_t one = 1;
            [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
        });
        return ticket;
    }
    std::optional<Finished> finished(Ticket ticket, Duration deadline) override {
        Running& running = *calls_.at(ticket);
        while (!running.is_done.load(std::memory_order_acquire) && now() < deadline) wait(deadline);
        if (!running.is_done.load(std::memory_order_acquire)) return std::nullopt;
        if (running.thread.joinable()) running.thread.join();
        Finished result = std::move(running.result);
        calls_.erase(ticket);
        drain();
        return result;
    }

    std::optional<std::int64_t> info(int fd, std::string_view field) override {
        tcp_info info{};
        socklen_t length = sizeof info;
        if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0) return std::nullopt;
        if (field == "tcpi_snd_wscale") return std::int64_t{info.tcpi_snd_wscale};
        if (field == "tcpi_rcv_wscale") return std::int64_t{info.tcpi_rcv_wscale};
        for (const InfoField& known : kInfoFields) {
            if (known.name != field) continue;
            std::uint64_t value = 0;  // little endian, as everything that runs here
            std::memcpy(&value, reinterpret_cast<const char*>(&info) + known.offset, known.size);
            return static_cast<std::int64_t>(value);
        }
        return std::nullopt;
    }

private:
    struct Running {
        std::thread thread;
        Finished result;
        std::atomic<bool> is_done = false;
    };

    static Duration clock() {
        timespec time{};
        ::clock_gettime(CLOCK_MONOTONIC, &time);
        return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
    }
    void choose_congestion(int fd) const {
        const auto chosen = setup_.sysctls.find(kCongestionSysctl);
        const std::string name = chosen == setup_.sysctls.end() ? "cubic" : chosen->second;
        if (::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.data(), static_cast<socklen_t>(name.size())) < 0)
            throw Unsupported("congestion control " + name + ": " + std::strerror(errno));
    }
    /// Until a packet leaves, a call comes back, or `deadline`.
    void wait(Duration deadline) {
        const Duration left = std::max(deadline - now(), Duration(0));
        const timespec timeout{.tv_sec = left.count() / 1'000'000'000, .tv_nsec = left.count() % 1'000'000'000};
        pollfd watched[] = {{.fd = tun_.get(), .events = POLLIN, .revents = 0}, {.fd = wake_.get(), .events = POLLIN, .revents = 0}};
        ::ppoll(watched, 2, &timeout, nullptr);
        std::uint64_t count = 0;
        [[maybe_unused]] const auto read = ::read(wake_.get(), &count, sizeof count);
        drain();
    }
    void drain() {
        std::byte buffer[65600];
        for (;;) {
            const ssize_t length = ::read(tun_.get(), buffer, sizeof buffer);
            if (length <= 0) return;
            departed_.push_back({.packet = Bytes(buffer, buffer + length), .at = now()});
        }
    }

    const Setup setup_;
    UniqueFd tun_;
    UniqueFd wake_;
    Duration start_{};
    std::deque<Departed> departed_;
    std::map<Ticket, std::unique_ptr<Running>> calls_;
    Ticket next_ticket_ = 1;
};

}  // namespace

std::unique_ptr<World> make_kernel_world(const Setup& setup) { return std::make_unique<KernelWorld>(setup); }

std::optional<std::string> kernel_world_obstacle() {
    if (::geteuid() != 0) return "root is needed (a network namespace and a TUN device)";
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) < 0) return std::string("pipe: ") + std::strerror(errno);
    const UniqueFd reads(ends[0]);
    UniqueFd writes(ends[1]);
    const pid_t child = ::fork();
    if (child < 0) return std::string("fork: ") + std::strerror(errno);
    if (child == 0) {
        std::string obstacle;
        try {
            Setup setup;
            setup.local = {Address::v4(192, 168, 0, 1), 1};
            open_tun(setup);
        } catch (const std::runtime_error& error) {
            obstacle = error.what();
        }
        [[maybe_unused]] const auto written = ::write(writes.get(), obstacle.data(), obstacle.size());
        ::_exit(0);
    }
    writes.reset();
    std::string obstacle;
    char buffer[512];
    for (ssize_t n = 0; (n = ::read(reads.get(), buffer, sizeof buffer)) > 0;) obstacle.append(buffer, static_cast<std::size_t>(n));
    ::waitpid(child, nullptr, 0);
    return obstacle.empty() ? std::nullopt : std::optional(obstacle);
}

}  // namespace culvert::script
