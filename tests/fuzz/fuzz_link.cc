// ARP, neighbour discovery, IGMP, MLD and routers' announcements into an interface of dedicated addresses that configures
// itself, with a VLAN on it, while sockets send, join and leave.
//
// The input is a list of steps (see World::step). Messages are made whole and right and then bent as the input says, with
// their checksums put right again; one kind of step answers truly what the stack asked last.
//
// What must hold: what leaves is ours (our MAC, our addresses) and obeys the rules that are demanded of others (hop limit
// 255 of neighbour discovery, 1 of group membership); what comes from beyond the link is not believed; nobody is learned
// who neither asked us nor was asked; tables stay within their bounds; every frame is counted, and dropped no more than
// once; and when all waits are over every frame is back.
#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "daemon/stack/link/address_configuration.h"
#include "daemon/stack/link/neighbor_prober.h"
#include "daemon/stack/link/router_discovery.h"
#include "daemon/stack/stack.h"
#include "daemon/wire/arp.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/igmp.h"
#include "daemon/wire/mld.h"
#include "daemon/wire/ndp.h"
#include "daemon/wire/udp.h"
#include "tests/fuzz/frames.h"
#include "tests/fuzz/world.h"

namespace culvert::stack {
namespace {

using namespace std::chrono_literals;
using fuzz::Bytes;
using fuzz::kOurs;

constexpr std::uint16_t kVlan = 5;
constexpr std::size_t kMacs = 6;

Address ip(const char* text) { return *Address::parse(text); }

class World final : public udp::SocketOwner {
public:
    World() {
        Interface interface;
        interface.index = 1;
        interface.mac = kOurs;
        interface.up = true;
        interface.tx = &tx_;
        interface.resolves_itself = true;
        interface.autoconfigures = true;
        stack_.advance(now_);
        Interface tagged = interface;
        link_[0] = &stack_.add_interface(std::move(interface));
        tagged.index = 2;
        tagged.vlan = kVlan;
        tagged.parent = 1;
        tagged.autoconfigures = false;
        link_[1] = &stack_.add_interface(std::move(tagged));
        configure(1);
        stack_.set_addresses(2, {{ip("10.5.0.1"), 24}, {ip("fd05::1"), 64}});
        stack_.routes().replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 1},
                                 {.destination = ip("fd00::"), .prefix_length = 64, .interface = 1},
                                 {.destination = ip("fe80::"), .prefix_length = 64, .interface = 1},
                                 {.destination = ip("10.5.0.0"), .prefix_length = 24, .interface = 2},
                                 {.destination = ip("fd05::"), .prefix_length = 64, .interface = 2}});
        for (udp::Socket*& socket : sockets_) socket = *stack_.bind_udp({Address(), 53}, true, *this);
        for (int i = 0; i < 8; ++i) pass(1s);
    }

    void step(fuzz::Input& in) {
        const std::uint8_t kind = in.u8();
        const std::uint8_t vlan = kind >> 7;
        switch (kind & 15) {
            case 0: raw(in); break;
            case 1:
            case 2: arp(vlan, in); break;
            case 3:
            case 4: neighbor(vlan, in); break;
            case 5: router(vlan, in); break;
            case 6: redirect(vlan, in); break;
            case 7: mld(vlan, in); break;
            case 8: igmp(vlan, in); break;
            case 9: answer(in); break;
            case 10: datagram(in); break;
            case 11: group(in); break;
            case 12: command(in); break;
            case 13: pass(std::chrono::seconds(in.u16())); break;
            case 14: echo(vlan, in); break;
            default: pass(std::chrono::milliseconds(in.u16())); break;
        }
        check_bounds();
    }
    void end() {
        check_strangers();
        for (udp::Socket* socket : sockets_) stack_.close(*socket);
        for (int i = 0; i < 40; ++i) pass(1s);
        CHECK(pool_.available() == pool_.count());
    }

    bool on_datagram(udp::Socket&, const udp::DatagramInfo&, Payload, std::uint32_t) override { return true; }
    void on_error(udp::Socket&, const udp::DatagramError&) override {}

private:
    // --- what the input picks from --------------------------------------------------------------------------------------
    static MacAddress mac(std::uint8_t n) {
        static constexpr std::array<MacAddress, kMacs> kAll = {{{{2, 0, 0, 0, 0, 2}}, {{2, 0, 0, 0, 0, 3}},
            kOurs, {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}, {{0, 0, 0, 0, 0, 0}}, {{0x33, 0x33, 0, 0, 0, 1}}}};
        return kAll[n % kMacs];
    }
    Address address4(std::uint8_t n) const {
        static const std::array<Address, 12> all = {ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.3"), ip("10.0.0.9"), ip("10.5.0.1"),
            ip("10.5.0.2"), ip("0.0.0.0"), ip("255.255.255.255"), ip("192.0.2.1"), ip("224.0.0.1"), ip("239.1.1.1"), ip("127.0.0.1")};
        return n >= 128 ? Address::v4(10, 0, 0, n) : all[n % all.size()];
    }
    Address address6(std::uint8_t n) const {
        static const std::array<Address, 14> all = {ip("fd00::1"), ip("fd00::2"), ip("fd00::3"), ip("fe80::2"), ip("fe80::3"),
            ip("fd05::1"), ip("fd05::2"), ip("::"), ip("2001:db8::1"), ip("ff02::1"), ip("ff02::1:ff00:1"), ip("ff05::1:3"), ip("ff02::2"), ip("::1")};
        if (n >= 192) return own6(n);
        if (n < 128) return all[n % all.size()];
        std::array<std::byte, 16> bytes{};
        std::memcpy(bytes.data(), ip("fd00::").bytes().data(), 16);
        bytes[15] = static_cast<std::byte>(n);
        return Address::from_v6(bytes);
    }
    /// One of the addresses that the stack has made itself.
    Address own6(std::uint8_t n) const {
        std::vector<Address> own;
        for (const InterfaceAddress& each : link_[0]->addresses)
            if (!each.address.is_v4()) own.push_back(each.address);
        return own.empty() ? ip("fd00::1") : own[n % own.size()];
    }

    // --- messages -------------------------------------------------------------------------------------------------------
    void raw(fuzz::Input& in) {
        Bytes frame;
        const auto bytes = in.bytes(in.u8());
        frame.assign(bytes.begin(), bytes.end());
        if (!frame.empty()) fuzz::fix_checksums(frame);
        input(frame);
    }
    void arp(std::uint8_t vlan, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        const MacAddress from = mac(in.u8());
        const wire::ArpHeader header{(how & 1) != 0 ? wire::ArpOperation::kReply : wire::ArpOperation::kRequest, from,
                                     address4(in.u8()), kOurs, address4(in.u8())};
        const std::size_t link = vlan != 0 ? 18 : 14;
        Bytes frame(link + 46);
        const wire::EthernetHeader ethernet{(how & 2) != 0 ? kOurs : wire::kBroadcastMac, from, wire::EtherType::kArp};
        if (vlan != 0) wire::emit_tagged(ethernet, wire::EtherType::kVlan, kVlan, frame);
        else wire::emit(ethernet, frame);
        wire::emit(header, std::span(frame).subspan(link));
        fuzz::bend(frame, in);
        input(frame);
    }
    /// An ICMPv6 message from and to whom the input says.
    void icmpv6(std::uint8_t vlan, std::span<const std::byte> message, std::uint8_t hop_limit, bool router_alert, fuzz::Input& in) {
        const Address source = address6(in.u8()), destination = address6(in.u8());
        const MacAddress to = destination.is_multicast() ? wire::multicast_mac(destination) : kOurs;
        Bytes frame = fuzz::frame_of({.to = to, .from = mac(in.u8()), .source = source, .destination = destination,
                                      .protocol = wire::IpProtocol::kIcmpv6, .hop_limit = hop_limit,
                                      .vlan = vlan != 0 ? kVlan : std::uint16_t{0}, .router_alert = router_alert}, message);
        fuzz::bend(frame, in);
        input(frame);
    }
    template <class Message>
    void ndp(std::uint8_t vlan, const Message& message, fuzz::Input& in) {
        Bytes bytes(1000);
        bytes.resize(wire::emit(message, bytes));
        const std::uint8_t hops = in.u8();
        icmpv6(vlan, bytes, hops < 224 ? 255 : hops, false, in);
    }
    void neighbor(std::uint8_t vlan, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        const Address target = address6(in.u8());
        std::optional<MacAddress> option;
        if ((how & 2) != 0) option = mac(in.u8());
        if ((how & 1) != 0)
            return ndp(vlan, wire::NeighborAdvertisement{.target = target, .router = (how & 4) != 0, .solicited = (how & 8) != 0,
                                                         .overrides = (how & 16) != 0, .target_mac = option}, in);
        ndp(vlan, wire::NeighborSolicitation{.target = target, .source_mac = option, .nonce = {}}, in);
    }
    void router(std::uint8_t vlan, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        std::vector<wire::NdpPrefix> prefixes(how & 3);
        for (wire::NdpPrefix& prefix : prefixes) {
            const std::uint8_t flags = in.u8();
            prefix.prefix = (flags & 4) != 0 ? address6(in.u8()) : Address::from_v6(prefix_bytes(in.u8()));
            prefix.on_link = (flags & 1) != 0;
            prefix.autonomous = (flags & 2) != 0;
            prefix.prefix_length = (flags & 8) != 0 ? in.u8() : 64;
            prefix.valid_seconds = lifetime(in);
            prefix.preferred_seconds = lifetime(in);
        }
        wire::RouterAdvertisement message{.hop_limit = in.u8(), .router_lifetime = std::chrono::seconds(in.u16()),
                                          .reachable_time = std::chrono::milliseconds(lifetime(in)),
                                          .retransmit_time = std::chrono::milliseconds(lifetime(in)),
                                          .source_mac = {}, .mtu = {}, .prefixes = prefixes};
        if ((how & 4) != 0) message.source_mac = mac(in.u8());
        if ((how & 8) != 0) message.mtu = lifetime(in);
        ndp(vlan, message, in);
    }
    static std::array<std::byte, 16> prefix_bytes(std::uint8_t n) {
        return {std::byte{0x20}, std::byte{1}, std::byte{0xd}, std::byte{0xb8}, std::byte{0}, std::byte{n}};
    }
    /// Small ones are said in a byte, the rest are the limits of the field.
    static std::uint32_t lifetime(fuzz::Input& in) {
        const std::uint8_t n = in.u8();
        return n < 128 ? n : n < 240 ? std::uint32_t{n} * 60 : n < 248 ? UINT32_MAX - (n - 240u) : 0x7fffffffu + (n - 251u);
    }
    void redirect(std::uint8_t vlan, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        wire::Redirect message{.target = address6(in.u8()), .destination = address6(in.u8()), .target_mac = {}};
        if ((how & 1) != 0) message.target_mac = mac(in.u8());
        ndp(vlan, message, in);
    }
    void mld(std::uint8_t vlan, fuzz::Input& in) {
        static constexpr std::uint8_t kTypes[] = {130, 131, 132, 143};
        const std::uint8_t how = in.u8();
        Bytes message(wire::kMldLength);
        wire::emit(wire::MldHeader{.type = static_cast<wire::MldType>(kTypes[how & 3]), .max_response_code = in.u16(),
                                   .group = address6(in.u8())}, message);
        const auto rest = in.bytes(in.u8() % 64);  // of version 2: robustness, interval, sources
        message.insert(message.end(), rest.begin(), rest.end());
        icmpv6(vlan, message, (how & 4) != 0 ? 64 : 1, (how & 8) == 0, in);
    }
    void igmp(std::uint8_t vlan, fuzz::Input& in) {
        static constexpr std::uint8_t kTypes[] = {0x11, 0x12, 0x16, 0x17, 0x22};
        const std::uint8_t how = in.u8();
        Bytes message(wire::kIgmpLength);
        wire::emit(wire::IgmpHeader{.type = static_cast<wire::IgmpType>(kTypes[how % 5]), .max_response_code = in.u8(),
                                    .group = address4(in.u8())}, message);
        const auto rest = in.bytes(in.u8() % 64);
        message.insert(message.end(), rest.begin(), rest.end());
        const Address source = address4(in.u8()), destination = address4(in.u8());
        Bytes frame = fuzz::frame_of({.to = destination.is_multicast() ? wire::multicast_mac(destination) : kOurs,
                                      .from = mac(in.u8()), .source = source, .destination = destination,
                                      .protocol = wire::IpProtocol::kIgmp, .hop_limit = 1,
                                      .vlan = vlan != 0 ? kVlan : std::uint16_t{0}, .router_alert = (how & 64) == 0}, message);
        fuzz::bend(frame, in);
        input(frame);
    }
    void echo(std::uint8_t vlan, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        if ((how & 1) != 0) {
            const Bytes message = {std::byte{128}, std::byte{0}, std::byte{0}, std::byte{0}, std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
            return icmpv6(vlan, message, 64, false, in);
        }
        const Bytes message = {std::byte{8}, std::byte{0}, std::byte{0}, std::byte{0}, std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
        Bytes frame = fuzz::frame_of({.to = kOurs, .from = mac(in.u8()), .source = address4(in.u8()), .destination = address4(in.u8()),
                                      .protocol = wire::IpProtocol::kIcmp, .vlan = vlan != 0 ? kVlan : std::uint16_t{0}}, message);
        fuzz::bend(frame, in);
        input(frame);
    }
    /// To the last question of the stack, as the one who was asked would answer; then bent.
    void answer(fuzz::Input& in) {
        if (!asked_) return;
        const MacAddress from = mac(in.u8() & 1);
        Bytes frame;
        if (asked_->is_v4()) {
            frame.resize(60);
            wire::emit(wire::EthernetHeader{kOurs, from, wire::EtherType::kArp}, frame);
            wire::emit(wire::ArpHeader{wire::ArpOperation::kReply, from, *asked_, kOurs, asker_}, std::span(frame).subspan(14));
        } else {
            Bytes message(64);
            message.resize(wire::emit(wire::NeighborAdvertisement{.target = *asked_, .solicited = true, .overrides = true,
                                                                  .target_mac = from}, message));
            if (asker_.is_unspecified()) return;
            frame = fuzz::frame_of({.to = kOurs, .from = from, .source = *asked_, .destination = asker_,
                                    .protocol = wire::IpProtocol::kIcmpv6, .hop_limit = 255}, message);
        }
        fuzz::bend(frame, in);
        input(frame);
    }

    // --- our side -------------------------------------------------------------------------------------------------------
    void send_to(const Address& to) {
        static const std::array<std::byte, 8> kText{};
        const std::span<const std::byte> payload(kText);
        (void)stack_.send_datagram(*sockets_[0], {to, 9}, {&payload, 1}, 8, {}, now_);
        turn();
    }
    void datagram(fuzz::Input& in) {
        const std::uint8_t n = in.u8();
        send_to((n & 1) != 0 ? address4(in.u8()) : address6(in.u8()));
    }
    void group(fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        const Address group = (how & 1) != 0 ? Address::v4(239, 1, 1, in.u8() & 7) : address6(in.u8());
        const Address source = (how & 1) != 0 ? address4(in.u8()) : address6(in.u8());
        (void)stack_.change_group(*sockets_[how >> 7], static_cast<udp::GroupChange>((how >> 1 & 7) % 6), 1 + (how >> 6 & 1), group, source);
        turn();
    }
    void configure(std::uint8_t which) {
        std::vector<InterfaceAddress> addresses;
        if ((which & 1) != 0) addresses.insert(addresses.end(), {{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
        if ((which & 2) != 0) addresses.insert(addresses.end(), {{ip("10.0.0.9"), 24}, {ip("fd00::9"), 64}});
        stack_.set_addresses(1, addresses);
    }
    void command(fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        switch (how & 3) {
            case 0: configure(how >> 2); break;
            case 1: stack_.set_interface_state(1, (how & 4) != 0, (how & 8) != 0 ? 1280 : 1500); break;
            case 2:
                has_forwarded_ |= (how & 4) != 0;
                stack_.set_forwarding((how & 4) != 0, (how & 8) != 0);
                break;
            default: stack_.set_mac(1, kOurs); break;
        }
        turn();
    }

    // --- what must hold -------------------------------------------------------------------------------------------------
    void input(const Bytes& frame) {
        if (frame.empty()) return;
        hear(frame);
        const Counters before = counters_;
        bool beyond = from_beyond(frame);
        fuzz::as_packet(frame, [&](const RxPacket& packet) { stack_.input(*link_[0], packet, now_); });
        // Forwarding and answers may lose packets of their own; the frame itself is lost once or taken once.
        std::uint64_t lost = 0, taken = 0;
        for (std::size_t i = 0; i < kDropCount; ++i) lost += counters_.drops[i] - before.drops[i];
        for (const Drop own : {Drop::kNeighborUnresolved, Drop::kNeighborQueueFull, Drop::kTxNoFrame, Drop::kLinkSolicitLimited,
                               Drop::kIpReassemblyNoRoom, Drop::kIpReassemblyStale, Drop::kNeighborTableFull,
                               Drop::kNdpTooManyPrefixes})  // parts of a message, which is taken all the same
            lost -= counters_.dropped(own) - before.dropped(own);
        // The answer that says why a frame was dropped may have no way home.
        if (lost > 1) lost -= std::min(lost - 1, counters_.dropped(Drop::kIpNoRoute) - before.dropped(Drop::kIpNoRoute));
#define CULVERT_FUZZ_TAKEN(name, text) taken += counters_.name != before.name;
        CULVERT_COUNTERS(CULVERT_FUZZ_TAKEN)
#undef CULVERT_FUZZ_TAKEN
        CHECK(lost <= 1);
        CHECK(lost + taken > 0 || counters_.drops != before.drops || is_fragment(frame));
        if (beyond) CHECK(counters_.ndp_in == before.ndp_in);
        turn();
    }
    static std::size_t network(const Bytes& frame) {
        const unsigned type = frame.size() >= 18 ? wire::load_be16(frame.data() + 12) : 0;
        return type == 0x8100 || type == 0x88a8 ? 18 : 14;
    }
    static unsigned type_of(const Bytes& frame) {
        const std::size_t at = network(frame);
        return frame.size() >= at ? wire::load_be16(frame.data() + at - 2) : 0;
    }
    static bool is_fragment(const Bytes& frame) {
        const auto packet = frame.size() > network(frame) ? std::span(frame).subspan(network(frame)) : std::span<const std::byte>();
        if (const auto v4 = wire::Ipv4View::parse(packet)) return v4->is_fragment();
        const auto v6 = wire::Ipv6View::parse(packet);
        return v6 && v6->is_fragment();
    }
    static bool from_beyond(const Bytes& frame) {
        if (type_of(frame) != 0x86dd) return false;
        const auto v6 = wire::Ipv6View::parse(std::span(frame).subspan(network(frame)));
        return v6 && v6->hop_limit() != 255;
    }
    /// Whoever asks us, or is named by somebody who may name it, may be known from now on.
    void hear(const Bytes& frame) {
        if (frame.size() <= network(frame)) return;
        const auto packet = std::span(frame).subspan(network(frame));
        if (type_of(frame) == 0x0806) {
            const auto arp = wire::ArpView::parse(packet);
            if (arp && arp->operation() == wire::ArpOperation::kRequest) known_.insert(arp->sender());
            return;
        }
        const auto v6 = wire::Ipv6View::parse(packet);
        if (!v6 || v6->hop_limit() != 255 || v6->protocol() != wire::IpProtocol::kIcmpv6) return;
        const auto message = wire::NdpView::parse(v6->payload_in_head());
        if (!message) return;
        if (message->type() == wire::NdpType::kRedirect) known_.insert(message->target());
        if (message->type() != wire::NdpType::kNeighborAdvertisement) known_.insert(v6->source());
    }
    /// What is sent to somebody whom we do not know goes to nobody before he has been asked for.
    void check_strangers() {
        stack_.set_interface_state(1, true, 1500);
        for (const Address& stranger : {ip("10.0.0.2"), ip("10.0.0.3"), ip("fd00::2"), ip("fd00::3"), ip("10.0.0.200"), ip("fd00::80")}) {
            if (known_.contains(stranger) || stack_.is_local(stranger)) continue;
            watched_ = stranger;
            send_to(stranger);
        }
        watched_.reset();
    }
    void check_bounds() const {
        CHECK(link_[0]->addresses.size() <= AddressConfiguration::kMaxConfigured + AddressConfiguration::kMaxAutoconfigured + 1);
        CHECK(stack_const().routes().routes().size() <= 5 + RouterDiscovery::kMaxRouters + RouterDiscovery::kMaxPrefixes + RouterDiscovery::kMaxRedirects);
        CHECK(stack_const().neighbors().size() <= NeighborTable::kMaxEntries);
        CHECK(pool_.count() - pool_.available() <= NeighborTable::kMaxPendingTotal);
    }
    Stack& stack_const() const { return const_cast<Stack&>(stack_); }

    void pass(Duration time) {
        fuzz::sleep_through(stack_, now_, time, 400, [this] { turn(); });
    }
    void turn() {
        stack_.advance(now_);
        stack_.flush(now_);
        fuzz::take_output(tx_, [this](const Bytes& frame) { check(frame); });
    }
    void check(const Bytes& frame) {
        const auto ethernet = wire::EthernetView::parse(frame);
        CHECK(ethernet && ethernet->source() == kOurs);
        CHECK(!is_zero(ethernet->destination()));
        const auto packet = std::span(frame).subspan(network(frame));
        if (type_of(frame) == 0x0806) {
            const auto arp = wire::ArpView::parse(packet);
            CHECK(arp && arp->sender_mac() == kOurs);
            CHECK(arp->sender().is_unspecified() || stack_.is_local(arp->sender()));
            if (arp->operation() == wire::ArpOperation::kRequest) ask(arp->target(), arp->sender());
            return;
        }
        if (type_of(frame) == 0x0800) {
            const auto v4 = wire::Ipv4View::parse(packet);
            CHECK(v4.has_value());
            CHECK(v4->protocol() != wire::IpProtocol::kIgmp || (v4->hop_limit() == 1 && v4->router_alert()));
            return check_sent(v4->destination());
        }
        const auto v6 = wire::Ipv6View::parse(packet);
        CHECK(v6.has_value());
        if (v6->protocol() != wire::IpProtocol::kIcmpv6) return check_sent(v6->destination());
        const bool own = v6->source().is_unspecified() || stack_.is_local(v6->source());
        // A stranger's to a stranger: its checksum is the two's business. It may have waited for its neighbour's address until forwarding
        // was off, or the stranger's address our own. We ourselves send with 255, and reports of groups (they have an option) with 1.
        const bool forwarded = has_forwarded_ && (!own || (v6->hop_limit() < 255 && v6->header_length() == 40));
        const RxPacket sent{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())};
        CHECK(v6->is_fragment() || forwarded ||
              wire::verify_transport_checksum(sent, network(frame) + v6->header_length(), v6->payload_length(), v6->source(),
                                              v6->destination(), v6->protocol()));
        const auto message = wire::NdpView::parse(v6->payload_in_head());
        if (!message || (forwarded && v6->hop_limit() < 255)) return;  // nobody believes it now
        CHECK(v6->hop_limit() == 255);
        CHECK(own);
        if (message->type() == wire::NdpType::kNeighborAdvertisement) CHECK(stack_.is_local(message->target()));
        if (message->type() == wire::NdpType::kNeighborSolicitation) ask(message->target(), v6->source());
    }
    static bool is_zero(const MacAddress& mac) { return mac == MacAddress{}; }
    void check_sent(const Address& destination) const { CHECK(!watched_ || destination != *watched_); }
    void ask(const Address& whom, const Address& by) {
        if (!watched_) known_.insert(whom);
        asked_ = whom;
        asker_ = by;
    }

    FramePool pool_{512};
    TxQueue tx_{pool_};
    Counters counters_;
    fuzz::NoWorld outside_;
    Rng rng_{1};
    Stack stack_{fuzz::small_stack(4), outside_, outside_, counters_, rng_};
    std::array<Interface*, 2> link_{};
    std::array<udp::Socket*, 2> sockets_{};
    std::set<Address> known_;
    std::optional<Address> asked_;  // what the stack asked for last
    Address asker_;
    bool has_forwarded_ = false;
    std::optional<Address> watched_;  // nothing may be sent to it
    Instant now_{1h};
};

}  // namespace
}  // namespace culvert::stack

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    return culvert::fuzz::run<culvert::stack::World>(data, size, 200);
}
