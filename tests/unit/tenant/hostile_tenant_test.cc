// The malicious tenant: it serves, as programs do, while a thread of its own writes over its segment, at one structure after
// the other. Beside it two honest programs talk: their bytes stay right and no turn of the engine takes long. When it has ended,
// nothing of it is left. Under ASan and UBSan a wrong look of the daemon ends the test.
//
// HOSTILE_SEED and HOSTILE_ROUNDS in the environment: another world, a longer one.
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <chrono>
#include <cstdlib>
#include <ctime>

#include "tests/support/scribbler.h"
#include "tests/unit/tenant/tenant_world.h"

namespace culvert::tenant {
namespace {

using test::Random;
using test::Scribbler;
using test::ScribblingThread;
using test::SegmentPart;

std::uint32_t from_environment(const char* name, std::uint32_t otherwise) {
    const char* const value = std::getenv(name);
    return value != nullptr ? static_cast<std::uint32_t>(std::strtoul(value, nullptr, 0)) : otherwise;
}

constexpr int kRoundsOfALife = 30;
constexpr bool kSlow =
#if defined(__SANITIZE_ADDRESS__)
    true;
#else
    false;
#endif

double cpu_ms() {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

/// The hostile program's other thread: it goes on using its sockets, whatever it finds in its own segment.
class HostileProgram {
public:
    HostileProgram(Host& host, std::uint32_t id, std::uint32_t seed) : side_(host.attach(tenant_, id)), random_(seed) {
        const Address any = Address::v4(0, 0, 0, 0);
        operate(shm::Operation::kListen, endpoint(any, kPort), {}, 8);
        operate(shm::Operation::kBindDatagram, endpoint(Host::kAddress, kPort), {});
        for (Port port = 50000; port < 50008; ++port)
            operate(shm::Operation::kConnect, endpoint(Host::kAddress, port), endpoint(Host::kAddress, kHonestPort));
        for (std::uint32_t queue = 0; queue < 2; ++queue) (void)tenant_->add_queue(0, UniqueFd(::eventfd(0, EFD_NONBLOCK)));
    }

    Tenant& tenant() { return *tenant_; }
    shm::Segment& segment() { return side_.segment; }

    void act() {
        for (int i = 0; i < 8; ++i) {
            const std::uint32_t index = random_() % 4 == 0 ? random_() % Host::kGeometry.sockets : random_() % 12;
            shm::SocketRecord& record = side_.segment.socket(index);
            switch (random_() % 8) {
                case 0: side_.send(index, std::string(random_() % 6000, 'h'), random_() % 16 == 0); break;
                case 1: take(record.daemon.rx_list); break;
                case 2: take_connection(); break;
                case 3: side_.submit(index, static_cast<shm::Operation>(random_() % 20), some_endpoint(), some_endpoint(), random_()); break;
                case 4: record.app.options_version.fetch_add(2); break;
                case 5: side_.segment.queue(random_() % 4).asleep.store(1); break;
                case 6: side_.set_flags(index, random_() % 32 == 0 ? random_() : shm::kAppWantWrite); break;
                default: side_.segment.dirty().post(index); break;
            }
            side_.segment.dirty().post(index);
        }
    }

    static constexpr Port kPort = 81;
    static constexpr Port kHonestPort = 80;

private:
    void operate(shm::Operation code, const shm::WireEndpoint& local, const shm::WireEndpoint& remote, std::uint32_t argument = 0) {
        const std::uint32_t socket = side_.socket();
        side_.submit(socket, code, local, remote, argument);
        side_.segment.socket(socket).app.watch.store(random_() % 2 == 0 ? shm::kWatchMany : 1);
    }
    shm::WireEndpoint some_endpoint() {
        return endpoint(random_() % 2 == 0 ? Host::kAddress : Address::v4(0, 0, 0, 0), static_cast<Port>(random_() % 2 == 0 ? 80 + random_() % 4 : random_()));
    }
    /// Gives back what has come, believing nothing: its own links may be nonsense by now.
    void take(std::atomic<std::uint32_t>& list) {
        std::uint32_t link = shm::take_all(list);
        for (int steps = 0; link != shm::kEmptyList && link <= Host::kGeometry.blocks() && steps < 64; ++steps) {
            const std::uint32_t next = side_.segment.block_meta()[link - 1].next.load();
            shm::push_block(side_.segment.header().rx_returned, side_.segment.block_meta(), link - 1);
            link = next;
        }
    }
    void take_connection() {
        shm::AcceptQueueConsumer queue(side_.segment.accept_queue(0));
        for (int i = 0; i < 4; ++i)
            if (const auto record = queue.take(); record && *record < Host::kGeometry.sockets) side_.hold(*record);
    }

    Tenant* tenant_ = nullptr;
    AppSide side_;
    Random random_;
};

class HostileTenantTest : public TenantTest {
protected:
    HostileTenantTest() {
        listener = listen(HostileProgram::kHonestPort, 64);
        socket = connect(40001, HostileProgram::kHonestPort);
        accepted = *server.accept(listener);
        client.segment.socket(socket).options.flags = shm::kOptionNoDelay;
        client.segment.socket(socket).app.options_version.store(2);
        host.turns(4);
    }

    /// A turn, and what it cost. Turns of a hostile neighbour must not be long.
    void turn(Duration later = 10us) {
        const double before = cpu_ms();
        host.turn(later);
        longest_ms = std::max(longest_ms, cpu_ms() - before);
    }

    void honest_exchange(Random& random) {
        std::string bytes(1 + random() % 3000, '\0');
        for (char& byte : bytes) byte = static_cast<char>(random());
        ASSERT_EQ(client.send(socket, bytes), bytes.size());
        std::string got;
        const Instant began = host.now;
        for (int i = 0; i < 4000 && got.size() < bytes.size(); ++i) {
            turn(i < 100 ? Duration(10us) : Duration(1ms));
            got += server.receive(accepted);
            server.segment.dirty().post(accepted);
        }
        ASSERT_EQ(got.size(), bytes.size());
        ASSERT_TRUE(got == bytes);
        slowest = std::max(slowest, host.now - began);
        // What the hostile one connects to the honest server is taken and closed, as by any server.
        while (const auto stranger = server.accept(listener)) {
            server.receive(*stranger);
            server.close(*stranger);
        }
    }

    /// One hostile program, its whole life, with `part` of its segment being written over.
    void endure(const SegmentPart& part, std::uint32_t seed, int rounds) {
        Random random(seed);
        const std::map<Port, int> ports = host.taken;
        const std::size_t frames = host.pool.available();
        {
            HostileProgram hostile(host, 3, seed);
            host.turns(4);
            // Somebody honest is connected to it, too.
            const std::uint32_t victim = client.socket();
            client.submit(victim, shm::Operation::kConnect, endpoint(Host::kAddress, 40100), endpoint(Host::kAddress, HostileProgram::kPort));
            {
                const ScribblingThread thread(Scribbler(hostile.segment(), part, seed));
                Scribbler again(hostile.segment(), part, seed + 1000);  // what does not depend on the scheduler
                for (int round = 0; round < rounds; ++round) {
                    hostile.act();
                    for (int i = 0; i < 20; ++i) again.scribble();
                    honest_exchange(random);
                    if (testing::Test::HasFatalFailure()) return;
                    const shm::SocketRecord& record = client.segment.socket(victim);
                    if (record.app.tx_queued.load() - record.daemon.tx_released.load() < 1000) client.send(victim, "to the hostile one");
                    client.receive(victim);
                }
                hostile.tenant().remove_process(0, host.now);  // while it still writes
                turn();
            }
            client.close(victim);
            // Whoever it was connected to closes; time passes until nothing of it is left.
            for (int i = 0; i < 400 && !hostile.tenant().finished(); ++i) {
                turn(10s);
                while (const auto stranger = server.accept(listener)) server.close(*stranger);
            }
            ASSERT_TRUE(hostile.tenant().finished());
            EXPECT_TRUE(hostile.tenant().snapshot().sockets.empty());
            host.tenants.pop_back();
        }
        host.turns(20, 10s);
        for (const auto& [port, count] : host.taken) {
            const auto before = ports.find(port);
            EXPECT_EQ(count, before == ports.end() ? 0 : before->second) << "port " << port;
        }
        EXPECT_EQ(host.pool.available(), frames) << "frames";
        EXPECT_EQ(host.commons.tenants, 2u);
        Random again(seed + 1);
        honest_exchange(again);
    }

    std::uint32_t listener = 0, socket = 0, accepted = 0;
    double longest_ms = 0;
    Duration slowest{};  // exchange, in virtual time
};

TEST(SegmentParts, AreTheWholeSegment) {
    EXPECT_EQ(test::uncovered(shm::Layout(Host::kGeometry)), "");
    EXPECT_EQ(test::uncovered(shm::Layout({16384, 4096, 16384, 16384, 256, 64, 64})), "");
}

TEST_F(HostileTenantTest, EveryStructureInTurn) {
    const std::uint32_t seed = from_environment("HOSTILE_SEED", 20261121);
    const auto rounds = static_cast<int>(from_environment("HOSTILE_ROUNDS", kSlow ? 60 : 300));
    const shm::Layout layout(Host::kGeometry);
    std::vector<SegmentPart> parts = test::segment_parts(layout);
    for (const SegmentPart& field : test::segment_fields(layout)) parts.push_back(field);
    parts.push_back({"everything", 0, layout.size_bytes, layout.size_bytes, 1});
    std::uint32_t number = 0;
    for (const SegmentPart& part : parts) {
        SCOPED_TRACE(part.name + ", HOSTILE_SEED=" + std::to_string(seed));
        for (int begun = 0; begun < rounds; begun += kRoundsOfALife) {  // a spoilt program soon does nothing any more
            endure(part, seed + ++number, kRoundsOfALife);
            if (HasFatalFailure()) return;
        }
        if (std::getenv("HOSTILE_VERBOSE")) std::printf("%-30s %.3f ms %ld us\n", part.name.c_str(), longest_ms, static_cast<long>(slowest / 1us));
    }
    RecordProperty("longest_turn_us", static_cast<int>(longest_ms * 1000));
    EXPECT_LT(longest_ms, kSlow ? 200 : 20) << "CPU time of the longest turn";
    std::uint64_t refused = 0;
    for (const Drop reason : {Drop::kTenantBadBlock, Drop::kTenantBadLength, Drop::kTenantBadRequest, Drop::kTenantBadAddress,
                              Drop::kTenantBadSocket, Drop::kTenantNoBlock, Drop::kTenantNoSocket, Drop::kTenantOrphans}) {
        if (std::getenv("HOSTILE_VERBOSE")) std::printf("drop reason %u: %lu\n", static_cast<unsigned>(reason), static_cast<unsigned long>(drops(reason)));
        refused += drops(reason);
    }
    EXPECT_GT(refused, 500u) << "it was really hostile";
    EXPECT_GT(drops(Drop::kTenantBadBlock), 0u);
    EXPECT_GT(drops(Drop::kTenantBadLength), 0u);
    EXPECT_LT(slowest, 100ms) << "no honest segment had to be sent again";
}

/// All requests there can be, at once and in every turn, from a program with a full table of sockets.
TEST_F(HostileTenantTest, ATurnIsShortWhateverItIsAskedFor) {
    constexpr shm::Geometry kLarge{.sockets = 16384, .app_sockets = 4096, .tx_blocks = 16384, .rx_blocks = 16384,
                                   .queues = 64, .processes = 16, .accept_queues = 64};
    Tenant* tenant = nullptr;
    AppSide hostile = host.attach(tenant, 3, kLarge);
    for (std::uint32_t queue = 0; queue < 64; ++queue) (void)tenant->add_queue(0, UniqueFd(::eventfd(0, EFD_NONBLOCK)));
    for (std::uint32_t i = 0; i < kLarge.app_sockets; ++i) {
        const std::uint32_t index = hostile.socket();
        hostile.submit(index, shm::Operation::kBindDatagram, endpoint(Host::kAddress, static_cast<Port>(2000 + i)), {});
        hostile.segment.socket(index).app.watch.store(shm::kWatchMany);
        hostile.segment.socket(index).app.flags.store(shm::kAppWantWrite);
    }
    host.turns(2);
    longest_ms = 0;
    for (int round = 0; round < 50; ++round) {
        for (std::uint32_t index = 0; index < kLarge.sockets; ++index) hostile.segment.dirty().post(index);
        hostile.segment.header().tx_starved.store(1);
        hostile.send(round % 64, std::string(200, 'x'));
        const std::uint64_t before = host.counters.requests;
        turn();
        EXPECT_LT(host.counters.requests - before, 600u) << "the others' turn";
    }
    EXPECT_TRUE(tenant->has_requests()) << "the rest is not forgotten";
    RecordProperty("longest_turn_us", static_cast<int>(longest_ms * 1000));
    EXPECT_LT(longest_ms, kSlow ? 200 : 20);
}

}  // namespace
}  // namespace culvert::tenant
