#include "daemon/stack/stack.h"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "daemon/base/prefetch.h"
#include "daemon/stack/forward.h"
#include "daemon/stack/icmp.h"
#include "daemon/stack/icmp_output.h"
#include "daemon/stack/ip_input.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/link/link_layer.h"
#include "daemon/stack/link/link_sync.h"
#include "daemon/stack/peers.h"
#include "daemon/stack/raw.h"
#include "daemon/stack/reassembly.h"
#include "daemon/stack/source_address.h"
#include "daemon/stack/tcp/segment_run.h"
#include "daemon/stack/tcp/tcp.h"
#include "daemon/stack/udp.h"
#include "daemon/stack/usage.h"
#include "daemon/wire/checksum.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"

namespace culvert::stack {

/// The modules and how they are joined. Members are made in the order in which they need each other.
class StackImpl final : public UnresolvedObserver, public Reassembly::Observer, public AddressUser {
public:
    StackImpl(const StackConfig& config, NeighborResolver& resolver, PortOwner& ports, Counters& counters, Rng& rng,
              Peers* peers)
        : counters_(counters),
          peers_(peers),
          link_sync_(resolver, peers, counters),
          neighbors_(link_sync_, counters),
          output_(routes_, neighbors_, counters),
          ip_input_(output_.local_addresses()),
          icmp_output_(output_, counters, rng, config.secret),
          reassembly_({.datagrams = config.max_ip_reassemblies, .chunks = config.ip_reassembly_chunks}, config.secret,
                      counters),
          forwarder_(output_, routes_, neighbors_, icmp_output_, counters),
          own_link_(neighbors_, routes_, counters, rng, *this, config.secret, config.stable_secret),
          tcp_(config, output_, ports, counters, rng, peers),
          udp_(config, output_, ports, counters, rng, peers),
          raw_(output_, counters, rng) {
        output_.set_default_ttl(config.default_ttl);
        neighbors_.set_observer(this);
        set_link_protocols(&own_link_);
        udp_.set_groups(&own_link_.groups());
        raw_.set_groups(&own_link_.groups());
        link_sync_.attach(neighbors_, own_link_, *this);
    }
    ~StackImpl() override { neighbors_.set_observer(nullptr); }

    void set_link_protocols(LinkProtocols* link) {
        link_ = link;
        ip_input_.set_link_protocols(link);
    }

    // --- the world ---------------------------------------------------------------------------------------------------
    Interface& add_interface(Interface interface) {
        CHECK(output_.interface_by_index(interface.index) == nullptr);
        interfaces_.push_back(std::make_unique<Interface>(std::move(interface)));
        interfaces_changed();
        Interface& added = *interfaces_.back();
        if (added.resolves_itself) link_sync_.add_interface(added);
        if (added.resolves_itself && !added.follows()) own_link_.add_interface(added, now_);
        return added;
    }
    /// Interfaces only come, they never go: connections and paths point to them.
    Interface& interface(std::uint32_t index) {
        Interface* const found = output_.interface_by_index(index);
        CHECK(found != nullptr);
        return *found;
    }
    void interfaces_changed() {
        std::vector<Interface*> all;
        for (const auto& each : interfaces_) all.push_back(each.get());
        output_.set_interfaces(all);
        ip_input_.set_interfaces(all);
        routes_.touch();
    }

    /// The link layer has got an address, or has lost one.
    void on_addresses_changed(Interface& interface) override {
        interfaces_changed();
        link_sync_.addresses_changed(interface);
    }

    // --- the turn ----------------------------------------------------------------------------------------------------
    void input(Interface& interface, const RxPacket& packet, bool from_ourselves, Instant now) {
        if (peers_ != nullptr && is_for_many(packet)) [[unlikely]] {
            if (!spread(interface, packet, from_ourselves)) return;
        }
        if (forwarder_.enabled() && !from_ourselves) [[unlikely]] {
            if (forwarder_.forward(interface, packet, now)) return;
        }
        const auto ip = ip_input_.accept(interface, packet, from_ourselves);
        if (!ip) [[unlikely]]
            return not_accepted(ip.error(), interface, packet, now);
        deliver(*ip, now);
    }
    /// In groups: while one is worked on, the headers of the next are on their way, and before its turn comes, what they
    /// point to is.
    void input(Interface& interface, std::span<const RxPacket> burst, Instant now) {
        constexpr std::size_t kGroup = 16;
        static_assert(kGroup <= Forwarder::kAhead && kGroup <= tcp::Tcp::kAhead && kGroup <= kMaxFragments);
        expect_headers(burst.first(std::min(kGroup, burst.size())));
        while (!burst.empty()) {
            const auto group = burst.first(std::min(kGroup, burst.size()));
            burst = burst.subspan(group.size());
            expect_headers(burst.first(std::min(kGroup, burst.size())));
            if (group.size() > 1) {
                if (forwarder_.enabled()) [[unlikely]]
                    forwarder_.expect(group);
                tcp_.expect(group);
            }
            // Whoever looks at each packet as it came wants none that were merged.
            const bool merges = !forwarder_.enabled() && !raw_.wants(static_cast<std::uint8_t>(wire::IpProtocol::kTcp));
            for (std::size_t i = 0; i < group.size();) {
                if (merges && i + 1 < group.size() && tcp::SegmentRun::likely(group[i], group[i + 1]))
                    i += input_run(interface, group.subspan(i), now);
                else
                    input(interface, group[i++], false, now);
            }
        }
    }
    /// frames[0], and with it what continues it. Returns how many frames that were.
    std::size_t input_run(Interface& interface, std::span<const RxPacket> frames, Instant now) {
        RxPacket whole = frames[0];
        auto ip = ip_input_.accept(interface, whole, false);
        if (ip && ip->protocol == static_cast<std::uint8_t>(wire::IpProtocol::kTcp) && ip->cast == Cast::kUnicast)
            return tcp_.input_run(*ip, whole, frames, now);
        input(interface, frames[0], false, now);
        return 1;
    }
    /// Ethernet to TCP is a line and a bit.
    static void expect_headers(std::span<const RxPacket> packets) {
        for (const RxPacket& packet : packets) {
            prefetch_line(packet.head.data());
            prefetch_line(packet.head.data() + 64);
        }
    }
    /// A whole packet for us, to whom its protocol says.
    void deliver(const IpPacket& ip, Instant now) {
        if (ip.cast == Cast::kMulticast && !is_wanted(ip)) [[unlikely]]
            return counters_.drop(Drop::kIpGroupNotJoined);
        if (raw_.wants(ip.protocol)) [[unlikely]]
            raw_.input(ip, now);
        switch (static_cast<wire::IpProtocol>(ip.protocol)) {
            case wire::IpProtocol::kTcp:
                // [RFC9293 3.9.2.3 MUST-57] [RFC1122 4.2.3.10] a connection has one peer
                if (ip.cast != Cast::kUnicast) [[unlikely]]
                    return counters_.drop(Drop::kTcpNotUnicast);
                return tcp_.input(ip, now);
            case wire::IpProtocol::kUdp:
                if (!udp_.input(ip, now)) icmp_output_.port_unreachable(ip, now);  // for dedicated addresses
                return;
            case wire::IpProtocol::kIcmp:
            case wire::IpProtocol::kIcmpv6: return icmp_input(ip, now);
            case wire::IpProtocol::kIgmp:
                if (ip.interface.follows()) return peers_->pass_to_link(ip.interface.link_engine, ip.interface, ip.packet);
                if (link_ != nullptr && ip.destination.is_v4()) return link_->igmp(ip, now);
                [[fallthrough]];
            default:
                // [RFC1122 3.2.2.1] a raw socket may be what speaks the protocol
                if (raw_.wants(ip.protocol)) return;
                icmp_output_.protocol_unreachable(ip, now);
                return counters_.drop(Drop::kIpProtocolUnknown);
        }
    }
    /// [RFC3376 3.2] [RFC3810 4.2] a group that others have joined is heard from those sources alone that one of them wants,
    /// but for what the link's own protocols say
    [[gnu::cold]] bool is_wanted(const IpPacket& ip) const {
        const auto protocol = static_cast<wire::IpProtocol>(ip.protocol);
        if (protocol == wire::IpProtocol::kIgmp || link_ == nullptr) return true;
        if (protocol == wire::IpProtocol::kIcmpv6 && ip.destination.family() == Family::kIpv6) {
            const auto message =
                wire::IcmpView::parse(Family::kIpv6, ip.packet.head.subspan(ip.transport_offset), ip.transport_length);
            if (!message || message->is_link_control()) return true;
        }
        return link_->accepts_source(ip.interface, ip.destination, ip.source);
    }
    /// [RFC1122 3.1 log left out] a flood would fill the disk: drops are counted by name, and pcap shows the packets
    /// Frames that are no whole IP packet for us: some of them are somebody's all the same.
    [[gnu::cold]] void not_accepted(Drop drop, Interface& interface, const RxPacket& packet, Instant now) {
        switch (drop) {
            case Drop::kEtherTypeUnknown:
            case Drop::kIpFragment:
            case Drop::kIpv4Options:
            case Drop::kIpv6ExtensionHeader:
            case Drop::kIpv6Truncated: break;
            default: return counters_.drop(drop);
        }
        const auto frame = ip_input_.accept_link(interface, packet);
        if (!frame) return counters_.drop(drop);
        if (drop == Drop::kIpFragment) return fragment(interface, *frame, packet, now);
        if (frame->type == wire::EtherType::kArp && link_ != nullptr) {
            if (frame->interface->follows()) return peers_->pass_to_link(frame->interface->link_engine, interface, packet);
            return link_->arp(*frame->interface, packet, frame->offset, now);
        }
        if (drop != Drop::kEtherTypeUnknown) tell_header_problem(*frame, packet, now);
        counters_.drop(drop);
    }
    static bool is_for_many(const RxPacket& packet) { return (std::to_integer<unsigned>(packet.head[0]) & 1) != 0; }
    /// A frame for many goes to every engine, but what is the link's business to the one that runs it. False: it is gone.
    [[gnu::cold]] bool spread(const Interface& interface, const RxPacket& packet, bool from_ourselves) {
        if (interface.resolves_itself && !from_ourselves && is_link_business(packet.head)) {
            if (!interface.follows()) return true;
            peers_->pass_to_link(interface.link_engine, interface, packet);
            return false;
        }
        peers_->copy_to_all(interface, packet, from_ourselves);
        return true;
    }
    /// A packet for one host that concerns each engine, or nobody knows which. One for many has been copied before.
    void copy_to_each(const IpPacket& ip) {
        if (peers_ == nullptr || is_for_many(ip.packet)) return;
        peers_->copy_to_all(ip.interface, ip.packet, output_.is_local(ip.source));
    }
    void fragment(Interface& interface, const LinkFrame& frame, const RxPacket& packet, Instant now) {
        const auto part = ip_input_.read_fragment(frame, packet);
        if (!part) return counters_.drop(part.error());
        // The fragments of one datagram may come by several queues. Those for many are with every engine already.
        if (peers_ != nullptr && part->dedicated && !is_for_many(packet) &&
            peers_->pass_to_reassembly(reassembly_.hash_of(*part), interface, packet))
            return;
        const auto whole = reassembly_.add(*part, now);
        if (!whole) {
            if (part->dedicated && !part->destination.is_v4()) tell_fragment_problem(frame, packet, *part, whole.error(), now);
            return counters_.drop(whole.error());
        }
        if (*whole == nullptr) return;
        ++counters_.ip_reassembled;
        if (peers_ != nullptr) peers_->look_again();  // the whole is another packet than its last fragment
        input(*part->interface, **whole, false, now);
        reassembly_.release();
    }
    /// [RFC8200 4.5] the sender of an impossible fragment is told which field is wrong.
    void tell_fragment_problem(const LinkFrame& frame, const RxPacket& packet, const FragmentPart& part, Drop drop,
                               Instant now) {
        std::uint32_t pointer = 0;
        if (drop == Drop::kIpFragmentMalformed) {
            pointer = 4;  // the payload length
        } else if (drop == Drop::kIpFragmentTooLong) {
            const auto header = static_cast<std::uint32_t>(wire::kIpv6FragmentHeaderLength);
            pointer = part.data_offset - frame.offset - header + 2;  // the fragment offset
        } else {
            return;
        }
        icmp_output_.error(packet, frame.offset, part.destination,
                           {wire::icmp_v6::kParameterProblem, wire::icmp_v6::kHeaderField, pointer}, now);
    }
    /// Options and extension headers that were refused, of packets for addresses that are ours alone.
    void tell_header_problem(const LinkFrame& frame, const RxPacket& packet, Instant now) {
        const auto verdict = ip_input_.judge_header(frame, packet);
        if (verdict.drop != Drop::kNone || !verdict.dedicated) return;
        const auto head = packet.head.subspan(frame.offset);
        if (frame.type == wire::EtherType::kIpv6) {
            const auto problem = wire::find_ipv6_problem(head, packet.length - frame.offset);
            if (!problem.tell || (verdict.cast != Cast::kUnicast && !problem.even_group)) return;
            return icmp_output_.error(packet, frame.offset, Address::any(Family::kIpv6),
                                      {wire::icmp_v6::kParameterProblem, problem.code, problem.pointer}, now);
        }
        const std::size_t header = std::size_t{wire::load_8(head.data()) & 0x0fu} * 4;
        if (header > head.size() || verdict.cast != Cast::kUnicast) return;
        std::size_t at = 0;
        const auto options = head.subspan(wire::kIpv4HeaderLength, header - wire::kIpv4HeaderLength);
        wire::check_ipv4_options(options, &at);
        const std::uint8_t kind = wire::load_8(options.data() + at);
        // [RFC1122 3.2.2.5 generate] [RFC792] the pointer says where the options are malformed
        wire::IcmpHeader answer{wire::icmp_v4::kParameterProblem, 0,
                                static_cast<std::uint32_t>(wire::kIpv4HeaderLength + at) << 24};
        // [RFC1122 3.3.5 refused]
        if (kind == wire::kLooseSourceRoute || kind == wire::kStrictSourceRoute)
            answer = {wire::icmp_v4::kDestinationUnreachable, wire::icmp_v4::kSourceRouteFailed, 0};  // [RFC7126 4.3, 4.4]
        icmp_output_.error(packet, frame.offset, Address::any(Family::kIpv4), answer, now);
    }
    void on_timeout(Interface&, bool dedicated, std::span<const std::byte> quote, Instant now) override {
        // [RFC792] [RFC1122 3.3.2 timeout] [RFC4443 3.3] only who has seen the first fragment can be answered
        if (!dedicated || quote.empty()) return;
        const RxPacket packet{.head = quote, .rest = {}, .length = static_cast<std::uint32_t>(quote.size())};
        const bool v4 = (wire::load_8(quote.data()) >> 4) == 4;
        icmp_output_.error(packet, 0, Address::any(v4 ? Family::kIpv4 : Family::kIpv6),
                           {v4 ? wire::icmp_v4::kTimeExceeded : wire::icmp_v6::kTimeExceeded,
                            v4 ? wire::icmp_v4::kReassemblyTimeExceeded : wire::icmp_v6::kReassemblyTimeExceeded, 0},
                           now);
    }
    void icmp_input(const IpPacket& ip, Instant now) {
        const Family family = ip.destination.family();
        const auto protocol = family == Family::kIpv4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6;
        if (static_cast<wire::IpProtocol>(ip.protocol) != protocol) return counters_.drop(Drop::kIpProtocolUnknown);
        const auto message =
            wire::IcmpView::parse(family, ip.packet.head.subspan(ip.transport_offset), ip.transport_length);
        if (!message) return counters_.drop(message.error());
        if (!wire::verify_transport_checksum(ip.packet, ip.transport_offset, ip.transport_length, ip.source,
                                             ip.destination, protocol))
            return counters_.drop(Drop::kIcmpChecksum);
        if (message->is_error()) return report(read_icmp_error(ip, output_.local_addresses()), &ip, now);
        if (message->is_link_control() && link_ != nullptr) {
            if (ip.interface.follows()) return peers_->pass_to_link(ip.interface.link_engine, ip.interface, ip.packet);
            return link_->icmpv6(ip, message->type(), now);
        }
        if (message->is_echo_reply()) {
            // [RFC1122 3.2.2.6 pass, client]
            if (raw_.echo_reply(ip, now)) return;
            copy_to_each(ip);  // a ping socket of another engine may wait for it
        }
        if (message->is_echo_request() && ip.dedicated) return icmp_output_.echo_reply(ip, now);
        // [RFC1122 3.2.2 unknown] [RFC1122 3.2.2.7 information] silently
        // [RFC1122 3.2.2.2 update, both, illegal left out] not over IPv4: anybody on the way can forge one. Where
        // routes are the kernel's, it hears them itself and decides; over IPv6 see RouterDiscovery [RFC4861 8.3].
        // [RFC1122 3.3.1.2 same left out] as no redirect of IPv4 is followed
        // [RFC1122 3.2.2.8 timestamp left out] it tells strangers our clock (CVE-1999-0524)
        // [RFC1122 3.2.2.9 mask left out] deprecated [RFC6918 2.3]
        counters_.drop(Drop::kIcmpIgnored);
    }
    void advance(Instant now) {
        now_ = now;
        own_link_.advance(now);
        neighbors_.advance(now);
        reassembly_.advance(now, *this);
        output_.advance(now);
        tcp_.advance(now);
        deliver_local(now);
    }
    /// A handshake between two of our own sockets takes three packets, a request and its answer two: with a few rounds
    /// they are done in one turn. What is left (two sockets that talk without end) waits for the next.
    void flush(Instant now) {
        now_ = now;
        link_sync_.flush();
        tcp_.flush(now);
        for (int round = 0; round < kLocalRounds && !output_.local_packets().empty(); ++round) {
            deliver_local(now);
            tcp_.flush(now);
        }
    }
    Instant next_deadline() const {
        if (!output_.local_packets().empty() || link_sync_.waiting()) return Instant::min();
        return std::min({tcp_.next_deadline(), neighbors_.next_deadline(), reassembly_.next_deadline(),
                         output_.next_deadline(), own_link_.next_deadline()});
    }

    void on_unresolved(std::span<const std::byte> ip_packet) override {
        if (forwarder_.enabled() && forwarder_.tell_unresolved(ip_packet, now_)) return;
        report(unresolved_error(ip_packet), nullptr, now_);
    }

    /// [RFC9293 3.9.1.1 MUST-44] asked before a SYN is sent
    Result<Address> source_for(const Endpoint& destination) const {
        const Hop hop = TRY(output_.find_hop(Address::any(destination.address.family()), destination.address));
        if (hop.local) {
            if (!tcp_.is_listening(destination) &&
                (peers_ == nullptr || !peers_->bound_elsewhere(PortOwner::Protocol::kTcp, destination)))
                return fail(EHOSTUNREACH, "kernel's port");
            return destination.address;
        }
        if (hop.preferred_source && output_.is_local(*hop.preferred_source)) return *hop.preferred_source;
        const auto chosen = choose_source(*hop.interface, destination.address);
        if (!chosen) return fail(ENETUNREACH, "no source");
        return *chosen;
    }

    Result<udp::Route> route_datagram(const udp::Socket* socket, const Endpoint& remote, std::uint32_t interface) const {
        const Address& to = remote.address;
        const Address from_loopback = socket != nullptr && socket->local().address.is_loopback() ? socket->local().address
                                                                                                 : Address::any(to.family());
        const Hop hop = TRY(output_.find_hop(from_loopback, to, interface));
        if (hop.local) {
            const Endpoint from{to, socket != nullptr ? socket->local().port : Port{0}};
            if (!udp_.would_receive(remote, from) &&
                (peers_ == nullptr || !peers_->bound_elsewhere(PortOwner::Protocol::kUdp, remote)) &&
                !output_.local_addresses().match(to)->dedicated)
                return fail(EHOSTUNREACH, "kernel's port");
            return udp::Route{.source = to, .mtu = IpOutput::kLocalMtu};
        }
        const bool broadcast = to.is_broadcast() || output_.local_addresses().directed_broadcast_of(to) != nullptr;
        if ((broadcast || to.is_multicast()) && !hop.interface->resolves_itself)
            return fail(EHOSTUNREACH, "kernel's groups");
        udp::Route route{.source = {}, .mtu = hop.interface->mtu, .broadcast = broadcast};
        const auto chosen = choose_source(*hop.interface, to);
        if (hop.preferred_source && output_.is_local(*hop.preferred_source)) {
            route.source = *hop.preferred_source;
        } else if (chosen) {
            route.source = *chosen;
        } else {
            return fail(ENETUNREACH, "no source");
        }
        return route;
    }
    bool raw_can_bind(const Address& local) const {
        if (!local.is_unspecified()) {
            const LocalAddress* const found = output_.local_addresses().match(local);
            return found != nullptr && found->dedicated;
        }
        for (const auto& each : interfaces_) {
            if (each->resolves_itself) return true;
            for (const InterfaceAddress& own : each->addresses)
                if (own.dedicated && own.address.family() == local.family()) return true;
        }
        return false;
    }
    Result<udp::Route> route_raw(const Address& remote, std::uint32_t interface) const {
        const Hop hop = TRY(output_.find_hop(Address::any(remote.family()), remote, interface));
        udp::Route route{.source = remote, .mtu = IpOutput::kLocalMtu};
        if (!hop.local) {
            const auto chosen = choose_source(*hop.interface, remote);
            const bool preferred = hop.preferred_source && output_.is_local(*hop.preferred_source);
            if (!preferred && !chosen) return fail(ENETUNREACH, "no source");
            route = {.source = preferred ? *hop.preferred_source : *chosen,
                     .mtu = hop.interface->mtu_of(remote.family()),
                     .broadcast = remote.is_broadcast() ||
                                  output_.local_addresses().directed_broadcast_of(remote) != nullptr};
        }
        if (!raw_can_bind(route.source)) return fail(EHOSTUNREACH, "kernel's protocols");
        return route;
    }
    Result<void> change_group(udp::Socket& socket, udp::GroupChange change, std::uint32_t interface,
                              const Address& group, const Address& source) {
        const Hop hop = TRY(output_.find_hop(Address::any(group.family()), group, interface));
        if (!hop.interface->resolves_itself) return fail(EOPNOTSUPP, "kernel's groups");
        return udp_.change_group(socket, change, hop.interface->index, group, source);
    }

private:
    friend class Stack;
    static constexpr int kLocalRounds = 4;
    static constexpr std::size_t kLocalBurst = 256;  // packets to ourselves in one round

    /// [RFC1122 3.2.2 demultiplex] [RFC1122 3.2.2.1 pass] [RFC1122 3.2.2.4 pass] [RFC1122 3.2.2.5 pass]
    /// `message` null: nobody has sent one, a packet of ours was given up (and counted). Then nothing else is dropped when the
    /// error concerns nobody.
    void report(const std::expected<IcmpError, Drop>& error, const IpPacket* message, Instant now) {
        if (!error) {
            if (message != nullptr) counters_.drop(error.error());
            return;
        }
        const bool believed = error->protocol == wire::IpProtocol::kUdp ? udp_.icmp_error(*error, message, now)
                                                                        : tcp_.icmp_error(*error, message, now);
        if (believed && error->next_hop_mtu != 0) output_.learn_path_mtu(error->remote.address, error->next_hop_mtu, now);
    }

    /// Feeds what we sent to ourselves back in, oldest first. Answers go to the end of the same queue, which never grows
    /// beyond its reservation, so references into it hold.
    void deliver_local(Instant now) {
        auto& waiting = output_.local_packets();
        const std::size_t count = std::min(waiting.size(), kLocalBurst);
        for (std::size_t i = 0; i < count; ++i) {
            auto& [interface, packet] = waiting[i];
            std::array<std::span<const std::byte>, kMaxFragments> rest;
            for (std::uint32_t f = 1; f < packet.count; ++f) rest[f - 1] = packet.fragments[f];
            const RxPacket received{.head = packet.fragments[0],
                                    .rest = std::span(rest).first(packet.count - 1),
                                    .length = packet.length,
                                    .checksum = ChecksumState::kVerified};  // it never left our memory
            input(*interface, received, true, now);
            interface->tx->abandon(packet);
        }
        waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(count));
    }

    Counters& counters_;
    Peers* const peers_;  // null: the only engine
    std::vector<std::unique_ptr<Interface>> interfaces_;
    RouteTable routes_;
    LinkSync link_sync_;  // whom the neighbours' table asks
    NeighborTable neighbors_;
    IpOutput output_;
    IpInput ip_input_;
    IcmpOutput icmp_output_;
    Reassembly reassembly_;
    Forwarder forwarder_;
    LinkLayer own_link_;  // of interfaces with dedicated addresses; before those whose sockets join groups
    tcp::Tcp tcp_;
    udp::Udp udp_;
    raw::Raw raw_;
    LinkProtocols* link_ = nullptr;  // own_link_, unless a test stands in for it
    Instant now_{};  // of the last turn, for what commands of the control thread set off
};

Stack::Stack(const StackConfig& config, NeighborResolver& resolver, PortOwner& ports, Counters& counters, Rng& rng,
             Peers* peers)
    : impl_(std::make_unique<StackImpl>(config, resolver, ports, counters, rng, peers)) {}
Stack::~Stack() = default;

Interface& Stack::add_interface(Interface interface) { return impl_->add_interface(std::move(interface)); }

void Stack::set_interface_state(std::uint32_t index, bool up, std::uint32_t mtu) {
    Interface& interface = impl_->interface(index);
    if (interface.up == up && interface.mtu == mtu) return;
    const bool came_up = up && !interface.up;
    interface.up = up;
    interface.mtu = mtu;
    impl_->interfaces_changed();
    if (came_up && interface.link != nullptr) impl_->own_link_.came_up(interface, impl_->now_);
}

void Stack::set_mac(std::uint32_t index, const MacAddress& mac) {
    Interface& interface = impl_->interface(index);
    if (interface.mac == mac) return;
    interface.mac = mac;
    impl_->interfaces_changed();
    if (interface.link != nullptr) impl_->own_link_.mac_changed(interface, impl_->now_);
}

void Stack::set_addresses(std::uint32_t index, std::vector<InterfaceAddress> addresses) {
    Interface& interface = impl_->interface(index);
    if (interface.follows()) return;  // whoever runs the link says which of them are ours, and when
    if (interface.link != nullptr) return impl_->own_link_.configure(interface, addresses, impl_->now_);
    interface.addresses = std::move(addresses);
    impl_->interfaces_changed();
}

void Stack::set_link_protocols(LinkProtocols* link) {
    impl_->set_link_protocols(link != nullptr ? link : &impl_->own_link_);
}
void Stack::set_forwarding(bool on, bool reverse_path_check) { impl_->forwarder_.enable(on, reverse_path_check); }

void Stack::set_address_observer(AddressObserver* observer) { impl_->own_link_.set_observer(observer); }
MulticastGroups& Stack::groups() { return impl_->own_link_.groups(); }

RouteTable& Stack::routes() { return impl_->routes_; }
NeighborTable& Stack::neighbors() { return impl_->neighbors_; }
bool Stack::is_local(const Address& address) const { return impl_->output_.is_local(address); }
bool Stack::is_dedicated(const Address& address) const {
    const Interface* const owner = impl_->output_.local_addresses().owner(address);
    return owner != nullptr && std::ranges::any_of(owner->addresses, [&](const InterfaceAddress& own) {
               return own.dedicated && own.address == address;
           });
}

void Stack::input(Interface& interface, const RxPacket& packet, Instant now) {
    impl_->now_ = now;
    impl_->input(interface, packet, false, now);
}
void Stack::input(Interface& interface, std::span<const RxPacket> burst, Instant now) {
    impl_->now_ = now;
    impl_->input(interface, burst, now);
}
void Stack::input_passed(Interface& interface, const RxPacket& packet, bool from_ourselves, Instant now) {
    impl_->now_ = now;
    impl_->input(interface, packet, from_ourselves, now);
}
void Stack::link_message(Interface& interface, std::span<const std::byte> message, Instant now) {
    impl_->link_sync_.receive(interface, message, now);
}
void Stack::advance(Instant now) { impl_->advance(now); }
void Stack::flush(Instant now) { impl_->flush(now); }
Instant Stack::next_deadline() const { return impl_->next_deadline(); }
StackUsage Stack::usage() const {
    return {.tcp = impl_->tcp_.usage(),
            .udp_sockets = impl_->udp_.sockets(),
            .ip_reassemblies = impl_->reassembly_.datagrams(),
            .ip_reassembly_free = impl_->reassembly_.free_chunks(),
            .local_packets = static_cast<std::uint32_t>(impl_->output_.local_packets().size())};
}

Result<Address> Stack::source_for(const Endpoint& destination) const { return impl_->source_for(destination); }

Result<tcp::Listener*> Stack::listen(const Endpoint& local, bool dual, const tcp::ListenerOptions& options,
                                     tcp::ListenerOwner& owner) {
    return impl_->tcp_.listen(local, dual, options, owner);
}
tcp::ListenerOwner* Stack::heir_of(const tcp::Listener& listener) const { return impl_->tcp_.heir_of(listener); }
void Stack::close(tcp::Listener& listener) { impl_->tcp_.close(listener); }

Result<tcp::Connection*> Stack::connect(const Endpoint& local, const Endpoint& remote, const tcp::Options& options,
                                        tcp::ConnectionOwner& owner, Instant now) {
    impl_->now_ = now;
    return impl_->tcp_.connect(local, remote, options, owner, now);
}

Port Stack::port_for(const Address& local, const Endpoint& remote, Instant now) { return impl_->tcp_.port_for(local, remote, now); }

Result<void> Stack::probe_dead_flow(const Endpoint& local, const Endpoint& remote, Instant now) {
    impl_->now_ = now;
    return impl_->tcp_.probe_dead_flow(local, remote, now);
}

Result<udp::Socket*> Stack::bind_udp(const Endpoint& local, bool dual, udp::SocketOwner& owner,
                                     std::uint32_t interface) {
    return impl_->udp_.bind(local, dual, owner, interface);
}
void Stack::connect_udp(udp::Socket& socket, const Endpoint* remote, std::uint32_t interface) {
    impl_->udp_.connect(socket, remote, interface);
}
void Stack::set_options(udp::Socket& socket, const udp::SocketOptions& options) {
    impl_->udp_.set_options(socket, options);
}
void Stack::set_groups(MulticastGroups* groups) { impl_->udp_.set_groups(groups); }
Result<void> Stack::change_group(udp::Socket& socket, udp::GroupChange change, std::uint32_t interface,
                                 const Address& group, const Address& source) {
    return impl_->change_group(socket, change, interface, group, source);
}
Result<udp::Route> Stack::route_datagram(const udp::Socket* socket, const Endpoint& remote,
                                         std::uint32_t interface) const {
    return impl_->route_datagram(socket, remote, interface);
}
void Stack::close(udp::Socket& socket) { impl_->udp_.close(socket); }
void Stack::yield_port(udp::Socket& socket) { impl_->udp_.yield_port(socket); }

Result<void> Stack::send_datagram(udp::Socket& socket, const Endpoint& remote, Payload payload, std::uint32_t length,
                                  const udp::SendOptions& options, Instant now) {
    impl_->now_ = now;
    return impl_->udp_.send(socket, remote, payload, length, options, now);
}
std::uint32_t Stack::path_mtu(udp::Socket& socket, const Endpoint& remote, std::uint32_t interface, Instant now) {
    return impl_->udp_.path_mtu(socket, remote, interface, now);
}

Result<void> Stack::change_group(raw::Socket& socket, udp::GroupChange change, std::uint32_t interface,
                                 const Address& group, const Address& source) {
    const Hop hop = TRY(impl_->output_.find_hop(Address::any(group.family()), group, interface));
    if (!hop.interface->resolves_itself) return fail(EOPNOTSUPP, "kernel's groups");
    return impl_->raw_.change_group(socket, change, hop.interface->index, group, source);
}
raw::Raw& Stack::raw_sockets() { return impl_->raw_; }
bool Stack::raw_can_bind(const Address& local) const { return impl_->raw_can_bind(local); }
Result<udp::Route> Stack::route_raw(const Address& remote, std::uint32_t interface) const {
    return impl_->route_raw(remote, interface);
}

}  // namespace culvert::stack
