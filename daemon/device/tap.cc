#include "daemon/device/tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace culvert::device {

Result<Tap> open_tap(FramePool& pool, const std::string& name, bool super_packets) {
    if (name.empty() || name.size() >= IFNAMSIZ) return fail(EINVAL, name + ": not an interface name");
    UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!fd) return fail(errno, "/dev/net/tun");
    ifreq request{};
    std::memcpy(request.ifr_name, name.data(), name.size());
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) return fail(errno, name + ": TUNSETIFF");
    // What the kernel may leave to us: checksums, and cutting TCP. UDP it cuts itself.
    constexpr unsigned long kLeftToUs = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    if (::ioctl(fd.get(), TUNSETOFFLOAD, super_packets ? kLeftToUs : 0) != 0)
        return fail(errno, name + ": TUNSETOFFLOAD");
    Tap tap;
    tap.facts = TRY(interface_facts(name));
    tap.device = TRY(FrameFile::create(pool, std::move(fd), "tap " + name));
    return tap;
}

MacAddress our_mac(const std::string& name) {
    std::string machine;
    // Without a machine id (a bare container) the name alone decides: still unique on a link of two.
    std::ifstream("/etc/machine-id") >> machine;
    std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (const char c : machine + "/" + name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    MacAddress mac;
    std::memcpy(mac.bytes.data(), &hash, mac.bytes.size());
    mac.bytes[0] = static_cast<std::uint8_t>((mac.bytes[0] & 0xfc) | 0x02);  // locally administered, unicast
    return mac;
}

}  // namespace culvert::device
