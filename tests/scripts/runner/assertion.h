// %{ assert tcpi_snd_cwnd == 10, tcpi_snd_cwnd }% : packetdrill hands this to Python; we evaluate the small part of Python
// that scripts use, and nothing else can be reached.
//
//   statements  assert EXPRESSION [, EXPRESSION]   print EXPRESSION...     one a line, or separated by ;
//   operators   or and not  == != < <= > >=  & |  + -  * / // %  - ( )
//   names       the fields of TCP_INFO, and constants (TCP_CA_Open)
#pragma once

#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace culvert::script {

using Lookup = std::function<std::optional<std::int64_t>(std::string_view)>;

/// Nothing if every assertion holds; else what does not hold, with the values it was made of, or what cannot be read.
std::optional<std::string> evaluate(std::string_view text, const Lookup& lookup);

}  // namespace culvert::script
