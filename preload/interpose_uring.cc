// liburing makes its rings by system calls of its own, past libc; but first the program calls one of these. Programs that make theirs
// by syscall(2) are met in interpose_process.cc, those with a copy of liburing inside are not met at all.
#include "preload/interpose.h"

#include "preload/policy.h"

struct io_uring;
struct io_uring_params;

using namespace culvert::preload;

namespace {

LibcFunction<int(unsigned, io_uring*, unsigned)> real_queue_init{"io_uring_queue_init"};
LibcFunction<int(unsigned, io_uring*, io_uring_params*)> real_queue_init_params{"io_uring_queue_init_params"};
LibcFunction<int(unsigned, io_uring*, io_uring_params*, void*, std::size_t)> real_queue_init_mem{"io_uring_queue_init_mem"};

/// liburing's functions return -errno.
template <class Function, class... Arguments>
int make_ring(Function& function, Arguments... arguments) noexcept {
    if (function.get() == nullptr) return -ENOSYS;  // asked for by name in a program without liburing
    const int result = function(arguments...);
    if (result >= 0 && !in_borrowed_memory()) note_io_uring();
    return result;
}

}  // namespace

CULVERT_EXPORT int io_uring_queue_init(unsigned entries, io_uring* ring, unsigned flags) noexcept {
    return make_ring(real_queue_init, entries, ring, flags);
}
CULVERT_EXPORT int io_uring_queue_init_params(unsigned entries, io_uring* ring, io_uring_params* parameters) noexcept {
    return make_ring(real_queue_init_params, entries, ring, parameters);
}
CULVERT_EXPORT int io_uring_queue_init_mem(unsigned entries, io_uring* ring, io_uring_params* parameters, void* memory,
                                           std::size_t size) noexcept {
    return make_ring(real_queue_init_mem, entries, ring, parameters, memory, size);
}
