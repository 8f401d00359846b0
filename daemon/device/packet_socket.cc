#include "daemon/device/packet_socket.h"

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>

namespace culvert::device {
namespace {

Result<void> set_option(const UniqueFd& socket, int level, int option, int value, const char* what) {
    if (::setsockopt(socket.get(), level, option, &value, sizeof value) != 0) return fail_errno(what);
    return {};
}

constexpr int kBufferBytes = 16 << 20;  // a burst of super-packets while the engine is not scheduled, or the other side is not

}  // namespace

Result<UniqueFd> make_packet_socket(const InterfaceFacts& facts) {
    UniqueFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket) return fail_errno(facts.name + ": packet socket");
    TRY_VOID(set_option(socket, SOL_PACKET, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR"));
    TRY_VOID(set_option(socket, SOL_SOCKET, SO_SNDBUFFORCE, kBufferBytes, "SO_SNDBUFFORCE"));
    return socket;
}

Result<void> bind_packet_socket(const UniqueFd& socket, const InterfaceFacts& facts, std::uint16_t protocol) {
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = __builtin_bswap16(protocol);
    address.sll_ifindex = facts.ifindex;
    if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
        return fail_errno(facts.name + ": binding the packet socket");
    return {};
}

Result<std::unique_ptr<FrameFile>> open_packet_socket(FramePool& pool, const SteeringProgram& program, std::uint16_t vlan) {
    const InterfaceFacts facts = TRY(interface_facts(program.interface()));
    if (!facts.up) return fail(ENETDOWN, facts.name + ": cannot receive");
    UniqueFd socket = TRY(make_packet_socket(facts));  // not bound yet: nothing arrives before the filter is there
    TRY_VOID(set_option(socket, SOL_SOCKET, SO_ATTACH_BPF, program.socket_filter_fd(), "SO_ATTACH_BPF"));
    TRY_VOID(set_option(socket, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING"));
    TRY_VOID(set_option(socket, SOL_SOCKET, SO_RCVBUFFORCE, kBufferBytes, "SO_RCVBUFFORCE"));
    TRY_VOID(bind_packet_socket(socket, facts, ETH_P_ALL));
    return FrameFile::create(pool, std::move(socket), "packet socket " + facts.name,
                             vlan != 0 ? __builtin_bswap32(std::uint32_t{ETH_P_8021Q} << 16 | vlan) : 0);
}

}  // namespace culvert::device
