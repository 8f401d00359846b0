#include "daemon/control/kernel_flows.h"

#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>

#include <array>
#include <cstring>
#include <memory>

namespace culvert::control {
namespace {

constexpr std::array<std::uint8_t, 2> kFamilies{AF_INET, AF_INET6};
constexpr std::array<std::uint8_t, 2> kProtocols{IPPROTO_TCP, IPPROTO_UDP};
constexpr std::uint32_t kAllStates = 0xffffffffu;
/// TIME-WAIT is over but for late copies, and a client that takes the same port again means somebody new: thousands of them would
/// keep a busy port with the kernel for a minute. (FIN-WAIT-2 without a process is told as what it is.)
constexpr std::uint32_t kConnected = kAllStates & ~(1u << TCP_LISTEN) & ~(1u << TCP_CLOSE) & ~(1u << TCP_TIME_WAIT);

struct SocketDeleter {
    void operator()(nl_sock* socket) const { nl_socket_free(socket); }
};
using Socket = std::unique_ptr<nl_sock, SocketDeleter>;
using Sink = std::function<void(const KernelSocket&)>;

Address address_of(const std::uint32_t (&words)[4], std::uint8_t family) {
    const auto* bytes = reinterpret_cast<const std::byte*>(words);
    // A mapped IPv6 address is the same Address as the IPv4 one.
    return family == AF_INET ? Address::from_v4(std::span<const std::byte, 4>(bytes, 4))
                             : Address::from_v6(std::span<const std::byte, 16>(bytes, 16));
}

int on_message(nl_msg* message, void* argument) {
    const nlmsghdr* header = nlmsg_hdr(message);
    if (nlmsg_datalen(header) < static_cast<int>(sizeof(inet_diag_msg))) return NL_SKIP;
    const auto& found = *static_cast<const inet_diag_msg*>(nlmsg_data(header));
    KernelSocket socket;
    socket.local = {address_of(found.id.idiag_src, found.idiag_family), ntohs(found.id.idiag_sport)};
    socket.remote = {address_of(found.id.idiag_dst, found.idiag_family), ntohs(found.id.idiag_dport)};
    socket.state = found.idiag_state;
    socket.inode = found.idiag_inode;
    socket.uid = found.idiag_uid;
    socket.receive_queue = found.idiag_rqueue;
    socket.send_queue = found.idiag_wqueue;
    (*static_cast<const Sink*>(argument))(socket);
    return NL_OK;
}

Result<void> dump(nl_sock* socket, std::uint8_t family, std::uint8_t protocol, std::uint32_t states, Port port,
                  const Sink& sink) {
    inet_diag_req_v2 request{};
    request.sdiag_family = family;
    request.sdiag_protocol = protocol;
    request.idiag_states = states;
    request.id.idiag_sport = htons(port);  // the kernel compares it in a dump when it is not 0
    nl_socket_modify_cb(socket, NL_CB_VALID, NL_CB_CUSTOM, on_message, const_cast<Sink*>(&sink));
    int code = nl_send_simple(socket, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &request, sizeof request);
    if (code >= 0) code = nl_recvmsgs_default(socket);
    // No inet_diag in this kernel (a module not loaded): nothing is known, which is no reason to refuse service.
    if (code == -NLE_OBJ_NOTFOUND || code == -NLE_DUMP_INTR) return {};
    if (code < 0) return fail(0, std::string("sock_diag: ") + nl_geterror(code));
    return {};
}

Result<Socket> open_socket() {
    Socket socket(nl_socket_alloc());
    if (!socket) return fail(ENOMEM, "sock_diag");
    if (const int code = nl_connect(socket.get(), NETLINK_SOCK_DIAG); code < 0)
        return fail(0, std::string("sock_diag: ") + nl_geterror(code));
    return socket;
}

}  // namespace

Result<std::vector<KernelSocket>> kernel_connections(Port port) {
    const Socket socket = TRY(open_socket());
    std::vector<KernelSocket> connections;
    const Sink sink = [&](const KernelSocket& found) {
        if (port == 0 || found.local.port == port) connections.push_back(found);
    };
    for (const std::uint8_t family : kFamilies)
        TRY_VOID(dump(socket.get(), family, IPPROTO_TCP, kConnected, port, sink));
    return connections;
}

Result<std::vector<bool>> kernel_has(std::span<const TcpFlow> flows) {
    const Socket socket = TRY(open_socket());
    nl_socket_disable_auto_ack(socket.get());  // one answer each: the connection, or an error
    nl_socket_disable_seq_check(socket.get());
    std::vector<bool> has(flows.size());
    for (std::size_t i = 0; i < flows.size(); ++i) {
        const TcpFlow& flow = flows[i];
        const bool v4 = flow.local.address.is_v4();
        const auto write = [](std::uint32_t(&words)[4], const Address& address) {
            std::memcpy(words, address.wire_bytes().data(), address.wire_bytes().size());
        };
        inet_diag_req_v2 request{};
        request.sdiag_family = v4 ? AF_INET : AF_INET6;
        request.sdiag_protocol = IPPROTO_TCP;
        request.idiag_states = kAllStates;
        request.id.idiag_sport = htons(flow.local.port);
        request.id.idiag_dport = htons(flow.remote.port);
        write(request.id.idiag_src, flow.local.address);
        write(request.id.idiag_dst, flow.remote.address);
        request.id.idiag_cookie[0] = request.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
        bool found = false;
        // Without a connection the kernel finds the listener on the port.
        const Sink sink = [&found](const KernelSocket& answer) { found = answer.state != TCP_LISTEN; };
        nl_socket_modify_cb(socket.get(), NL_CB_VALID, NL_CB_CUSTOM, on_message, const_cast<Sink*>(&sink));
        int code = nl_send_simple(socket.get(), SOCK_DIAG_BY_FAMILY, 0, &request, sizeof request);
        if (code >= 0) code = nl_recvmsgs_default(socket.get());
        if (code < 0 && code != -NLE_OBJ_NOTFOUND) return fail(0, std::string("sock_diag: ") + nl_geterror(code));
        has[i] = found;
    }
    return has;
}

Result<bool> udp_port_is_of(Port port, std::uint32_t uid) {
    const Socket socket = TRY(open_socket());
    bool found_any = false;
    bool alone = true;
    const Sink sink = [&](const KernelSocket& found) {
        if (found.local.port != port) return;
        found_any = true;
        alone = alone && found.uid == uid;
    };
    for (const std::uint8_t family : kFamilies) TRY_VOID(dump(socket.get(), family, IPPROTO_UDP, kAllStates, port, sink));
    return found_any && alone;  // none at all: the kernel does not tell
}

Result<std::unordered_map<std::uint32_t, KernelSocket>> kernel_sockets_by_inode() {
    const Socket socket = TRY(open_socket());
    std::unordered_map<std::uint32_t, KernelSocket> sockets;
    std::uint8_t protocol = IPPROTO_TCP;
    const Sink sink = [&](const KernelSocket& found) {
        sockets.insert_or_assign(found.inode, found).first->second.is_tcp = protocol == IPPROTO_TCP;
    };
    for (const std::uint8_t asked : kProtocols) {
        protocol = asked;
        for (const std::uint8_t family : kFamilies)
            TRY_VOID(dump(socket.get(), family, protocol, kAllStates, 0, sink));
    }
    return sockets;
}

}  // namespace culvert::control
