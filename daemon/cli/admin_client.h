// Asks a running culvertd something: one JSON request over the control socket, one JSON answer.
//
//   -> {"request": "stat"}
//   <- {...}   possibly cut over several packets; the daemon closes the connection behind the last
#pragma once

#include <chrono>
#include <string>

#include <nlohmann/json.hpp>

#include "shm/base/error.h"
#include "shm/base/unique_fd.h"

namespace culvert::cli {

inline constexpr std::chrono::seconds kAnswerTimeout{5};

/// Connects to the daemon's control socket. Errors: the errno of connect(2), `what` = the path.
Result<UniqueFd> connect_daemon(const std::string& path);

/// Sends a request and waits for the whole answer. Errors: as connect_daemon, ETIMEDOUT, EPROTO (no JSON), or what the daemon refused (code 0).
Result<nlohmann::json> ask_daemon(const std::string& path, const std::string& request,
                                  std::chrono::milliseconds timeout = kAnswerTimeout);

/// A sentence for a person: what failed and what to do.
std::string advice(const std::string& path, const Error& error);

}  // namespace culvert::cli
