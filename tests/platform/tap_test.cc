// A TAP interface with the kernel's own sockets at the other end: frames first, then the whole stack.
#include "daemon/device/tap.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <thread>

#include "daemon/stack/stack.h"
#include "daemon/stack/tcp/connection.h"
#include "tests/platform/frames.h"
#include "tests/platform/veth_pair.h"

namespace culvert::platform {
namespace {

const Address kTheirs4 = Address::v4(10, 98, 0, 1);
const Address kOurs4 = Address::v4(10, 98, 0, 2);
const Address kTheirs6 = *Address::parse("fd98::1");
const Address kOurs6 = *Address::parse("fd98::2");

class TapDevice : public testing::Test {
protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root for network namespaces and TAP";
        space = std::make_unique<VethPair>();
        auto opened = device::open_tap(pool, "tapc0");
        ASSERT_TRUE(opened) << opened.error().message();
        tap = std::move(*opened);
        run({"ip", "address", "add", "10.98.0.1/24", "dev", "tapc0"});
        run({"ip", "address", "add", "fd98::1/64", "dev", "tapc0", "nodad"});
        run({"ip", "link", "set", "tapc0", "up"});
        for (const char* address : {"10.98.0.2", "fd98::2"})
            run({"ip", "neighbor", "add", address, "lladdr", mac.to_string(), "dev", "tapc0"});
    }

    std::uint64_t number(const std::string& name) const {
        for (const auto& each : tap.device->statistics())
            if (each.name == name) return each.value;
        ADD_FAILURE() << "no number " << name;
        return 0;
    }

    const MacAddress mac = device::our_mac("tapc0");
    FramePool pool{8192};
    std::unique_ptr<VethPair> space;
    device::Tap tap;
};

TEST_F(TapDevice, DatagramsPassBothWays) {
    const UniqueFd socket = space->our_udp_socket(7001);
    const Bytes payload(1200, std::byte{0x5a});
    send_to(socket, kOurs4, 7000, payload);
    Bytes frame;
    // The kernel has things of its own to say (neighbour discovery, multicast listeners).
    ASSERT_TRUE(eventually(tap.device->readiness_fd(), [&] {
        RxPacket burst[8];
        for (const RxPacket& packet : std::span(burst).first(tap.device->receive(burst)))
            if (packet.length == kEthernet + kIpv4 + kUdp + payload.size()) {
                frame = bytes_of(packet);
                EXPECT_EQ(packet.checksum, ChecksumState::kVerified) << "sent on this host: nothing could damage it";
                EXPECT_EQ(packet.segment_size, 0);
            }
        return !frame.empty();
    }));
    EXPECT_TRUE(std::equal(payload.begin(), payload.end(), frame.begin() + kEthernet + kIpv4 + kUdp));

    ASSERT_TRUE(queue(tap.device->tx(), udp_frame(mac, tap.facts.mac, {kOurs4, 7000}, {kTheirs4, 7001}, payload)));
    EXPECT_FALSE(tap.device->flush());
    EXPECT_EQ(receive_from(socket, 5000), payload);
    EXPECT_EQ(pool.available(), pool.count() - 64 * kMaxFragments) << "a frame that was sent gives its chunk back";
}

// One frame at a time, each while the file is being read empty: it may come between two reads of a batch.
TEST_F(TapDevice, NothingIsLostThatComesBetweenTwoReads) {
    constexpr std::uint32_t kDatagrams = 2000;
    const UniqueFd socket = space->our_udp_socket(7001);
    std::atomic<std::uint32_t> seen = 0;
    std::atomic<bool> stop = false;
    std::thread sender([&] {
        for (std::uint32_t i = 0; i < kDatagrams; ++i) {
            send_to(socket, kOurs4, 7000, Bytes(1200, std::byte{0x5a}));
            while (seen <= i && !stop) std::this_thread::yield();
        }
    });
    const auto now = [] { return std::chrono::steady_clock::now(); };
    auto last = now();
    while (seen < kDatagrams && now() - last < std::chrono::seconds(5)) {
        RxPacket burst[8];
        for (const RxPacket& packet : std::span(burst).first(tap.device->receive(burst)))
            if (packet.length == kEthernet + kIpv4 + kUdp + 1200) {
                ++seen;
                last = now();
            }
    }
    stop = true;
    sender.join();
    EXPECT_EQ(seen, kDatagrams);
}

TEST_F(TapDevice, FramesThatTheKernelRefusesAreCountedAndTheirMemoryComesBack) {
    run({"ip", "link", "set", "tapc0", "down"});
    ASSERT_TRUE(queue(tap.device->tx(), udp_frame(mac, tap.facts.mac, {kOurs4, 7000}, {kTheirs4, 7001}, Bytes(10))));
    EXPECT_FALSE(tap.device->flush());
    EXPECT_EQ(number("file_tx_refused"), 1u);
    EXPECT_EQ(pool.available(), pool.count() - 64 * kMaxFragments);
}

TEST_F(TapDevice, ASecondOwnerIsRefused) {
    const auto second = device::open_tap(pool, "tapc0");
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, EBUSY);
}

TEST(Tap, ABadNameIsRefused) {
    FramePool pool(16);
    EXPECT_EQ(device::open_tap(pool, "").error().code, EINVAL);
    EXPECT_EQ(device::open_tap(pool, "a-name-that-is-too-long").error().code, EINVAL);
}

// --- the stack on it --------------------------------------------------------------------------------------------------

struct NobodyResolves final : stack::NeighborResolver {
    void resolve(std::uint32_t, const Address&) override {}
};
struct EveryPort final : stack::PortOwner {
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

/// Byte `offset` of the stream in either direction.
std::byte stream_byte(std::uint64_t offset) { return static_cast<std::byte>((offset * 0x9e3779b97f4a7c15u) >> 56); }

/// Reads the peer's stream to its end, then sends as much back and closes.
class Mirror final : public stack::tcp::ListenerOwner, public stack::tcp::ConnectionOwner {
public:
    explicit Mirror(std::uint64_t bytes) : bytes_(bytes) {}

    bool can_accept() override { return true; }
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& connection) override {
        connection_ = &connection;
        return this;
    }
    void on_established(stack::tcp::Connection&) override {}
    std::uint32_t on_data(stack::tcp::Connection& connection, stack::Payload payload, std::uint32_t length) override {
        for (const auto piece : payload)
            for (const std::byte byte : piece) wrong += byte != stream_byte(received++);
        unread_ += length;
        (void)connection;
        return length;
    }
    void on_end_of_stream(stack::tcp::Connection&) override { answering_ = true; }
    void on_released(stack::tcp::Connection&, stack::SendChunk* first) override {
        while (first != nullptr) {
            stack::SendChunk* const next = first->next;
            chunks_.erase(first);
            first = next;
        }
    }
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t) override {}
    void on_closed(stack::tcp::Connection&, int error) override {
        closed = true;
        close_error = error;
        connection_ = nullptr;
    }

    /// Once a turn: reads what came, keeps a megabyte queued.
    void work() {
        if (connection_ == nullptr) return;
        connection_->consumed(std::exchange(unread_, 0));
        while (answering_ && sent_ < bytes_ && chunks_.size() < 64) {
            auto chunk = std::make_unique<Chunk>();
            const std::uint64_t length = std::min<std::uint64_t>(chunk->bytes.size(), bytes_ - sent_);
            for (std::uint64_t i = 0; i < length; ++i) chunk->bytes[i] = stream_byte(sent_ + i);
            chunk->chunk = {.next = nullptr, .data = chunk->bytes.data(), .length = static_cast<std::uint32_t>(length), .tag = 0};
            sent_ += length;
            stack::SendChunk* const raw = &chunk->chunk;
            chunks_[raw] = std::move(chunk);
            connection_->send(raw, raw);
            if (sent_ == bytes_) connection_->shutdown_write();
        }
    }

    std::uint64_t received = 0;
    std::uint64_t wrong = 0;
    bool closed = false;
    int close_error = 0;

private:
    struct Chunk {
        stack::SendChunk chunk;
        std::array<std::byte, 16384> bytes;
    };
    std::uint64_t bytes_;
    std::uint64_t sent_ = 0;
    std::uint32_t unread_ = 0;
    bool answering_ = false;
    stack::tcp::Connection* connection_ = nullptr;
    std::map<stack::SendChunk*, std::unique_ptr<Chunk>> chunks_;
};

/// A kernel client: sends `bytes`, shuts down, reads as many back. Answers with what went wrong.
std::string exchange_stream(const Address& to, Port port, std::uint64_t bytes) {
    const UniqueFd socket(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval patience{.tv_sec = 20, .tv_usec = 0};
    ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(port);
    std::memcpy(&address.sin6_addr, to.bytes().data(), 16);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return std::strerror(errno);
    Bytes buffer(1 << 16);
    for (std::uint64_t at = 0; at < bytes;) {
        const std::size_t length = std::min<std::uint64_t>(buffer.size(), bytes - at);
        for (std::size_t i = 0; i < length; ++i) buffer[i] = stream_byte(at + i);
        const ssize_t sent = ::send(socket.get(), buffer.data(), length, MSG_NOSIGNAL);
        if (sent <= 0) return std::string("send: ") + std::strerror(errno);
        at += static_cast<std::uint64_t>(sent);
    }
    ::shutdown(socket.get(), SHUT_WR);
    std::uint64_t at = 0;
    for (;;) {
        const ssize_t got = ::recv(socket.get(), buffer.data(), buffer.size(), 0);
        if (got < 0) return std::string("recv: ") + std::strerror(errno);
        if (got == 0) return at == bytes ? "" : "only " + std::to_string(at) + " bytes came back";
        for (ssize_t i = 0; i < got; ++i)
            if (buffer[static_cast<std::size_t>(i)] != stream_byte(at++)) return "wrong byte at " + std::to_string(at - 1);
    }
}

class StackOnTap : public TapDevice, public testing::WithParamInterface<Address> {};

TEST_P(StackOnTap, MegabytesGoThroughInSuperPackets) {
    constexpr std::uint64_t kBytes = 16 << 20;
    constexpr Port kPort = 8080;
    NobodyResolves resolver;
    EveryPort ports;
    Counters counters;
    Rng rng(1);
    stack::StackConfig config;
    stack::Stack stack(config, resolver, ports, counters, rng);
    stack::Interface described;
    described.index = static_cast<std::uint32_t>(tap.facts.ifindex);
    described.name = tap.facts.name;
    described.mac = mac;
    described.mtu = tap.facts.mtu;
    described.up = true;
    described.tx = &tap.device->tx();
    described.segmentation_limit = device::kSegmentationLimit;
    described.addresses = {{kOurs4, 24, true}, {kOurs6, 64, true}};
    stack::Interface& interface = stack.add_interface(std::move(described));
    stack.routes().replace({{.destination = Address::v4(10, 98, 0, 0), .prefix_length = 24, .interface = interface.index},
                            {.destination = *Address::parse("fd98::"), .prefix_length = 64, .interface = interface.index}});
    for (const Address& peer : {kTheirs4, kTheirs6})
        stack.neighbors().update(interface.index, peer, tap.facts.mac, stack::NeighborState::kReachable, tap.device->tx());

    Mirror mirror(kBytes);
    auto listener = stack.listen({GetParam(), kPort}, false, {}, mirror);
    ASSERT_TRUE(listener);
    std::string result = "unfinished";
    std::atomic<bool> done = false;
    std::thread client([&] {
        result = exchange_stream(GetParam(), kPort, kBytes);
        done = true;
    });
    const auto now = [] { return Instant(std::chrono::steady_clock::now().time_since_epoch()); };
    const Instant deadline = now() + std::chrono::seconds(30);
    RxPacket burst[64];
    while (!done && now() < deadline) {
        for (const RxPacket& packet : std::span(burst).first(tap.device->receive(burst)))
            stack.input(interface, packet, now());
        mirror.work();
        stack.advance(now());
        stack.flush(now());
        tap.device->flush();
    }
    client.join();
    EXPECT_EQ(result, "");
    for (std::size_t i = 1; result != "" && i < kDropCount; ++i)
        if (counters.drops[i] != 0) std::cerr << drop_name(static_cast<Drop>(i)) << " " << counters.drops[i] << "\n";
    EXPECT_EQ(mirror.received, kBytes);
    EXPECT_EQ(mirror.wrong, 0u);
    EXPECT_GT(number("file_rx_merged"), 0u) << "the kernel sends super-packets";
    EXPECT_LT(number("file_rx_packets"), kBytes / 1448) << "fewer packets than segments";
    EXPECT_GT(number("file_tx_segmented"), 0u) << "and takes them";
    EXPECT_EQ(number("file_tx_segmented"), counters.tcp_super_packets_out);
    EXPECT_LT(number("file_tx_packets"), kBytes / 1448) << "ACKs and data together";
    EXPECT_GE(counters.tcp_segments_out, kBytes / 1448);
    stack.close(**listener);
}

INSTANTIATE_TEST_SUITE_P(Families, StackOnTap, testing::Values(kOurs4, kOurs6),
                         [](const auto& family) { return family.param.is_v4() ? "v4" : "v6"; });

}  // namespace
}  // namespace culvert::platform
