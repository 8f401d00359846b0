// A stack with one interface of dedicated addresses, on a table: frames in, frames out, virtual time.
//
//   LinkHost host;                                  // eth0, 02:..:01, not configured
//   host.with({{ip("10.0.0.1"), 24}});              // probing starts
//   host.after(1s); host.expect_arp(...)            // what has been sent, in order
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <sstream>
#include <string>

#include "daemon/stack/link/address_configuration.h"
#include "daemon/stack/link/multicast_groups.h"
#include "daemon/stack/owner.h"
#include "daemon/stack/stack.h"
#include "daemon/wire/arp.h"
#include "daemon/wire/describe.h"
#include "daemon/wire/group_report.h"
#include "daemon/wire/igmp.h"
#include "daemon/wire/mld.h"
#include "daemon/wire/ndp.h"
#include "tests/unit/stack/ip_world.h"

namespace culvert::stack {

class NoPorts final : public PortOwner {
public:
    void take_port(Protocol, const Address&, Port) override {}
    void release_port(Protocol, const Address&, Port) override {}
};

inline StackConfig link_stack_config(std::uint64_t seed) {
    StackConfig config;
    config.max_connections = 64;
    config.max_half_open = 64;
    config.max_time_wait = 64;
    config.reassembly_chunks = 64;
    config.secret[0] = seed;
    config.stable_secret[0] = seed * 77;
    return config;
}

/// What became of addresses, as "assigned 10.0.0.1/24".
class AddressLog final : public AddressObserver {
public:
    void on_address(std::uint32_t, const Address& address, unsigned prefix_length, Event event) override {
        static constexpr const char* kNames[] = {"assigned", "duplicate", "defended", "removed"};
        lines.push_back(std::string(kNames[static_cast<int>(event)]) + " " + address.to_string() + "/" +
                        std::to_string(prefix_length));
    }
    std::vector<std::string> lines;
};

class DatagramLog final : public udp::SocketOwner {
public:
    bool on_datagram(udp::Socket&, const udp::DatagramInfo& info, Payload payload, std::uint32_t length) override {
        std::string text;
        for (const auto& piece : payload) text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
        EXPECT_EQ(text.size(), length);
        last = info;
        received.push_back(std::move(text));
        return true;
    }
    void on_error(udp::Socket&, const udp::DatagramError& error) override { errors.push_back(error.error); }
    std::vector<std::string> received;
    std::vector<int> errors;
    udp::DatagramInfo last;
};

class LinkHost {
public:
    explicit LinkHost(std::uint64_t seed = 1, MacAddress mac = kOurMac,
                      std::function<void(Interface&)> change = [](Interface&) {})
        : rng(seed), stack(link_stack_config(seed), resolver, ports, counters, rng) {
        Interface interface;
        interface.index = 7;
        interface.name = "eth0";
        interface.mac = mac;
        interface.up = true;
        interface.tx = &tx;
        interface.resolves_itself = true;
        change(interface);
        stack.set_address_observer(&log);
        stack.advance(now);
        eth0 = &stack.add_interface(interface);
    }
    ~LinkHost() { stack.set_address_observer(nullptr); }

    LinkHost& with(std::vector<InterfaceAddress> addresses) {
        stack.set_addresses(7, std::move(addresses));
        return *this;
    }
    /// Routes as the control thread would make them for these addresses.
    LinkHost& connected() {
        std::vector<Route> routes;
        for (const InterfaceAddress& own : eth0->addresses)
            routes.push_back({.destination = own.address, .prefix_length = own.prefix_length, .interface = 7});
        stack.routes().replace(routes);
        return *this;
    }
    /// Time passes; timers fire when they are due. What is sent stays in `sent`, with the time.
    LinkHost& after(Duration duration) {
        collect();
        const Instant target = now + duration;
        for (;;) {
            const Instant next = stack.next_deadline();
            if (next > target) break;
            now = std::max(now + TimerWheel::kTick, next);
            if (now > target) break;
            turn();
        }
        now = target;
        turn();
        return *this;
    }
    void turn() {
        stack.advance(now);
        stack.flush(now);
        collect();
    }
    LinkHost& receive(const Bytes& frame) {
        note("in   " + describe(frame));
        stack.input(*eth0, received(frame), now);
        collect();
        return *this;
    }
    void collect() {
        for (Bytes& frame : take_frames(tx)) {
            note("out  " + describe(frame));
            sent.push_back({now, std::move(frame)});
        }
    }
    struct Sent {
        Instant at;
        Bytes frame;
    };
    /// The next frame out; fails the test if there is none.
    Bytes next() {
        collect();
        if (sent.empty()) {
            ADD_FAILURE() << "nothing was sent" << transcript();
            return {};
        }
        Bytes frame = std::move(sent.front().frame);
        sent_at = sent.front().at;
        sent.pop_front();
        return frame;
    }
    std::vector<std::string> all_sent() {
        collect();
        std::vector<std::string> lines;
        for (const Sent& one : sent) lines.push_back(describe(one.frame));
        sent.clear();
        return lines;
    }
    LinkHost& quiet() {
        collect();
        EXPECT_TRUE(sent.empty()) << "sent, and not expected: " << describe(sent.front().frame) << transcript();
        sent.clear();
        return *this;
    }
    LinkHost& forget() {
        collect();
        sent.clear();
        return *this;
    }
    bool has(const char* address) const {
        return std::ranges::find(eth0->addresses, ip(address), &InterfaceAddress::address) != eth0->addresses.end();
    }
    std::optional<Address> link_local() const {
        for (const InterfaceAddress& own : eth0->addresses)
            if (!own.address.is_v4() && own.address.is_link_local()) return own.address;
        return std::nullopt;
    }
    std::uint64_t dropped(Drop drop) const { return counters.dropped(drop); }
    std::string transcript() const {
        std::string all = "\n--- transcript ---\n";
        for (const std::string& line : lines_) all += line + "\n";
        return all;
    }

    /// One line about a frame of the link's own protocols; the rest as wire::describe has it.
    static std::string describe(const Bytes& frame);

    FramePool pool{2048};
    TxQueue tx{pool};
    Counters counters;
    RecordingResolver resolver;
    NoPorts ports;
    Rng rng;
    AddressLog log;
    Stack stack;
    Interface* eth0 = nullptr;
    Instant now{std::chrono::hours(1)};
    std::deque<Sent> sent;
    Instant sent_at{};  // of the frame that next() gave

private:
    void note(std::string line) {
        const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now - Instant{std::chrono::hours(1)});
        lines_.push_back(std::to_string(ms.count()) + " ms  " + std::move(line));
    }
    std::vector<std::string> lines_;
};

// --- frames ------------------------------------------------------------------------------------------------------------

inline Bytes arp_frame(const wire::ArpHeader& arp, const MacAddress& to) {
    Bytes frame(60);
    wire::emit(wire::EthernetHeader{to, arp.sender_mac, wire::EtherType::kArp}, frame);
    wire::emit(arp, std::span(frame).subspan(14));
    return frame;
}
inline Bytes arp_request(const char* sender, const char* target, const MacAddress& mac = kPeerMac) {
    return arp_frame({wire::ArpOperation::kRequest, mac, ip(sender), {}, ip(target)}, wire::kBroadcastMac);
}
inline Bytes arp_reply(const char* sender, const char* target, const MacAddress& mac = kPeerMac,
                       const MacAddress& to = kOurMac) {
    return arp_frame({wire::ArpOperation::kReply, mac, ip(sender), to, ip(target)}, to);
}

/// `from_mac` is the Ethernet source. A group's MAC is made from `to`.
inline Bytes ipv6_control(const Address& from, const Address& to, std::span<std::byte> message, std::uint8_t hop_limit,
                          const MacAddress& to_mac, bool router_alert = false) {
    wire::finish_icmpv6_checksum(message, from, to);
    const std::size_t extra = router_alert ? 8 : 0;
    Bytes frame(54 + extra + message.size());
    wire::emit(wire::EthernetHeader{to_mac, kPeerMac, wire::EtherType::kIpv6}, frame);
    wire::emit(wire::Ipv6Header{.source = from,
                                .destination = to,
                                .protocol = router_alert ? wire::IpProtocol::kHopByHop : wire::IpProtocol::kIcmpv6,
                                .hop_limit = hop_limit},
               extra + message.size(), std::span(frame).subspan(14));
    if (router_alert) {
        const std::byte options[] = {std::byte{58}, std::byte{0}, std::byte{5}, std::byte{2},
                                     std::byte{0},  std::byte{0}, std::byte{1}, std::byte{0}};
        std::ranges::copy(options, frame.begin() + 54);
    }
    std::ranges::copy(message, frame.begin() + 54 + static_cast<std::ptrdiff_t>(extra));
    return frame;
}
template <class Message>
Bytes ndp_frame(const char* from, const Address& to, const Message& message, std::uint8_t hop_limit = 255,
                std::optional<MacAddress> to_mac = std::nullopt) {
    Bytes bytes(512);
    bytes.resize(wire::emit(message, bytes));
    return ipv6_control(ip(from), to, bytes, hop_limit,
                        to_mac ? *to_mac : to.is_multicast() ? wire::multicast_mac(to) : kOurMac);
}

inline std::string LinkHost::describe(const Bytes& frame) {
    std::ostringstream out;
    const auto bytes = std::span<const std::byte>(frame);
    const auto ethernet = wire::EthernetView::parse(bytes);
    if (!ethernet) return "?";
    const bool broadcast = ethernet->destination() == wire::kBroadcastMac;
    if (ethernet->ether_type() == wire::EtherType::kArp) {
        const auto arp = wire::ArpView::parse(bytes.subspan(14));
        if (!arp) return "arp ?";
        out << "arp " << (arp->operation() == wire::ArpOperation::kRequest ? "request " : "reply ")
            << arp->sender().to_string() << " -> " << arp->target().to_string() << (broadcast ? " broadcast" : "");
        return out.str();
    }
    Address source, destination;
    std::span<const std::byte> message;
    if (ethernet->ether_type() == wire::EtherType::kIpv4) {
        const auto view = wire::Ipv4View::parse(bytes.subspan(14));
        if (!view || view->protocol() != wire::IpProtocol::kIgmp) return wire::describe(frame);
        const auto igmp = wire::IgmpView::parse(view->payload_in_head());
        if (!igmp) return "igmp ?";
        out << "igmp " << view->source().to_string() << " -> " << view->destination().to_string();
        if (view->hop_limit() != 1 || view->header_length() != 24) out << " (bad header)";
        message = view->payload_in_head();
        switch (igmp->type()) {
            case wire::IgmpType::kQuery: out << " query"; return out.str();
            case wire::IgmpType::kV1Report: out << " v1 report " << igmp->group().to_string(); return out.str();
            case wire::IgmpType::kV2Report: out << " v2 report " << igmp->group().to_string(); return out.str();
            case wire::IgmpType::kLeave: out << " leave " << igmp->group().to_string(); return out.str();
            case wire::IgmpType::kV3Report: break;
        }
    } else {
        const auto view = wire::Ipv6View::parse(bytes.subspan(14));
        if (!view || view->protocol() != wire::IpProtocol::kIcmpv6) return wire::describe(frame);
        message = view->payload_in_head();
        const auto type = std::to_integer<unsigned>(message[0]);
        const RxPacket packet = received(frame);
        if (!wire::verify_transport_checksum(packet, 14 + view->header_length(), message.size(), view->source(),
                                             view->destination(), wire::IpProtocol::kIcmpv6))
            return "icmpv6 (checksum)";
        const std::string path = " " + view->source().to_string() + " -> " + view->destination().to_string();
        if (type >= 133 && type <= 137) {
            const auto ndp = wire::NdpView::parse(message);
            if (!ndp) return "ndp ?";
            static constexpr const char* kNames[] = {"rs", "ra", "ns", "na", "redirect"};
            out << kNames[type - 133] << path;
            if (view->hop_limit() != 255) out << " (hop limit)";
            if (type == 135 || type == 136) out << " " << ndp->target().to_string();
            if (type == 136)
                out << " " << (ndp->is_router() ? "R" : "") << (ndp->solicited() ? "S" : "") << (ndp->overrides() ? "O" : "");
            if (ndp->options().source_mac) out << " smac";
            if (ndp->options().target_mac) out << " tmac";
            if (ndp->options().nonce) out << " nonce";
            return out.str();
        }
        if (type < 130 || (type > 132 && type != 143)) return wire::describe(frame);
        out << "mld" << path;
        if (view->hop_limit() != 1 || view->header_length() != 48) out << " (bad header)";
        if (type != 143) {
            const auto mld = wire::MldView::parse(message);
            if (!mld) return "mld ?";
            out << (type == 130 ? " query " : type == 131 ? " v1 report " : " done ") << mld->group().to_string();
            return out.str();
        }
    }
    const auto report = wire::GroupReportView::parse(
        ethernet->ether_type() == wire::EtherType::kIpv4 ? Family::kIpv4 : Family::kIpv6, message);
    if (!report) return out.str() + " report ?";
    report->for_each_record([&](const wire::GroupRecord& record) {
        static constexpr const char* kNames[] = {"?", "is_in", "is_ex", "to_in", "to_ex", "allow", "block"};
        out << " " << kNames[static_cast<int>(record.type)] << " " << record.group.to_string() << " {";
        for (std::size_t i = 0; i < record.source_count(); ++i)
            out << (i != 0 ? " " : "") << record.source(i).to_string();
        out << "}";
    });
    return out.str();
}

}  // namespace culvert::stack
