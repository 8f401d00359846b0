// A program that locks itself up with a seccomp filter like that of sshd's unprivileged child: whatever else is called ends it.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "preload/client.h"
#include "preload/fd_table.h"
#include "tests/support/fake_daemon.h"

namespace culvert::test {
namespace {

/// What sshd 9.2 lets its child call, as far as x86-64 and arm64 have it.
constexpr int kAllowed[] = {SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close, SYS_exit, SYS_exit_group, SYS_futex, SYS_getpid,
                            SYS_getrandom, SYS_gettid, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep,
                            SYS_ppoll, SYS_pselect6, SYS_read, SYS_rt_sigprocmask, SYS_shutdown, SYS_write, SYS_writev
#ifdef SYS_poll
                            , SYS_poll
#endif
};

enum class How { kPrctl, kSyscall };

bool confine(How how) {
    std::vector<sock_filter> code;
    code.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
    for (const int number : kAllowed) {
        code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(number), 0, 1));
        code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    }
    code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
    sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
    const rlimit none{1, 1};
    ::setrlimit(RLIMIT_NOFILE, &none);
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return false;
    return how == How::kPrctl ? ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0
                              : ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

class ConfinedTest : public testing::Test {
protected:
    void SetUp() override { ASSERT_NE(daemon_.attach(), nullptr); }
    void TearDown() override { preload::Client::install(nullptr); }

    int connected() {
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(80);
        ::inet_pton(AF_INET, "10.77.0.9", &to.sin_addr);
        EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0) << std::strerror(errno);
        return fd;
    }
    static std::uint32_t record(int fd) { return preload::FdTable::instance().find(fd)->record(); }

    /// Runs `work` in a child behind the filter; its exit status, or 1000 and the signal that ended it. It keeps two descriptors.
    template <class Work>
    int behind_filter(How how, std::array<int, 2> kept, Work&& work) {
        const pid_t child = ::fork();
        if (child == 0) {
            // Also the copies of the daemon's ends, which here lie in the same process.
            for (int fd = 3; fd < 1000; ++fd)
                if (fd != kept[0] && fd != kept[1]) ::close(fd);
            ::_exit(confine(how) ? work() : 99);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    }

    FakeDaemon daemon_;
};

int talk(int fd) {
    char buffer[100];
    for (int round = 0; round < 20; ++round) {
        if (::write(fd, "culvert", 7) != 7) return 1;
        pollfd waiting{fd, POLLIN, 0};
        if (::poll(&waiting, 1, 20'000) != 1 || waiting.revents != POLLIN) return 2;
        if (::read(fd, buffer, sizeof buffer) != 7 || std::memcmp(buffer, "culvert", 7) != 0) return 3;
        if (::write(fd, "culvert", 7) != 7) return 4;
        if (::read(fd, buffer, sizeof buffer) != 7) return 5;  // blocks
    }
    pollfd waiting{fd, POLLIN, 0};
    if (::poll(&waiting, 1, 30) != 0) return 6;
    if (::shutdown(fd, SHUT_WR) != 0) return 7;
    if (::write(fd, "x", 1) != -1 || errno != EPIPE) return 8;
    return ::close(fd);
}

TEST_F(ConfinedTest, AConnectionIsUsedByPermittedCallsOnly) {
    if (kSanitized) GTEST_SKIP() << "the sanitizer makes calls of its own behind the filter";
    for (const How how : {How::kPrctl, How::kSyscall}) {
        const int fd = connected();
        daemon_.echo(record(fd));
        EXPECT_EQ(behind_filter(how, {fd, fd}, [fd] { return talk(fd); }), 0);
        ::close(fd);
    }
}

TEST_F(ConfinedTest, TheDaemonsDeathIsNoticed) {
    if (kSanitized) GTEST_SKIP() << "the sanitizer makes calls of its own behind the filter";
    const int fd = connected();
    int started[2];
    ASSERT_EQ(::pipe(started), 0);
    std::thread killer([&] {
        char byte = 0;
        (void)!::read(started[0], &byte, 1);
        daemon_.die();
    });
    EXPECT_EQ(behind_filter(How::kPrctl, {fd, started[1]},
                            [&] {
                                (void)!::write(started[1], "x", 1);
                                char byte = 0;
                                if (::read(fd, &byte, 1) != -1 || errno != ECONNRESET) return 1;
                                return ::read(fd, &byte, 1) == 0 ? 0 : 2;
                            }),
              0);
    killer.join();
    ::close(fd);
    ::close(started[0]);
    ::close(started[1]);
}

TEST_F(ConfinedTest, AFilterThatTheKernelRefusesConfinesNobody) {
    EXPECT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, nullptr), -1);
    const int fd = connected();
    EXPECT_TRUE(preload::FdTable::instance().find(fd)->is_ours());
    ::close(fd);
}

}  // namespace
}  // namespace culvert::test
