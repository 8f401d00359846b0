// Reads a packet script in packetdrill's dialect (README.md of tests/scripts says which part of it).
#pragma once

#include <expected>
#include <string_view>

#include "tests/scripts/runner/script.h"

namespace culvert::script {

/// The script, or the first thing that is wrong with it. Bounded: nesting 32 deep, 1 MiB of text.
std::expected<Script, Complaint> parse(std::string_view text);

}  // namespace culvert::script
