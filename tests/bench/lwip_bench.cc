// The same work done by lwIP, Debian's build of it (liblwip): two of its interfaces joined back to back, one thread.
//
//   pcbs of the client -- netif 0 -- queue of pbufs -- netif 1 -- pcbs of the server
//
// lwIP is one stack for each process, so both ends live in it; tcp_bind_netif() keeps each end on its own interface. It is
// used by its raw API without its thread, the fastest way it has. What makes the comparison fair, or kind to lwIP:
//   - Payload is handed over without a copy, by a pbuf that refers to the sender's; headers and small frames are copied.
//   - Ethernet, ARP and checksums are done by both. Nagle's algorithm is off in both.
//   - No timer runs in the measured time; TIME-WAIT records, which lwIP finds by walking a list, are aged outside of it.
//   - Debian's build takes a mutex for each allocation (SYS_LIGHTWEIGHT_PROT), has TCP_MSS 1460 whatever the MTU, no SACK
//     and neither congestion control beyond Reno nor timestamps. It cannot be built otherwise and still be Debian's.
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <deque>
#include <memory>
#include <vector>

extern "C" {
#include <lwip/etharp.h>
#include <lwip/init.h>
#include <lwip/netif.h>
#include <lwip/priv/tcp_priv.h>
#include <lwip/tcp.h>
#include <lwip/udp.h>
#include <netif/ethernet.h>
}

#include "shm/base/check.h"

namespace culvert::bench {
namespace {

constexpr u16_t kSize = 64;
constexpr u16_t kPort = 80;
const char kBytes[65536] = {};

/// A frame on the wire: refers to the sender's pbuf until the receiver has done with it.
struct Frame {
    pbuf_custom custom;
    pbuf* original;
};

class Wire {
public:
    static Wire& get() {
        static Wire wire;
        return wire;
    }
    /// Delivers until nobody has anything to say.
    void run() {
        while (!queue_.empty()) {
            const Sent next = queue_.front();
            queue_.pop_front();
            if (next.to->input(next.frame, next.to) != ERR_OK) pbuf_free(next.frame);
        }
    }
    /// Bytes that nobody has sent, into the server's interface.
    void inject(const std::vector<std::byte>& bytes) {
        pbuf* const original = pbuf_alloc(PBUF_RAW, 0, PBUF_RAM);
        queue_.push_back({&ends_[1], wrap(original, bytes.data(), static_cast<u16_t>(bytes.size()))});
    }
    /// Takes what has been sent to the server, as bytes.
    std::vector<std::byte> capture() {
        CHECK(queue_.size() == 1);
        pbuf* const frame = queue_.front().frame;
        queue_.clear();
        std::vector<std::byte> bytes(frame->tot_len);
        pbuf_copy_partial(frame, bytes.data(), frame->tot_len, 0);
        pbuf_free(frame);
        return bytes;
    }
    netif& end(int number) { return ends_[number]; }
    const ip_addr_t& address(int number) { return ends_[number].ip_addr; }

private:
    struct Sent {
        netif* to;
        pbuf* frame;
    };
    Wire() {
        lwip_init();
        for (int i = 0; i < 2; ++i) {
            ip4_addr_t address, mask, gateway;
            IP4_ADDR(&address, 10, 9, 0, static_cast<u8_t>(i + 1));
            IP4_ADDR(&mask, 255, 255, 255, 0);
            ip4_addr_set_zero(&gateway);
            CHECK(netif_add(&ends_[i], &address, &mask, &gateway, this, prepare, ethernet_input) != nullptr);
            ends_[i].hwaddr[5] = static_cast<u8_t>(i + 1);
            netif_set_up(&ends_[i]);
            netif_set_link_up(&ends_[i]);
        }
        run();
    }
    static err_t prepare(netif* end) {
        end->hwaddr_len = 6;
        end->hwaddr[0] = 2;
        end->mtu = 1500;
        end->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET;
        end->output = etharp_output;
        end->linkoutput = [](netif* from, pbuf* frame) -> err_t {
            Wire& wire = *static_cast<Wire*>(from->state);
            netif* const to = from == &wire.ends_[0] ? &wire.ends_[1] : &wire.ends_[0];
            // The receiver swaps bytes of headers where they lie, and the sender still reads them: they are copied.
            const bool large = frame->next == nullptr && frame->len > 2 * kHeaders;
            pbuf* const handed = pbuf_alloc(PBUF_RAW, large ? kHeaders : frame->tot_len, PBUF_RAM);
            CHECK(handed != nullptr);
            pbuf_copy_partial(frame, handed->payload, handed->len, 0);
            if (large) {
                pbuf_ref(frame);
                pbuf_cat(handed, wrap(frame, static_cast<const char*>(frame->payload) + kHeaders, frame->len - kHeaders));
            }
            wire.queue_.push_back({to, handed});
            return ERR_OK;
        };
        return ERR_OK;
    }
    static pbuf* wrap(pbuf* original, const void* bytes, u16_t length) {
        Frame* const frame = spare_ != nullptr ? spare_ : new Frame;
        spare_ = nullptr;
        frame->original = original;
        frame->custom.custom_free_function = [](pbuf* done) {
            Frame* const mine = reinterpret_cast<Frame*>(done);
            pbuf_free(mine->original);
            if (spare_ == nullptr) {
                spare_ = mine;
            } else {
                delete mine;
            }
        };
        return pbuf_alloced_custom(PBUF_RAW, length, PBUF_REF, &frame->custom, const_cast<void*>(bytes), length);
    }

    static constexpr u16_t kHeaders = 128;  // Ethernet to TCP's options

    netif ends_[2] = {};
    std::deque<Sent> queue_;
    static inline Frame* spare_ = nullptr;
};

// --- UDP --------------------------------------------------------------------------------------------------------------

/// A datagram of 64 bytes to the server, as the client's interface sends it.
std::vector<std::byte> datagram() {
    Wire& wire = Wire::get();
    udp_pcb* const sender = udp_new();
    udp_bind_netif(sender, &wire.end(0));
    CHECK(udp_bind(sender, &wire.address(0), 9000) == ERR_OK);
    std::vector<std::byte> bytes;
    for (int i = 0; i < 2; ++i) {  // the first one only asks for the MAC
        pbuf* const payload = pbuf_alloc(PBUF_TRANSPORT, kSize, PBUF_RAM);
        pbuf_take(payload, kBytes, kSize);
        CHECK(udp_sendto_if_src(sender, payload, &wire.address(1), kPort, &wire.end(0), &wire.address(0)) == ERR_OK);
        if (i == 0) {
            wire.run();
        } else {
            bytes = wire.capture();
        }
        pbuf_free(payload);
    }
    udp_remove(sender);
    return bytes;
}

void LwipUdpReceive(benchmark::State& state) {
    Wire& wire = Wire::get();
    const auto frame = datagram();
    std::uint64_t received = 0;
    udp_pcb* const server = udp_new();
    CHECK(udp_bind(server, &wire.address(1), kPort) == ERR_OK);
    udp_recv(server,
             [](void* count, udp_pcb*, pbuf* payload, const ip_addr_t*, u16_t) {
                 ++*static_cast<std::uint64_t*>(count);
                 pbuf_free(payload);
             },
             &received);
    std::uint64_t sent = 0;
    for (auto _ : state) {
        for (int i = 0; i < 64; ++i) wire.inject(frame);
        wire.run();
        sent += 64;
    }
    udp_remove(server);
    CHECK(received == sent);
    state.SetItemsProcessed(static_cast<std::int64_t>(received));
}
BENCHMARK(LwipUdpReceive);

void LwipUdpEcho(benchmark::State& state) {
    Wire& wire = Wire::get();
    const auto frame = datagram();
    std::uint64_t sent = 0;
    std::uint64_t asked = 0;
    udp_pcb* const server = udp_new();
    udp_bind_netif(server, &wire.end(1));
    CHECK(udp_bind(server, &wire.address(1), kPort) == ERR_OK);
    udp_recv(server,
             [](void* count, udp_pcb* socket, pbuf* payload, const ip_addr_t* to, u16_t port) {
                 Wire& here = Wire::get();
                 *static_cast<std::uint64_t*>(count) +=
                     udp_sendto_if_src(socket, payload, to, port, &here.end(1), &here.address(1)) == ERR_OK;
                 pbuf_free(payload);
             },
             &sent);
    // What comes back finds a socket that throws it away.
    udp_pcb* const client = udp_new();
    CHECK(udp_bind(client, &wire.address(0), 9000) == ERR_OK);
    udp_recv(client, [](void*, udp_pcb*, pbuf* payload, const ip_addr_t*, u16_t) { pbuf_free(payload); }, nullptr);
    for (auto _ : state) {
        for (int i = 0; i < 64; ++i) wire.inject(frame);
        wire.run();
        asked += 64;
    }
    udp_remove(server);
    udp_remove(client);
    CHECK(sent == asked);
    state.SetItemsProcessed(static_cast<std::int64_t>(sent));
}
BENCHMARK(LwipUdpEcho);

// --- TCP --------------------------------------------------------------------------------------------------------------

/// One end of a connection.
struct End {
    tcp_pcb* pcb = nullptr;
    std::uint64_t received = 0;
    std::uint32_t due = 0;
    bool answers = false;
    bool ended = false;
};

void send(tcp_pcb* pcb) {
    CHECK(tcp_write(pcb, kBytes, kSize, TCP_WRITE_FLAG_COPY) == ERR_OK);
    CHECK(tcp_output(pcb) == ERR_OK);
}

err_t on_bytes(void* argument, tcp_pcb* pcb, pbuf* bytes, err_t) {
    End& end = *static_cast<End*>(argument);
    if (bytes == nullptr) {
        end.ended = true;
        return ERR_OK;
    }
    tcp_recved(pcb, bytes->tot_len);
    end.received += bytes->tot_len;
    end.due += bytes->tot_len;
    pbuf_free(bytes);
    for (; end.answers && end.due >= kSize; end.due -= kSize) send(pcb);
    return ERR_OK;
}

void adopt(tcp_pcb* pcb, End& end) {
    end.pcb = pcb;
    end.ended = false;
    tcp_arg(pcb, &end);
    tcp_recv(pcb, on_bytes);
    tcp_nagle_disable(pcb);
}

/// A listener whose connections go to `ends` in turn.
struct Acceptor {
    explicit Acceptor(std::size_t count) : ends(count) {
        Wire& wire = Wire::get();
        tcp_pcb* const made = tcp_new();
        tcp_bind_netif(made, &wire.end(1));
        CHECK(tcp_bind(made, &wire.address(1), kPort) == ERR_OK);
        listener = tcp_listen_with_backlog(made, 255);
        CHECK(listener != nullptr);
        tcp_arg(listener, this);
        tcp_accept(listener, [](void* argument, tcp_pcb* pcb, err_t) -> err_t {
            Acceptor& self = *static_cast<Acceptor*>(argument);
            adopt(pcb, self.ends[self.next++ % self.ends.size()]);
            return ERR_OK;
        });
    }
    ~Acceptor() { tcp_close(listener); }

    tcp_pcb* listener = nullptr;
    std::vector<End> ends;
    std::size_t next = 0;
};

void connect(End& end, u16_t port) {
    Wire& wire = Wire::get();
    tcp_pcb* const pcb = tcp_new();
    CHECK(pcb != nullptr);
    tcp_bind_netif(pcb, &wire.end(0));
    CHECK(tcp_bind(pcb, &wire.address(0), port) == ERR_OK);
    adopt(pcb, end);
    CHECK(tcp_connect(pcb, &wire.address(1), kPort, [](void*, tcp_pcb*, err_t) -> err_t { return ERR_OK; }) == ERR_OK);
}

/// Ends what a benchmark has left, without a trace.
void abort_all(std::vector<End>& ends) {
    for (End& end : ends) {
        if (end.pcb == nullptr) continue;
        tcp_arg(end.pcb, nullptr);
        tcp_recv(end.pcb, nullptr);
        tcp_abort(end.pcb);
        end.pcb = nullptr;
        Wire::get().run();
    }
}

/// Connections to `acceptor`, a few at a time: lwIP's queue of them is short.
std::vector<End> connections(std::size_t count) {
    std::vector<End> clients(count);
    for (std::size_t i = 0; i < count; ++i) {
        connect(clients[i], static_cast<u16_t>(20000 + i));
        Wire::get().run();
        CHECK(clients[i].pcb->state == ESTABLISHED);
    }
    return clients;
}

void LwipRequest(benchmark::State& state) {
    Wire& wire = Wire::get();
    const auto count = static_cast<std::size_t>(state.range(0));
    constexpr std::size_t kBatch = 64;
    Acceptor server(count);
    for (End& end : server.ends) end.answers = true;
    auto clients = connections(count);
    std::size_t next = 0;
    std::uint64_t asked = 0;
    for (auto _ : state) {
        for (std::size_t i = 0; i < std::min(kBatch, count); ++i, next = (next + 1) % count, ++asked) send(clients[next].pcb);
        wire.run();
    }
    std::uint64_t answered = 0;
    for (const End& end : clients) answered += end.received / kSize;
    CHECK(answered == asked);
    state.SetItemsProcessed(static_cast<std::int64_t>(answered));
    abort_all(clients);
}
BENCHMARK(LwipRequest)->Arg(1)->Arg(64)->Arg(1000)->Arg(10000);

void LwipOpenClose(benchmark::State& state) {
    Wire& wire = Wire::get();
    constexpr std::size_t kBatch = 64;
    Acceptor server(kBatch);
    std::vector<End> clients(kBatch);
    u16_t port = 1024;
    std::uint64_t opened = 0;
    for (auto _ : state) {
        for (End& client : clients) {
            connect(client, port);
            port = port == 65535 ? u16_t{1024} : static_cast<u16_t>(port + 1);
        }
        wire.run();
        for (End& client : clients) {
            CHECK(client.pcb->state == ESTABLISHED);
            tcp_close(client.pcb);
        }
        wire.run();
        for (End& end : server.ends) {
            CHECK(end.ended);
            tcp_close(end.pcb);
        }
        wire.run();
        opened += kBatch;
        state.PauseTiming();
        CHECK(tcp_active_pcbs == nullptr);
        while (tcp_tw_pcbs != nullptr) tcp_slowtmr();
        state.ResumeTiming();
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(opened));
}
BENCHMARK(LwipOpenClose);

void LwipBulk(benchmark::State& state) {
    Wire& wire = Wire::get();
    Acceptor server(1);
    auto clients = connections(1);
    tcp_pcb* const sender = clients.front().pcb;
    for (auto _ : state) {
        while (tcp_sndbuf(sender) != 0) {
            const auto room = static_cast<u16_t>(std::min<std::size_t>(tcp_sndbuf(sender), 32768));
            if (tcp_write(sender, kBytes, room, TCP_WRITE_FLAG_COPY) != ERR_OK) break;
        }
        tcp_output(sender);
        wire.run();
    }
    state.SetBytesProcessed(static_cast<std::int64_t>(server.ends.front().received));
    abort_all(clients);
}
BENCHMARK(LwipBulk)->Arg(1500);

/// A connection is a structure from malloc(), and stays the same one in TIME-WAIT. lwIP finds it by walking a list.
void LwipMemory(benchmark::State& state) {
    for (auto _ : state) {
        tcp_pcb* const pcb = tcp_new();
        const auto bytes = static_cast<double>(::malloc_usable_size(pcb) + sizeof(std::size_t));
        tcp_abort(pcb);
        state.counters["idle_bytes"] = bytes;
        state.counters["time_wait_bytes"] = bytes;
    }
    state.counters["connection_struct"] = sizeof(tcp_pcb);
}
BENCHMARK(LwipMemory)->Iterations(1);

}  // namespace
}  // namespace culvert::bench
