// culvert: runs programs on Culvert and shows what the daemon does.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "daemon/cli/admin_client.h"
#include "daemon/cli/run.h"
#include "daemon/cli/tables.h"
#include "daemon/control/config.h"

namespace {

using namespace culvert;

constexpr int kExitUnreachable = 1;
constexpr int kExitUsage = 2;

constexpr const char* kFooter =
    "Environment: CULVERT_SOCKET (as --socket), CULVERT_LIBRARY (path of libculvert.so), CULVERT_POLICY\n"
    "(as --policy), CULVERT_PROFILES (folder of profiles).\n"
    "Exit status of ss and stat: 0 done, 1 culvertd cannot be reached or refused, 2 wrong usage.\n"
    "Exit status of run: that of PROGRAM (128 + N with --stats when signal N ended it); 125 culvert refused\n"
    "(wrong usage, or --strict and Culvert cannot serve PROGRAM), 126 PROGRAM cannot be run, 127 PROGRAM not found.";

struct Options {
    std::string socket_path = control::kDefaultSocketPath;
    bool json = false;
    bool all = false;
    bool engines = false;
    cli::RunOptions run;
};

/// Asks, prints with `format` or as JSON; the exit code.
template <class Format>
int show(const Options& options, const char* request, Format format) {
    const Result<nlohmann::json> answer = cli::ask_daemon(options.socket_path, request);
    if (!answer) {
        fmt::print(stderr, "culvert: {}\n", cli::advice(options.socket_path, answer.error()));
        return kExitUnreachable;
    }
    fmt::print("{}", options.json ? answer->dump(2) + "\n" : format(*answer));
    return std::fflush(stdout) == 0 ? EXIT_SUCCESS : kExitUnreachable;
}

/// Where PROGRAM stands in `culvert run [OPTIONS] [--] PROGRAM ARGUMENTS`: CLI11 must see none of the program's options.
/// Returns argc when there is none. `end` is where our own options end.
int find_command(int argc, char** argv, int& end) {
    end = argc;
    if (argc < 2 || std::string_view(argv[1]) != "run") return argc;
    for (int i = 2; i < argc; ++i) {
        const std::string_view argument = argv[i];
        const bool separator = argument == "--";
        if (separator || !argument.starts_with('-')) {
            end = i;
            return separator ? i + 1 : i;
        }
        if (argument == "--socket" || argument == "--policy" || argument == "--profile") ++i;
    }
    return argc;
}

int main_or_throw(int argc, char** argv) {
    Options options;
    int own_arguments = argc;
    const int command = find_command(argc, argv, own_arguments);
    options.run.command.assign(argv + std::min(command, argc), argv + argc);
    CLI::App app{"culvert: TCP and UDP of unmodified programs on a user-space network stack", "culvert"};
    app.set_version_flag("--version", "culvert " CULVERT_VERSION);
    app.footer(kFooter);
    app.require_subcommand(1);
    const auto add_socket = [&](CLI::App* subcommand) {
        subcommand->add_option("--socket", options.socket_path, "control socket of culvertd")
            ->envname("CULVERT_SOCKET")
            ->type_name("PATH")
            ->capture_default_str();
    };

    CLI::App* run = app.add_subcommand("run", "run a program with its sockets on Culvert: culvert run [OPTIONS] [--] PROGRAM [ARGUMENTS...]");
    add_socket(run);
    CLI::Option* const policy =
        run->add_option("--policy", options.run.policy, "which sockets go through Culvert: 'tcp listen 80,443; udp none'")->type_name("RULES");
    run->add_option("--profile", options.run.profile, "the same from a file: nginx, redis, ... or a path")->type_name("NAME")->excludes(policy);
    run->add_flag("--stats", options.run.stats, "when the program has ended, print what the daemon counted meanwhile");
    run->add_flag("--strict", options.run.strict, "refuse to run when Culvert cannot serve the program, and give it no kernel sockets in Culvert's place later");
    run->footer(kFooter);

    CLI::App* ss = app.add_subcommand("ss", "show the sockets of every attached program");
    CLI::App* stat = app.add_subcommand("stat", "show the daemon's counters and drop reasons");
    for (CLI::App* query : {ss, stat}) {
        add_socket(query);
        query->add_flag("--json", options.json, "print JSON");
        query->footer(kFooter);
    }
    stat->add_flag("--all", options.all, "also what is zero");
    stat->add_flag("--engines", options.engines, "counters and drops of each engine instead of their sums");

    try {
        app.parse(own_arguments, argv);
        if (run->parsed() && options.run.command.empty()) throw CLI::RequiredError("PROGRAM");
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);
        fmt::print(stderr, "culvert: {} (culvert --help)\n", error.what());
        return run->parsed() || (argc > 1 && std::string_view(argv[1]) == "run") ? cli::kExitRefused : kExitUsage;
    }
    if (run->parsed()) {
        options.run.socket_path = options.socket_path;
        return cli::run(options.run);
    }
    if (ss->parsed()) return show(options, "ss", cli::format_sockets);
    return show(options, "stat", [&](const nlohmann::json& answer) { return cli::format_statistics(answer, options.all, options.engines); });
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return main_or_throw(argc, argv);
    } catch (const std::exception& error) {
        fmt::print(stderr, "culvert: {}\n", error.what());
        return cli::kExitRefused;
    }
}
