// UDP beside TCP: each end sends datagrams of any length, most of them in fragments, and checks that every one it gets is
// whole, true, and was sent no less often than it came.
#pragma once

#include <cstdint>
#include <vector>

#include "daemon/stack/udp.h"
#include "daemon/wire/bytes.h"
#include "tests/sim/application.h"

namespace culvert::sim {

class Datagrams final : public stack::udp::SocketOwner {
public:
    static constexpr Port kPort = 5000;
    static constexpr std::uint32_t kHeader = 8;  // the number of the datagram

    /// `copies`: how often the way may multiply one datagram at most.
    Datagrams(SimHost& host, const Endpoint& local, const Endpoint& remote, std::uint64_t copies, Rng& rng, Failures& failures)
        : host_(host), remote_(remote), copies_(copies), rng_(rng), failures_(failures) {
        auto bound = host.stack.bind_udp(local, false, *this);
        CHECK(bound.has_value());
        socket_ = *bound;
        if (rng.happens(0.5)) host.stack.connect_udp(*socket_, &remote);
    }
    void close() { host_.stack.close(*socket_); }

    bool on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo& info, stack::Payload payload, std::uint32_t length) override {
        Bytes whole;
        for (const auto& piece : payload) whole.insert(whole.end(), piece.begin(), piece.end());
        whole.resize(length);
        ++received;
        if (info.remote != remote_ || length < kHeader) return fail("a datagram from nowhere");
        const std::uint32_t number = wire::load_be32(whole.data());
        if (number >= peer->lengths_.size() || peer->lengths_[number] != length) return fail("a datagram nobody sent");
        for (std::uint32_t i = kHeader; i < length; ++i)
            if (whole[i] != stream_byte(number, i)) return fail("a datagram with a wrong byte");
        if (++arrivals_.try_emplace(number, 0).first->second > copies_) return fail("a datagram too often");
        return true;
    }
    void on_error(stack::udp::Socket&, const stack::udp::DatagramError&) override { ++errors; }

    void send(Instant now) {
        const auto length = static_cast<std::uint32_t>(kHeader + rng_.below(rng_.happens(0.1) ? 20'000 : 3000));
        Bytes bytes(length);
        wire::store_be32(bytes.data(), static_cast<std::uint32_t>(lengths_.size()));
        for (std::uint32_t i = kHeader; i < length; ++i) bytes[i] = stream_byte(lengths_.size(), i);
        lengths_.push_back(length);
        const std::span<const std::byte> pieces[] = {bytes};
        stack::udp::SendOptions options;
        options.path_mtu = static_cast<stack::udp::PathMtu>(rng_.below(4));
        if (host_.stack.send_datagram(*socket_, remote_, pieces, length, options, now).has_value()) ++sent;
    }

    Datagrams* peer = nullptr;
    std::uint64_t sent = 0, received = 0, errors = 0;

private:
    bool fail(const char* what) {
        failures_.add(host_.name + " UDP: " + what);
        return true;
    }
    SimHost& host_;
    Endpoint remote_;
    std::uint64_t copies_;
    Rng& rng_;
    Failures& failures_;
    stack::udp::Socket* socket_ = nullptr;
    std::vector<std::uint32_t> lengths_;
    std::map<std::uint32_t, std::uint64_t> arrivals_;
};

}  // namespace culvert::sim
