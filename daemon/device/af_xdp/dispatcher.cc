#include "daemon/device/af_xdp/dispatcher.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <xdp/libxdp.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "daemon/device/af_xdp/bpf_log.h"

namespace culvert::device {
namespace {

struct MultiprogCloser {
    void operator()(xdp_multiprog* programs) const { xdp_multiprog__close(programs); }
};
using Multiprog = std::unique_ptr<xdp_multiprog, MultiprogCloser>;

socklen_t claim_name(int ifindex, sockaddr_un& address) {
    address = {};
    address.sun_family = AF_UNIX;
    const std::string name = "culvert/steer/" + std::to_string(ifindex);  // abstract: the first byte stays 0
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

// Anybody may bind an abstract name. A claim counts only when root, or whoever we run as, made it.
bool claim_is_genuine(const sockaddr_un& address, socklen_t length) {
    const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!probe || ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) return false;
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(probe.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
    return peer.uid == 0 || peer.uid == ::geteuid();
}

}  // namespace

Result<UniqueFd> claim_interface(const std::string& interface, int ifindex) {
    UniqueFd claim(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!claim) return fail_errno("socket");
    sockaddr_un address;
    const socklen_t length = claim_name(ifindex, address);
    if (::bind(claim.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0) {
        if (::listen(claim.get(), 1) != 0) return fail_errno("listen");
        return claim;
    }
    if (errno != EADDRINUSE) return fail_errno(interface + ": claiming the interface");
    if (claim_is_genuine(address, length))
        return fail(EBUSY, interface + ": interface already taken by another culvertd");
    return claim;  // a stranger sits on the name: go on without
}

Result<void> remove_stale_programs(const std::string& interface, int ifindex) {
    collect_bpf_log();
    xdp_multiprog* raw = xdp_multiprog__get_from_ifindex(ifindex);
    if (const long error = libxdp_get_error(raw); error != 0) {
        if (error == -ENOENT) return {};  // gone meanwhile
        return fail(EBUSY, interface + ": interface already taken by an XDP program that cannot be read (" +
                               last_bpf_warning() + ")");
    }
    const Multiprog programs(raw);
    std::vector<unsigned> stale;
    for (xdp_program* program = xdp_multiprog__next_prog(nullptr, raw); program != nullptr;
         program = xdp_multiprog__next_prog(program, raw))
        if (std::strcmp(xdp_program__name(program), kSteerProgramName) == 0) stale.push_back(xdp_program__id(program));
    const xdp_attach_mode mode = xdp_multiprog__attach_mode(raw);
    for (const unsigned id : stale) {
        xdp_program* program = xdp_program__from_id(id);
        if (libxdp_get_error(program) != 0) continue;
        const int error = xdp_program__detach(program, ifindex, mode, 0);
        xdp_program__close(program);
        if (error != 0)
            return fail(-error, interface + ": detaching the program of a dead culvertd (" + last_bpf_warning() + ")");
    }
    return {};
}

bool has_xdp_program(int ifindex) {
    LIBBPF_OPTS(bpf_xdp_query_opts, query);
    if (bpf_xdp_query(ifindex, 0, &query) != 0) return false;
    return query.prog_id != 0 || query.drv_prog_id != 0 || query.skb_prog_id != 0 || query.hw_prog_id != 0;
}

std::string describe_bpf_program(unsigned id) {
    std::string name = "unknown";
    const UniqueFd program(bpf_prog_get_fd_by_id(id));
    bpf_prog_info info{};
    std::uint32_t size = sizeof info;
    if (program && bpf_obj_get_info_by_fd(program.get(), &info, &size) == 0) name = info.name;
    return name + " (id " + std::to_string(id) + ")";
}

}  // namespace culvert::device
