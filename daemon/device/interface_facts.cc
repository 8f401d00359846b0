#include "daemon/device/interface_facts.h"

#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <string_view>

#include "shm/base/unique_fd.h"

namespace culvert::device {
namespace {

/// An ioctl on an interface by name.
class InterfaceQuery {
public:
    InterfaceQuery(int socket, const std::string& name) : socket_(socket) {
        std::memcpy(request_.ifr_name, name.data(), name.size());  // shorter than IFNAMSIZ: checked by the caller
    }
    bool ask(unsigned long what) { return ::ioctl(socket_, what, &request_) == 0; }
    bool ethtool(void* command) {
        request_.ifr_data = static_cast<char*>(command);
        return ask(SIOCETHTOOL);
    }
    const ifreq& answer() const { return request_; }

private:
    int socket_;
    ifreq request_{};
};

// Drivers without hardware behind them. Asked by name, not by /sys/class/net: a sysfs mounted in another network
// namespace shows that one's interfaces.
bool is_virtual_driver(std::string_view driver) {
    constexpr std::array<std::string_view, 12> kVirtual = {
        "veth",  "dummy",    "bridge", "tun", "bonding", "team", "macvlan", "macvtap", "ipvlan", "802.1Q VLAN Support",
        "vxlan", "netdevsim"};
    for (const std::string_view name : kVirtual)
        if (driver == name) return true;
    return false;
}

}  // namespace

Result<InterfaceFacts> interface_facts(const std::string& name) {
    if (name.empty() || name.size() >= IFNAMSIZ) return fail(ENODEV, "interface \"" + name + "\"");
    const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!socket) return fail_errno("socket");

    InterfaceFacts facts;
    facts.name = name;
    InterfaceQuery query(socket.get(), name);
    if (!query.ask(SIOCGIFINDEX)) return fail_errno("interface \"" + name + "\"");
    facts.ifindex = query.answer().ifr_ifindex;
    if (!query.ask(SIOCGIFMTU)) return fail_errno(name + ": reading the MTU");
    facts.mtu = static_cast<std::uint32_t>(query.answer().ifr_mtu);
    if (!query.ask(SIOCGIFHWADDR)) return fail_errno(name + ": reading the MAC address");
    std::memcpy(facts.mac.bytes.data(), query.answer().ifr_hwaddr.sa_data, facts.mac.bytes.size());
    if (!query.ask(SIOCGIFFLAGS)) return fail_errno(name + ": reading the flags");
    facts.up = (query.answer().ifr_flags & IFF_UP) != 0;

    ethtool_drvinfo driver{};
    driver.cmd = ETHTOOL_GDRVINFO;
    if (query.ethtool(&driver)) facts.driver = driver.driver;
    facts.virtual_device = facts.driver.empty() || is_virtual_driver(facts.driver);

    ethtool_value flags{};
    flags.cmd = ETHTOOL_GFLAGS;
    if (query.ethtool(&flags)) facts.takes_tags_off = (flags.data & ETH_FLAG_RXVLAN) != 0;

    ethtool_channels channels{};
    channels.cmd = ETHTOOL_GCHANNELS;
    if (query.ethtool(&channels)) {
        const std::uint32_t receive = channels.rx_count + channels.combined_count;
        if (receive > 0) facts.queues = receive;
    }
    return facts;
}

}  // namespace culvert::device
