// The control thread against a real engine without devices: a shim that behaves, shims that do not, administrators.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <thread>

#include <nlohmann/json.hpp>

#include "daemon/control/server.h"
#include "daemon/tenant/tenant.h"

#if defined(__SANITIZE_THREAD__)
// TSan follows descriptor numbers through the calls that it intercepts. It does not see that io_uring has accepted one, so a
// number that the test closed and the daemon got again looks like a race between the two.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() { return "race:mapped_region\n"; }
#endif

namespace culvert::control {
namespace {

using namespace std::chrono_literals;

/// The shim's end of a control connection, or an attacker's.
class Client {
public:
    explicit Client(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, sizeof address.sun_path - 1);
        EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0) << std::strerror(errno);
    }
    explicit Client(UniqueFd fd) : fd_(std::move(fd)) {}

    void send_bytes(const void* bytes, std::size_t length, int fd = -1) {
        EXPECT_TRUE(try_to_send(bytes, length, fd, 1)) << std::strerror(errno);
    }
    /// `fd`, if there is one, goes along as often as `times` says. False: the daemon has closed.
    bool try_to_send(const void* bytes, std::size_t length, int fd, std::size_t times) {
        iovec vector{const_cast<void*>(bytes), length};
        alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof fd)] = {};
        msghdr message{};
        message.msg_iov = &vector;
        message.msg_iovlen = 1;
        if (fd >= 0) {
            message.msg_control = control;
            message.msg_controllen = CMSG_SPACE(times * sizeof fd);
            cmsghdr* header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(times * sizeof fd);
            for (std::size_t i = 0; i < times; ++i) std::memcpy(CMSG_DATA(header) + i * sizeof fd, &fd, sizeof fd);
        }
        return ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(length);
    }
    template <class Message>
    void say(const Message& message, int fd = -1) {
        send_bytes(&message, sizeof message, fd);
    }
    /// One packet within 10 s; empty at the end of file.
    std::vector<std::byte> hear() {
        pollfd waited{fd_.get(), POLLIN, 0};
        if (::poll(&waited, 1, 30000) != 1) {
            ADD_FAILURE() << "the daemon is silent";
            return {};
        }
        std::vector<std::byte> bytes(128 * 1024);
        iovec vector{bytes.data(), bytes.size()};
        alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
        msghdr message{};
        message.msg_iov = &vector;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        const ssize_t length = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC);
        for (cmsghdr* header = CMSG_FIRSTHDR(&message); length > 0 && header != nullptr; header = CMSG_NXTHDR(&message, header))
            for (std::size_t i = 0; i < (header->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
                int fd = -1;
                std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
                fds.emplace_back(fd);
            }
        bytes.resize(length > 0 ? static_cast<std::size_t>(length) : 0);
        return bytes;
    }
    template <class Message>
    Message hear_message() {
        const std::vector<std::byte> bytes = hear();
        Message message;
        EXPECT_EQ(bytes.size(), sizeof message);
        if (bytes.size() == sizeof message) std::memcpy(&message, bytes.data(), sizeof message);
        return message;
    }
    bool ended() { return hear().empty(); }

    std::vector<UniqueFd> fds;

private:
    UniqueFd fd_;
};

shm::Hello hello(const char* program) {
    shm::Hello message;
    message.pid = static_cast<std::uint32_t>(::getpid());
    std::strncpy(message.program, program, sizeof message.program - 1);
    return message;
}

class AttachTest : public testing::Test {
protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "culvert-attach-XXXXXX";
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder = name;
        config.socket.path = folder / "c.sock";
        config.limits.max_sockets = 256;
        config.limits.tx_blocks = 256;
        config.limits.rx_blocks = 256;
        config.limits.max_tenants = 4;
    }
    void TearDown() override {
        if (server) {
            mailbox.post([&] { server->stop(); });
            control_thread.join();
            for (const auto& engine : *engines) engine->stop();
            for (std::thread& thread : engine_threads) thread.join();
        }
        std::filesystem::remove_all(folder);
    }
    void start() {
        auto opened = NetlinkMirror::open();
        ASSERT_TRUE(opened) << opened.error().message();
        mirror = std::move(*opened);
        feed = std::make_unique<KernelFeed>(*mirror, steering, mailbox);
        engines = std::make_unique<engine::Fleet>(std::vector<engine::EngineConfig>(engine_count), *feed, steering);
        auto created = EventLoop::create();
        ASSERT_TRUE(created) << created.error().message();
        loop = std::move(*created);
        auto socket = ListeningSocket::open(config.socket);
        ASSERT_TRUE(socket) << socket.error().message();
        auto made = Server::create({*loop, mailbox, *engines, *mirror, *feed, steering, {}, [this] { return config; },
                                    [](const FilterConfig&) { return Result<void>{}; }}, config,
                                   std::move(*socket), *Policy::create(config));
        ASSERT_TRUE(made) << made.error().message();
        server = std::move(*made);
        ASSERT_TRUE(server->listen());
        feed->start(*engines);
        for (std::uint32_t i = 0; i < engine_count; ++i) engine_threads.emplace_back([this, i] { (*engines)[i].run(); });
        control_thread = std::thread([this] { server->run(); });
    }
    Client client() { return Client(config.socket.path); }
    Client attached(const char* program, shm::Welcome* welcome = nullptr) {
        Client one = client();
        one.say(hello(program));
        const shm::Welcome answer = one.hear_message<shm::Welcome>();
        EXPECT_EQ(answer.status, shm::AttachStatus::kOk) << answer.reason;
        if (welcome != nullptr) *welcome = answer;
        return one;
    }
    nlohmann::json ask(const std::string& request) {
        Client one = client();
        one.send_bytes(request.data(), request.size());
        std::string text;
        for (auto bytes = one.hear(); !bytes.empty(); bytes = one.hear())
            text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        return nlohmann::json::parse(text, nullptr, false);
    }
    nlohmann::json stat() { return ask(R"({"request": "stat"})"); }
    /// Waits until `condition` of the daemon's statistics holds.
    template <class Condition>
    testing::AssertionResult eventually(Condition condition) {
        const auto deadline = std::chrono::steady_clock::now() + 30s;
        for (;;) {
            const nlohmann::json now = stat();
            if (condition(now)) return testing::AssertionSuccess();
            if (std::chrono::steady_clock::now() > deadline) return testing::AssertionFailure() << now.dump(2);
            std::this_thread::yield();
        }
    }

    Config config;
    std::filesystem::path folder;
    Mailbox mailbox;
    Steering steering{kernel_connections, PortRange{}};
    std::unique_ptr<NetlinkMirror> mirror;
    std::unique_ptr<KernelFeed> feed;
    std::uint32_t engine_count = 1;
    std::unique_ptr<engine::Fleet> engines;
    std::unique_ptr<EventLoop> loop;
    std::unique_ptr<Server> server;
    std::vector<std::thread> engine_threads;
    std::thread control_thread;
};

TEST_F(AttachTest, HelloIsAnsweredWithASegmentAndADoorbell) {
    start();
    shm::Welcome welcome;
    Client one = attached("nginx", &welcome);
    EXPECT_EQ(welcome.abi_version, shm::kAbiVersion);
    EXPECT_STREQ(welcome.version, CULVERT_VERSION);
    EXPECT_EQ(welcome.geometry, geometry_of(config.limits));
    ASSERT_EQ(one.fds.size(), 2u);
    Result<shm::Segment> segment = shm::Segment::open(one.fds[0].get(), welcome.geometry);
    ASSERT_TRUE(segment) << segment.error().message();
    EXPECT_EQ(segment->process(welcome.process_slot).live.load(), 1u);
    // The memfd is sealed: an application that could shrink it could kill the daemon with SIGBUS.
    EXPECT_EQ(::ftruncate(one.fds[0].get(), 0), -1);
    EXPECT_EQ(::eventfd_write(one.fds[1].get(), 1), 0);
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 1 && now["control"]["processes"] == 1; }));
}

TEST_F(AttachTest, EndOfFileEndsTheTenant) {
    start();
    {
        Client one = attached("nginx");
        EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 1; }));
    }
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 0 && now["control"]["processes"] == 0; }));
}

TEST_F(AttachTest, EventQueuesComeAndGo) {
    start();
    Client one = attached("nginx");
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    one.say(shm::AddQueue{}, event.get());
    const shm::Answer first = one.hear_message<shm::Answer>();
    EXPECT_EQ(first.error, 0);
    EXPECT_NE(::fcntl(event.get(), F_GETFL) & O_NONBLOCK, 0);  // the engine must never wait for it
    one.say(shm::AddQueue{}, event.get());
    const shm::Answer second = one.hear_message<shm::Answer>();
    EXPECT_NE(first.value, second.value);
    shm::RemoveQueue remove;
    remove.queue = first.value;
    one.say(remove);
    one.say(shm::AddQueue{}, event.get());
    EXPECT_EQ(one.hear_message<shm::Answer>().error, 0);
}

TEST_F(AttachTest, ForkedProcessKeepsTheTenantAlive) {
    start();
    auto parent = std::make_optional(attached("nginx"));
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    auto child = std::make_optional<Client>(UniqueFd(pair[0]));
    {
        const UniqueFd daemons(pair[1]);
        parent->say(shm::AddProcess{}, daemons.get());
    }
    const shm::Answer slot = parent->hear_message<shm::Answer>();
    EXPECT_EQ(slot.error, 0);
    EXPECT_EQ(slot.value, 1u);
    EXPECT_TRUE(eventually([](const auto& now) { return now["control"]["processes"] == 2; }));
    parent.reset();
    EXPECT_TRUE(eventually([](const auto& now) { return now["control"]["processes"] == 1 && now["tenants"] == 1; }));
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    child->say(shm::AddQueue{}, event.get());
    EXPECT_EQ(child->hear_message<shm::Answer>().error, 0);
    child.reset();
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 0; }));
}

TEST_F(AttachTest, AnEmptyMessageLeavesNoDescriptorBehind) {
    start();
    Client one = client();
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const UniqueFd reading(ends[0]);
    {
        const UniqueFd writing(ends[1]);
        one.send_bytes("", 0, writing.get());
    }
    EXPECT_TRUE(one.ended());
    pollfd waited{reading.get(), POLLIN, 0};  // end of file once nobody holds the other end
    EXPECT_EQ(::poll(&waited, 1, 30000), 1);
    EXPECT_NE(waited.revents & POLLHUP, 0);
}

TEST_F(AttachTest, OtherVersionIsRefusedWithWords) {
    start();
    Client one = client();
    shm::Hello other = hello("nginx");
    other.abi_version = shm::kAbiVersion + 1;
    one.say(other);
    const shm::Welcome welcome = one.hear_message<shm::Welcome>();
    EXPECT_EQ(welcome.status, shm::AttachStatus::kVersion);
    EXPECT_EQ(welcome.abi_version, shm::kAbiVersion);
    EXPECT_NE(std::string(welcome.reason).find("ABI"), std::string::npos);
    EXPECT_TRUE(one.ended());
    EXPECT_EQ(stat()["control"]["version_refused"], 1);
}

/// A TCP socket of a stranger that lingers: whoever closes it last waits for its peer, who reads nothing, up to `seconds`.
UniqueFd lingering_socket(UniqueFd& peer, int seconds) {
    const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* const name = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(listener.get(), name, sizeof address), 0);
    EXPECT_EQ(::listen(listener.get(), 1), 0);
    EXPECT_EQ(::getsockname(listener.get(), name, &length), 0);
    UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(socket.get(), name, sizeof address), 0);
    peer = UniqueFd(::accept(listener.get(), nullptr, nullptr));
    const std::vector<char> data(1 << 20);
    while (::send(socket.get(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
    }
    const linger wait{.l_onoff = 1, .l_linger = seconds};
    EXPECT_EQ(::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &wait, sizeof wait), 0);
    return socket;
}

TEST_F(AttachTest, ADescriptorThatTakesLongToCloseStopsNobody) {
    UniqueFd peer;
    {
        UniqueFd socket = lingering_socket(peer, 1);  // the attack is real
        const auto begin = std::chrono::steady_clock::now();
        // A thread of its own: what the ring of an earlier test has to tell the one that made it would end its lingering.
        std::thread([&] { socket.reset(); }).join();
        EXPECT_GT(std::chrono::steady_clock::now() - begin, 900ms);
    }
    start();
    std::vector<UniqueFd> peers(24);
    const auto begin = std::chrono::steady_clock::now();
    for (UniqueFd& other : peers) {
        Client one = client();
        const UniqueFd socket = lingering_socket(other, 60);
        one.say(hello("closer"), socket.get());  // nobody wants it
        EXPECT_EQ(stat()["tenants"].is_number(), true);
    }
    attached("redis");
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 30s);  // 24 closes of a minute each
}

/// Neither what is more than any message of ours carries, nor what lies behind the message that ends the connection.
TEST_F(AttachTest, NoDescriptorIsLeftForTheSocketToClose) {
    start();
    const auto begin = std::chrono::steady_clock::now();
    for (const std::size_t times : {std::size_t{1}, std::size_t{16}}) {
        UniqueFd peer;
        Client one = client();
        {
            const UniqueFd socket = lingering_socket(peer, 60);
            const char nonsense[] = "?";
            for (int i = 0; i < 20; ++i)  // until it has been read and refused; an empty packet is not the end
                for (const std::size_t length : {sizeof nonsense, std::size_t{0}})
                    if (!one.try_to_send(nonsense, length, socket.get(), times)) i = 20;
        }
        EXPECT_TRUE(one.ended());
        EXPECT_EQ(stat()["tenants"].is_number(), true);
    }
    attached("redis");
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 30s);
}

TEST_F(AttachTest, WhoSaysNothingIsNotKept) {
    start();
    std::vector<Client> silent;
    Client speaks = attached("nginx");
    for (int i = 0; i < 257; ++i) silent.push_back(client());
    EXPECT_TRUE(silent.front().hear().empty());  // one too many: the eldest goes at once
    EXPECT_TRUE(silent.back().hear().empty());   // the others when their time is up
    EXPECT_TRUE(eventually([](const auto& now) { return now["control"]["silent_closed"] == 257; }));
    speaks.say(shm::AddQueue{}, UniqueFd(::eventfd(0, EFD_CLOEXEC)).get());
    EXPECT_EQ(speaks.hear_message<shm::Answer>().error, 0);  // who has spoken may be silent
}

TEST_F(AttachTest, SegmentsFitIntoTheMemoryThatThereIs) {
    const std::uint64_t each = shm::Layout(geometry_of(config.limits)).size_bytes;
    config.limits.memory_mb = static_cast<std::uint32_t>((2 * each >> 20) + 1);
    ASSERT_GT(3 * each, std::uint64_t{config.limits.memory_mb} << 20);
    start();
    std::vector<Client> clients;
    for (int i = 0; i < 2; ++i) clients.push_back(attached("redis"));
    Client one = client();
    one.say(hello("redis"));
    EXPECT_EQ(one.hear_message<shm::Welcome>().status, shm::AttachStatus::kFull);
    EXPECT_EQ(stat()["control"]["memory_refused"], 1);
    clients.pop_back();
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 1; }));
    attached("redis");
}

TEST_F(AttachTest, TenantsAreBounded) {
    start();
    std::vector<Client> clients;
    for (std::uint32_t i = 0; i < config.limits.max_tenants; ++i) clients.push_back(attached("redis"));
    Client one = client();
    one.say(hello("redis"));
    EXPECT_EQ(one.hear_message<shm::Welcome>().status, shm::AttachStatus::kFull);
    clients.pop_back();
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 3; }));
    attached("redis");
}

/// A socket made in a network namespace of its own, where its maker may do anything.
UniqueFd raw_socket_of_elsewhere() {
    UniqueFd socket;
    std::thread([&] {
        if (::unshare(CLONE_NEWNET) == 0) socket = UniqueFd(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP));
    }).join();
    return socket;
}

TEST_F(AttachTest, RawSocketsAreGrantedToThoseWhomTheKernelLets) {
    const auto make = [](int domain, int type, int protocol) { return UniqueFd(::socket(domain, type | SOCK_CLOEXEC, protocol)); };
    const UniqueFd raw4 = make(AF_INET, SOCK_RAW, 89);
    if (!raw4 && errno == EPERM) GTEST_SKIP() << "needs CAP_NET_RAW";
    start();
    Client one = attached("ping");
    const auto grant = [&](const UniqueFd& fd) {
        one.say(shm::GrantRaw{}, fd.get());
        return one.hear_message<shm::Answer>().error;
    };
    EXPECT_EQ(grant(raw4), 0);
    EXPECT_EQ(grant(make(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)), 0);
    // What anybody can make proves nothing.
    EXPECT_EQ(grant(make(AF_INET, SOCK_DGRAM, 0)), EPERM);
    EXPECT_EQ(grant(make(AF_INET6, SOCK_STREAM, 0)), EPERM);
    EXPECT_EQ(grant(make(AF_UNIX, SOCK_DGRAM, 0)), EPERM);
    EXPECT_EQ(grant(make(AF_NETLINK, SOCK_RAW, 0)), EPERM);
    EXPECT_EQ(grant(make(AF_PACKET, SOCK_RAW, 0)), EPERM);
    EXPECT_EQ(grant(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))), EPERM);
    const UniqueFd elsewhere = raw_socket_of_elsewhere();
    if (elsewhere) {
        EXPECT_EQ(grant(elsewhere), EPERM) << "privileged in its own network namespace only";
    }
    // Bounded; and the connection goes on.
    std::uint32_t granted = 2;
    while (granted < 1000 && grant(raw4) == 0) ++granted;
    EXPECT_EQ(granted, tenant::Tenant::kMaxRawSockets);
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 1; }));
    Client other = attached("liar");
    other.say(shm::GrantRaw{});  // no descriptor
    EXPECT_TRUE(other.ended());
}

/// Bound to a port of the kernel's choice; `listening`, or as one that is to connect.
UniqueFd port_holder(int family, bool listening, Endpoint& local) {
    UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage name{};
    name.ss_family = static_cast<sa_family_t>(family);
    socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    if (listening) {
        EXPECT_EQ(::listen(fd.get(), 1), 0);
    }
    EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
    local.port = ntohs(reinterpret_cast<sockaddr_in&>(name).sin_port);
    return fd;
}

TEST(DeadFlowsTest, APortIsProvedByTheSocketThatHoldsIt) {
    Endpoint v4{*Address::parse("192.0.2.1"), 0};
    Endpoint v6{*Address::parse("2001:db8::1"), 0};
    for (const bool listening : {false, true}) {
        const UniqueFd four = port_holder(AF_INET, listening, v4);
        EXPECT_TRUE(holds_port(four.get(), v4));
        EXPECT_FALSE(holds_port(four.get(), {v4.address, static_cast<Port>(v4.port + 1)}));
        EXPECT_FALSE(holds_port(four.get(), {v4.address, 0}));
        EXPECT_FALSE(holds_port(four.get(), {v6.address, v4.port}));
        const UniqueFd six = port_holder(AF_INET6, listening, v6);
        EXPECT_TRUE(holds_port(six.get(), v6));
        EXPECT_TRUE(holds_port(six.get(), {v4.address, v6.port})) << "both families";
    }
    const UniqueFd only(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    ASSERT_EQ(::setsockopt(only.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on), 0);
    sockaddr_in6 name{};
    name.sin6_family = AF_INET6;
    socklen_t length = sizeof name;
    ASSERT_EQ(::bind(only.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    ASSERT_EQ(::getsockname(only.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);
    EXPECT_TRUE(holds_port(only.get(), {v6.address, ntohs(name.sin6_port)}));
    EXPECT_FALSE(holds_port(only.get(), {v4.address, ntohs(name.sin6_port)}));

    // One address is that address.
    sockaddr_in loopback{};
    loopback.sin_family = AF_INET;
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const UniqueFd bound(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    socklen_t size = sizeof loopback;
    ASSERT_EQ(::bind(bound.get(), reinterpret_cast<sockaddr*>(&loopback), size), 0);
    ASSERT_EQ(::getsockname(bound.get(), reinterpret_cast<sockaddr*>(&loopback), &size), 0);
    EXPECT_TRUE(holds_port(bound.get(), {*Address::parse("127.0.0.1"), ntohs(loopback.sin_port)}));
    EXPECT_FALSE(holds_port(bound.get(), {v4.address, ntohs(loopback.sin_port)}));

    // A connection has its listener's port, and may be anybody's: it proves nothing.
    ASSERT_EQ(::listen(bound.get(), 1), 0);
    const UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&loopback), size), 0);
    const UniqueFd accepted(::accept4(bound.get(), nullptr, nullptr, SOCK_CLOEXEC));
    EXPECT_FALSE(holds_port(accepted.get(), {*Address::parse("127.0.0.1"), ntohs(loopback.sin_port)}));

    const UniqueFd datagram(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    EXPECT_FALSE(holds_port(datagram.get(), v4));
    EXPECT_FALSE(holds_port(-1, v4));
    UniqueFd elsewhere;  // a port of another network namespace
    Endpoint there = v4;
    std::thread([&] {
        if (::unshare(CLONE_NEWNET) == 0) elsewhere = port_holder(AF_INET, true, there);
    }).join();
    if (elsewhere) {
        EXPECT_FALSE(holds_port(elsewhere.get(), there));
    }

    // What the kernel has it says: a connection by its names, not the listener beside it.
    sockaddr_in from{};
    size = sizeof from;
    ASSERT_EQ(::getsockname(client.get(), reinterpret_cast<sockaddr*>(&from), &size), 0);
    const Endpoint here{*Address::parse("127.0.0.1"), ntohs(loopback.sin_port)};
    const Endpoint peer{here.address, ntohs(from.sin_port)};
    const TcpFlow flows[] = {{here, peer}, {here, {here.address, 1}}, {peer, here}, {v6, v6}};
    const auto has = kernel_has(flows);
    ASSERT_TRUE(has) << has.error().message();
    EXPECT_EQ(*has, (std::vector<bool>{true, false, true, false}));
}

TEST_F(AttachTest, DeadConnectionsAreReportedWithProof) {
    start();
    Client one = attached("server");
    Endpoint local{*Address::parse("192.0.2.1"), 0};
    const UniqueFd listener = port_holder(AF_INET, true, local);
    const auto wire = [](const Endpoint& endpoint) {
        shm::WireEndpoint out{};
        std::memcpy(out.address, endpoint.address.bytes().data(), sizeof out.address);
        out.port = endpoint.port;
        out.family = 4;
        return out;
    };
    shm::ReportDead report;
    const Endpoint remote{*Address::parse("192.0.2.2"), 4711};
    report.count = 3;
    report.flows[0] = {wire(local), wire(remote), 0};
    report.flows[1] = {wire({local.address, static_cast<Port>(local.port + 1)}), wire(remote), 0};  // another port
    report.flows[2] = {wire(local), wire(remote), 1};                                               // no such proof
    one.say(report, listener.get());
    const shm::Answer answer = one.hear_message<shm::Answer>();
    EXPECT_EQ(answer.error, 0);
    EXPECT_EQ(answer.value, 0u) << "the address is nobody's here: nothing is sent";
    EXPECT_TRUE(eventually([](const auto& now) {
        return now["control"]["dead_flows_reported"] == 3 && now["control"]["dead_flows_unproved"] == 2 && now["control"]["dead_flows_probed"] == 0;
    }));
    // No more than a program can have had.
    report.count = shm::ReportDead::kMost;
    for (shm::DeadFlow& flow : report.flows) flow = {wire(local), wire(remote), 0};
    for (int i = 0; i < 5; ++i) {
        one.say(report, listener.get());
        EXPECT_EQ(one.hear_message<shm::Answer>().error, 0);
    }
    EXPECT_TRUE(eventually([](const auto& now) { return now["control"]["dead_flows_limited"] == 1 + 5 * 64 - 256; }));
    report.count = shm::ReportDead::kMost + 1;
    one.say(report, listener.get());
    EXPECT_TRUE(one.ended()) << "malformed";
    Client other = attached("liar");
    other.say(shm::MessageKind::kReportDead);
    EXPECT_TRUE(other.ended());
}

TEST_F(AttachTest, WhatIsNoConnectionHasNoStandIn) {
    start();
    Client one = attached("inetd");
    shm::AskStandIn ask;
    for (const std::uint32_t record : {0u, 255u, 256u, UINT32_MAX}) {
        ask.record = record;
        ask.generation = 1;
        one.say(ask);
        EXPECT_NE(one.hear_message<shm::Answer>().error, 0) << record;
    }
    EXPECT_TRUE(one.fds.size() == 2) << "of the welcome";
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 1 && now["drops"]["tenant_bad_socket"] == 4; }));
    ask.family = 5;
    one.say(ask);
    EXPECT_TRUE(one.ended());
    Client other = attached("liar");
    other.say(shm::AskStandIn{}, 0);  // a descriptor that nobody wants
    EXPECT_TRUE(other.ended());
}

TEST_F(AttachTest, MalformedMessagesCloseOnlyTheirConnection) {
    start();
    Client good = attached("nginx");
    std::uint64_t expected = 0;
    const auto refused = [&](Client& one) {
        EXPECT_TRUE(one.ended());
        EXPECT_EQ(stat()["control"]["malformed_messages"], ++expected);
    };
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    const UniqueFd file(::open("/dev/null", O_RDWR | O_CLOEXEC));
    {
        Client one = client();
        one.send_bytes("x", 1);
        refused(one);
    }
    {
        Client one = client();
        shm::Hello wrong = hello("nginx");
        wrong.magic = 1;
        one.say(wrong);
        refused(one);
    }
    {
        Client one = client();
        const shm::Hello message = hello("nginx");
        one.send_bytes(&message, sizeof message - 1);
        refused(one);
    }
    {
        Client one = client();
        one.say(shm::AddQueue{}, event.get());  // before the hello
        refused(one);
    }
    {
        Client one = attached("a");
        one.say(shm::AddQueue{});  // no descriptor
        refused(one);
    }
    {
        Client one = attached("a");
        one.say(shm::AddQueue{}, file.get());  // no eventfd
        refused(one);
    }
    {
        Client one = attached("a");
        one.say(shm::AddProcess{}, event.get());  // no socket
        refused(one);
    }
    {
        Client one = attached("a");
        shm::RemoveQueue remove;
        remove.queue = 0xffffffff;
        one.say(remove);
        refused(one);
    }
    {
        Client one = attached("a");
        one.say(hello("again"));
        refused(one);
    }
    {
        Client one = attached("a");
        const std::string large(8192, '\x05');
        one.send_bytes(large.data(), large.size());
        refused(one);
    }
    good.say(shm::AddQueue{}, event.get());
    EXPECT_EQ(good.hear_message<shm::Answer>().error, 0);
}

/// Descriptors of every sort that a stranger may send, some of which block, or do not let themselves be closed quickly.
std::vector<UniqueFd> assorted_descriptors() {
    std::vector<UniqueFd> fds;
    fds.emplace_back(::eventfd(0, EFD_CLOEXEC));
    fds.emplace_back(::eventfd(0xfffffffe, EFD_CLOEXEC));  // full, and it blocks
    fds.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC));
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    fds.emplace_back(ends[0]);
    fds.emplace_back(ends[1]);
    for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
        EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
        fds.emplace_back(ends[0]);
        fds.emplace_back(ends[1]);
    }
    fds.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    fds.emplace_back(::memfd_create("strange", MFD_CLOEXEC));
    fds.emplace_back(::epoll_create1(EPOLL_CLOEXEC));
    fds.emplace_back(::open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
    return fds;
}

/// Every kind of message, of every length, with every sort and number of descriptors, before and after the hello.
TEST_F(AttachTest, WhateverIsSaidHarmsNobodyElse) {
    start();
    shm::Welcome welcome;
    Client good = attached("honest", &welcome);
    const auto open_now = [] {
        return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
    };
    const auto before = open_now();
    std::vector<UniqueFd> fds = assorted_descriptors();
    constexpr std::uint32_t kKinds[] = {0x43560001, 0x43560002, 0x43560003, 0x43560004, 0x43560005, 0x43560006, 0x43560007, 0x43560008, 0};
    std::vector<std::size_t> lengths = {0, 1, 3, 4, 5, 7, 8, 9, 11, 12, 13, 64, 4096, 20000};
    for (const std::size_t size : {sizeof(shm::Hello), sizeof(shm::Welcome), sizeof(shm::AddQueue), sizeof(shm::RemoveQueue), sizeof(shm::Answer)})
        for (const std::size_t length : {size - 1, size, size + 1}) lengths.push_back(length);
    std::minstd_rand random(7);
    std::vector<std::byte> bytes(20000);
    std::uint64_t said = 0;
    for (const std::uint32_t kind : kKinds) {
        for (const std::size_t length : lengths) {
            for (const bool known : {false, true}) {
                Client one = client();
                if (known) one.say(hello("hostile"));  // unanswered for now: what follows comes at a bad time, too
                for (int message = 0; message < 3; ++message) {
                    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() >> 8);
                    if (message != 0) std::fill(bytes.begin() + 4, bytes.begin() + 200, static_cast<std::byte>(message - 1));
                    std::memcpy(bytes.data(), &kind, sizeof kind);
                    const int fd = random() % 3 == 0 ? -1 : fds[random() % fds.size()].get();
                    said += one.try_to_send(bytes.data(), length, fd, random() % 4 == 0 ? 16 : 1) ? 1 : 0;
                }
            }
        }
    }
    EXPECT_GT(said, 400u);
    good.say(shm::AddQueue{}, fds[0].get());
    EXPECT_EQ(good.hear_message<shm::Answer>().error, 0);
    fds.clear();  // some have become connections of children, which end with their other end
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 1 && now["control"]["processes"] == 1; }));
    EXPECT_TRUE(eventually([&](const auto&) { return open_now() <= before + 2; })) << "the queue's eventfd, and the asking itself";
}

TEST_F(AttachTest, ClientThatLeavesAtOnceLeavesNothing) {
    start();
    for (int i = 0; i < 20; ++i) {
        Client one = client();
        one.say(hello("hasty"));
    }
    EXPECT_TRUE(eventually([](const auto& now) { return now["tenants"] == 0 && now["control"]["processes"] == 0; }));
    attached("patient");
}

TEST_F(AttachTest, AdministratorsAreAnswered) {
    start();
    EXPECT_EQ(ask(R"({"request": "ping"})")["answer"], "pong");
    EXPECT_EQ(ask(R"({"request": "version"})")["version"], CULVERT_VERSION);
    const nlohmann::json statistics = stat();
    EXPECT_EQ(statistics["version"], CULVERT_VERSION);
    EXPECT_EQ(statistics["counters"]["tcp_passive_opens"], 0);
    EXPECT_EQ(statistics["drops"]["tcp_checksum"], 0);
    EXPECT_FALSE(statistics["drops"].contains("none"));
    EXPECT_TRUE(ask(R"({"request": "ss"})")["sockets"].empty());
    EXPECT_EQ(ask(R"({"request": "shutdown"})")["error"], "unknown request \"shutdown\"");
    EXPECT_EQ(ask("{")["error"], "no request in the message");
    EXPECT_EQ(ask(R"({"request": 7})")["error"], "no request in the message");
}

TEST_F(AttachTest, ProgramsAreSpreadOverTheEnginesAndTheirNumbersAreSummed) {
    engine_count = 3;
    start();
    std::vector<std::optional<Client>> programs(4);
    for (auto& program : programs) program = attached("worker");
    const auto spread = [](const nlohmann::json& now) {
        std::vector<int> tenants;
        for (const auto& engine : now["engines"]) tenants.push_back(engine["tenants"]);
        return tenants;
    };
    EXPECT_TRUE(eventually([&](const auto& now) { return spread(now) == std::vector<int>{2, 1, 1} && now["tenants"] == 4; }));
    programs[2].reset();  // the next one takes its place, not its turn
    EXPECT_TRUE(eventually([&](const auto& now) { return spread(now) == std::vector<int>{2, 1, 0}; }));
    programs[2] = attached("late");
    EXPECT_TRUE(eventually([&](const auto& now) { return spread(now) == std::vector<int>{2, 1, 1}; }));
    // Each answers its own program: an event queue is made on the engine that has it.
    const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
    for (auto& program : programs) {
        program->say(shm::AddQueue{}, event.get());
        EXPECT_EQ(program->hear_message<shm::Answer>().error, 0);
    }
    const nlohmann::json now = stat();
    std::uint64_t turns = 0;
    for (const auto& engine : now["engines"]) turns += engine["counters"]["turns"].get<std::uint64_t>();
    EXPECT_EQ(now["counters"]["turns"], turns);
    EXPECT_TRUE(ask(R"({"request": "ss"})")["sockets"].empty());
}

TEST_F(AttachTest, KernelPathSocketsAreShownWithTheirReason) {
    start();
    shm::Welcome welcome;
    Client one = attached("nginx", &welcome);
    Result<shm::Segment> segment = shm::Segment::open(one.fds[0].get(), welcome.geometry);
    ASSERT_TRUE(segment) << segment.error().message();
    // This process plays the program: a kernel UDP socket, and the reason where the shim would put it.
    const UniqueFd udp(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage loopback{};
    loopback.ss_family = AF_INET;
    ASSERT_EQ(::bind(udp.get(), reinterpret_cast<const sockaddr*>(&loopback), 16), 0);
    shm::ProcessRecord& process = segment->process(welcome.process_slot);
    process.pid = static_cast<std::uint32_t>(::getpid());
    process.reasons[udp.get()] = static_cast<std::uint8_t>(shm::KernelReason::kLoopback);
    process.reasons[30000] = static_cast<std::uint8_t>(shm::KernelReason::kLoopback);  // closed: not shown
    const nlohmann::json sockets = ask(R"({"request": "ss"})")["sockets"];
    ASSERT_EQ(sockets.size(), 1u) << sockets.dump(2);
    EXPECT_EQ(sockets[0]["program"], "nginx");
    EXPECT_EQ(sockets[0]["proto"], "udp");
    EXPECT_EQ(sockets[0]["path"], "kernel");
    EXPECT_EQ(sockets[0]["why"], "loopback address");
    EXPECT_EQ(sockets[0]["fd"], udp.get());
}

}  // namespace
}  // namespace culvert::control
