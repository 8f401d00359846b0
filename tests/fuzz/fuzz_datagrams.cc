// Datagrams for one, for many and for nobody into a stack with a VLAN, and UDP, raw and ping sockets that bind, connect, join,
// filter, send and close as the input says.
//
// The input is a list of steps (see World::step). Packets are made whole and right; one kind of step bends them.
//
// What must hold: a right datagram is heard by exactly those who should hear it, says a reference that looks at all sockets in
// turn and knows each one's filter (or by one of several that fit alike); a raw socket gets a copy of exactly what it asked
// for; a ping socket hears its own echoes only; what is read is what was sent; every frame that leaves is from us, proves
// itself, and has its VLAN's tag; nothing that was bent is heard as something else; at the end nothing is held.
#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "daemon/stack/link/multicast_groups.h"
#include "daemon/stack/raw.h"
#include "daemon/stack/stack.h"
#include "daemon/stack/udp.h"
#include "daemon/wire/icmp.h"
#include "daemon/wire/udp.h"
#include "tests/fuzz/frames.h"
#include "tests/fuzz/world.h"

namespace culvert::stack {
namespace {

using namespace std::chrono_literals;
using fuzz::Bytes;
using fuzz::kOurs;
using fuzz::kPeers;

constexpr std::uint16_t kVlan = 5;
constexpr std::size_t kSerial = 4;  // bytes of a payload that name it
constexpr std::uint8_t kRouting = 89;

Address ip(const char* text) { return *Address::parse(text); }

/// One socket's wish about a group on an interface.
struct Wish {
    bool excludes = false;
    std::set<Address> sources;
    bool accepts(const Address& source) const { return sources.contains(source) != excludes; }
};
using Wishes = std::map<std::pair<std::uint32_t, Address>, Wish>;

/// What a change that the stack has accepted means.
void follow(Wishes& wishes, udp::GroupChange change, std::uint32_t interface, const Address& group, const Address& source) {
    const auto key = std::pair(interface, group);
    switch (change) {
        case udp::GroupChange::kJoin: wishes[key] = {.excludes = true, .sources = {}}; break;
        case udp::GroupChange::kLeave: CHECK(wishes.erase(key) == 1); break;
        case udp::GroupChange::kJoinSource:
            CHECK(!wishes[key].excludes || wishes[key].sources.empty());  // as Linux: who blocks nobody yet may change his mind
            wishes[key].excludes = false;
            CHECK(wishes[key].sources.insert(source).second);
            break;
        case udp::GroupChange::kLeaveSource:
            CHECK(wishes.at(key).sources.erase(source) == 1);
            if (wishes.at(key).sources.empty()) wishes.erase(key);
            break;
        case udp::GroupChange::kBlockSource: CHECK(wishes.at(key).sources.insert(source).second); break;
        case udp::GroupChange::kUnblockSource: CHECK(wishes.at(key).sources.erase(source) == 1); break;
    }
}

class World final : public udp::SocketOwner, public raw::SocketOwner {
public:
    World() {
        Interface interface;
        interface.index = 1;
        interface.mac = kOurs;
        interface.up = true;
        interface.tx = &tx_;
        interface.resolves_itself = true;
        stack_.advance(now_);
        Interface tagged = interface;
        link_[0] = &stack_.add_interface(std::move(interface));
        tagged.index = 2;
        tagged.vlan = kVlan;
        tagged.parent = 1;
        link_[1] = &stack_.add_interface(std::move(tagged));
        stack_.set_addresses(1, {{ip("10.0.0.1"), 24}, {ip("fd00::1"), 64}});
        stack_.set_addresses(2, {{ip("10.5.0.1"), 24}, {ip("fd05::1"), 64}});
        stack_.routes().replace({{.destination = ip("10.0.0.0"), .prefix_length = 24, .interface = 1},
                                 {.destination = ip("fd00::"), .prefix_length = 64, .interface = 1},
                                 {.destination = ip("10.5.0.0"), .prefix_length = 24, .interface = 2},
                                 {.destination = ip("fd05::"), .prefix_length = 64, .interface = 2},
                                 {.destination = ip("224.0.0.0"), .prefix_length = 4, .interface = 1},
                                 {.destination = ip("ff00::"), .prefix_length = 8, .interface = 1}});
        for (int i = 0; i < 8; ++i) pass(1s);  // duplicate address detection
        for (const std::uint32_t on : {1u, 2u})
            for (std::uint8_t n = 0; n < 4; ++n)
                stack_.neighbors().update(on, peer(on, n), kPeers, NeighborState::kReachable, tx_);
    }

    void step(fuzz::Input& in) {
        const std::uint8_t kind = in.u8();
        Udp& udp = udp_[kind >> 4 & 3];
        Raw& raw = raw_[kind >> 4 & 3];
        switch (kind & 15) {
            case 0: bind(udp, in); break;
            case 1: connect(udp, in); break;
            case 2: options(udp, in); break;
            case 3: group(udp, in); break;
            case 4: close(udp); break;
            case 5: send(udp, in); break;
            case 6:
            case 7: datagram(in, false); break;
            case 8: datagram(in, true); break;
            case 9: open(raw, in); break;
            case 10: tune(raw, in); break;
            case 11: group(raw, in); break;
            case 12: close(raw); break;
            case 13: send(raw, in); break;
            case 14: message(in); break;
            default: pass(std::chrono::milliseconds(in.u16())); break;
        }
    }
    void end() {
        for (Udp& each : udp_) close(each);
        for (Raw& each : raw_) close(each);
        for (int i = 0; i < 40; ++i) pass(1s);
        CHECK(pool_.available() == pool_.count());
        CHECK(stack_.usage().udp_sockets == 0 && stack_.raw_sockets().sockets() == 0);
        CHECK(outside_.holds_nothing());
    }

    bool on_datagram(udp::Socket& socket, const udp::DatagramInfo& info, Payload payload, std::uint32_t length) override {
        const std::size_t who = static_cast<std::size_t>(
            std::ranges::find_if(udp_, [&](const Udp& each) { return each.socket == &socket; }) - udp_.begin());
        CHECK(who < udp_.size());
        CHECK(read(payload, length) == sent_ || bent_);
        CHECK(bent_ || (info.remote == from_ && info.local == to_ && info.interface == on_));
        heard_.push_back(who);
        return !udp_[who].full;
    }
    void on_error(udp::Socket& socket, const udp::DatagramError& error) override {
        CHECK(std::ranges::any_of(udp_, [&](const Udp& each) { return each.socket == &socket; }));
        CHECK(error.error > 0);
    }
    bool on_packet(raw::Socket& socket, const raw::PacketInfo& info, Payload payload, std::uint32_t length) override {
        const std::size_t who = static_cast<std::size_t>(
            std::ranges::find_if(raw_, [&](const Raw& each) { return each.socket == &socket; }) - raw_.begin());
        CHECK(who < raw_.size());
        const bool header = raw_[who].kind == raw::Kind::kRaw && info.local.is_v4();
        CHECK(read(payload, length).size() >= (header ? wire::kIpv4HeaderLength : 0));
        CHECK(bent_ || read(payload, length) == std::vector(packet_.begin() + (header ? 0 : header_), packet_.end()));
        copies_.push_back(who);
        return !raw_[who].full;
    }

private:
    struct Udp {
        udp::Socket* socket = nullptr;
        std::uint32_t interface = 0;
        Address bound;
        udp::SocketOptions options;
        Wishes wishes;
        bool full = false;
    };
    struct Raw {
        raw::Socket* socket = nullptr;
        raw::Kind kind = raw::Kind::kRaw;
        std::uint8_t protocol = 0;
        bool v4 = true;
        Address local;
        std::optional<Address> remote;
        raw::SocketOptions options;
        Wishes wishes;
        bool full = false;
    };

    // --- what the input picks from --------------------------------------------------------------------------------------
    static Address ours(std::uint32_t on, bool v4) { return ip(v4 ? (on == 1 ? "10.0.0.1" : "10.5.0.1") : (on == 1 ? "fd00::1" : "fd05::1")); }
    static Address peer(std::uint32_t on, std::uint8_t n) {
        if ((n & 1) == 0) return Address::v4(10, on == 1 ? 0 : 5, 0, static_cast<std::uint8_t>(2 + (n >> 1 & 1)));
        return ip(on == 1 ? ((n & 2) != 0 ? "fd00::3" : "fd00::2") : ((n & 2) != 0 ? "fd05::3" : "fd05::2"));
    }
    static Address group_of(bool v4, std::uint8_t n) {
        return v4 ? Address::v4(239, 1, 1, static_cast<std::uint8_t>(1 + (n & 1))) : ip((n & 1) != 0 ? "ff05::101" : "ff15::102");
    }
    /// Ours at either interface, a broadcast address, a group, or a stranger's.
    static Address destination(bool v4, std::uint32_t on, std::uint8_t n) {
        switch (n & 7) {
            case 0:
            case 1: return ours(on, v4);
            case 2: return ours(3 - on, v4);
            case 3: return v4 ? Address::v4(10, on == 1 ? 0 : 5, 0, 255) : group_of(v4, 0);
            case 4: return v4 ? ip("255.255.255.255") : group_of(v4, 1);
            case 5: return group_of(v4, 0);
            case 6: return group_of(v4, 1);
            default: return v4 ? Address::v4(10, 0, 0, 77) : ip("fd00::77");
        }
    }
    static Port port(std::uint8_t n) { return static_cast<Port>(1000 + (n & 1)); }

    // --- sockets --------------------------------------------------------------------------------------------------------
    void bind(Udp& udp, fuzz::Input& in) {
        close(udp);
        const std::uint8_t how = in.u8();
        const bool v4 = (how & 1) != 0;
        const std::array<Address, 4> choice = {Address::any(v4 ? Family::kIpv4 : Family::kIpv6), ours(1, v4), ours(2, v4), group_of(v4, 0)};
        udp.bound = choice[how >> 1 & 3];
        udp.interface = (how >> 3 & 3) % 3;
        const auto made = stack_.bind_udp({udp.bound, port(how >> 5 & 1)}, (how & 128) != 0, *this, udp.interface);
        CHECK(made.has_value());  // there are as many places as sockets here
        udp.socket = *made;
    }
    void connect(Udp& udp, fuzz::Input& in) {
        if (udp.socket == nullptr) return;
        const std::uint8_t how = in.u8();
        const std::uint32_t on = 1 + (how >> 2 & 1);
        const Endpoint remote{(how & 16) != 0 ? group_of((how & 1) == 0, how >> 5 & 1) : peer(on, how & 3), port(how >> 3 & 1)};
        stack_.connect_udp(*udp.socket, (how & 128) != 0 ? nullptr : &remote, (how & 64) != 0 ? on : 0);
    }
    void options(Udp& udp, fuzz::Input& in) {
        if (udp.socket == nullptr) return;
        const std::uint8_t how = in.u8();
        udp.options = {.merged = (how & 1) != 0, .errors = (how & 2) != 0, .all_groups = (how & 4) != 0,
                       .path_mtu = static_cast<udp::PathMtu>(how >> 4 & 3)};
        udp.full = (how & 8) != 0;
        stack_.set_options(*udp.socket, udp.options);
    }
    template <class Socket>
    void group(Socket& of, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        if (of.socket == nullptr) return;
        const auto change = static_cast<udp::GroupChange>((how & 7) % 6);
        const bool v4 = (how & 8) != 0;
        const std::uint32_t on = 1 + (how >> 4 & 1);
        const Address group = group_of(v4, how >> 5 & 1);
        const Address source = peer(on, static_cast<std::uint8_t>((v4 ? 0 : 1) | (how >> 5 & 2)));
        if (stack_.change_group(*of.socket, change, on, group, source)) follow(of.wishes, change, on, group, source);
        turn();
    }
    void close(Udp& udp) {
        if (udp.socket != nullptr) stack_.close(*udp.socket);
        udp = {};
    }
    void open(Raw& raw, fuzz::Input& in) {
        close(raw);
        const std::uint8_t how = in.u8();
        raw.v4 = (how & 1) != 0;
        raw.kind = (how & 2) != 0 ? raw::Kind::kPing : raw::Kind::kRaw;
        const std::array<std::uint8_t, 4> protocols = {17, static_cast<std::uint8_t>(raw.v4 ? 1 : 58), kRouting, 255};
        const auto made = stack_.raw_sockets().open(raw.kind, raw.v4 ? Family::kIpv4 : Family::kIpv6, protocols[how >> 2 & 3], *this);
        CHECK(made.has_value());
        raw.socket = *made;
        raw.protocol = raw.socket->protocol();
        raw.local = Address::any(raw.v4 ? Family::kIpv4 : Family::kIpv6);
        if (raw.kind == raw::Kind::kPing) CHECK(stack_.raw_sockets().bind(*raw.socket, raw.local, 0).has_value());
    }
    void tune(Raw& raw, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        if (raw.socket == nullptr) return;
        if ((how & 1) != 0) {
            const Address local = (how & 2) != 0 ? ours(1 + (how >> 2 & 1), raw.v4) : Address::any(raw.v4 ? Family::kIpv4 : Family::kIpv6);
            if (stack_.raw_sockets().bind(*raw.socket, local, raw.socket->identifier())) raw.local = local;
        } else if ((how & 2) != 0) {
            raw.remote = peer(1 + (how >> 2 & 1), static_cast<std::uint8_t>((raw.v4 ? 0 : 1) | (how >> 3 & 2)));
            if ((how & 32) != 0) raw.remote.reset();
            stack_.raw_sockets().connect(*raw.socket, raw.remote ? &*raw.remote : nullptr);
        } else {
            raw.options.all_groups = (how & 4) != 0;
            raw.full = (how & 8) != 0;
            raw.options.header_included = raw.v4 && (how & 16) != 0;
            raw.options.blocked_types = {};
            if ((how & 32) != 0) raw.options.blocked_types[0] = 1u << 8 | 1u << 0;
            stack_.raw_sockets().set_options(*raw.socket, raw.options);
        }
    }
    void close(Raw& raw) {
        if (raw.socket != nullptr) stack_.raw_sockets().close(*raw.socket);
        raw = {};
    }

    // --- out ------------------------------------------------------------------------------------------------------------
    void send(Udp& udp, fuzz::Input& in) {
        const std::uint8_t how = in.u8(), more = in.u8();
        const std::size_t length = in.u16() % 9000;
        if (udp.socket == nullptr) return;
        const std::uint32_t on = 1 + (how >> 1 & 1);
        const bool v4 = (how & 1) != 0;
        const Address to = (how & 4) != 0 ? peer(on, static_cast<std::uint8_t>(v4 ? 0 : 1)) : destination(v4, on, how >> 3 & 7);
        const Bytes bytes(length, std::byte{0x55});
        const std::span<const std::byte> payload(bytes);
        bent_ = true;  // what goes to ourselves has another's headers than the last frame
        (void)stack_.send_datagram(*udp.socket, {to, port(how >> 6 & 1)}, {&payload, 1}, static_cast<std::uint32_t>(length),
                                   {.interface = (more & 1) != 0 ? on : 0, .segment_size = static_cast<std::uint16_t>((more & 2) != 0 ? 100 + more : 0),
                                    .ttl = static_cast<std::uint8_t>(more >> 6), .tos = more, .path_mtu = static_cast<udp::PathMtu>(more >> 2 & 3),
                                    .broadcast = (more & 16) != 0, .loop = (more & 32) != 0}, now_);
        turn();
    }
    void send(Raw& raw, fuzz::Input& in) {
        const std::uint8_t how = in.u8();
        const std::size_t length = (how & 1) != 0 ? in.u16() % 5000 : in.u8();
        const auto given = in.bytes(std::min<std::size_t>(length, how >> 4));
        if (raw.socket == nullptr) return;
        Bytes bytes(length, std::byte{0});
        std::ranges::copy(given, bytes.begin());
        if (raw.kind == raw::Kind::kPing && (how & 2) != 0 && length >= 8) bytes[0] = std::byte{raw.v4 ? std::uint8_t{8} : std::uint8_t{128}};
        if ((how & 2) != 0 && raw.options.header_included && length >= wire::kIpv4HeaderLength)
            wire::emit(wire::Ipv4Header{.source = ip("0.0.0.0"), .destination = peer(1, 0), .protocol = wire::IpProtocol::kUdp},
                       length - wire::kIpv4HeaderLength, bytes);
        const std::span<const std::byte> payload(bytes);
        bent_ = true;
        (void)stack_.raw_sockets().send(*raw.socket, destination(raw.v4, 1 + (how >> 2 & 1), (how & 8) != 0 ? how >> 4 : 0x40 | how >> 4),
                                        {&payload, 1}, static_cast<std::uint32_t>(length), {.broadcast = (how & 128) != 0}, now_);
        anything_ = true;
        turn();
        anything_ = false;
    }

    // --- in -------------------------------------------------------------------------------------------------------------
    /// A datagram; unbent, the reference says who hears it.
    void datagram(fuzz::Input& in, bool bends) {
        const std::uint8_t how = in.u8(), more = in.u8();
        const bool v4 = (how & 1) != 0;
        on_ = 1 + (how >> 1 & 1);
        from_ = {peer(on_, static_cast<std::uint8_t>((v4 ? 0 : 1) | (how >> 1 & 2))), port(how >> 7)};
        to_ = destination(v4, on_, how >> 3);
        to_port_ = port(more);
        sent_.assign(kSerial + (more >> 1), std::byte{0});
        wire::store_be32(sent_.data(), ++serial_);
        Bytes message(wire::kUdpHeaderLength + sent_.size());
        wire::store_be16(message.data(), from_.port);
        wire::store_be16(message.data() + 2, to_port_);
        wire::store_be16(message.data() + 4, static_cast<std::uint16_t>(message.size()));
        std::ranges::copy(sent_, message.begin() + wire::kUdpHeaderLength);
        arrive(wire::IpProtocol::kUdp, message, in, bends);
        if (bends) return;
        const bool local = accepted();
        expect_datagram(local);
        expect_copies(local, 17, 0);
    }
    /// Something that raw and ping sockets are for.
    void message(fuzz::Input& in) {
        const std::uint8_t how = in.u8(), more = in.u8();
        const bool v4 = (how & 1) != 0;
        on_ = 1 + (how >> 1 & 1);
        from_ = {peer(on_, static_cast<std::uint8_t>((v4 ? 0 : 1) | (how >> 1 & 2))), 0};
        to_ = destination(v4, on_, how >> 3);
        const bool routing = (how & 64) != 0, bends = (how & 128) != 0;
        Bytes message(8 + (more & 63), std::byte{7});
        const Raw& mine = raw_[more >> 6];
        const bool reply = (more & 1) != 0;
        if (!routing) {
            message[0] = std::byte{static_cast<std::uint8_t>(v4 ? (reply ? 0 : 8) : (reply ? 129 : 128))};
            message[1] = std::byte{0};
            const bool his = mine.socket != nullptr && mine.kind == raw::Kind::kPing;
            wire::store_be16(message.data() + 4, his ? mine.socket->identifier() : std::uint16_t{9});
        }
        const auto icmp = v4 ? wire::IpProtocol::kIcmp : wire::IpProtocol::kIcmpv6;
        arrive(routing ? static_cast<wire::IpProtocol>(kRouting) : icmp, message, in, bends);
        if (bends) return;
        const bool local = accepted();
        CHECK(heard_.empty());
        expect_copies(local, routing ? kRouting : static_cast<std::uint8_t>(icmp), std::to_integer<std::uint8_t>(message[0]),
                      !routing && reply ? std::optional(wire::load_be16(message.data() + 4)) : std::nullopt);
    }
    void arrive(wire::IpProtocol protocol, const Bytes& message, fuzz::Input& in, bool bends) {
        const bool v4 = to_.is_v4();
        fuzz::Headers headers{.to = kOurs, .from = kPeers, .source = from_.address, .destination = to_, .protocol = protocol,
                              .vlan = static_cast<std::uint16_t>(on_ == 2 ? kVlan : 0)};
        if (to_.is_multicast()) headers.to = v4 ? MacAddress{{1, 0, 0x5e, 1, 1, 1}} : MacAddress{{0x33, 0x33, 0, 0, 1, 1}};
        if (v4 && (to_.is_broadcast() || to_ == destination(true, on_, 3))) headers.to = {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};
        Bytes frame = fuzz::frame_of(headers, message);
        fuzz::fix_checksums(frame);
        if (bends) fuzz::bend(frame, in);
        const std::size_t link = wire::kEthernetHeaderLength + (on_ == 2 ? wire::kVlanTagLength : 0);
        header_ = v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength;
        packet_.assign(frame.begin() + static_cast<std::ptrdiff_t>(std::min(link, frame.size())), frame.end());
        bent_ = bends;
        heard_.clear();
        copies_.clear();
        const std::uint64_t dropped = fuzz::drops(counters_);
        fuzz::as_packet(frame, [&](const RxPacket& packet) { stack_.input(*link_[0], packet, now_); });
        dropped_ = fuzz::drops(counters_) - dropped;
        bent_ = true;
        turn();
    }

    // --- the reference ---------------------------------------------------------------------------------------------------
    /// Is the last frame for this host at all?
    bool accepted() const {
        if (stack_const().is_local(to_)) return true;
        if (to_.is_broadcast() || to_ == destination(true, on_, 3)) return to_.is_v4();
        const auto wants = [&](const Wishes& wishes) {
            const auto wish = wishes.find({on_, to_});
            return wish != wishes.end() && wish->second.accepts(from_.address);
        };
        return to_.is_multicast() && (std::ranges::any_of(udp_, [&](const Udp& u) { return wants(u.wishes); }) ||
                                      std::ranges::any_of(raw_, [&](const Raw& r) { return wants(r.wishes); }));
    }
    /// Its own filter decides for who has joined there; who has not hears what others have joined, if it likes.
    static bool hears_group(const Wishes& wishes, bool all_groups, std::uint32_t on, const Address& group, const Address& source) {
        const auto wish = wishes.find({on, group});
        return wish != wishes.end() ? wish->second.accepts(source) : all_groups;
    }
    /// 3: its address; 2: any of the family; 1: any of both.
    static int fit(const Address& own, bool dual, const Address& destination) {
        if (own == destination) return 3;
        if (!own.is_unspecified()) return 0;
        if (own.is_v4() == destination.is_v4()) return 2;
        return dual && destination.is_v4() ? 1 : 0;
    }
    void expect_datagram(bool local) const {
        if (!local) {
            CHECK(heard_.empty() && dropped_ >= 1);
            return;
        }
        const bool many = !stack_const().is_local(to_);
        std::vector<std::size_t> all, connected, best;
        int best_fit = 0;
        for (std::size_t i = 0; i < udp_.size(); ++i) {
            const Udp& u = udp_[i];
            if (u.socket == nullptr || u.socket->local().port != to_port_ || (u.interface != 0 && u.interface != on_)) continue;
            if (many) {
                if (u.socket->remote() && *u.socket->remote() != from_) continue;
                if (fit(u.bound, u.socket->dual(), to_) == 0) continue;
                if (to_.is_multicast() && !hears_group(u.wishes, u.options.all_groups, on_, to_, from_.address)) continue;
                all.push_back(i);
                continue;
            }
            const int fits = fit(u.socket->local().address, u.socket->dual(), to_);
            if (fits == 0) continue;
            if (u.socket->remote()) {
                if (*u.socket->remote() == from_) connected.push_back(i);
                continue;
            }
            const int better = u.interface != 0 ? fits + 4 : fits;
            if (better > best_fit) best.clear(), best_fit = better;
            if (better == best_fit) best.push_back(i);
        }
        std::vector<std::size_t> heard = heard_;
        std::ranges::sort(heard);
        if (many) {
            CHECK(heard == all);
        } else {
            const std::vector<std::size_t>& one_of = connected.empty() ? best : connected;
            CHECK(heard.size() == (one_of.empty() ? 0u : 1u));
            CHECK(heard.empty() || std::ranges::find(one_of, heard[0]) != one_of.end());
        }
        const auto full = static_cast<std::size_t>(std::ranges::count_if(heard, [&](std::size_t i) { return udp_[i].full; }));
        const auto raw_full = static_cast<std::size_t>(std::ranges::count_if(copies_, [&](std::size_t i) { return raw_[i].full; }));
        if (heard.empty()) CHECK(dropped_ > raw_full);  // the answer that says so may be dropped, too
        else CHECK(dropped_ == full + raw_full);
    }
    void expect_copies(bool local, std::uint8_t protocol, std::uint8_t type, std::optional<std::uint16_t> identifier = {}) const {
        std::vector<std::size_t> expected;
        for (std::size_t i = 0; local && i < raw_.size(); ++i) {
            const Raw& r = raw_[i];
            if (r.socket == nullptr || r.v4 != to_.is_v4() || r.protocol != protocol) continue;
            if (!r.local.is_unspecified() && r.local != to_) continue;
            if (r.kind == raw::Kind::kPing) {
                if (identifier == r.socket->identifier()) expected.push_back(i);
                continue;
            }
            if (r.remote && *r.remote != from_.address) continue;
            if (to_.is_multicast() && !hears_group(r.wishes, r.options.all_groups, on_, to_, from_.address)) continue;
            const bool filtered = protocol == 58 || (protocol == 1 && type < 32);
            if (filtered && (r.options.blocked_types[type / 32] >> (type % 32) & 1) != 0) continue;
            expected.push_back(i);
        }
        std::vector<std::size_t> copies = copies_;
        std::ranges::sort(copies);
        CHECK(copies == expected);
    }
    Stack& stack_const() const { return const_cast<Stack&>(stack_); }

    static std::vector<std::byte> read(Payload payload, std::uint32_t length) {
        std::vector<std::byte> bytes;
        for (const auto piece : payload) bytes.insert(bytes.end(), piece.begin(), piece.end());
        CHECK(bytes.size() == length);
        return bytes;
    }

    // --- time and what leaves ---------------------------------------------------------------------------------------------
    void pass(Duration time) {
        fuzz::sleep_through(stack_, now_, time, 100, [this] { turn(); });
    }
    void turn() {
        stack_.advance(now_);
        stack_.flush(now_);
        fuzz::take_output(tx_, [this](const Bytes& frame) { check(frame); });
    }
    void check(const Bytes& frame) const {
        const auto ethernet = wire::EthernetView::parse(frame);
        CHECK(ethernet && ethernet->source() == kOurs);
        std::size_t at = wire::kEthernetHeaderLength;
        unsigned type = wire::load_be16(frame.data() + 12);
        const bool tagged = type == 0x8100;
        if (tagged) {
            CHECK(wire::load_be16(frame.data() + 14) == kVlan);
            type = wire::load_be16(frame.data() + 16);
            at += wire::kVlanTagLength;
        }
        if (type == 0x0806) return;
        const auto packet = std::span(frame).subspan(at);
        const RxPacket whole{.head = frame, .rest = {}, .length = static_cast<std::uint32_t>(frame.size())};
        const auto prove = [&](const auto& view) {
            CHECK(view.has_value());
            CHECK(stack_const().is_local(view->source()) || view->source().is_unspecified() || view->source().is_link_local());
            const bool summed = view->protocol() == wire::IpProtocol::kUdp || view->protocol() == wire::IpProtocol::kIcmpv6;
            if (!summed || view->is_fragment() || anything_) return;
            CHECK(wire::verify_transport_checksum(whole, static_cast<std::uint32_t>(at + view->header_length()), view->payload_length(),
                                                  view->source(), view->destination(), view->protocol()));
        };
        if (type == 0x0800) prove(wire::Ipv4View::parse(packet));
        else prove(wire::Ipv6View::parse(packet));
    }

    FramePool pool_{1024};
    TxQueue tx_{pool_};
    Counters counters_;
    fuzz::NoWorld outside_;
    Rng rng_{1};
    Stack stack_{fuzz::small_stack(4), outside_, outside_, counters_, rng_};
    std::array<Interface*, 2> link_{};
    std::array<Udp, 4> udp_;
    std::array<Raw, 4> raw_;
    Instant now_{1h};
    // The frame that is being heard.
    std::uint32_t serial_ = 0, on_ = 1;
    Endpoint from_;
    Address to_;
    Port to_port_ = 0;
    Bytes sent_, packet_;
    std::ptrdiff_t header_ = 0;
    bool bent_ = true;
    bool anything_ = false;  // what leaves now is as a raw socket wrote it
    std::uint64_t dropped_ = 0;
    std::vector<std::size_t> heard_, copies_;
};

}  // namespace
}  // namespace culvert::stack

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    return culvert::fuzz::run<culvert::stack::World>(data, size, 300);
}
