// CHECK and DCHECK: our own bugs, caught where they are made.
//
// CHECK stays in every build and guards cold paths; DCHECK is for hot paths and vanishes in release
// builds. Neither is for packets or applications: what they send wrong is refused, named and counted.
#pragma once

namespace culvert {

/// Writes one line to stderr with write(2) and aborts. Allocates nothing.
[[noreturn]] void check_failed(const char* condition, const char* file, int line) noexcept;

}  // namespace culvert

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) [[unlikely]]                                      \
            ::culvert::check_failed(#condition, __FILE__, __LINE__);        \
    } while (0)

#ifdef CULVERT_DCHECK
#define DCHECK(condition) CHECK(condition)
#else
#define DCHECK(condition)             \
    do {                              \
        if (false) (void)(condition); \
    } while (0)
#endif
