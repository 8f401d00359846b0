// The life of the steering program: it goes with its daemon, however that ends; it lives beside others; it is alone.
//
// The "daemon" of a test is a child process that attaches, takes a port and holds on until it is told or killed.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xdp/libxdp.h>

#include <memory>

#include "daemon/device/af_xdp/af_xdp_device.h"
#include "daemon/device/af_xdp/dispatcher.h"
#include "tests/platform/frames.h"
#include "tests/platform/veth_pair.h"

namespace culvert::platform {
namespace {

using device::AfXdpDevice;
using device::Attachment;
using device::Protocol;
using device::SteeringProgram;

constexpr Port kPort = 7000;

/// A child process that holds an interface as culvertd does.
class Holder {
public:
    /// Returns when the child has attached and steers kPort to itself, or with its error.
    explicit Holder(const Address& address) {
        int ends[2];
        if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) throw std::runtime_error("socketpair");
        ours_.reset(ends[0]);
        UniqueFd theirs(ends[1]);
        child_ = ::fork();
        if (child_ == 0) {
            ours_.reset();
            hold(theirs.get(), address);
        }
        theirs.reset();
        char message[512];
        const ssize_t size = ::recv(ours_.get(), message, sizeof message, 0);
        report_.assign(message, size > 0 ? static_cast<std::size_t>(size) : 0);
    }
    ~Holder() {
        if (child_ > 0) kill_hard();
    }
    Holder(const Holder&) = delete;
    Holder& operator=(const Holder&) = delete;

    /// "ok native, bpf_link", or the message of the error.
    const std::string& report() const { return report_; }
    void kill_hard() {
        ::kill(child_, SIGKILL);
        ::waitpid(child_, nullptr, 0);
        child_ = -1;
    }
    /// As SIGTERM does to the daemon: destructors run.
    void stop() {
        ours_.reset();
        ::waitpid(child_, nullptr, 0);
        child_ = -1;
    }

private:
    [[noreturn]] static void hold(int parent, const Address& address) {
        {
            FramePool pool(4096);
            const auto say = [parent](const std::string& text) {
                ::send(parent, text.data(), text.size(), MSG_NOSIGNAL);
            };
            auto program = SteeringProgram::attach(VethPair::kOurs);
            if (!program) {
                say(program.error().message());
                ::_exit(1);
            }
            auto device = AfXdpDevice::create(pool, **program);
            if (!device) {
                say(device.error().message());
                ::_exit(1);
            }
            (void)(*program)->set_address(address, true);
            (*program)->take_port(address, Protocol::kUdp, kPort);
            say("ok " + (*program)->describe());
            char nothing;
            while (::recv(parent, &nothing, 1, 0) > 0) {
            }
            device->reset();
        }
        ::_exit(0);
    }

    UniqueFd ours_;
    pid_t child_ = -1;
    std::string report_;
};

class SteeringLife : public testing::Test {
protected:
    void SetUp() override {
        if (::geteuid() != 0) GTEST_SKIP() << "needs root for network namespaces and XDP";
        veth = std::make_unique<VethPair>();
        kernel = veth->our_udp_socket(kPort);
        client = veth->their_udp_socket(0);
    }
    /// True when the kernel's socket receives what is sent to the port; tries until `milliseconds` have passed.
    bool kernel_receives(int milliseconds) {
        while (!receive_from(kernel, 0).empty()) {
        }
        send_to(client, veth->our_address, kPort, pattern(40, ++sent));
        return receive_from(kernel, milliseconds) == pattern(40, sent);
    }
    bool has_program() const { return device::has_xdp_program(static_cast<int>(::if_nametoindex(VethPair::kOurs))); }

    std::unique_ptr<VethPair> veth;
    UniqueFd kernel;
    UniqueFd client;
    unsigned sent = 0;
};

TEST_F(SteeringLife, KilledItGivesTheTrafficBackAtOnce) {
    EXPECT_TRUE(kernel_receives(5000));
    Holder holder(veth->our_address);
    ASSERT_EQ(holder.report(), "ok native, bpf_link");
    EXPECT_FALSE(kernel_receives(100)) << "Culvert has it";
    holder.kill_hard();
    EXPECT_TRUE(kernel_receives(5000));
    EXPECT_TRUE(eventually(-1, [this] { return !has_program(); })) << "the link goes with the process";
    EXPECT_TRUE(kernel_receives(5000));
}

TEST_F(SteeringLife, StoppedItLeavesNothing) {
    Holder holder(veth->our_address);
    ASSERT_EQ(holder.report(), "ok native, bpf_link");
    holder.stop();
    EXPECT_TRUE(eventually(-1, [this] { return !has_program(); }));
    EXPECT_TRUE(kernel_receives(5000));
}

TEST_F(SteeringLife, KilledAndStartedAgainAtOnce) {
    for (int i = 0; i < 3; ++i) {
        Holder holder(veth->our_address);
        ASSERT_EQ(holder.report(), "ok native, bpf_link") << "start " << i;
        EXPECT_FALSE(kernel_receives(50));
        holder.kill_hard();
    }
    EXPECT_TRUE(kernel_receives(5000));
}

TEST_F(SteeringLife, ASecondDaemonIsRefused) {
    Holder holder(veth->our_address);
    ASSERT_EQ(holder.report(), "ok native, bpf_link");
    const auto second = SteeringProgram::attach(VethPair::kOurs);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, EBUSY);
    EXPECT_THAT(
        second.error().message(),
        testing::MatchesRegex(
            "culv0: interface already taken by XDP program culvert_steer .id [0-9]+.: another culvertd serves it.*"));
    EXPECT_FALSE(kernel_receives(50)) << "the first is not disturbed";
}

TEST_F(SteeringLife, NoSuchInterface) {
    const auto none = SteeringProgram::attach("nosuch0");
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().message(), "interface \"nosuch0\": No such device");
}

TEST_F(SteeringLife, AProgramThatSharesWithNobodyIsRefused) {
    const bpf_insn pass[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0}};
    const UniqueFd foreign(bpf_prog_load(BPF_PROG_TYPE_XDP, "foreign", "MIT", pass, 2, nullptr));
    ASSERT_TRUE(foreign);
    const int ifindex = static_cast<int>(::if_nametoindex(VethPair::kOurs));
    ASSERT_EQ(bpf_xdp_attach(ifindex, foreign.get(), XDP_FLAGS_SKB_MODE, nullptr), 0);
    const auto refused = SteeringProgram::attach(VethPair::kOurs);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, EBUSY);
    EXPECT_THAT(refused.error().message(), testing::HasSubstr("interface already taken by XDP program foreign (id "));
    EXPECT_TRUE(has_program()) << "and left alone";
    ASSERT_EQ(bpf_xdp_attach(ifindex, -1, XDP_FLAGS_SKB_MODE, nullptr), 0);
    EXPECT_TRUE(SteeringProgram::attach(VethPair::kOurs));
}

TEST_F(SteeringLife, AClaimHasOneOwnerAndGoesWithIt) {
    auto first = device::claim_interface("x", 42);
    ASSERT_TRUE(first);
    const auto second = device::claim_interface("x", 42);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().message(), "x: interface already taken by another culvertd: Device or resource busy");
    EXPECT_TRUE(device::claim_interface("y", 43)) << "another interface";
    first->reset();
    EXPECT_TRUE(device::claim_interface("x", 42));
}

TEST_F(SteeringLife, AClaimByAStrangerDoesNotCount) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const UniqueFd ours(ends[0]);
    UniqueFd theirs(ends[1]);
    const pid_t stranger = ::fork();
    if (stranger == 0) {
        if (::setresuid(65534, 65534, 65534) != 0) ::_exit(1);
        const auto claim = device::claim_interface("x", 42);
        char byte = claim ? 'y' : 'n';
        ::send(theirs.get(), &byte, 1, MSG_NOSIGNAL);
        ::close(ends[0]);
        while (::recv(theirs.get(), &byte, 1, 0) > 0) {
        }
        ::_exit(0);
    }
    theirs.reset();
    char byte = 0;
    ASSERT_EQ(::recv(ours.get(), &byte, 1, 0), 1);
    EXPECT_EQ(byte, 'y') << "the name is free for all";
    EXPECT_TRUE(device::claim_interface("x", 42)) << "but root does not stop at it";
    ::shutdown(ours.get(), SHUT_RDWR);
    ASSERT_EQ(::waitpid(stranger, nullptr, 0), stranger);
}

// With a dispatcher on the interface. libxdp wants bpffs at one path for the whole process, so this runs in a child
// that has its own mounts; nothing of it is left when the child ends.
class BesideOthers : public SteeringLife {
protected:
    static constexpr int kNoDispatcher = 77;

    static void in_child_with_bpffs(const std::function<void()>& work) {
        const pid_t child = ::fork();
        if (child == 0) {
            if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
                ::mount("bpf", "/sys/fs/bpf", "bpf", 0, nullptr) != 0) {
                std::perror("mounting a private bpffs");
                ::_exit(2);
            }
            work();
            ::_exit(HasFailure() ? 1 : 0);
        }
        int status = 0;
        ASSERT_EQ(::waitpid(child, &status, 0), child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == kNoDispatcher)
            GTEST_SKIP() << "libxdp cannot install its dispatcher on this kernel (BPF_PROG_TYPE_EXT refused)";
        EXPECT_EQ(status, 0);
    }

    void attach_neighbour() {
        neighbour = xdp_program__open_file(NEIGHBOUR_OBJECT, "xdp.frags", nullptr);
        ASSERT_EQ(libxdp_get_error(neighbour), 0);
        ASSERT_EQ(xdp_program__set_xdp_frags_support(neighbour, true), 0);
        ASSERT_EQ(xdp_program__attach(neighbour, ifindex(), XDP_MODE_NATIVE, 0), 0);
        xdp_multiprog* all = xdp_multiprog__get_from_ifindex(ifindex());
        ASSERT_EQ(libxdp_get_error(all), 0);
        const bool alone = xdp_multiprog__is_legacy(all);  // what libxdp falls back to
        xdp_multiprog__close(all);
        if (!alone) return;
        // Then it shares with nobody, and we must say so.
        const auto refused = SteeringProgram::attach(VethPair::kOurs);
        ASSERT_FALSE(refused);
        EXPECT_THAT(refused.error().message(), testing::HasSubstr("interface already taken by XDP program neighbour"));
        ::_exit(HasFailure() ? 1 : kNoDispatcher);
    }
    /// Names of the programs behind the dispatcher.
    std::vector<std::string> programs() {
        std::vector<std::string> names;
        xdp_multiprog* all = xdp_multiprog__get_from_ifindex(ifindex());
        if (libxdp_get_error(all) != 0) return names;
        for (xdp_program* one = xdp_multiprog__next_prog(nullptr, all); one != nullptr;
             one = xdp_multiprog__next_prog(one, all))
            names.emplace_back(xdp_program__name(one));
        xdp_multiprog__close(all);
        return names;
    }
    static int ifindex() { return static_cast<int>(::if_nametoindex(VethPair::kOurs)); }

    xdp_program* neighbour = nullptr;
};

TEST_F(BesideOthers, JoinsADispatcherAndLeavesIt) {
    in_child_with_bpffs([this] {
        ASSERT_NO_FATAL_FAILURE(attach_neighbour());
        Holder holder(veth->our_address);
        ASSERT_EQ(holder.report(), "ok native, libxdp dispatcher");
        EXPECT_THAT(programs(), testing::UnorderedElementsAre("neighbour", "culvert_steer"));
        EXPECT_FALSE(kernel_receives(50)) << "Culvert has it";
        holder.stop();
        EXPECT_THAT(programs(), testing::ElementsAre("neighbour"));
        EXPECT_TRUE(kernel_receives(5000));
    });
}

TEST_F(BesideOthers, KilledInADispatcherItIsHarmlessAndReplaced) {
    in_child_with_bpffs([this] {
        ASSERT_NO_FATAL_FAILURE(attach_neighbour());
        Holder first(veth->our_address);
        ASSERT_EQ(first.report(), "ok native, libxdp dispatcher");
        first.kill_hard();
        EXPECT_TRUE(kernel_receives(5000)) << "its program is still there, and passes everything";
        EXPECT_THAT(programs(), testing::UnorderedElementsAre("neighbour", "culvert_steer"));
        Holder second(veth->our_address);
        ASSERT_EQ(second.report(), "ok native, libxdp dispatcher");
        EXPECT_THAT(programs(), testing::UnorderedElementsAre("neighbour", "culvert_steer"));
        EXPECT_FALSE(kernel_receives(50)) << "the second has it";
        second.stop();
        EXPECT_THAT(programs(), testing::ElementsAre("neighbour"));
    });
}

TEST_F(BesideOthers, ASecondDaemonIsRefusedThereToo) {
    in_child_with_bpffs([this] {
        ASSERT_NO_FATAL_FAILURE(attach_neighbour());
        Holder first(veth->our_address);
        ASSERT_EQ(first.report(), "ok native, libxdp dispatcher");
        Holder second(veth->our_address);
        EXPECT_EQ(second.report(), "culv0: interface already taken by another culvertd: Device or resource busy");
        EXPECT_FALSE(kernel_receives(50)) << "the first is not disturbed";
    });
}

}  // namespace
}  // namespace culvert::platform
