// culvertd: reads the command line and the configuration, sets up logging, runs the daemon.
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "daemon/control/config.h"
#include "daemon/control/daemon.h"

namespace {

using namespace culvert;

struct Options {
    std::string config_path;  // empty: the default one, if it is there
    std::vector<std::string> interfaces;
    std::string socket_path;
    std::string log_level;
    bool check = false;
};

/// The file, with the command line on top.
Result<control::Config> read_config(const Options& options) {
    control::Config config;
    if (!options.config_path.empty() || ::access(control::kDefaultConfigPath, F_OK) == 0)
        config = TRY(control::load_config(options.config_path.empty() ? control::kDefaultConfigPath : options.config_path));
    if (!options.interfaces.empty()) {
        // What the file says about a named interface still holds.
        std::vector<control::InterfaceConfig> chosen;
        for (const std::string& name : options.interfaces) {
            if (!control::is_interface_name(name)) return fail(0, fmt::format("--interface {}: no interface name", name));
            const auto known = std::ranges::find(config.interfaces, name, &control::InterfaceConfig::name);
            control::InterfaceConfig interface;
            interface.name = name;
            if (std::ranges::find(chosen, name, &control::InterfaceConfig::name) != chosen.end())
                return fail(0, fmt::format("--interface {} is given twice", name));
            chosen.push_back(known != config.interfaces.end() ? *known : interface);
        }
        config.interfaces = std::move(chosen);
    }
    if (!options.socket_path.empty()) config.socket.path = options.socket_path;
    if (!options.log_level.empty()) config.log_level = options.log_level;
    return config;
}

/// True when stderr is the journal's own stream (sd_journal: JOURNAL_STREAM is its device and inode).
bool logs_to_journal() {
    const char* stream = std::getenv("JOURNAL_STREAM");
    unsigned long device = 0;
    unsigned long inode = 0;
    struct stat status;
    return stream != nullptr && std::sscanf(stream, "%lu:%lu", &device, &inode) == 2 &&
           ::fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device && status.st_ino == inode;
}

/// The priority that the journal reads at the start of a line (sd-daemon(3)).
class JournalPriority final : public spdlog::custom_flag_formatter {
public:
    void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
        const char* prefix = "<6>";
        switch (message.level) {
            case spdlog::level::trace:
            case spdlog::level::debug: prefix = "<7>"; break;
            case spdlog::level::warn: prefix = "<4>"; break;
            case spdlog::level::err: prefix = "<3>"; break;
            case spdlog::level::critical: prefix = "<2>"; break;
            default: break;
        }
        out.append(prefix, prefix + 3);
    }
    std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<JournalPriority>(); }
};

void set_up_logging(const std::string& level) {
    auto logger = std::make_shared<spdlog::logger>("culvertd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    if (logs_to_journal()) {
        auto formatter = std::make_unique<spdlog::pattern_formatter>();
        formatter->add_flag<JournalPriority>('*').set_pattern("%*%v");
        logger->set_formatter(std::move(formatter));
    } else {
        logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %l: %v");
    }
    logger->set_level(spdlog::level::from_str(level));
    logger->flush_on(spdlog::level::trace);
    spdlog::set_default_logger(std::move(logger));
}

int fail_to_start(const Error& error) {
    fmt::print(stderr, "{}culvertd: {}\n", logs_to_journal() ? "<3>" : "", error.message());
    return EXIT_FAILURE;
}

int main_or_throw(int argc, char** argv) {
    Options options;
    CLI::App app{"culvertd: user-space TCP/IP for unmodified programs, beside the kernel's", "culvertd"};
    app.set_version_flag("--version", "culvertd " CULVERT_VERSION);
    app.footer("Ends on SIGTERM and SIGINT with status 0; SIGHUP reads the configuration again. Status 1: could not start.");
    app.add_option("--config", options.config_path, fmt::format("configuration, TOML [{}, if there]", control::kDefaultConfigPath))
        ->type_name("FILE");
    app.add_option("--interface", options.interfaces, "serve this interface instead of the configured ones; may be repeated")
        ->type_name("NAME")
        ->expected(1)
        ->take_all();
    app.add_option("--socket", options.socket_path, fmt::format("control socket [{}]", control::kDefaultSocketPath))
        ->type_name("PATH");
    app.add_option("--log-level", options.log_level, "trace, debug, info, warning or error")->type_name("LEVEL");
    app.add_flag("--check", options.check, "check the configuration and exit");
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);
        return fail_to_start({0, fmt::format("{} (culvertd --help)", error.what())});
    }
    if (!options.log_level.empty() && !control::is_log_level(options.log_level))
        return fail_to_start({0, fmt::format("--log-level {}: must be trace, debug, info, warning or error", options.log_level)});

    const Result<control::Config> config = read_config(options);
    if (!config) return fail_to_start(config.error());
    if (options.check) {
        fmt::print("ok\n");
        return EXIT_SUCCESS;
    }
    set_up_logging(config->log_level);
    for (control::Config now = *config;;) {
        const Result<control::Ended> ran = control::run_daemon(now, [options] { return read_config(options); });
        if (!ran) return fail_to_start(ran.error());
        if (*ran == control::Ended::kForGood) return EXIT_SUCCESS;
        if (Result<control::Config> fresh = read_config(options)) now = std::move(*fresh);  // else as before: it was good
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return main_or_throw(argc, argv);
    } catch (const std::exception& error) {
        return fail_to_start({0, error.what()});
    }
}
