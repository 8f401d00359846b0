// The rest: stdio on a socket, syscall(2) as a function, and what a program says before it locks itself up.
#include "preload/interpose.h"

#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "preload/confined.h"
#include "preload/policy.h"

using namespace culvert::preload;

namespace {

int descriptor(void* cookie) noexcept { return static_cast<int>(reinterpret_cast<std::intptr_t>(cookie)); }

ssize_t stdio_read(void* cookie, char* data, std::size_t length) { return read(descriptor(cookie), data, length); }
ssize_t stdio_write(void* cookie, const char* data, std::size_t length) {
    return write(descriptor(cookie), data, length);
}
/// Without one, stdio would take itself to be at the place that it is told; a socket has none.
int stdio_seek(void*, off64_t*, int) {
    errno = ESPIPE;
    return -1;
}
int stdio_close(void* cookie) { return close(descriptor(cookie)); }

/// Formats and writes all of it, as vdprintf does.
int print(int fd, const char* format, va_list arguments) {
    char* text = nullptr;
    const int length = ::vasprintf(&text, format, arguments);
    if (length < 0) return -1;
    int written = 0;
    while (written < length) {
        const ssize_t now = write(fd, text + written, static_cast<std::size_t>(length - written));
        if (now < 0) break;
        written += static_cast<int>(now);
    }
    const KeepErrno keep;
    std::free(text);
    return written == length ? length : -1;
}

LibcFunction<int(pthread_t)> libc_pthread_cancel{"pthread_cancel"};
LibcFunction<FILE*(int, const char*)> libc_fdopen{"fdopen"};
LibcFunction<int(int, const char*, va_list)> libc_vdprintf{"vdprintf"};
LibcFunction<int(int, int, const char*, va_list)> libc_vdprintf_chk{"__vdprintf_chk"};

}  // namespace

CULVERT_EXPORT int pthread_cancel(pthread_t thread) {
    const int result = libc_pthread_cancel.get()(thread);  // the caller may be the one: unwound here, with nothing to undo
    cancel_requests.fetch_add(1, std::memory_order_seq_cst);  // after it: who sees this finds it pending
    CancelBell::ring_all();
    return result;
}

// glibc's own stream reads with its private system calls; a stream with our functions behind it keeps the number.
CULVERT_EXPORT FILE* fdopen(int fd, const char* mode) noexcept {
    if (!our_socket(fd)) return libc_fdopen(fd, mode);
    cookie_io_functions_t functions{};
    functions.read = stdio_read;
    functions.write = stdio_write;
    functions.seek = stdio_seek;
    functions.close = stdio_close;
    FILE* stream = ::fopencookie(reinterpret_cast<void*>(static_cast<std::intptr_t>(fd)), mode, functions);
    if (stream != nullptr) stream->_fileno = fd;  // fileno() answers
    return stream;
}

CULVERT_EXPORT FILE* _IO_fdopen(int fd, const char* mode) noexcept { return fdopen(fd, mode); }

CULVERT_EXPORT int vdprintf(int fd, const char* format, va_list arguments) {
    if (sending_socket(fd)) return print(fd, format, arguments);
    return libc_vdprintf.get()(fd, format, arguments);
}
CULVERT_EXPORT int dprintf(int fd, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int result = vdprintf(fd, format, arguments);
    va_end(arguments);
    return result;
}
CULVERT_EXPORT int __vdprintf_chk(int fd, int flag, const char* format, va_list arguments) {
    if (sending_socket(fd)) return print(fd, format, arguments);
    return libc_vdprintf_chk.get()(fd, flag, format, arguments);
}
CULVERT_EXPORT int __dprintf_chk(int fd, int flag, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int result = __vdprintf_chk(fd, flag, format, arguments);
    va_end(arguments);
    return result;
}

namespace {

/// The calls that programs make through syscall() on sockets. False: not one of ours, the kernel shall answer.
bool our_call(long number, const long (&a)[6], long& result) noexcept {
    if (!FdTable::instance().contains(static_cast<int>(a[0]))) return false;
    const int fd = static_cast<int>(a[0]);
    const auto pointer = [&a](int i) { return reinterpret_cast<void*>(a[i]); };
    const auto size = [&a](int i) { return static_cast<std::size_t>(a[i]); };
    const auto number_at = [&a](int i) { return static_cast<int>(a[i]); };
    switch (number) {
        case SYS_read: result = read(fd, pointer(1), size(2)); return true;
        case SYS_write: result = write(fd, pointer(1), size(2)); return true;
        case SYS_readv: result = readv(fd, static_cast<iovec*>(pointer(1)), number_at(2)); return true;
        case SYS_writev: result = writev(fd, static_cast<iovec*>(pointer(1)), number_at(2)); return true;
        case SYS_close: result = close(fd); return true;
        case SYS_accept4:
            result = accept4(fd, static_cast<sockaddr*>(pointer(1)), static_cast<socklen_t*>(pointer(2)), number_at(3));
            return true;
        case SYS_recvfrom:
            result = recvfrom(fd, pointer(1), size(2), number_at(3), static_cast<sockaddr*>(pointer(4)),
                              static_cast<socklen_t*>(pointer(5)));
            return true;
        case SYS_sendto:
            result = sendto(fd, pointer(1), size(2), number_at(3), static_cast<sockaddr*>(pointer(4)),
                            static_cast<socklen_t>(a[5]));
            return true;
        case SYS_recvmsg: result = recvmsg(fd, static_cast<msghdr*>(pointer(1)), number_at(2)); return true;
        case SYS_sendmsg: result = sendmsg(fd, static_cast<msghdr*>(pointer(1)), number_at(2)); return true;
        case SYS_recvmmsg:
            result = recvmmsg(fd, static_cast<mmsghdr*>(pointer(1)), static_cast<unsigned>(a[2]), number_at(3),
                              static_cast<timespec*>(pointer(4)));
            return true;
        case SYS_sendmmsg:
            result = sendmmsg(fd, static_cast<mmsghdr*>(pointer(1)), static_cast<unsigned>(a[2]), number_at(3));
            return true;
        case SYS_shutdown: result = shutdown(fd, number_at(1)); return true;
        default: return false;
    }
}

}  // namespace

namespace {

/// `install` asks the kernel for a seccomp filter, which may hold at once.
template <class Install>
auto with_a_filter(Install&& install) noexcept {
    const bool before = confined.exchange(true, std::memory_order_relaxed);
    const auto result = install();
    if (result < 0) confined.store(before, std::memory_order_relaxed);
    return result;
}

LibcFunction<int(int, unsigned long, unsigned long, unsigned long, unsigned long)> libc_prctl{"prctl"};

}  // namespace

// Both read as many arguments as there may be, like libc's own: the caller may have given fewer.
CULVERT_EXPORT [[gnu::no_sanitize_address]] int prctl(int option, ...) noexcept {
    unsigned long a[4];
    va_list arguments;
    va_start(arguments, option);
    for (unsigned long& argument : a) argument = va_arg(arguments, unsigned long);
    va_end(arguments);
    const auto call = [&] { return libc_prctl(option, a[0], a[1], a[2], a[3]); };
    return option == PR_SET_SECCOMP && !in_borrowed_memory() ? with_a_filter(call) : call();
}

CULVERT_EXPORT [[gnu::no_sanitize_address]] long syscall(long number, ...) noexcept {
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (long& argument : a) argument = va_arg(arguments, long);
    va_end(arguments);
    long result = 0;
    if (our_call(number, a, result)) return result;
    const bool foreign = !FdTable::instance().is_protected(static_cast<int>(a[0]));  // we ourselves come by here, too
    if (number == SYS_sendmsg && foreign) return sendmsg(static_cast<int>(a[0]), reinterpret_cast<const msghdr*>(a[1]), static_cast<int>(a[2]));
    if (number == SYS_recvmsg && foreign) return recvmsg(static_cast<int>(a[0]), reinterpret_cast<msghdr*>(a[1]), static_cast<int>(a[2]));
    const auto call = [&] { return libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]); };
    const bool filters = (number == SYS_seccomp && a[0] != SECCOMP_GET_ACTION_AVAIL && a[0] != SECCOMP_GET_NOTIF_SIZES) ||
                         (number == SYS_prctl && a[0] == PR_SET_SECCOMP);
    if (filters && !in_borrowed_memory()) return with_a_filter(call);
    const long result_of_kernel = call();
    if (number == SYS_io_uring_setup && result_of_kernel >= 0 && !in_borrowed_memory()) note_io_uring();
    return result_of_kernel;
}
