// libFuzzer with g++. clang-14 cannot compile libstdc++'s std::expected, and the libFuzzer of today no longer takes what
// g++'s -fsanitize-coverage=trace-pc calls; but it takes any table of 8-bit counters. So each basic block counts in the
// cell that its address hashes to.
#include <cstddef>
#include <cstdint>

extern "C" void __sanitizer_cov_8bit_counters_init(char* start, char* stop);

namespace {
constexpr std::size_t kCells = 1 << 16;
alignas(64) char cells[kCells];
const bool registered = [] {
    __sanitizer_cov_8bit_counters_init(cells, cells + kCells);
    return true;
}();
}  // namespace

extern "C" __attribute__((no_sanitize_coverage, no_sanitize("address", "undefined"), visibility("default"))) void
__sanitizer_cov_trace_pc() {
    const auto pc = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
    ++cells[(pc ^ (pc >> 16)) & (kCells - 1)];
}

// libFuzzer has no use for comparisons of floating-point numbers, and so no such functions.
extern "C" __attribute__((visibility("default"))) void __sanitizer_cov_trace_cmpf(float, float) {}
extern "C" __attribute__((visibility("default"))) void __sanitizer_cov_trace_cmpd(double, double) {}
