#include "daemon/cli/run.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>

#include <fmt/format.h>

#include "daemon/cli/admin_client.h"
#include "daemon/cli/library_path.h"
#include "daemon/cli/policy_text.h"
#include "daemon/cli/program.h"
#include "daemon/cli/tables.h"
#include "daemon/control/config.h"
#include "shm/layout.h"
#include "shm/policy.h"

namespace culvert::cli {
namespace {

void say(const std::string& text) { fmt::print(stderr, "culvert: {}\n", text); }

/// Says what stands between the program and Culvert. False: --strict, do not start it.
class Obstacles {
public:
    explicit Obstacles(const RunOptions& options) : options_(options) {}

    /// Returns true when the run may go on.
    bool accept(const std::string& text) {
        any_ = true;
        const std::string& program = options_.command.front();
        if (options_.strict) {
            say(fmt::format("{}; {} not started (--strict)", text, program));
            return false;
        }
        say(fmt::format("{}; {} runs on kernel sockets", text, program));
        return true;
    }
    bool any() const { return any_; }

private:
    const RunOptions& options_;
    bool any_ = false;
};

/// A daemon that is there but says nothing must not keep the program from starting.
constexpr std::chrono::seconds kHurriedAnswer{1};

bool check_daemon(const RunOptions& options, Obstacles& obstacles) {
    Result<UniqueFd> connection = connect_daemon(options.socket_path);
    if (!connection) return obstacles.accept(fmt::format("no daemon at {} ({})", options.socket_path, std::strerror(connection.error().code)));
    connection->reset();
    // There; but would it have us?
    const Result<nlohmann::json> version = ask_daemon(options.socket_path, "version", kHurriedAnswer);
    if (!version) return obstacles.accept(advice(options.socket_path, version.error()));
    const std::string abi = version->value("abi", nlohmann::json()).dump();
    if (abi == std::to_string(shm::kAbiVersion)) return true;
    return obstacles.accept(fmt::format("culvertd {} speaks ABI {}, this is {} with ABI {}; install the same version",
                                        version->value("version", "?"), abi, CULVERT_VERSION, shm::kAbiVersion));
}

bool check_reachable(const std::string& program, Obstacles& obstacles) {
    const std::string reason = why_unreachable(program, ::getuid(), ::getgid());
    return reason.empty() || obstacles.accept(fmt::format("LD_PRELOAD cannot reach {}: {}", program, reason));
}

/// What can be said beforehand of io_uring. No obstacle: a program may be linked with it and make no ring.
void say_uring(const std::string& program) {
    for (const std::string& library : needed_libraries(program))
        if (library.starts_with("liburing"))
            say(fmt::format("{} is linked with {}: should it make an io_uring, its sockets are the kernel's from then on", program, library));
}

bool set_environment(const RunOptions& options, const std::string& program, const std::optional<std::string>& policy, Obstacles& obstacles) {
    if (policy) ::setenv(shm::kPolicyVariable, policy->c_str(), 1);
    const std::string library = find_library();
    if (library.empty()) {
        std::string looked;
        for (const std::string& candidate : library_candidates()) looked += (looked.empty() ? "" : ", ") + candidate;
        return obstacles.accept(fmt::format("libculvert.so not found (looked at {}; CULVERT_LIBRARY names another)", looked));
    }
    if (library.find_first_of(": ") != std::string::npos)
        return obstacles.accept(fmt::format("LD_PRELOAD cannot name \"{}\": no colon or space allowed", library));
    std::string first;
    for (const std::string& needed : needed_libraries(program))
        if (must_be_first(needed)) first = needed;
    ::setenv("LD_PRELOAD", preload_value(library, std::getenv("LD_PRELOAD"), first).c_str(), 1);
    if (options.socket_path != control::kDefaultSocketPath) {
        ::setenv("CULVERT_SOCKET", options.socket_path.c_str(), 1);
    } else {
        ::unsetenv("CULVERT_SOCKET");
    }
    if (options.strict) ::setenv("CULVERT_STRICT", "1", 1);
    // libuv (node) may hand epoll_ctl to an io_uring, which no preloaded library sees; it does without when told so.
    ::setenv("UV_USE_IO_URING", "0", 1);
    return true;
}

/// Replaces this process. Returns the exit code when that failed.
int execute(const std::string& path, const std::vector<std::string>& command) {
    std::vector<char*> arguments;
    for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    ::execv(path.c_str(), arguments.data());
    if (errno == ENOEXEC) {  // a script without "#!": the shell runs it, as execvp(3) does
        arguments[0] = const_cast<char*>(path.c_str());
        arguments.insert(arguments.begin(), const_cast<char*>("/bin/sh"));
        ::execv("/bin/sh", arguments.data());
    }
    const int code = errno;
    say(fmt::format("cannot run {}: {}", path, std::strerror(code)));
    return code == ENOENT ? kExitNotFound : kExitCannotRun;
}

sigset_t forwarded_signals() {
    sigset_t set;
    sigemptyset(&set);
    for (const int number : {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT}) sigaddset(&set, number);
    return set;
}

/// Waits for the child, handing on the signals that somebody sent to us (a terminal's go to the child anyway).
int wait_for_child(pid_t child, const sigset_t& waited) {
    for (;;) {
        siginfo_t info;
        const int number = ::sigwaitinfo(&waited, &info);
        if (number < 0) continue;
        if (number != SIGCHLD) {
            if (info.si_code != SI_KERNEL) ::kill(child, number);
            continue;
        }
        int status = 0;
        if (::waitpid(child, &status, WNOHANG) != child) continue;
        return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }
}

/// Starts the program as a child and reports afterwards what the daemon counted meanwhile.
int run_with_stats(const RunOptions& options, const std::string& path) {
    const Result<nlohmann::json> before = ask_daemon(options.socket_path, "stat");
    sigset_t waited = forwarded_signals();
    sigaddset(&waited, SIGCHLD);
    sigset_t old_mask;
    ::sigprocmask(SIG_BLOCK, &waited, &old_mask);
    // With SIGCHLD ignored (inherited so) the kernel would reap the child itself and never tell us.
    const auto old_action = ::signal(SIGCHLD, SIG_DFL);
    const pid_t child = ::fork();
    if (child < 0) {
        say(fmt::format("cannot start {}: fork: {}", path, std::strerror(errno)));
        return kExitRefused;
    }
    if (child == 0) {
        ::signal(SIGCHLD, old_action);
        ::sigprocmask(SIG_SETMASK, &old_mask, nullptr);
        ::_exit(execute(path, options.command));
    }
    const int code = wait_for_child(child, waited);
    const Result<nlohmann::json> after = ask_daemon(options.socket_path, "stat");
    if (!before || !after) {
        say("no statistics: " + advice(options.socket_path, before ? after.error() : before.error()));
        return code;
    }
    fmt::print(stderr, "culvert: {} ended with status {}; the daemon counted meanwhile, all programs together:\n{}",
               options.command.front(), code, format_difference(*before, *after));
    return code;
}

}  // namespace

int run(const RunOptions& options) {
    const Result<std::string> path = find_program(options.command.front(), std::getenv("PATH"));
    if (!path) {
        say(fmt::format("{}: {}", options.command.front(), std::strerror(path.error().code)));
        return path.error().code == ENOENT ? kExitNotFound : kExitCannotRun;
    }
    const Result<std::optional<std::string>> policy = policy_for(options.policy, options.profile, std::getenv(shm::kPolicyVariable));
    if (!policy) {
        say(policy.error().message());
        return kExitRefused;
    }
    Obstacles obstacles(options);
    if (!check_reachable(*path, obstacles) || !check_daemon(options, obstacles) || !set_environment(options, *path, *policy, obstacles))
        return kExitRefused;
    say_uring(*path);
    return options.stats ? run_with_stats(options, *path) : execute(*path, options.command);
}

}  // namespace culvert::cli
