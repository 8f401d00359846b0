// One connection, one long stream in one direction: bytes a second.
//
//   bulk server PORT
//   bulk client HOST PORT SECONDS up|down
//
// The first byte that a client sends names the direction: 'u', it sends the stream, 'd', the server does. The sender sends until
// its time is over and closes its half; then, `up`, the receiver answers with the number of bytes it got. The stream is a pattern
// whose period is a prime number, so that a lost, doubled or moved block cannot look right; the receiver compares every byte.
// The client prints one line of JSON.
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "tests/bench/sockets.h"

namespace {

using namespace culvert::bench;
using Seconds = std::chrono::duration<double>;

constexpr std::size_t kPeriod = 1'048'573;  // the largest prime below 2^20
constexpr std::size_t kWrite = 128 * 1024;
constexpr std::size_t kRead = 256 * 1024;
constexpr std::uint64_t kServerSeconds = 60;  // bounds a `down` stream whose client went away without a word

/// The pattern, and its start once more behind it, so that every write and read is one straight piece.
const std::vector<std::byte>& pattern() {
    static const std::vector<std::byte> bytes = [] {
        std::vector<std::byte> all(kPeriod + kRead);
        std::uint64_t state = 0x9e3779b97f4a7c15;
        for (std::size_t i = 0; i < kPeriod; ++i) {
            state = state * 6364136223846793005 + 1442695040888963407;
            all[i] = static_cast<std::byte>(state >> 56);
        }
        std::copy_n(all.begin(), kRead, all.begin() + kPeriod);
        return all;
    }();
    return bytes;
}

/// Sends the stream until `end` and closes our half.
void send_stream(int fd, SteadyClock::time_point end) {
    std::uint64_t position = 0;
    while (SteadyClock::now() < end) {
        const ssize_t sent = ::send(fd, pattern().data() + position % kPeriod, kWrite, MSG_NOSIGNAL);
        if (sent < 0) return;  // the receiver has enough; whether it got the right bytes is its verdict
        position += static_cast<std::uint64_t>(sent);
    }
    ::shutdown(fd, SHUT_WR);
}

/// Receives until the end of the stream or until `end`; how many bytes came, all of them right.
std::uint64_t receive_stream(int fd, SteadyClock::time_point end) {
    std::vector<std::byte> buffer(kRead);
    std::uint64_t position = 0;
    while (SteadyClock::now() < end) {
        const ssize_t received = ::recv(fd, buffer.data(), buffer.size(), 0);
        if (received < 0) die("recv");
        if (received == 0) break;
        if (std::memcmp(buffer.data(), pattern().data() + position % kPeriod, static_cast<std::size_t>(received)) != 0) {
            std::fprintf(stderr, "the stream differs between bytes %llu and %llu\n", static_cast<unsigned long long>(position),
                         static_cast<unsigned long long>(position) + static_cast<unsigned long long>(received));
            std::exit(1);
        }
        position += static_cast<std::uint64_t>(received);
    }
    return position;
}

[[noreturn]] void serve(const std::string& port) {
    const int listener = listen_on(port);
    pattern();
    for (;;) {
        const int fd = accept_from(listener);
        std::array<std::byte, 1> direction{};
        if (receive_all(fd, direction)) {
            const auto limit = SteadyClock::now() + std::chrono::seconds(kServerSeconds);
            if (direction[0] == std::byte{'u'}) {
                const std::uint64_t count = receive_stream(fd, limit);
                send_all(fd, std::as_bytes(std::span(&count, 1)));
            } else {
                send_stream(fd, limit);
            }
        }
        ::close(fd);
    }
}

int measure(const std::string& host, const std::string& port, Seconds time, bool up) {
    pattern();
    const int fd = connect_to(host, port);
    const std::array<std::byte, 1> direction{up ? std::byte{'u'} : std::byte{'d'}};
    send_all(fd, direction);
    const auto started = SteadyClock::now();
    const auto end = started + std::chrono::duration_cast<std::chrono::nanoseconds>(time);
    std::uint64_t bytes = 0;
    if (up) {
        send_stream(fd, end);
        if (!receive_all(fd, std::as_writable_bytes(std::span(&bytes, 1)))) die("the server reported nothing");
    } else {
        bytes = receive_stream(fd, end);
    }
    const Seconds took = SteadyClock::now() - started;
    ::close(fd);
    if (bytes == 0) {
        std::fprintf(stderr, "no byte arrived\n");
        return 1;
    }
    std::printf("{\"bytes\": %llu, \"seconds\": %.6f, \"gbit_per_second\": %.4f}\n", static_cast<unsigned long long>(bytes),
                took.count(), static_cast<double>(bytes) * 8 / took.count() / 1e9);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "server" && argc == 3) serve(argv[2]);
    const std::string direction = argc == 6 ? argv[5] : "";
    if (mode == "client" && (direction == "up" || direction == "down"))
        return measure(argv[2], argv[3], Seconds(std::stod(argv[4])), direction == "up");
    std::fprintf(stderr, "usage: bulk server PORT | bulk client HOST PORT SECONDS up|down\n");
    return 2;
}
