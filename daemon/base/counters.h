// Counters: plain numbers of one engine, written by its thread alone, read by others through snapshots.
#pragma once

#include <array>
#include <cstdint>

#include "daemon/base/drop.h"

namespace culvert {

// X(name, for a person)
#define CULVERT_COUNTERS(X)                                             \
    X(rx_frames, "frames received")                                     \
    X(rx_bytes, "bytes received")                                       \
    X(tx_frames, "frames sent")                                         \
    X(tx_bytes, "bytes sent")                                           \
    X(tx_kicks, "wake-ups of the device for output")                    \
    X(local_frames, "frames delivered inside the stack")                \
    X(tcp_segments_in, "TCP segments received")                         \
    X(tcp_segments_out, "TCP segments sent")                            \
    X(tcp_passive_opens, "TCP connections accepted")                    \
    X(tcp_active_opens, "TCP connections opened")                       \
    X(tcp_established, "TCP connections established now")               \
    X(tcp_failed_opens, "TCP connections that failed to open")          \
    X(tcp_resets_in, "TCP resets received")                             \
    X(tcp_resets_out, "TCP resets sent")                                \
    X(tcp_retransmits, "TCP segments sent again")                       \
    X(tcp_fast_retransmits, "TCP loss recoveries entered by SACK or duplicate ACKs") \
    X(tcp_timeouts, "TCP retransmission timeouts")                      \
    X(tcp_loss_probes, "TCP tail loss probes sent")                     \
    X(tcp_loss_probe_repairs, "TCP losses that a tail loss probe repaired") \
    X(tcp_spurious_recoveries, "TCP loss recoveries and timeouts that proved needless and were undone") \
    X(tcp_no_flight_memory, "TCP flights without memory for RACK: recovered by RFC 6675") \
    X(tcp_zero_window_probes, "TCP zero-window probes sent")            \
    X(tcp_keepalive_probes, "TCP keepalive probes sent")                \
    X(tcp_dead_flow_probes, "TCP probes to peers of connections that died with an earlier daemon") \
    X(tcp_out_of_order, "TCP segments received out of order")           \
    X(tcp_delayed_acks, "TCP acknowledgements sent by the delay timer") \
    X(tcp_challenge_acks, "TCP challenge ACKs sent")                    \
    X(tcp_syn_cookies_sent, "TCP SYNs answered with a cookie")          \
    X(tcp_syn_cookies_accepted, "TCP connections made from a SYN cookie") \
    X(tcp_syn_cookies_failed, "TCP ACKs whose SYN cookie was forged or too old") \
    X(tcp_ecn_connections, "TCP connections that negotiated ECN")       \
    X(tcp_ecn_fallbacks, "TCP SYNs repeated without asking for ECN")    \
    X(tcp_bbr_refused, "TCP connections that got CUBIC because no memory was left for BBR") \
    X(tcp_ce_in, "TCP data segments received with a congestion mark")   \
    X(tcp_ecn_reductions, "TCP windows reduced for echoed congestion marks") \
    X(tcp_fast_open_cookies, "TCP Fast Open cookies given out")         \
    X(tcp_fast_open_passive, "TCP connections accepted with their SYN") \
    X(tcp_fast_open_refused, "TCP Fast Open cookies that were not ours, or too old") \
    X(tcp_fast_open_overflow, "TCP Fast Open attempts beyond the listener's limit") \
    X(tcp_fast_open_active, "TCP connections whose data was taken with our SYN") \
    X(tcp_fast_open_failed, "TCP connections whose Fast Open SYN was lost or its data not taken") \
    X(tcp_deferred, "TCP connections held back until data comes (TCP_DEFER_ACCEPT)") \
    X(tcp_segments_merged, "TCP segments received that were taken together with the one before") \
    X(tcp_mtu_black_holes, "TCP connections that lost large packets until they sent smaller ones") \
    X(tcp_mtu_probes, "TCP probes for a larger path MTU sent") \
    X(tcp_mtu_probes_lost, "TCP probes for a larger path MTU that were lost") \
    X(tcp_no_mtu_search, "TCP connections without a place to search for the path MTU") \
    X(tcp_memory_pressure, "TCP buffers made smaller for want of a program's blocks") \
    X(tcp_urgent_in, "TCP segments received that point at urgent data")     \
    X(tcp_urgent_refused, "TCP urgent data sent as ordinary data for want of a place") \
    X(tcp_time_wait, "TCP connections in TIME-WAIT now")                \
    X(udp_in, "UDP datagrams received")                                 \
    X(udp_out, "UDP datagrams sent")                                    \
    X(raw_in, "packets that raw and ping sockets received")             \
    X(raw_out, "packets that raw and ping sockets sent")                \
    X(arp_in, "ARP packets taken in")                                   \
    X(arp_out, "ARP packets sent")                                      \
    X(ndp_in, "neighbour discovery messages taken in")                  \
    X(ndp_out, "neighbour discovery messages sent")                     \
    X(neighbors_unreachable, "neighbours that did not answer our ARP or ND") \
    X(address_conflicts, "claims of other hosts to dedicated addresses") \
    X(group_queries_in, "IGMP and MLD messages taken in")               \
    X(group_reports_out, "IGMP and MLD messages sent")                  \
    X(icmp_in, "ICMP errors received and matched to a socket")          \
    X(handed_over, "packets handed over to another engine")             \
    X(handed_in, "packets taken over from another engine")              \
    X(hand_over_wakeups, "wake-ups of other engines")                   \
    X(icmp_out, "ICMP messages sent")                                   \
    X(icmp_limited, "ICMP errors not sent because of a limit")          \
    X(tcp_super_packets_out, "TCP packets sent for the device to cut")  \
    X(ip_forwarded, "IP packets forwarded")                             \
    X(ip_reassembled, "IP packets put together from fragments")         \
    X(turns, "turns of the engine loop")                                \
    X(busy_turns, "turns that found work")                              \
    X(sleeps, "times the engine went to sleep")                         \
    X(app_wakeups, "wake-ups of applications")                          \
    X(requests, "sockets looked at on an application's request")        \
    X(stand_ins, "connections that have left their programs")           \
    X(stand_in_bytes, "bytes carried for connections that have left their programs, both ways")

struct Counters {
#define CULVERT_COUNTER_FIELD(name, text) std::uint64_t name = 0;
    CULVERT_COUNTERS(CULVERT_COUNTER_FIELD)
#undef CULVERT_COUNTER_FIELD
    std::array<std::uint64_t, kDropCount> drops{};

    void drop(Drop reason) { ++drops[static_cast<std::size_t>(reason)]; }
    void add(const Counters& other) {
#define CULVERT_COUNTER_ADD(name, text) name += other.name;
        CULVERT_COUNTERS(CULVERT_COUNTER_ADD)
#undef CULVERT_COUNTER_ADD
        for (std::size_t i = 0; i < kDropCount; ++i) drops[i] += other.drops[i];
    }
    std::uint64_t dropped(Drop reason) const { return drops[static_cast<std::size_t>(reason)]; }
};

}  // namespace culvert
