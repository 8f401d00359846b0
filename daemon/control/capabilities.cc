#include "daemon/control/capabilities.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <iterator>

#ifndef CAP_BPF
#define CAP_BPF 39
#endif

namespace culvert::control {
namespace {

struct Needed {
    int number;
    int instead;  // another one that contains it; -1: none
    const char* name;
};

constexpr Needed kNeeded[] = {
    {CAP_NET_ADMIN, -1, "CAP_NET_ADMIN"},            // attach XDP, resolve neighbours
    {CAP_NET_RAW, -1, "CAP_NET_RAW"},                // AF_XDP sockets
    {CAP_BPF, CAP_SYS_ADMIN, "CAP_BPF"},             // load the program
    {CAP_IPC_LOCK, -1, "CAP_IPC_LOCK"},              // packet memory is locked
};

}  // namespace

std::string missing_capabilities() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
    if (::syscall(SYS_capget, &header, data) != 0) return {};  // then the attempt itself will say
    const auto has = [&](int number) {
        return number >= 0 && (data[number / 32].effective >> (number % 32) & 1) != 0;
    };
    std::string missing;
    for (const Needed& needed : kNeeded)
        if (!has(needed.number) && !has(needed.instead)) missing += (missing.empty() ? "" : ", ") + std::string(needed.name);
    return missing;
}

}  // namespace culvert::control
