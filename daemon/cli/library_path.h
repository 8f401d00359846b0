// Where libculvert.so is: beside the culvert that runs (build tree, relocated install), else where it was installed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace culvert::cli {

/// The places that are looked at, in order. CULVERT_LIBRARY, if set, is the only one.
std::vector<std::string> library_candidates();

/// The first candidate that can be read; empty when none can.
std::string find_library();

/// True for the runtimes that end a program in which they are not the first library: AddressSanitizer's.
bool must_be_first(std::string_view library);

/// `existing` (may be null) with `library` put in front, once; but behind a library that must be first, be it the first of
/// `existing` or `first` (may be empty), which the program is linked with.
std::string preload_value(const std::string& library, const char* existing, const std::string& first = {});

}  // namespace culvert::cli
