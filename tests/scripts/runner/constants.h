// The names that scripts use for numbers: socket options, flags, errnos.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace culvert::script {

std::optional<std::int64_t> constant(std::string_view name);
/// 11 -> "EAGAIN"; 0 -> "".
std::string errno_name(int number);

}  // namespace culvert::script
