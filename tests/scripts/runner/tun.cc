#include "tests/scripts/runner/tun.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <net/route.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace culvert::script {
namespace {

constexpr const char* kDevice = "script0";

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

void set_sysctl(const std::string& name, const std::string& value) {
    std::string path = "/proc/sys/" + name;
    std::replace(path.begin() + 10, path.end(), '.', '/');
    const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file || ::write(file.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size()))
        throw Unsupported("sysctl " + name + "=" + value + ": " + std::strerror(errno));
}

ifreq request() {
    ifreq asked{};
    std::strncpy(asked.ifr_name, kDevice, IFNAMSIZ - 1);
    return asked;
}

void must(int fd, unsigned long command, void* argument, const char* what) {
    if (::ioctl(fd, command, argument) < 0) fail(what);
}

sockaddr to_sockaddr(const char* text) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    ::inet_pton(AF_INET, text, &address.sin_addr);
    sockaddr generic;
    std::memcpy(&generic, &address, sizeof generic);
    return generic;
}

void bring_up(const UniqueFd& control, const Setup& setup) {
    ifreq asked = request();
    asked.ifr_mtu = static_cast<int>(setup.mtu);
    must(control.get(), SIOCSIFMTU, &asked, "the device's MTU");
    asked = request();
    must(control.get(), SIOCGIFFLAGS, &asked, "the device's flags");
    asked.ifr_flags = static_cast<short>(asked.ifr_flags | IFF_UP | IFF_RUNNING);
    must(control.get(), SIOCSIFFLAGS, &asked, "bringing the device up");
}

void configure4(const Setup& setup) {
    const UniqueFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!control) fail("socket");
    ifreq asked = request();
    asked.ifr_addr = to_sockaddr(setup.local.address.to_string().c_str());
    must(control.get(), SIOCSIFADDR, &asked, "the device's address");
    asked.ifr_netmask = to_sockaddr("255.255.0.0");
    must(control.get(), SIOCSIFNETMASK, &asked, "the device's netmask");
    bring_up(control, setup);
    rtentry route{};
    route.rt_dst = route.rt_genmask = to_sockaddr("0.0.0.0");
    char name[IFNAMSIZ] = {};
    std::strncpy(name, kDevice, sizeof name - 1);
    route.rt_dev = name;
    route.rt_flags = RTF_UP;
    must(control.get(), SIOCADDRT, &route, "the route");
}

struct Address6Request {  // in6_ifreq, whose header fights with <net/if.h>
    in6_addr address;
    std::uint32_t prefix_length;
    int index;
};

void configure6(const Setup& setup) {
    const UniqueFd control(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!control) fail("socket");
    bring_up(control, setup);
    Address6Request asked{};
    std::memcpy(&asked.address, setup.local.address.bytes().data(), 16);
    asked.prefix_length = 64;
    asked.index = static_cast<int>(::if_nametoindex(kDevice));
    must(control.get(), SIOCSIFADDR, &asked, "the device's IPv6 address");
    in6_rtmsg route{};
    route.rtmsg_flags = RTF_UP;
    route.rtmsg_metric = 1;
    route.rtmsg_ifindex = asked.index;
    must(control.get(), SIOCADDRT, &route, "the IPv6 route");
    // The address is usable once a worker of the kernel has passed over it, DAD or not.
    sockaddr_in6 self{};
    self.sin6_family = AF_INET6;
    std::memcpy(&self.sin6_addr, setup.local.address.bytes().data(), 16);
    for (int tries = 0;; ++tries) {
        if (::bind(control.get(), reinterpret_cast<const sockaddr*>(&self), sizeof self) == 0) return;
        if (errno != EADDRNOTAVAIL || tries == 2000) fail("the IPv6 address");
        ::poll(nullptr, 0, 1);
    }
}

}  // namespace

UniqueFd open_tun(const Setup& setup) {
    if (::unshare(CLONE_NEWNET) < 0) fail("a network namespace");
    // What is not a script's business must be alike on every machine, and like Culvert's defaults.
    set_sysctl("net.ipv4.tcp_rmem", "4096 131072 4194304");
    set_sysctl("net.ipv6.conf.default.accept_dad", "0");
    set_sysctl("net.ipv6.conf.default.accept_ra", "0");
    set_sysctl("net.ipv6.conf.default.router_solicitations", "0");
    for (const auto& [name, value] : setup.sysctls)
        if (name != kCongestionSysctl) set_sysctl(name, value);
    UniqueFd tun(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!tun) fail("/dev/net/tun");
    ifreq asked = request();
    asked.ifr_flags = IFF_TUN | IFF_NO_PI;
    must(tun.get(), TUNSETIFF, &asked, "a TUN device");
    setup.ipv6 ? configure6(setup) : configure4(setup);
    return tun;
}

}  // namespace culvert::script
