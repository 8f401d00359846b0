// packet_script: plays packet scripts.
//
//   packet_script [--kernel] [--ipv4 | --ipv6] [--jobs N] [--verbose] FILE-OR-FOLDER...
//
// Without --kernel: on Culvert's stack in virtual time. With it: on the kernel's sockets in real time, each script and
// family in a process and network namespace of its own; what the script says of the kernel ("// kernel: ...") is checked.
// Exit code 0: all passed; 1: one did not; 2: wrong use; 77: the kernel cannot be asked here.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <list>
#include <sstream>

#include "shm/base/unique_fd.h"
#include "tests/scripts/runner/culvert_world.h"
#include "tests/scripts/runner/kernel_world.h"
#include "tests/scripts/runner/parse.h"
#include "tests/scripts/runner/runner.h"

using namespace culvert;
using namespace culvert::script;
namespace fs = std::filesystem;

namespace {

// The kernel runs in real time beside other work: what matters there is which packets leave, in which order.
constexpr Duration kKernelTolerance = std::chrono::milliseconds(150);
constexpr auto kKernelLimit = std::chrono::seconds(100);  // for one script

struct Arguments {
    bool kernel = false, verbose = false, ipv4 = true, ipv6 = true;
    unsigned jobs = 6;
    std::vector<fs::path> files;
};

struct Case {
    fs::path file;
    Script script;
    bool ipv6 = false;
    std::string name() const { return file.string() + (ipv6 ? " (ipv6)" : " (ipv4)"); }
};

struct Tally {
    unsigned passed = 0, failed = 0, skipped = 0;
};

std::string failure(const Case& one, const Verdict& verdict) {
    std::string text = one.file.string() + ":" + std::to_string(verdict.place.line) + ":" + std::to_string(verdict.place.column) +
                       (one.ipv6 ? ": (ipv6) " : ": (ipv4) ") + verdict.text + "\n";
    if (!verdict.transcript.empty()) text += "  --- so far\n" + verdict.transcript;
    return text;
}

/// One verdict, in the light of what the script says of the kernel.
void report(const Arguments& arguments, const Case& one, const Verdict& verdict, Tally& tally) {
    const bool differs = arguments.kernel && one.script.kernel.kind == KernelMark::Kind::kDiffers;
    const bool passed = verdict.kind == Verdict::Kind::kPassed;
    if (differs && verdict.kind == Verdict::Kind::kFailed) {
        ++tally.passed;
        if (arguments.verbose) std::cout << "differs  " << one.name() << ": " << one.script.kernel.reason << "\n" << failure(one, verdict);
    } else if (differs && passed) {
        ++tally.failed;
        std::cout << "FAILED   " << one.name() << ": marked \"differs\", but the kernel does the same: take the mark away\n";
    } else if (passed) {
        ++tally.passed;
        if (arguments.verbose) std::cout << "passed   " << one.name() << "\n" << verdict.transcript;
    } else {
        ++tally.failed;
        std::cout << "FAILED   " << failure(one, verdict);
    }
}

std::vector<Case> read_cases(const Arguments& arguments, Tally& tally) {
    std::vector<Case> cases;
    for (const fs::path& file : arguments.files) {
        std::ifstream stream(file, std::ios::binary);
        std::ostringstream text;
        text << stream.rdbuf();
        if (!stream) {
            ++tally.failed;
            std::cout << "FAILED   " << file.string() << ": cannot be read\n";
            continue;
        }
        auto script = parse(text.str());
        if (!script) {
            ++tally.failed;
            const Complaint& wrong = script.error();
            std::cout << "FAILED   " << file.string() << ":" << wrong.place.line << ":" << wrong.place.column << ": " << wrong.text << "\n";
            continue;
        }
        for (const bool ipv6 : {false, true})
            if ((ipv6 ? arguments.ipv6 : arguments.ipv4) && wants(*script, ipv6)) cases.push_back({file, *script, ipv6});
    }
    return cases;
}

void run_on_culvert(const Arguments& arguments, const std::vector<Case>& cases, Tally& tally) {
    for (const Case& one : cases)
        report(arguments, one, play(one.script, {.ipv6 = one.ipv6, .make_world = make_culvert_world}), tally);
}

// --- the kernel: a process for each case ---------------------------------------------------------------------------------

struct Child {
    const Case* one;
    pid_t pid;
    UniqueFd reads;
    std::string said;
    std::chrono::steady_clock::time_point deadline;
};

[[noreturn]] void be_child(const Case& one, int writes) {
    Verdict verdict;
    Duration tolerance = kKernelTolerance;
    if (const auto own = one.script.settings.find("kernel_tolerance_usecs"); own != one.script.settings.end())
        tolerance = std::chrono::microseconds(std::atoll(own->second.c_str()));
    try {
        verdict = play(one.script, {.ipv6 = one.ipv6, .tolerance = tolerance, .make_world = make_kernel_world, .extra_push = true});
    } catch (const std::exception& error) {
        verdict = {Verdict::Kind::kUnsupported, {}, error.what(), ""};
    }
    std::ostringstream text;
    text << static_cast<int>(verdict.kind) << ' ' << verdict.place.line << ' ' << verdict.place.column << ' ' << verdict.text.size()
         << '\n' << verdict.text << verdict.transcript;
    const std::string said = text.str();
    for (std::size_t at = 0; at < said.size();) {
        const ssize_t n = ::write(writes, said.data() + at, said.size() - at);
        if (n <= 0) break;
        at += static_cast<std::size_t>(n);
    }
    ::_exit(0);  // threads may hang in calls that never come back
}

Child start(const Case& one) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) < 0) {
        std::perror("pipe");
        std::exit(1);
    }
    std::cout.flush();
    const pid_t pid = ::fork();
    if (pid < 0) {
        std::perror("fork");
        std::exit(1);
    }
    if (pid == 0) {
        ::close(ends[0]);
        be_child(one, ends[1]);
    }
    ::close(ends[1]);
    return {&one, pid, UniqueFd(ends[0]), "", std::chrono::steady_clock::now() + kKernelLimit};
}

Verdict verdict_of(const std::string& said) {
    std::istringstream text(said);
    int kind = 0;
    std::size_t length = 0;
    Verdict verdict;
    if (!(text >> kind >> verdict.place.line >> verdict.place.column >> length))
        return {Verdict::Kind::kFailed, {}, "the process that played it has died, or was stopped after " + std::to_string(kKernelLimit.count()) + " s", ""};
    const std::size_t body = said.find('\n') + 1;
    verdict.kind = static_cast<Verdict::Kind>(kind);
    verdict.text = said.substr(body, length);
    verdict.transcript = said.substr(std::min(body + length, said.size()));
    return verdict;
}

/// Reads what children say until one is through.
void reap(const Arguments& arguments, std::list<Child>& children, Tally& tally) {
    std::vector<pollfd> watched;
    for (const Child& child : children) watched.push_back({.fd = child.reads.get(), .events = POLLIN, .revents = 0});
    ::poll(watched.data(), watched.size(), 1000);
    std::size_t index = 0;
    for (auto child = children.begin(); child != children.end(); ++index) {
        char buffer[4096];
        ssize_t n = -1;
        if (watched[index].revents != 0 && (n = ::read(child->reads.get(), buffer, sizeof buffer)) > 0)
            child->said.append(buffer, static_cast<std::size_t>(n));
        const bool late = std::chrono::steady_clock::now() > child->deadline;
        if (late) ::kill(child->pid, SIGKILL);
        if (n != 0 && !late) {
            ++child;
            continue;
        }
        ::waitpid(child->pid, nullptr, 0);
        report(arguments, *child->one, verdict_of(child->said), tally);
        child = children.erase(child);
    }
}

void run_on_kernel(const Arguments& arguments, const std::vector<Case>& cases, Tally& tally) {
    std::list<Child> children;
    for (const Case& one : cases) {
        if (one.script.kernel.kind == KernelMark::Kind::kSkip) {
            ++tally.skipped;
            if (arguments.verbose) std::cout << "skipped  " << one.name() << ": " << one.script.kernel.reason << "\n";
            continue;
        }
        while (children.size() >= arguments.jobs) reap(arguments, children, tally);
        children.push_back(start(one));
    }
    while (!children.empty()) reap(arguments, children, tally);
}

int usage() {
    std::cerr << "packet_script [--kernel] [--ipv4 | --ipv6] [--jobs N] [--verbose] FILE-OR-FOLDER...\n";
    return 2;
}

void add(const fs::path& path, std::vector<fs::path>& files) {
    if (!fs::is_directory(path)) {
        files.push_back(path);
        return;
    }
    std::vector<fs::path> found;
    for (const auto& entry : fs::recursive_directory_iterator(path))
        if (entry.path().extension() == ".pkt") found.push_back(entry.path());
    std::ranges::sort(found);
    files.insert(files.end(), found.begin(), found.end());
}

}  // namespace

int main(int argc, char** argv) {
    Arguments arguments;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        if (argument == "--kernel") arguments.kernel = true;
        else if (argument == "--verbose") arguments.verbose = true;
        else if (argument == "--ipv4") arguments.ipv6 = false;
        else if (argument == "--ipv6") arguments.ipv4 = false;
        else if (argument == "--jobs" && i + 1 < argc) arguments.jobs = static_cast<unsigned>(std::clamp(std::atoi(argv[++i]), 1, 64));
        else if (argument.starts_with("-")) return usage();
        else add(argument, arguments.files);
    }
    if (arguments.files.empty()) return usage();
    if (arguments.kernel) {
        if (const auto obstacle = kernel_world_obstacle()) {
            std::cout << "skipped: " << *obstacle << "\n";
            return 77;
        }
    }
    Tally tally;
    const auto cases = read_cases(arguments, tally);
    arguments.kernel ? run_on_kernel(arguments, cases, tally) : run_on_culvert(arguments, cases, tally);
    std::cout << tally.passed << " passed, " << tally.failed << " failed";
    if (tally.skipped != 0) std::cout << ", " << tally.skipped << " not for the kernel";
    std::cout << "\n";
    return tally.failed != 0 || tally.passed + tally.skipped == 0 ? 1 : 0;
}
