// `culvert run`: starts a program with libculvert.so in front of it.
//
// Fail open: whatever stands in the way of Culvert is said in one line on stderr and the program runs on kernel sockets;
// with --strict it is refused instead.
#pragma once

#include <string>
#include <vector>

namespace culvert::cli {

/// Exit codes of our own, as env(1) and nohup(1) have them.
inline constexpr int kExitRefused = 125;
inline constexpr int kExitCannotRun = 126;
inline constexpr int kExitNotFound = 127;

struct RunOptions {
    std::string socket_path;
    bool stats = false;
    bool strict = false;
    std::string policy;   // empty: none given
    std::string profile;  // the same; not both
    std::vector<std::string> command;  // never empty
};

/// Does not return when the program was started in our place; else the exit code.
int run(const RunOptions& options);

}  // namespace culvert::cli
