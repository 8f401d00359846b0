#include "daemon/engine/time_slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace culvert::engine {

bool ask_for_slice(std::chrono::microseconds slice) {
    if (slice.count() == 0) return true;
    SchedulingAttributes attributes;
    if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return false;
    if (attributes.policy != SCHED_OTHER && attributes.policy != SCHED_BATCH) return true;
    attributes.runtime = static_cast<std::uint64_t>(std::chrono::nanoseconds(slice).count());
    return ::syscall(SYS_sched_setattr, 0, &attributes, 0) == 0;
}

}  // namespace culvert::engine
