// Where libculvert.so is: beside the culvert that runs (build tree, relocated install), else where it was installed.
#pragma once

#include <string>
#include <vector>

namespace culvert::cli {

/// The places that are looked at, in order. CULVERT_LIBRARY, if set, is the only one.
std::vector<std::string> library_candidates();

/// The first candidate that can be read; empty when none can.
std::string find_library();

/// `existing` (may be null) with `library` put in front, once.
std::string preload_value(const std::string& library, const char* existing);

}  // namespace culvert::cli
