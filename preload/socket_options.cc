// getsockopt and setsockopt.
//
// A socket that the application made has a kernel socket of its own: every option is set there first, so that errors,
// limits and what getsockopt later says are the kernel's. The options in the table are also written to the shared record,
// where the daemon reads them. An accepted connection has only a placeholder, which it shares with others: what servers set on
// every connection lives in the record, inherited from the listener. With the first other option it gets a kernel socket of its
// own, on which all are repeated (own_kernel_half), and is like one that was connected from then on.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <iterator>

#include "preload/fail.h"
#include "preload/header_options.h"
#include "preload/kernel_probe.h"
#include "preload/libc.h"
#include "preload/option_table.h"
#include "preload/passed_on.h"
#include "preload/socket.h"
#include "preload/socket_inline.h"

namespace culvert::preload {

namespace {

bool read_int(const void* value, socklen_t length, int& out) noexcept {
    if (value == nullptr || length < sizeof(int)) return false;
    std::memcpy(&out, value, sizeof out);
    return true;
}

int give(const void* from, socklen_t size, void* value, socklen_t* length) noexcept {
    if (length == nullptr || (value == nullptr && *length != 0)) return fail(EFAULT);
    if (static_cast<int>(*length) < 0) return fail(EINVAL);
    *length = std::min(*length, size);
    std::memcpy(value, from, *length);
    return 0;
}

bool is_buffer_size(int level, int name) noexcept {
    return level == SOL_SOCKET &&
           (name == SO_RCVBUF || name == SO_RCVBUFFORCE || name == SO_SNDBUF || name == SO_SNDBUFFORCE);
}

bool is_low_water(int level, int name) noexcept { return level == SOL_SOCKET && name == SO_RCVLOWAT; }

/// What getsockopt must be asked for to learn what became of it.
int buffer_size_of(int name) noexcept { return name == SO_RCVBUF || name == SO_RCVBUFFORCE ? SO_RCVBUF : SO_SNDBUF; }

/// What a socket of the kernel makes of a buffer size or a low-water mark: its limits, its doubling, what it lets this program do. -errno: it refuses.
int size_from_kernel(int name, int bytes) noexcept {
    const KernelProbe probe(AF_INET);
    if (!probe) return -ENOBUFS;
    int result = 0;
    const int asked = is_low_water(SOL_SOCKET, name) ? name : buffer_size_of(name);
    socklen_t length = sizeof result;
    if (libc::setsockopt(probe.fd(), SOL_SOCKET, name, &bytes, socklen_t{sizeof bytes}) != 0 ||
        libc::getsockopt(probe.fd(), SOL_SOCKET, asked, &result, &length) != 0)
        return -errno;
    return result;
}

int give_int(int number, void* value, socklen_t* length) noexcept { return give(&number, sizeof number, value, length); }

/// A timeval as SO_RCVTIMEO takes it; -1: none.
std::int64_t to_ns(const timeval& time) noexcept {
    if (time.tv_sec < 0) return 0;  // the kernel: a negative time does not wait at all
    if (time.tv_sec == 0 && time.tv_usec == 0) return -1;
    if (time.tv_sec > INT32_MAX) return -1;
    return time.tv_sec * 1'000'000'000 + time.tv_usec * 1000;
}

timeval to_timeval(std::int64_t ns) noexcept {
    if (ns < 0) return {};
    return {static_cast<time_t>(ns / 1'000'000'000), static_cast<suseconds_t>(ns % 1'000'000'000 / 1000)};
}

/// As SocketOptions::congestion numbers them.
constexpr const char* kCongestionNames[] = {"", "reno", "cubic", "bbr", "dctcp"};
constexpr socklen_t kCongestionNameMax = 16;  // TCP_CA_NAME_MAX (linux/tcp.h)

/// 0: not a controller of Culvert's.
std::uint8_t congestion_number(const char* name, socklen_t length) noexcept {
    const std::size_t size = ::strnlen(name, std::min<socklen_t>(length, kCongestionNameMax - 1));
    const auto is = [&](const char* text) { return std::strlen(text) == size && std::memcmp(text, name, size) == 0; };
    if (is("newreno")) return 1;
    for (std::uint8_t number = 1; number < std::size(kCongestionNames); ++number)
        if (is(kCongestionNames[number])) return number;
    return 0;
}

int give_congestion(std::uint8_t number, void* value, socklen_t* length) noexcept {
    char text[kCongestionNameMax] = {};
    std::strncpy(text, kCongestionNames[number < std::size(kCongestionNames) ? number : 0], sizeof text - 1);
    return give(text, sizeof text, value, length);
}

/// SO_MAX_PACING_RATE comes as a long or, from older programs, as an int of which ~0 is "none". False: too short.
bool read_pacing_rate(const void* value, socklen_t length, std::uint64_t& rate) noexcept {
    if (value == nullptr || length < sizeof(std::uint32_t)) return false;
    if (length >= sizeof(std::uint64_t)) {
        std::memcpy(&rate, value, sizeof rate);
        if (rate == UINT64_MAX) rate = 0;
        return true;
    }
    std::uint32_t narrow = 0;
    std::memcpy(&narrow, value, sizeof narrow);
    rate = narrow == UINT32_MAX ? 0 : narrow;
    return true;
}

/// What getsockopt says: "none" is ~0, and what does not fit into an int is ~0, too, as in the kernel.
int give_pacing_rate(std::uint64_t rate, void* value, socklen_t* length) noexcept {
    const std::uint64_t wide = rate == 0 ? UINT64_MAX : rate;
    if (length != nullptr && *length >= sizeof wide) return give(&wide, sizeof wide, value, length);
    const auto narrow = static_cast<std::uint32_t>(std::min<std::uint64_t>(wide, UINT32_MAX));
    return give(&narrow, sizeof narrow, value, length);
}

/// What linux/tcp.h appends to the tcp_info of <netinet/tcp.h>; the two headers cannot be included together.
struct LongTcpInfo {
    tcp_info base;
    std::uint64_t pacing_rate, max_pacing_rate, bytes_acked, bytes_received;
    std::uint32_t segs_out, segs_in, notsent_bytes, min_rtt;
};
static_assert(offsetof(LongTcpInfo, pacing_rate) == 104 && offsetof(LongTcpInfo, min_rtt) == 148);

}  // namespace

/// Remembers an option that has been set: in the record, or for the record that is still to come. The size of a buffer as
/// getsockopt gives it.
void Socket::keep_option(int level, int name, const void* value, socklen_t length) noexcept {
    int number = 0;
    if (level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO)) {
        timeval time{};
        if (length < sizeof time) return;
        std::memcpy(&time, value, sizeof time);
        (name == SO_RCVTIMEO ? receive_timeout_ns_ : send_timeout_ns_).store(to_ns(time), std::memory_order_relaxed);
        return;
    }
    if (level == SOL_SOCKET && name == SO_LINGER) {
        linger wanted{};
        if (length < sizeof wanted) return;
        std::memcpy(&wanted, value, sizeof wanted);
        return change_options([&](shm::SocketOptions& options) {
            options.flags = wanted.l_onoff != 0 ? options.flags | shm::kOptionLinger : options.flags & ~shm::kOptionLinger;
            options.linger_s = static_cast<std::uint32_t>(std::max(wanted.l_linger, 0));
        });
    }
    if (level == IPPROTO_TCP && name == TCP_CONGESTION) {
        const std::uint8_t chosen = congestion_number(static_cast<const char*>(value), length);
        return change_options([&](shm::SocketOptions& options) { options.congestion = chosen; });
    }
    if (level == SOL_SOCKET && name == SO_MAX_PACING_RATE) {
        std::uint64_t rate = 0;
        if (!read_pacing_rate(value, length, rate)) return;
        return change_options([&](shm::SocketOptions& options) { options.max_pacing_rate = rate; });
    }
    // IPv4's options take a single byte, too, and of less than an int that byte.
    if (level == IPPROTO_IP && length >= 1 && length < sizeof(int)) {
        number = *static_cast<const std::uint8_t*>(value);
    } else if (!read_int(value, length, number)) {
        return;
    }
    if ((type_ == SOCK_STREAM || (type_ == SOCK_DGRAM && !is_raw())) && level == SOL_SOCKET && name == SO_ZEROCOPY) return set_wants(kTellsCopies, number != 0);
    if (type_ == SOCK_STREAM && level == SOL_SOCKET && name == SO_PEEK_OFF) {
        peek_offset_.store(number, std::memory_order_relaxed);
        return set_wants(kPeeksOnward, number >= 0);
    }
    if (level == IPPROTO_TCP && name == kTcpInq) return set_wants(kTellsUnread, number != 0);
    // The kernel's least (tcp_set_window_clamp: SOCK_MIN_RCVBUF / 2); 0 takes the clamp off.
    if (level == IPPROTO_TCP && name == TCP_WINDOW_CLAMP && number != 0) number = std::max(number, 1152);
    if (const IntOption* option = find_option(level, name)) {
        return change_options([&](shm::SocketOptions& options) {
            if (option->number != nullptr)
                option->number.set(options, static_cast<std::uint32_t>(option->least < 0 ? number : std::max(number, 0)));
            else
                options.flags = number != 0 ? options.flags | option->flag : options.flags & ~option->flag;
            if (option->flag == shm::kOptionQuickAck)
                options.flags = number != 0 ? options.flags & ~shm::kOptionNoQuickAck : options.flags | shm::kOptionNoQuickAck;
        });
    }
    if (is_low_water(level, name)) return low_water_.store(std::max(number, 1), std::memory_order_relaxed);
    if (is_buffer_size(level, name)) {
        // Twice what is meant, in the kernel's words: the other half is for its book-keeping.
        const auto bytes = static_cast<std::uint32_t>(std::max(number / 2, 1));
        const bool receives = buffer_size_of(name) == SO_RCVBUF;
        return change_options(
            [&](shm::SocketOptions& options) { (receives ? options.receive_buffer : options.send_buffer) = bytes; });
    }
    if ((level == IPPROTO_IP && name == IP_TOS) || (level == IPPROTO_IPV6 && name == IPV6_TCLASS))
        return change_options([&](shm::SocketOptions& options) {
            // Of a stream the two bits of ECN are TCP's own. An IPv4 -1 is 255, an IPv6 one the default.
            const bool stream_bits = type_ == SOCK_STREAM;
            const int wanted = number < 0 && level == IPPROTO_IPV6 ? 0 : number & 0xff;
            options.tos = static_cast<std::uint8_t>(stream_bits ? wanted & ~3 : wanted);
        });
    if ((level == IPPROTO_IP && name == IP_TTL) || (level == IPPROTO_IPV6 && name == IPV6_UNICAST_HOPS))
        return change_options([&](shm::SocketOptions& options) { options.ttl = static_cast<std::uint8_t>(number < 0 ? 0 : number); });
}

/// What the kernel says to an option of a connection: a socket of the moment is asked, since nothing may be set on the
/// placeholder, and nothing that is refused on the half that the program has. So a wrong length or value gets its own errno.
int Socket::ask_kernel(int level, int name, const void* value, socklen_t length) const noexcept {
    const KernelProbe probe(family_);
    if (!probe) return fail(ENOPROTOOPT);
    return libc::setsockopt(probe.fd(), level, name, value, length);
}

/// An accepted connection without a kernel socket of its own: checks as the kernel would, then keeps.
int Socket::set_shared_option(int level, int name, const void* value, socklen_t length) noexcept {
    int number = 0;
    // The kernel reads it before it looks at the name, but for IP options and those of structures.
    if (level == SOL_SOCKET && value == nullptr) return length < sizeof(int) ? fail(EINVAL) : fail(EFAULT);
    if (level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO)) {
        if (length < sizeof(timeval)) return fail(EINVAL);
        timeval time{};
        std::memcpy(&time, value, sizeof time);
        if (time.tv_usec < 0 || time.tv_usec >= 1'000'000) return fail(EDOM);
    } else if (level == SOL_SOCKET && name == SO_LINGER) {
        if (length < sizeof(linger)) return fail(EINVAL);
    } else if (level == IPPROTO_TCP && name == TCP_CONGESTION) {
        if (length < 1) return fail(EINVAL);
        if (value == nullptr) return fail(EFAULT);
        if (congestion_number(static_cast<const char*>(value), length) == 0) return fail(ENOENT);
    } else if (level == SOL_SOCKET && name == SO_MAX_PACING_RATE) {
        std::uint64_t rate = 0;
        if (!read_pacing_rate(value, length, rate)) return fail(EINVAL);
    } else if (const IntOption* option = find_option(level, name)) {
        if (!read_int(value, length, number)) return fail(EINVAL);
        if (name == IPV6_V6ONLY && level == IPPROTO_IPV6) return fail(EINVAL);  // only before bind
        if (level == IPPROTO_TCP && (name == TCP_FASTOPEN || name == TCP_FASTOPEN_CONNECT))
            return fail(EINVAL);  // only before the connection
        if (level == IPPROTO_TCP && name == TCP_WINDOW_CLAMP && number == 0) return fail(EINVAL);  // the same
        if (option->number != nullptr && (number < option->least || number > option->most)) return fail(EINVAL);
    } else if (is_buffer_size(level, name) || is_low_water(level, name)) {
        if (!read_int(value, length, number)) return fail(EINVAL);
        const int given = size_from_kernel(name, number);
        if (given < 0) return fail(-given);
        keep_option(level, name, &given, sizeof given);
        return 0;
    } else if ((level == IPPROTO_IP && (name == IP_TOS || name == IP_TTL)) ||
               (level == IPPROTO_IPV6 && name == IPV6_TCLASS)) {
        if (ask_kernel(level, name, value, length) != 0) return -1;
        if (value == nullptr) return 0;  // IPv6: the kernel takes it for a zero, and so for nothing new
    }
    keep_option(level, name, value, length);
    return 0;
}

int Socket::set_option(int fd, int level, int name, const void* value, socklen_t length) noexcept {
    const KeepErrno keep;
    if (static_cast<int>(length) < 0) return keep.fail(EINVAL);
    if (has_placeholder() && is_kept_by_record(level, name)) {
        if (value == nullptr && find_option(level, name) != nullptr) return keep.fail(level == IPPROTO_IPV6 ? EINVAL : EFAULT);
        return keep.pass(set_shared_option(level, name, value, length));
    }
    if (path() == Path::kConnection && level == IPPROTO_TCP &&
        (name == TCP_FASTOPEN || name == TCP_FASTOPEN_CONNECT || name == kTcpFastOpenNoCookie))
        return keep.fail(value == nullptr && length >= sizeof(int) ? EFAULT : EINVAL);  // only before the connection
    // Only a connection that speaks IPv4 becomes an IPv4 socket; of Culvert's none does.
    if (int wanted = 0; path() == Path::kConnection && level == IPPROTO_IPV6 && name == IPV6_ADDRFORM && is_established() &&
                        read_int(value, length, wanted) && wanted == AF_INET)
        return keep.fail(IN6_IS_ADDR_V4MAPPED(reinterpret_cast<const in6_addr*>(shared().remote.address)) ? ENOPROTOOPT : EADDRNOTAVAIL);
    // As of an accepted connection. Taking options away that are not there is no error.
    if (path() == Path::kConnection && is_header_option(level, name) && length != 0)
        return keep.pass(ask_kernel(level, name, value, length) != 0 ? -1 : fail(ENOPROTOOPT));
    // The kernel's half was never connected and would take the clamp off.
    if (int clamp = 1; path() == Path::kConnection && level == IPPROTO_TCP && name == TCP_WINDOW_CLAMP &&
                       read_int(value, length, clamp) && clamp == 0)
        return keep.fail(EINVAL);
    const bool kernels = type_ == SOCK_STREAM && only_kernel_does(level, name) && asks_for_something(value, length);
    if (kernels && path() == Path::kConnection)
        return keep.pass(ask_kernel(level, name, value, length) != 0 ? -1 : fail(ENOPROTOOPT));
    if (has_placeholder()) {
        if (ask_kernel(level, name, value, length) != 0) return keep.pass(-1);
        if (!own_kernel_half()) return keep.fail(ENOPROTOOPT);
    }
    int result = 0;
    if (datagram_ != nullptr && set_group_option(fd, level, name, value, length, result)) return keep.pass(result);
    result = libc::setsockopt(fd, level, name, value, length);
    // A controller that only we have (its module is not loaded, or is kept from unprivileged programs) is no error: should
    // the connection turn out to be the kernel's, it runs with the kernel's default.
    const bool only_ours = result != 0 && level == IPPROTO_TCP && name == TCP_CONGESTION && value != nullptr &&
                           (errno == ENOENT || errno == EPERM) &&
                           congestion_number(static_cast<const char*>(value), length) != 0;
    if ((result == 0 || only_ours) && value != nullptr) {
        int size = 0;
        socklen_t size_length = sizeof size;
        if (is_buffer_size(level, name) || is_low_water(level, name)) {
            const int ask = is_low_water(level, name) ? name : buffer_size_of(name);
            if (libc::getsockopt(fd, level, ask, &size, &size_length) != 0) return keep.pass(0);
            value = &size, length = size_length;
        }
        if (kernels) needs_kernel_.store(true, std::memory_order_relaxed);
        const bool for_listeners = type_ == SOCK_STREAM && only_kernel_listens(level, name) && asks_for_something(value, length);
        if (for_listeners) needs_kernel_to_listen_.store(true, std::memory_order_relaxed);
        if ((kernels || for_listeners) && path() == Path::kListener) give_back(fd, shm::KernelReason::kOption);
        if (const std::uint64_t bit = datagram_ == nullptr && path() != Path::kConnection ? passed_on_bit(family_, level, name) : 0; bit != 0)
            passed_on_.fetch_or(bit, std::memory_order_relaxed);
        keep_option(level, name, value, length);
        if (datagram_ != nullptr) keep_datagram_option(fd, level, name, value, length);
        return keep.pass(0);
    }
    return keep.pass(result);
}

int Socket::copy_info(void* value, socklen_t* length) noexcept {
    if (operate(*client_, record(), shm::Operation::kRefreshInfo, 0, {}, {}) != 0) return fail(ENETDOWN);
    const shm::SocketInfo info = shared().info;
    LongTcpInfo all{};
    tcp_info& out = all.base;
    out.tcpi_state = static_cast<std::uint8_t>(info.tcp_state);
    out.tcpi_ca_state = info.ca_state;
    out.tcpi_options = static_cast<std::uint8_t>(info.options);
    out.tcpi_snd_wscale = info.send_scale & 0xf;
    out.tcpi_rcv_wscale = info.receive_scale & 0xf;
    out.tcpi_rto = info.rto_us;
    out.tcpi_snd_mss = info.mss;
    out.tcpi_rcv_mss = info.peer_mss;
    out.tcpi_unacked = info.unacked_segments;
    out.tcpi_retransmits = static_cast<std::uint8_t>(std::min(info.retransmits, 255u));
    out.tcpi_rtt = info.srtt_us;
    out.tcpi_rttvar = info.rttvar_us;
    out.tcpi_snd_ssthresh = info.ssthresh_segments;
    out.tcpi_snd_cwnd = info.cwnd_segments;
    out.tcpi_advmss = info.mss;
    out.tcpi_rcv_space = info.receive_space;
    out.tcpi_total_retrans = info.total_retransmits;
    all.pacing_rate = info.pacing_rate != 0 ? info.pacing_rate : UINT64_MAX;  // as the kernel says "not paced"
    all.max_pacing_rate = shared().options.max_pacing_rate != 0 ? shared().options.max_pacing_rate : UINT64_MAX;
    all.min_rtt = info.min_rtt_us;
    return give(&all, sizeof all, value, length);
}

/// An accepted connection.
int Socket::get_shared_option(int level, int name, void* value, socklen_t* length) noexcept {
    const shm::SocketOptions options = shared().options;
    if (level == IPPROTO_TCP && name == TCP_QUICKACK)  // on, as long as nobody has turned it off
        return give_int((options.flags & shm::kOptionNoQuickAck) != 0 ? 0 : 1, value, length);
    if (const IntOption* option = find_option(level, name)) {
        if (option->number == nullptr) return give_int((options.flags & option->flag) != 0 ? 1 : 0, value, length);
        const auto number = static_cast<int>(option->number.get(options));
        return give_int(number != 0 ? number : option->default_value, value, length);
    }
    if (level == SOL_SOCKET) {
        switch (name) {
            case SO_LINGER: {
                const linger out{(options.flags & shm::kOptionLinger) != 0 ? 1 : 0, static_cast<int>(options.linger_s)};
                return give(&out, sizeof out, value, length);
            }
            case SO_RCVLOWAT: return give_int(low_water_.load(std::memory_order_relaxed), value, length);
            case SO_RCVTIMEO:
            case SO_SNDTIMEO: {
                const timeval out = to_timeval(
                    (name == SO_RCVTIMEO ? receive_timeout_ns_ : send_timeout_ns_).load(std::memory_order_relaxed));
                return give(&out, sizeof out, value, length);
            }
            case SO_SNDBUF: return give_int(static_cast<int>(options.send_buffer * 2), value, length);
            case SO_RCVBUF: return give_int(static_cast<int>(options.receive_buffer * 2), value, length);
            case SO_MAX_PACING_RATE: return give_pacing_rate(options.max_pacing_rate, value, length);
            case SO_ZEROCOPY: return give_int(wants(kTellsCopies) ? 1 : 0, value, length);
            default: return -2;
        }
    }
    if (level == IPPROTO_TCP && name == kTcpInq) return give_int(wants(kTellsUnread) ? 1 : 0, value, length);
    if ((level == IPPROTO_IP && name == IP_TOS) || (level == IPPROTO_IPV6 && name == IPV6_TCLASS))
        return give_int(options.tos, value, length);
    if (((level == IPPROTO_IP && name == IP_TTL) || (level == IPPROTO_IPV6 && name == IPV6_UNICAST_HOPS)) &&
        options.ttl != 0)
        return give_int(options.ttl, value, length);
    return -2;
}

/// bind() of an IPv6 socket to an address makes it one for IPv6 alone; what it makes of our own bind() before a connection is not
/// the program's.
void Socket::remember_v6_only(int fd) noexcept {
    const KeepErrno keep;
    int only = 0;
    socklen_t size = sizeof only;
    if (libc::getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, &size) == 0) keep_option(IPPROTO_IPV6, IPV6_V6ONLY, &only, size);
}

/// SO_PEERNAME: the whole of it, or EINVAL.
int Socket::give_peername(int fd, void* value, socklen_t* length) noexcept {
    if (length == nullptr) return fail(EFAULT);
    if (static_cast<int>(*length) < 0) return fail(EINVAL);
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    if (peername(fd, reinterpret_cast<sockaddr*>(&name), &size) != 0) return -1;
    return size < *length ? fail(EINVAL) : give(&name, size, value, length);
}

int Socket::get_option(int fd, int level, int name, void* value, socklen_t* length) noexcept {
    const Path path = this->path();
    if (path == Path::kConnection || path == Path::kDatagram) {
        const KeepErrno keep;
        if (level == SOL_SOCKET && name == SO_ERROR) {
            if (const int error = take_error()) return keep.pass(give_int(error, value, length));
            if (path == Path::kConnection) return keep.pass(give_int(take_soft_error(), value, length));
        }
        // Of IPv6 the kernel takes a length as unsigned.
        if (path == Path::kConnection && level == IPPROTO_IPV6 && length != nullptr && static_cast<int>(*length) < 0) *length = INT32_MAX;
        // The kernel's half knows another way to the peer, or none.
        const bool asks_mtu = (level == IPPROTO_IP && name == IP_MTU) || (level == IPPROTO_IPV6 && name == IPV6_MTU);
        if (path == Path::kConnection && asks_mtu && !record_lost() && is_established() &&
            operate(*client_, record(), shm::Operation::kRefreshInfo, 0, {}, {}) == 0 && shared().info.path_mtu != 0)
            return keep.pass(give_int(static_cast<int>(shared().info.path_mtu), value, length));
        if (path == Path::kDatagram && asks_mtu && datagram_connected_) {
            const std::uint32_t mtu = shared().daemon.path_mtu.load(std::memory_order_relaxed);
            if (mtu != 0) return keep.pass(give_int(static_cast<int>(mtu), value, length));
        }
        if (path == Path::kConnection && level == IPPROTO_TCP && name == TCP_INFO)
            return keep.pass(copy_info(value, length));
        // The controller that the daemon really runs: with no choice made it is the daemon's default, not the kernel's.
        if (path == Path::kConnection && level == IPPROTO_TCP && name == TCP_CONGESTION && !record_lost() &&
            operate(*client_, record(), shm::Operation::kRefreshInfo, 0, {}, {}) == 0 && shared().info.congestion != 0)
            return keep.pass(give_congestion(shared().info.congestion, value, length));
        // The segment size in use; the kernel's socket, which was never connected, would say its default.
        if (path == Path::kConnection && level == IPPROTO_TCP && name == TCP_MAXSEG && !record_lost() &&
            operate(*client_, record(), shm::Operation::kRefreshInfo, 0, {}, {}) == 0 && shared().info.mss != 0)
            return keep.pass(give_int(static_cast<int>(shared().info.mss), value, length));
        // What the program has not fixed is the daemon's to tune.
        const shm::SocketOptions chosen = path == Path::kConnection ? shared().options : shm::SocketOptions{};
        if (path == Path::kConnection && level == SOL_SOCKET && name == SO_SNDBUF && chosen.send_buffer == 0)
            return keep.pass(
                give_int(static_cast<int>(shared().daemon.send_limit.load(std::memory_order_relaxed)), value, length));
        const bool asks_buffer = (level == SOL_SOCKET && name == SO_RCVBUF && chosen.receive_buffer == 0) ||
                                 (level == IPPROTO_TCP && name == TCP_WINDOW_CLAMP && chosen.window_clamp == 0);
        if (path == Path::kConnection && asks_buffer && !record_lost() &&
            operate(*client_, record(), shm::Operation::kRefreshInfo, 0, {}, {}) == 0)
            return keep.pass(give_int(static_cast<int>(shared().info.receive_buffer), value, length));
        if (path == Path::kConnection) {
            if (level == SOL_SOCKET && name == SO_PEEK_OFF)
                return keep.pass(give_int(peek_offset_.load(std::memory_order_relaxed), value, length));
            if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY)  // the half is bound to an address, which sets it
                return keep.pass(get_shared_option(level, name, value, length));
            if (level == IPPROTO_IPV6 && name == IPV6_ADDRFORM && is_established()) return keep.pass(give_int(AF_INET6, value, length));
            if (level == SOL_SOCKET && name == SO_PEERNAME) return keep.pass(give_peername(fd, value, length));
        }
        if (has_placeholder()) {
            const int result = get_shared_option(level, name, value, length);
            if (result != -2) return keep.pass(result);
        }
    }
    // What is left is the same for every socket of this kind (SO_TYPE, SO_DOMAIN ...) or the kernel half's own.
    return libc::getsockopt(fd, level, name, value, length);
}

void Socket::keep_kernel_options(int fd) noexcept {
    const auto keep = [&](int level, int name, void* value, socklen_t size) {
        if (libc::getsockopt(fd, level, name, value, &size) == 0) keep_option(level, name, value, size);
    };
    for (const IntOption& option : kIntOptions) {
        // Of these the kernel says what it would do, not what somebody has set.
        if (option.level == IPPROTO_TCP && (option.name == TCP_MAXSEG || option.name == TCP_QUICKACK)) continue;
        if (option.level == IPPROTO_IPV6 && family_ != AF_INET6) continue;
        int number = 0;
        keep(option.level, option.name, &number, sizeof number);
    }
    linger linger_time{};
    keep(SOL_SOCKET, SO_LINGER, &linger_time, sizeof linger_time);
    for (const int name : {SO_RCVTIMEO, SO_SNDTIMEO}) {
        timeval time{};
        keep(SOL_SOCKET, name, &time, sizeof time);
    }
    int low_water = 1;
    keep(SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
    int tos = 0;
    if (family_ == AF_INET)
        keep(IPPROTO_IP, IP_TOS, &tos, sizeof tos);
    else
        keep(IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof tos);
}

/// What the record keeps, set on the kernel socket that an accepted connection has got: it is asked from now on.
void Socket::repeat_options(int half) const noexcept {
    const shm::SocketOptions options = shared().options;
    const auto set = [half](int level, int name, const void* value, socklen_t size) {
        (void)::syscall(SYS_setsockopt, half, level, name, value, size);
    };
    const auto set_int = [&set](int level, int name, int value) { set(level, name, &value, sizeof value); };
    for (const IntOption& option : kIntOptions) {
        const std::uint32_t value = option.number == nullptr ? options.flags & option.flag : option.number.get(options);
        if (value != 0) set_int(option.level, option.name, option.number == nullptr ? 1 : static_cast<int>(value));
    }
    if ((options.flags & shm::kOptionNoQuickAck) != 0) set_int(IPPROTO_TCP, TCP_QUICKACK, 0);
    const linger time{(options.flags & shm::kOptionLinger) != 0 ? 1 : 0, static_cast<int>(options.linger_s)};
    if (time.l_onoff != 0) set(SOL_SOCKET, SO_LINGER, &time, sizeof time);
    for (const int name : {SO_RCVTIMEO, SO_SNDTIMEO}) {
        const timeval wait = to_timeval((name == SO_RCVTIMEO ? receive_timeout_ns_ : send_timeout_ns_).load(std::memory_order_relaxed));
        set(SOL_SOCKET, name, &wait, sizeof wait);
    }
    for (const int name : {SO_RCVBUFFORCE, SO_RCVBUF})
        if (options.receive_buffer != 0) set_int(SOL_SOCKET, name, static_cast<int>(options.receive_buffer));
    for (const int name : {SO_SNDBUFFORCE, SO_SNDBUF})
        if (options.send_buffer != 0) set_int(SOL_SOCKET, name, static_cast<int>(options.send_buffer));
    if (options.max_pacing_rate != 0) set(SOL_SOCKET, SO_MAX_PACING_RATE, &options.max_pacing_rate, sizeof options.max_pacing_rate);
    set_int(SOL_SOCKET, SO_RCVLOWAT, low_water_.load(std::memory_order_relaxed));
    if (options.congestion != 0) set(IPPROTO_TCP, TCP_CONGESTION, kCongestionNames[std::min<std::size_t>(options.congestion, 4)], 6);
    if (options.tos != 0) set_int(family_ == AF_INET6 ? int{IPPROTO_IPV6} : int{IPPROTO_IP}, family_ == AF_INET6 ? IPV6_TCLASS : IP_TOS, options.tos);
    if (options.ttl != 0)
        set_int(family_ == AF_INET6 ? int{IPPROTO_IPV6} : int{IPPROTO_IP}, family_ == AF_INET6 ? IPV6_UNICAST_HOPS : IP_TTL, options.ttl);
    if (wants(kTellsCopies)) set_int(SOL_SOCKET, SO_ZEROCOPY, 1);
    if (wants(kTellsUnread)) set_int(IPPROTO_TCP, kTcpInq, 1);
}

/// The listener's options that are in no record, on the kernel socket of a connection. What the kernel grants a listener's connections
/// without asking for privileges it asks us for: what is refused is left out.
void Socket::dress_as_listener(int half, int listener, std::uint64_t options) const noexcept {
    repeat_options(half);
    for (; options != 0; options &= options - 1) {
        const PassedOn& option = kPassedOn[__builtin_ctzll(options)];
        int value = 0;
        socklen_t length = sizeof value;
        if (libc::getsockopt(listener, option.level, option.name, &value, &length) == 0)
            (void)::syscall(SYS_setsockopt, half, option.level, option.name, &value, length);
    }
}

/// Of a listener that somebody else has made: what is not as on a fresh socket has been set.
void Socket::note_passed_on(int fd) noexcept {
    const KernelProbe fresh(family_);
    if (!fresh) return;
    std::uint64_t set = 0;
    for (std::size_t i = 0; i < std::size(kPassedOn); ++i) {
        const auto value_of = [&](int socket) {
            int value = 0;
            socklen_t length = sizeof value;
            return libc::getsockopt(socket, kPassedOn[i].level, kPassedOn[i].name, &value, &length) == 0 ? value : 0;
        };
        const std::uint64_t bit = passed_on_bit(family_, kPassedOn[i].level, kPassedOn[i].name);
        if (bit != 0 && value_of(fd) != value_of(fresh.fd())) set |= bit;
    }
    passed_on_.store(set, std::memory_order_relaxed);
}

}  // namespace culvert::preload
