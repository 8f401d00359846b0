// The answers of culvertd as tables for a terminal.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace culvert::cli {

/// Columns as wide as their widest cell, two spaces apart; the last one is not padded. `right` names right-aligned columns.
std::string format_table(const std::vector<std::vector<std::string>>& rows, const std::vector<std::size_t>& right);

/// `culvert ss`.
std::string format_sockets(const nlohmann::json& answer);

/// `culvert stat`: non-zero numbers, or all of them.
/// `engines`: counters and drops of each engine instead of their sums.
std::string format_statistics(const nlohmann::json& answer, bool all, bool engines = false);

/// `culvert run --stats`: what grew between two answers to "stat".
std::string format_difference(const nlohmann::json& before, const nlohmann::json& after);

}  // namespace culvert::cli
