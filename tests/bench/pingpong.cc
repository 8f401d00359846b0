// One connection, one small message to and fro at a time: what a round trip costs.
//
//   pingpong server PORT
//   pingpong client HOST PORT SECONDS [BYTES]
//
// The client writes a counter into each message and checks that the echo carries it. It prints one line of JSON: round trips,
// seconds, and the percentiles of their time in microseconds. A tenth of the time is spent warming up before that.
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "tests/bench/sockets.h"

namespace {

using namespace culvert::bench;
using std::chrono::duration;
using std::chrono::nanoseconds;

constexpr std::size_t kMaxMessage = 65536;

[[noreturn]] void serve(const std::string& port) {
    const int listener = listen_on(port);
    std::vector<std::byte> message(kMaxMessage);
    for (;;) {
        const int fd = accept_from(listener);
        for (;;) {
            const ssize_t received = ::recv(fd, message.data(), message.size(), 0);
            if (received <= 0) break;
            send_all(fd, std::span(message).first(static_cast<std::size_t>(received)));
        }
        ::close(fd);
    }
}

/// Round trips until `end`; the time of each is appended to `times`.
void play(int fd, std::span<std::byte> message, SteadyClock::time_point end, std::vector<std::uint32_t>& times) {
    std::vector<std::byte> echo(message.size());
    std::uint64_t counter = 0;
    for (auto started = SteadyClock::now(); started < end;) {
        std::memcpy(message.data(), &++counter, sizeof counter);
        send_all(fd, message);
        if (!receive_all(fd, echo)) die("the server closed the connection");
        if (!std::ranges::equal(message, echo)) {
            std::fprintf(stderr, "the echo of message %llu differs\n", static_cast<unsigned long long>(counter));
            std::exit(1);
        }
        const auto now = SteadyClock::now();
        times.push_back(static_cast<std::uint32_t>(std::chrono::duration_cast<nanoseconds>(now - started).count()));
        started = now;
    }
}

int measure(const std::string& host, const std::string& port, double seconds, std::size_t bytes) {
    const int fd = connect_to(host, port);
    std::vector<std::byte> message(bytes);
    std::vector<std::uint32_t> times;
    times.reserve(static_cast<std::size_t>(seconds * 300'000));
    const auto in = [](double time) { return SteadyClock::now() + std::chrono::duration_cast<nanoseconds>(duration<double>(time)); };
    play(fd, message, in(seconds / 10), times);
    times.clear();
    const auto started = SteadyClock::now();
    play(fd, message, in(seconds), times);
    const double took = duration<double>(SteadyClock::now() - started).count();
    ::close(fd);

    std::ranges::sort(times);
    const auto percentile = [&](double share) {
        return times[std::min(times.size() - 1, static_cast<std::size_t>(share * static_cast<double>(times.size())))] / 1e3;
    };
    std::printf("{\"round_trips\": %zu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p90_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f}\n",
                times.size(), took, percentile(0.5), percentile(0.9), percentile(0.99), percentile(0.999));
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "server" && argc == 3) serve(argv[2]);
    if (mode == "client" && (argc == 5 || argc == 6)) {
        const std::size_t bytes = argc == 6 ? std::stoul(argv[5]) : 64;
        if (bytes >= sizeof(std::uint64_t) && bytes <= kMaxMessage) return measure(argv[2], argv[3], std::stod(argv[4]), bytes);
    }
    std::fprintf(stderr, "usage: pingpong server PORT | pingpong client HOST PORT SECONDS [BYTES, 8 to 65536]\n");
    return 2;
}
