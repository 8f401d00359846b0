// UDP out: the way, the source, and one datagram or many: whole, cut into datagrams (UDP_SEGMENT) or into fragments.
#include <algorithm>
#include <array>
#include <cstring>

#include "daemon/stack/udp.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "daemon/wire/udp.h"

namespace culvert::stack::udp {
namespace {

constexpr std::uint32_t kHeader = static_cast<std::uint32_t>(wire::kUdpHeaderLength);
constexpr std::uint32_t kMaxMessage = 0xffff;  // header and payload, by the length field
constexpr std::uint32_t kMaxMessageV4 = 0xffff - static_cast<std::uint32_t>(wire::kIpv4HeaderLength);
constexpr auto kUdp = static_cast<std::uint8_t>(wire::IpProtocol::kUdp);

std::uint32_t ip_header_length(bool v4) {
    return static_cast<std::uint32_t>(v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
}

/// Reads a payload front to back, each byte once: it lies in memory that the application may be changing.
class PayloadReader {
public:
    explicit PayloadReader(Payload payload) : payload_(payload) {}
    /// Copies the next out.size() bytes; they are there.
    void copy(std::span<std::byte> out, wire::ChecksumAccumulator& sum) {
        while (!out.empty()) {
            while (at_ == payload_[piece_].size()) ++piece_, at_ = 0;
            const auto from = payload_[piece_].subspan(at_, std::min(out.size(), payload_[piece_].size() - at_));
            sum.add(wire::copy_and_checksum(out, from), from.size());
            out = out.subspan(from.size());
            at_ += from.size();
        }
    }

private:
    Payload payload_;
    std::size_t piece_ = 0;
    std::size_t at_ = 0;
};

}  // namespace

/// The cached path serves if it is fresh and leads there, from the wanted address through the wanted interface.
Result<void> Udp::find_way(Socket& socket, const Endpoint& remote, const SendOptions& options, std::uint32_t interface,
                           Instant now) {
    const Address wanted = options.source.is_unspecified() ? socket.local_.address : options.source;
    if (socket.path_.interface != nullptr && socket.path_destination_ == remote.address &&
        socket.path_interface_ == interface && !output_.stale(socket.path_) &&
        (wanted.is_unspecified() ? (socket.dual_ || wanted.is_v4() == remote.address.is_v4())
                                 : wanted == socket.path_source_)) [[likely]]
        return {};
    // [RFC1122 3.3.4.2 reply] an application answers with IP_PKTINFO, or with the address that it has bound
    const Address source = TRY(source_for(socket, options.source, remote, interface));
    socket.path_ = TRY(output_.find_path(source, remote.address, now, interface));
    socket.path_source_ = source;
    socket.path_destination_ = remote.address;
    socket.path_interface_ = interface;
    return {};
}

std::uint32_t Udp::mtu_of(const Socket& socket, PathMtu rule, Instant now) {
    const bool believes = rule == PathMtu::kCut || rule == PathMtu::kObey;
    if (believes && socket.narrow_mtu_ != 0 && socket.narrow_destination_ == socket.path_destination_ &&
        now < socket.narrow_until_)
        return std::min(socket.path_.mtu, socket.narrow_mtu_);
    // Who does not believe routers must not learn from what others were told either.
    return believes || socket.path_.local ? socket.path_.mtu : socket.path_.interface->mtu;
}

std::uint32_t Udp::path_mtu(Socket& socket, const Endpoint& remote, std::uint32_t interface, Instant now) {
    if (!find_way(socket, remote, {}, interface != 0 ? interface : socket.interface_, now)) return 0;
    return mtu_of(socket, socket.options_.path_mtu, now);
}

/// [RFC1122 4.1.4 services] TTL and TOS of each datagram.
Result<void> Udp::send(Socket& socket, const Endpoint& remote, Payload payload, std::uint32_t length,
                       const SendOptions& options, Instant now) {
    const bool v4 = remote.address.is_v4();
    if (length > (v4 ? kMaxMessageV4 : kMaxMessage) - kHeader) return fail(EMSGSIZE, "datagram");
    TRY_VOID(find_way(socket, remote, options, options.interface != 0 ? options.interface : socket.interface_, now));
    Path& path = socket.path_;
    const Endpoint from{socket.path_source_, socket.local_.port};
    // A broadcast only by those who mean it
    const bool for_many = path.resolved && path.mac.is_multicast();
    const bool to_group = remote.address.is_multicast();
    if (for_many && !to_group && !options.broadcast) return fail(EACCES, "broadcast");
    // Nobody listens here, but perhaps on the kernel's socket of that port: let the application's kernel socket send it.
    if (path.local && !would_receive(remote, from) &&
        (peers_ == nullptr || !peers_->bound_elsewhere(PortOwner::Protocol::kUdp, remote))) return fail(EHOSTUNREACH, "kernel's port");

    const std::uint32_t mtu = path.local ? kMaxMessage + ip_header_length(v4) : mtu_of(socket, options.path_mtu, now);
    const Outgoing out{.path = &path,
                       .from = from,
                       .to = remote,
                       .ttl = options.ttl,
                       .tos = options.tos,
                       .rule = options.path_mtu,
                       .mtu = mtu,
                       .now = now};
    if (for_many && (!to_group || options.loop)) loop_back(out, payload, length, options.segment_size);
    if (options.stays && !path.local) return {};
    return options.segment_size == 0 ? send_one(out, payload, length)
                                     : send_segments(out, payload, length, options.segment_size);
}

/// What goes to many goes to those of them that are on this host, too.
void Udp::loop_back(const Outgoing& out, Payload payload, std::uint32_t length, std::uint32_t segment_size) {
    const DatagramInfo info{.remote = out.from, .local = out.to.address, .interface = out.path->interface->index};
    const auto heard = [&] {
        for (const Socket* s = bound_[out.to.port & (kBuckets - 1)]; s != nullptr; s = s->next_bound_)
            if (hears(*s, out.to.port, info)) return true;
        return false;
    };
    if (!heard()) return;
    Path here = *out.path;
    here.local = true;
    Outgoing looped = out;
    looped.path = &here;
    looped.mtu = kMaxMessage + ip_header_length(out.to.address.is_v4());
    // No memory for it is counted where it is noticed; the datagram itself goes out all the same.
    (void)(segment_size == 0 ? send_one(looped, payload, length) : send_segments(looped, payload, length, segment_size));
}

Result<void> Udp::send_one(const Outgoing& out, Payload payload, std::uint32_t length) {
    if (ip_header_length(out.to.address.is_v4()) + kHeader + length <= out.mtu) [[likely]] {
        PayloadReader reader(payload);
        return send_whole(out, reader, length);
    }
    if (out.rule != PathMtu::kCut) return fail(EMSGSIZE, "path MTU");
    return send_fragments(out, payload, length);
}

/// As Linux: no more than kMaxSegments, none of them in fragments.
Result<void> Udp::send_segments(const Outgoing& out, Payload payload, std::uint32_t length, std::uint32_t size) {
    if (length > size * kMaxSegments) return fail(EINVAL, "segments");
    if (ip_header_length(out.to.address.is_v4()) + kHeader + std::min(size, length) > out.mtu)
        return fail(EMSGSIZE, "segment");
    PayloadReader reader(payload);
    std::uint32_t at = 0;
    do {
        const std::uint32_t here = std::min(size, length - at);
        TRY_VOID(send_whole(out, reader, here));
        at += here;
    } while (at < length);
    return {};
}

template <class Reader>
Result<void> Udp::send_whole(const Outgoing& out, Reader& reader, std::uint32_t length) {
    TxPacket packet;
    std::uint32_t offset = 0;
    bool begun = false;
    if (out.rule == PathMtu::kObey || out.rule == PathMtu::kProbe) {
        begun = output_.begin(*out.path, out.from.address, out.to.address, kUdp, out.tos, out.ttl, kHeader + length,
                              packet, offset);
    } else {
        // Not DF: a router with a smaller MTU may cut it, so no path discovery is needed over IPv4.
        const Fragment whole{.identification = next_identification_++, .offset = 0, .more = false};
        begun = output_.begin_fragment(*out.path, out.from.address, out.to.address, kUdp, out.tos, out.ttl, whole,
                                       kHeader + length, packet, offset);
    }
    if (!begun) return fail(ENOBUFS, "frames");
    const auto header = packet.fragments[0].subspan(offset, wire::kUdpHeaderLength);
    wire::emit(wire::UdpHeader{.source = out.from.port, .destination = out.to.port}, length, header);

    PacketWriter writer(packet, offset + kHeader);
    wire::ChecksumAccumulator sum;
    while (length != 0) {
        const std::size_t here = std::min<std::size_t>(length, writer.room().size());
        reader.copy(writer.room().first(here), sum);
        writer.advance(here);
        length -= static_cast<std::uint32_t>(here);
    }
    // [RFC1122 4.1.3.4 checksum, default]
    // [RFC1122 4.1.3.4 none left out] it costs nothing while the payload is copied
    wire::finish_udp_checksum(header, sum.sum(), out.from.address, out.to.address);
    ++counters_.udp_out;
    output_.end(*out.path, packet, out.now);
    return {};
}

Result<void> Udp::send_fragments(const Outgoing& out, Payload payload, std::uint32_t length) {
    // The checksum stands in the first fragment but covers all of them, and the application's memory may change while it
    // is read: one pass makes the whole message in our own memory.
    const auto message = std::span(scratch_).first(kHeader + length);
    wire::emit(wire::UdpHeader{.source = out.from.port, .destination = out.to.port}, length, message);
    wire::ChecksumAccumulator sum;
    PayloadReader(payload).copy(message.subspan(kHeader), sum);
    wire::finish_udp_checksum(message.first(kHeader), sum.sum(), out.from.address, out.to.address);

    // [RFC791 3.2] [RFC8200 4.5] every fragment but the last carries a multiple of 8 bytes
    const bool v4 = out.to.address.is_v4();
    const std::uint32_t headers =
        ip_header_length(v4) + static_cast<std::uint32_t>(v4 ? 0 : wire::kIpv6FragmentHeaderLength);
    if (out.mtu < headers + 8) return fail(EMSGSIZE, "MTU");
    const std::uint32_t step = (out.mtu - headers) & ~7u;
    const std::uint32_t identification = next_identification_++;
    const auto total = static_cast<std::uint32_t>(message.size());
    for (std::uint32_t sent = 0; sent < total; sent += step) {
        const std::uint32_t here = std::min(step, total - sent);
        TxPacket packet;
        std::uint32_t offset = 0;
        if (!output_.begin_fragment(*out.path, out.from.address, out.to.address, kUdp, out.tos, out.ttl,
                                    {identification, sent, sent + here < total}, here, packet, offset))
            return fail(ENOBUFS, "frames");
        PacketWriter writer(packet, offset);
        writer.write(std::span<const std::byte>(message).subspan(sent, here));
        output_.end(*out.path, packet, out.now);
    }
    ++counters_.udp_out;
    return {};
}

}  // namespace culvert::stack::udp
