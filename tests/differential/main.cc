// differential_cases: hundreds of small socket programs, a forked child for every few, and what they saw (see README.md).
//
//   differential_cases list
//   differential_cases peer    OWN4 OWN6 PEER4 PEER6 CONTROL
//   differential_cases run     OWN4 OWN6 PEER4 PEER6 CONTROL JOBS [PATTERN ...]     a pattern is a part of a name; "=NAME": all of it

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "world.h"

namespace differential {
namespace {

constexpr std::size_t kTranscriptBytes = 1 << 20;
constexpr std::size_t kMostBatch = 40;
constexpr long kCasePatienceMs = 20'000;  // a case that takes longer is killed, and says so

/// Cases of one child, in shared memory: it writes, and if it dies the rest goes to another.
struct Report {
    std::atomic<std::size_t> current;
    std::atomic<long> since;
    char text[kTranscriptBytes];
};

struct Running {
    pid_t pid = 0;
    std::size_t next = 0;  // the first case that has not been reported
    std::size_t end = 0;
    Report* report = nullptr;
};

bool wanted(const std::string& name, char** patterns, int count) {
    for (int i = 0; i < count; ++i)
        if (patterns[i][0] == '=' ? name == patterns[i] + 1 : name.find(patterns[i]) != std::string::npos) return true;
    return count == 0;
}

long now_ms() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

void run_batch(const Running& slot, const Cases& cases) {
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    Transcript transcript(slot.report->text, kTranscriptBytes);
    for (std::size_t i = slot.next; i < slot.end; ++i) {
        slot.report->since.store(now_ms());
        slot.report->current.store(i);
        transcript.say("# %s", cases[i].name.c_str());
        World world(transcript);
        cases[i].run(world);
        transcript.say("@ms %ld", now_ms() - slot.report->since.load());
    }
}

void start(Running& slot, const Cases& cases) {
    slot.report->text[0] = '\0';
    slot.report->current.store(slot.next);
    slot.report->since.store(now_ms());
    slot.pid = ::fork();
    if (slot.pid != 0) return;
    run_batch(slot, cases);
    ::_exit(0);
}

/// A child that did not come to its end leaves the cases behind the one that ended it.
void finish(Running& slot, int status) {
    std::fputs(slot.report->text, stdout);
    if (WIFSIGNALED(status)) std::printf("case killed by signal %d\n", WTERMSIG(status));
    std::fflush(stdout);
    slot.pid = 0;
    slot.next = WIFEXITED(status) && WEXITSTATUS(status) == 0 ? slot.end : slot.report->current.load() + 1;
}

int run_cases(const Cases& cases, std::size_t jobs) {
    std::vector<Running> slots(jobs);
    for (Running& slot : slots)
        slot.report = static_cast<Report*>(
            ::mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    sigset_t children;
    ::sigemptyset(&children);
    ::sigaddset(&children, SIGCHLD);
    ::sigprocmask(SIG_BLOCK, &children, nullptr);
    const std::size_t batch = std::clamp<std::size_t>(cases.size() / (jobs * 4), 1, kMostBatch);
    std::size_t next = 0;
    for (;;) {
        bool busy = false;
        for (Running& slot : slots) {
            int status = 0;
            if (slot.pid != 0 && ::waitpid(slot.pid, &status, WNOHANG) == slot.pid) finish(slot, status);
            if (slot.pid == 0 && slot.next == slot.end && next < cases.size()) {
                slot.next = next;
                slot.end = next = std::min(next + batch, cases.size());
            }
            if (slot.pid == 0 && slot.next < slot.end) start(slot, cases);
            busy = busy || slot.pid != 0;
            if (slot.pid != 0 && now_ms() - slot.report->since.load() > kCasePatienceMs) ::kill(slot.pid, SIGKILL);
        }
        if (!busy) return 0;
        const timespec second{1, 0};
        ::sigtimedwait(&children, nullptr, &second);
    }
}

}  // namespace
}  // namespace differential

int main(int count, char** words) {
    using namespace differential;
    Cases all;
    add_stream_cases(all);
    add_option_cases(all);
    add_datagram_cases(all);
    add_readiness_cases(all);
    add_descriptor_cases(all);
    add_thread_cases(all);
    add_fork_cases(all);
    add_extra_cases(all);
    add_signal_cases(all);
    add_cork_cases(all);
    const std::string verb = count > 1 ? words[1] : "";
    if (verb == "list") {
        for (const Case& a_case : all) std::puts(a_case.name.c_str());
        return 0;
    }
    if ((verb != "peer" && verb != "run") || count < (verb == "run" ? 8 : 7)) {
        std::fprintf(stderr, "usage: differential_cases list | peer|run OWN4 OWN6 PEER4 PEER6 CONTROL [JOBS [PATTERN ...]]\n");
        return 2;
    }
    addresses = {{words[2], words[3]}, {words[4], words[5]}, words[6]};
    if (verb == "peer") serve_as_peer();
    Cases chosen;
    for (Case& a_case : all)
        if (wanted(a_case.name, words + 8, count - 8)) chosen.push_back(std::move(a_case));
    return run_cases(chosen, static_cast<std::size_t>(std::max(std::atoi(words[7]), 1)));
}
