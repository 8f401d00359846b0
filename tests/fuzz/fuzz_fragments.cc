// Fragments in any order, overlapping, bent, late and of many senders, against a reference that has all the memory in
// the world.
//
// The input is a list of steps: cut a piece out of one of a few datagrams and send it, as the input says (see step()).
// What must hold: what a socket hears are the bytes that were sent; it hears a datagram when the reference has all of it,
// or something was lost by name meanwhile; one that comes undisturbed is heard whatever else goes on; and when time has
// run out every chunk is free.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "daemon/stack/stack.h"
#include "daemon/wire/udp.h"
#include "tests/fuzz/frames.h"
#include "tests/fuzz/world.h"

namespace culvert::stack {
namespace {

using namespace std::chrono_literals;
using fuzz::Bytes;
using fuzz::kOurs;
using fuzz::kPeers;

constexpr std::size_t kDatagrams = 16;
// Numbers of datagrams that nobody else speaks of (the last byte counts).
constexpr std::uint32_t kFresh4 = 0x7a00, kFresh6 = 0x7a7a7a00;

/// One datagram that the sender cuts up. Its payload is a pattern of its own, so that mixed datagrams show.
struct Datagram {
    Address source, destination;
    std::uint32_t identification = 0;
    Bytes message;                      // UDP header and payload
    // The reference: which units of 8 bytes have come, and how much had been lost by name before the first of them.
    Bytes have;
    std::size_t missing = 0;  // of them, not yet set in `have`
    std::uint64_t lost_before = 0;
    bool incomplete = false;  // the stack may know less than the reference
    std::uint32_t heard = 0;
};

class World final : public udp::SocketOwner {
public:
    World() {
        Interface interface;
        interface.index = 1;
        interface.mac = kOurs;
        interface.up = true;
        interface.tx = &tx_;
        const Address ours4 = Address::v4(10, 0, 0, 1), ours6 = *Address::parse("fd00::1");
        interface.addresses = {{ours4, 24, true}, {ours6, 64, true}};
        eth0_ = &stack_.add_interface(std::move(interface));
        stack_.routes().replace({{.destination = ours4, .prefix_length = 24, .interface = 1},
                                 {.destination = ours6, .prefix_length = 64, .interface = 1}});
        socket_ = *stack_.bind_udp({Address(), 53}, true, *this);
        for (std::size_t i = 0; i < kDatagrams; ++i) {
            Datagram& d = datagrams_[i];
            const bool v4 = i % 2 == 0;
            const auto host = static_cast<std::uint8_t>(2 + i % 4 / 2);
            d.source = v4 ? Address::v4(10, 0, 0, host) : *Address::parse(host == 2 ? "fd00::2" : "fd00::3");
            d.destination = v4 ? ours4 : ours6;
            d.identification = static_cast<std::uint32_t>(i / 4);  // the same number at several senders
            static constexpr std::size_t kLengths[] = {24, 64, 1000, 1480, 2960, 9000, 40000, 65000};
            make(d, i, kLengths[i / 2]);
        }
    }

    void step(fuzz::Input& in) {
        const std::uint8_t kind = in.u8();
        Datagram& d = datagrams_[kind >> 4];
        switch (kind & 15) {
            case 0:
            case 1:
            case 2:
            case 3:
            case 4: piece(d, in.u16() * std::size_t{8}, (in.u8() + std::size_t{1}) * 8); break;
            case 5: whole(d, (in.u8() + std::size_t{1}) * 8, false); break;
            case 6: whole(d, (in.u8() + std::size_t{1}) * 8, true); break;
            case 7: bent(d, in.u16() * std::size_t{8}, in.u8() * std::size_t{8}, in); break;
            case 8: pass(std::chrono::milliseconds(in.u16())); break;
            case 9: raw(d, in); break;
            case 10: pass(std::chrono::seconds(in.u8())); break;
            default: rest(d); break;
        }
    }
    void end() {
        for (int i = 0; i < 5000 && stack_.next_deadline() != kNever; ++i) turn_at(stack_.next_deadline());
        CHECK(stack_.next_deadline() == kNever);
        stack_.close(*socket_);
        CHECK(pool_.available() == pool_.count());
    }

    bool on_datagram(udp::Socket&, const udp::DatagramInfo& info, Payload payload, std::uint32_t length) override {
        Bytes heard;
        for (const auto& piece : payload) heard.insert(heard.end(), piece.begin(), piece.end());
        CHECK(heard.size() == length);
        // It proves itself by its checksum, so unless the input made one itself, it is one of ours, whole.
        for (Datagram& d : datagrams_) {
            if (info.remote.address != d.source || heard.size() + wire::kUdpHeaderLength != d.message.size() ||
                std::memcmp(heard.data(), d.message.data() + wire::kUdpHeaderLength, heard.size()) != 0)
                continue;
            ++d.heard;
            return true;
        }
        CHECK(forged_);
        return true;
    }
    void on_error(udp::Socket&, const udp::DatagramError&) override {}

private:
    static void make(Datagram& d, std::size_t number, std::size_t length) {
        d.message.resize(length);
        for (std::size_t at = 0; at < length; ++at)
            d.message[at] = static_cast<std::byte>(at * 31 + at / 251 + number * 17);
        wire::emit(wire::UdpHeader{static_cast<Port>(1000 + number), 53}, length - wire::kUdpHeaderLength, d.message);
        wire::PartialSum sum = wire::sum_bytes(d.message);
        sum += wire::pseudo_header_sum(d.source, d.destination, wire::IpProtocol::kUdp, static_cast<std::uint32_t>(length));
        const std::uint16_t checksum = wire::checksum(sum);
        wire::store_be16(d.message.data() + 6, checksum == 0 ? 0xffff : checksum);
    }

    /// `change` bends the fragment after it has been made.
    template <class Change>
    void send(const Datagram& d, std::size_t offset, bool more, std::span<const std::byte> bytes, Change&& change) {
        const bool v4 = d.source.is_v4();
        const std::size_t header = v4 ? 0 : wire::kIpv6FragmentHeaderLength;
        Bytes message(header + bytes.size());
        fuzz::place(bytes, message.data() + header);
        const auto field = static_cast<std::uint16_t>(v4 ? (more ? 0x2000u : 0u) | offset / 8 : offset | (more ? 1u : 0u));
        if (!v4) {
            wire::store_8(message.data(), 17);
            wire::store_be16(message.data() + 2, field);
            wire::store_be32(message.data() + 4, d.identification);
        }
        Bytes frame = fuzz::frame_of({.to = kOurs, .from = kPeers, .source = d.source, .destination = d.destination,
                                      .protocol = v4 ? wire::IpProtocol::kUdp : wire::IpProtocol::kFragment}, message);
        if (v4) {
            wire::store_be16(frame.data() + 18, static_cast<std::uint16_t>(d.identification));
            wire::store_be16(frame.data() + 20, field);
        }
        change(frame);
        fuzz::fix_checksums(frame);
        fuzz::as_packet(frame, [&](const RxPacket& packet) { stack_.input(*eth0_, packet, now_); });
        turn();
    }
    void send(const Datagram& d, std::size_t offset, bool more, std::span<const std::byte> bytes) {
        send(d, offset, more, bytes, [](Bytes&) {});
    }
    /// A right piece of the datagram. What the stack makes of it is what the reference says, or something was lost by name.
    void piece(Datagram& d, std::size_t offset, std::size_t length) {
        const std::size_t units = (d.message.size() + 7) / 8;
        offset = offset / 8 % units * 8;
        length = std::min(std::min<std::size_t>(length, 1480), d.message.size() - offset);
        const bool more = offset + length < d.message.size();
        if (offset == 0 && !more) {  // [RFC6946 4] all of it in one: nothing that came before has to do with it
            const std::uint32_t before = d.heard;
            send(d, 0, false, d.message);
            CHECK(d.heard == before + 1);
            return;
        }
        if (d.have.empty()) {
            d.lost_before = lost();
            d.have.resize(units);
            d.missing = units;
        }
        for (std::size_t at = offset / 8; at < (offset + length + 7) / 8; ++at)
            if (std::exchange(d.have[at], std::byte{1}) == std::byte{0}) --d.missing;
        const std::uint32_t before = d.heard;
        send(d, offset, more, std::span(d.message).subspan(offset, length));
        const bool whole = d.missing == 0;
        const bool heard = d.heard != before;
        CHECK(d.heard - before <= 1);
        CHECK(!whole || heard || lost() > d.lost_before || d.incomplete);
        CHECK(!heard || whole || d.incomplete);
        if (whole && !heard) d.incomplete = true;
        if (heard) d.incomplete = false;
        if (whole || heard) d.have.clear();
    }
    /// The whole datagram under a fresh number, in pieces of `size`, in order or backwards: it has to be heard, and only
    /// older ones may give way to it.
    void whole(Datagram& d, std::size_t size, bool backwards) {
        size = std::max(size, d.message.size() / 64 / 8 * 8);
        const std::uint32_t identification = d.identification;
        d.identification = (d.source.is_v4() ? kFresh4 : kFresh6) | (++fresh_ & 0xff);
        const std::size_t count = (d.message.size() + size - 1) / size;
        const std::uint32_t before = d.heard;
        const std::uint64_t no_room = counters_.dropped(Drop::kIpReassemblyNoRoom);
        const std::uint64_t dropped = fuzz::drops(counters_);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t at = (backwards ? count - 1 - i : i) * size;
            const std::size_t length = std::min(size, d.message.size() - at);
            send(d, at, at + length < d.message.size(), std::span(d.message).subspan(at, length));
        }
        CHECK(fuzz::drops(counters_) - dropped == counters_.dropped(Drop::kIpReassemblyNoRoom) - no_room);
        CHECK(d.heard == before + 1);
        d.identification = identification;
    }
    /// All of it once more, so that more than the first pieces are ever put together.
    void rest(Datagram& d) {
        for (std::size_t at = 0; at < d.message.size(); at += 1024) piece(d, at, 1024);
    }
    /// Forged bytes never carry the number of a fresh datagram: nothing could be said about that one.
    static void spare_fresh(Bytes& frame) {
        for (std::size_t at = wire::kEthernetHeaderLength; at < frame.size(); ++at)
            if (frame[at] == std::byte{kFresh4 >> 8}) frame[at] = std::byte{0};
        fuzz::fix_checksums(frame);
    }
    void bent(Datagram& d, std::size_t offset, std::size_t length, fuzz::Input& in) {
        offset &= 0xfff8;
        forged_ = d.incomplete = true;
        Bytes bytes(std::min<std::size_t>(length + in.u8() % 9, 1480));
        for (std::size_t i = 0; i < bytes.size(); ++i)
            bytes[i] = offset + i < d.message.size() ? d.message[offset + i] : static_cast<std::byte>(i);
        const std::uint8_t flags = in.u8();
        send(d, offset, (flags & 1) != 0, bytes, [&](Bytes& frame) {
            if ((flags & 2) != 0) fuzz::bend(frame, in);
            spare_fresh(frame);
        });
    }
    void raw(Datagram& d, fuzz::Input& in) {
        for (Datagram& each : datagrams_) each.incomplete = true;  // it may be about any of them
        forged_ = true;
        Bytes frame = fuzz::frame_of({.to = kOurs, .from = kPeers, .source = d.source, .destination = d.destination,
                                      .protocol = d.source.is_v4() ? wire::IpProtocol::kUdp : wire::IpProtocol::kFragment},
                                     in.bytes(in.u8()));
        fuzz::bend(frame, in);
        spare_fresh(frame);
        fuzz::as_packet(frame, [&](const RxPacket& packet) { stack_.input(*eth0_, packet, now_); });
        turn();
    }
    void pass(Duration time) { turn_at(now_ + time); }
    void turn_at(Instant time) {
        now_ = std::max(now_ + 1ms, time);
        turn();
    }
    void turn() {
        stack_.advance(now_);
        stack_.flush(now_);
        fuzz::take_output(tx_, [](const Bytes& frame) { CHECK(frame.size() >= wire::kEthernetHeaderLength); });
    }
    /// Datagrams, or parts of them, that were given up.
    std::uint64_t lost() const {
        return counters_.dropped(Drop::kIpReassemblyNoRoom) + counters_.dropped(Drop::kIpReassemblyStale) +
               counters_.dropped(Drop::kIpReassemblyTimeout) + counters_.dropped(Drop::kIpFragmentOverlap);
    }
    static StackConfig small() {
        StackConfig config = fuzz::small_stack(4);
        config.max_ip_reassemblies = 12;
        config.ip_reassembly_chunks = 80;
        return config;
    }

    FramePool pool_{256};
    TxQueue tx_{pool_};
    Counters counters_;
    fuzz::NoWorld outside_;
    Rng rng_{1};
    Stack stack_{small(), outside_, outside_, counters_, rng_};
    Interface* eth0_ = nullptr;
    udp::Socket* socket_ = nullptr;
    std::array<Datagram, kDatagrams> datagrams_;
    std::uint32_t fresh_ = 0;
    bool forged_ = false;  // the input has made bytes of its own: anything may be heard
    Instant now_{1h};
};

}  // namespace
}  // namespace culvert::stack

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    return culvert::fuzz::run<culvert::stack::World>(data, size, 300);
}
