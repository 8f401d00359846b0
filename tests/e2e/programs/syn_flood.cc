// A bounded flood of SYNs from addresses that do not answer, for the story in tests/e2e/flood_test.py.
//
//   syn_flood INTERFACE DESTINATION-MAC DESTINATION-IPV4 PORT SYNS-PER-SECOND SECONDS
//
// Frames go out through AF_PACKET with sendmmsg, a hundred at a time, sources and sequence numbers at random from
// 198.18.0.0/15 (RFC 2544: never on the internet). Prints how many it has sent.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <time.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace {

constexpr unsigned kBurst = 100;
constexpr std::size_t kTcpLength = 24;  // with the MSS option
using Frame = std::array<unsigned char, 14 + 20 + kTcpLength>;

std::uint16_t checksum(const unsigned char* data, std::size_t length, std::uint32_t sum) {
    for (std::size_t i = 0; i + 1 < length; i += 2) sum += static_cast<std::uint32_t>(data[i] << 8 | data[i + 1]);
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<std::uint16_t>(~sum);
}

void put16(unsigned char* to, std::uint32_t value) {
    to[0] = static_cast<unsigned char>(value >> 8);
    to[1] = static_cast<unsigned char>(value);
}

void fill(Frame& frame, std::mt19937& random) {
    unsigned char* const ip = frame.data() + 14;
    unsigned char* const tcp = ip + 20;
    const std::uint32_t source = 198u << 24 | 18u << 16 | (static_cast<std::uint32_t>(random()) & 0x1ffff);
    put16(ip + 12, source >> 16);
    put16(ip + 14, source);
    put16(ip + 10, 0);
    put16(ip + 10, checksum(ip, 20, 0));
    put16(tcp, (random() & 0xffff) | 1024);
    put16(tcp + 4, random());
    put16(tcp + 6, random());
    put16(tcp + 16, 0);
    put16(tcp + 16, checksum(tcp, kTcpLength, 6 + kTcpLength + (source >> 16) + (source & 0xffff) +
                                                  static_cast<std::uint32_t>(ip[16] << 8 | ip[17]) +
                                                  static_cast<std::uint32_t>(ip[18] << 8 | ip[19])));
}

}  // namespace

int main(int count, char** words) {
    if (count != 7) return 2;
    const unsigned interface = ::if_nametoindex(words[1]);
    unsigned mac[6];
    if (interface == 0 ||
        std::sscanf(words[2], "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6)
        return 2;
    const long rate = std::atol(words[5]);
    const long bursts = rate / kBurst * std::atol(words[6]);
    const int fd = ::socket(AF_PACKET, SOCK_RAW, 0);
    sockaddr_ll link{};
    link.sll_family = AF_PACKET;
    link.sll_ifindex = static_cast<int>(interface);
    if (fd < 0 || rate < kBurst || ::bind(fd, reinterpret_cast<const sockaddr*>(&link), sizeof link) != 0) {
        std::perror("syn_flood");
        return 1;
    }
    Frame model{};
    for (int i = 0; i < 6; ++i) model[static_cast<std::size_t>(i)] = static_cast<unsigned char>(mac[i]);
    model[6] = 2;  // locally administered
    put16(model.data() + 12, ETHERTYPE_IP);
    unsigned char* const ip = model.data() + 14;
    ip[0] = 0x45;
    put16(ip + 2, 20 + kTcpLength);
    ip[8] = 64;
    ip[9] = IPPROTO_TCP;
    if (::inet_pton(AF_INET, words[3], ip + 16) != 1) return 2;
    unsigned char* const tcp = ip + 20;
    put16(tcp + 2, static_cast<std::uint32_t>(std::atol(words[4])));
    tcp[12] = kTcpLength / 4 << 4;
    tcp[13] = TH_SYN;
    put16(tcp + 14, 64240);
    tcp[20] = TCPOPT_MAXSEG;
    tcp[21] = TCPOLEN_MAXSEG;
    put16(tcp + 22, 1460);

    std::mt19937 random(1);
    std::array<Frame, kBurst> frames;
    frames.fill(model);
    std::array<iovec, kBurst> parts;
    std::array<mmsghdr, kBurst> messages{};
    for (unsigned i = 0; i < kBurst; ++i) {
        parts[i] = {frames[i].data(), frames[i].size()};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    timespec due{};
    ::clock_gettime(CLOCK_MONOTONIC, &due);
    long sent = 0;
    for (long burst = 0; burst < bursts; ++burst) {
        for (Frame& frame : frames) fill(frame, random);
        const int now = ::sendmmsg(fd, messages.data(), kBurst, 0);
        if (now > 0) sent += now;
        due.tv_nsec += 1'000'000'000L / (rate / kBurst);
        if (due.tv_nsec >= 1'000'000'000L) {
            due.tv_nsec -= 1'000'000'000L;
            ++due.tv_sec;
        }
        ::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, nullptr);
    }
    std::printf("sent %ld\n", sent);
}
