#include "shm/base/check.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace culvert {

void check_failed(const char* condition, const char* file, int line) noexcept {
    char text[512];
    const int length = std::snprintf(text, sizeof text, "culvert: CHECK failed: %s at %s:%d\n", condition, file, line);
    if (length > 0) (void)!::write(STDERR_FILENO, text, static_cast<size_t>(length));
    std::abort();
}

}  // namespace culvert
