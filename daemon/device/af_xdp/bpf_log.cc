#include "daemon/device/af_xdp/bpf_log.h"

#include <bpf/libbpf.h>
#include <xdp/libxdp.h>

#include <cstdarg>
#include <cstdio>
#include <mutex>

namespace culvert::device {
namespace {

thread_local std::string last_warning;

void keep(const char* format, va_list arguments) {
    char line[512];
    if (std::vsnprintf(line, sizeof line, format, arguments) <= 0) return;
    std::string text(line);
    text.erase(text.find_last_not_of("\n ") + 1);
    const std::size_t first = text.find_first_not_of("\n ");
    if (first == std::string::npos || text.find('\n') != std::string::npos) return;  // verifier logs: too long to help
    last_warning = text.substr(first);
}

__attribute__((format(printf, 2, 0))) int on_libbpf(libbpf_print_level level, const char* format, va_list arguments) {
    if (level == LIBBPF_WARN) keep(format, arguments);
    return 0;
}

__attribute__((format(printf, 2, 0))) int on_libxdp(libxdp_print_level level, const char* format, va_list arguments) {
    if (level == LIBXDP_WARN) keep(format, arguments);
    return 0;
}

}  // namespace

void collect_bpf_log() {
    static std::once_flag once;
    std::call_once(once, [] {
        libbpf_set_print(on_libbpf);
        libxdp_set_print(on_libxdp);
    });
    last_warning.clear();
}

std::string last_bpf_warning() { return last_warning; }

}  // namespace culvert::device
