// TCP as one module of the stack: demultiplexing, listeners, the list of connections that have something to send.
#pragma once

#include <memory>
#include <span>

#include "daemon/base/counters.h"
#include "daemon/base/instant.h"
#include "daemon/base/packet.h"
#include "daemon/base/rng.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/ip_packet.h"
#include "daemon/stack/owner.h"
#include "daemon/stack/peers.h"
#include "daemon/stack/stack.h"

namespace culvert::stack::tcp {

class TcpImpl;

/// What is in use at the moment: for tests (nothing may leak) and `culvert stat`.
struct Usage {
    std::uint32_t connections = 0;
    std::uint32_t half_open = 0;
    std::uint32_t time_wait = 0;
    std::uint32_t flows = 0;
    std::uint32_t reassembly_pieces = 0;
    std::uint32_t sack_boards = 0;
    std::uint32_t bbr_models = 0;
    std::uint32_t flight_pieces = 0;
    std::uint32_t senders = 0;  // connections that have something to send, or had a moment ago
    std::uint32_t mtu_searches = 0;  // connections that do not believe their path
    std::uint32_t options = 0;  // different sets of them
    std::uint32_t ports = 0;  // addresses and ports held
};

class Tcp {
public:
    Tcp(const StackConfig& config, IpOutput& output, PortOwner& ports, Counters& counters, Rng& rng,
        Peers* peers = nullptr);
    ~Tcp();

    /// A segment for one of our addresses (the checksum has not been verified yet).
    void input(const IpPacket& packet, Instant now);
    /// The same for frames[0] of a burst and those that continue it, if they belong to a connection (segment_run.h). `whole`
    /// is a copy of frames[0], `first` it after IP input; both are changed. At most kAhead frames. Returns how many it took:
    /// at least 1, and the others are untouched.
    std::size_t input_run(IpPacket& first, RxPacket& whole, std::span<const RxPacket> frames, Instant now);
    /// Frames whose segments may come next, at most kAhead: while there are many flows, their places in the flow table and
    /// their connections are brought to the caches. What is no plain TCP is passed over.
    static constexpr std::size_t kAhead = 16;
    void expect(std::span<const RxPacket> frames);
    /// An ICMP error about a segment of ours. `message`: the packet that brought it, for the engine that it concerns; null when it
    /// came from ourselves. True if a connection believes it.
    bool icmp_error(const IcmpError& error, const IpPacket* message, Instant now);
    void advance(Instant now);
    void flush(Instant now);
    Instant next_deadline() const;  // Instant::min() when a connection is marked for output

    Result<Listener*> listen(const Endpoint& local, bool dual, const ListenerOptions& options, ListenerOwner& owner);
    ListenerOwner* heir_of(const Listener& listener) const;
    void close(Listener& listener);
    bool is_listening(const Endpoint& local) const;
    Result<Connection*> connect(const Endpoint& local, const Endpoint& remote, const Options& options,
                                ConnectionOwner& owner, Instant now);
    /// See Stack::port_for.
    Port port_for(const Address& local, const Endpoint& remote, Instant now);
    /// See Stack::probe_dead_flow.
    Result<void> probe_dead_flow(const Endpoint& local, const Endpoint& remote, Instant now);
    Usage usage() const;

private:
    std::unique_ptr<TcpImpl> impl_;
};

}  // namespace culvert::stack::tcp
