// Every reason for which a packet, a request or an application is refused. One name, one counter.
//
// [RFC1122 3.1 counters]
// Add a line where you add an early return. `culvert stat` shows the names as they stand here; none may be reused
// for two different causes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace culvert {

// X(name, what happened, for a person)
#define CULVERT_DROPS(X)                                                                      \
    X(kNone, "not dropped")                                                                   \
    /* link */                                                                                \
    X(kEthernetTruncated, "frame shorter than an Ethernet header")                            \
    X(kEthernetNotForUs, "destination MAC is not ours")                                       \
    X(kVlanForeign, "tagged for a VLAN that is not ours")                                     \
    X(kEtherTypeUnknown, "EtherType we do not speak")                                         \
    X(kIpLoopback, "127/8 or ::1 in a packet from outside")                                   \
    X(kArpMalformed, "ARP packet malformed")                                                  \
    X(kArpSenderInvalid, "ARP sender that no host can be")                                    \
    X(kArpOwn, "ARP packet of our own came back")                                             \
    X(kArpConflict, "another host claims an IPv4 address of ours (ARP)")                      \
    X(kArpNotForUs, "ARP about an address that is not ours")                                  \
    X(kNdpMalformed, "neighbour discovery message or option malformed")                       \
    X(kNdpHopLimit, "neighbour discovery from beyond the link (hop limit)")                   \
    X(kNdpInvalid, "neighbour discovery with impossible addresses")                           \
    X(kNdpNotForUs, "neighbour solicitation for an address that is not ours")                 \
    X(kNdpDuplicate, "another host claims an IPv6 address of ours")                           \
    X(kNdpLoopback, "our own duplicate address probe came back")                              \
    X(kNdpRouterSolicitation, "router solicitation, and we are no router")                    \
    X(kNdpRouterIgnored, "router speaks on a link that is not to configure itself")           \
    X(kNdpRedirectInvalid, "redirect not from the first hop in use")                          \
    X(kNdpTooManyRouters, "more default routers than are kept")                               \
    X(kNdpTooManyPrefixes, "more advertised prefixes than are kept")                          \
    X(kNeighborUnsolicited, "neighbour answers what nobody asked")                            \
    X(kNeighborFlapping, "neighbour changes its MAC too often")                               \
    X(kNeighborTableFull, "no room for another neighbour")                                    \
    X(kLinkAnswerLimited, "too many neighbours ask at once")                                  \
    X(kLinkSolicitLimited, "too many neighbours are looked for at once")                      \
    X(kGroupMessageMalformed, "IGMP or MLD message malformed")                                \
    X(kGroupMessageChecksum, "IGMP checksum wrong")                                           \
    X(kGroupMessageInvalid, "IGMP or MLD message that no router sends")                       \
    X(kGroupMessageIgnored, "IGMP or MLD message that is not our business")                   \
    X(kGroupTableFull, "no room for a solicited-node group")                                  \
    /* IP */                                                                                  \
    X(kIpv4Truncated, "IPv4 packet shorter than its header says")                             \
    X(kIpv4Version, "IPv4 version or header length wrong")                                    \
    X(kIpv4Checksum, "IPv4 header checksum wrong")                                            \
    X(kIpv4Options, "IPv4 options refused (source route)")                                    \
    X(kIpv6Truncated, "IPv6 packet shorter than its header says")                             \
    X(kIpv6Version, "IPv6 version wrong")                                                     \
    X(kIpv6ExtensionHeader, "IPv6 extension header refused")                                  \
    X(kIpv6MappedAddress, "IPv4-mapped address in an IPv6 header")                            \
    X(kIpFragment, "fragment of a protocol we do not reassemble")                             \
    X(kIpFragmentMalformed, "fragment of an impossible length")                               \
    X(kIpFragmentTooLong, "fragment that ends beyond the longest packet")                     \
    X(kIpFragmentTiny, "first fragment without the transport header")                         \
    X(kIpFragmentOverlap, "fragments overlap (the whole packet is given up)")                 \
    X(kIpFragmentDuplicate, "fragment received before")                                       \
    X(kIpFragmentEcn, "fragments with contradicting congestion marks")                        \
    X(kIpReassemblyStale, "identification used again before its packet was whole")            \
    X(kIpReassemblyNoRoom, "unfinished packet gave way to a newer one")                       \
    X(kIpReassemblyTimeout, "fragments of a packet did not all come in time")                 \
    X(kIpNotForUs, "destination address is not ours")                                         \
    X(kIpUnicastInBroadcast, "unicast packet in a link-layer broadcast or multicast")         \
    X(kIpGroupNotJoined, "multicast group that nobody has joined")                            \
    X(kIpSourceInvalid, "source address is multicast, broadcast or unspecified")              \
    X(kIpProtocolUnknown, "IP protocol we do not speak")                                      \
    X(kForwardHopLimit, "packet to be forwarded had no hop left (time exceeded)")             \
    X(kForwardNotServed, "route leads through an interface that Culvert does not serve")      \
    X(kForwardReversePath, "source is not reached by the way its packet came")                \
    X(kForwardMerged, "merged packet cannot be forwarded")                                    \
    X(kIpNoRoute, "no route to the destination")                                              \
    X(kNeighborUnresolved, "neighbour did not answer")                                        \
    X(kNeighborQueueFull, "too many packets wait for a neighbour")                            \
    X(kTxNoFrame, "no free frame for output")                                                 \
    X(kPacketTooBig, "packet exceeds the MTU of the interface")                               \
    X(kLocalQueueFull, "too many packets wait for local delivery")                            \
    X(kHandOverFull, "too many packets wait for another engine")                              \
    X(kHandOverNoInterface, "packet from another engine for an interface that is not served") \
    /* ICMP */                                                                                \
    X(kIcmpTruncated, "ICMP message too short")                                               \
    X(kIcmpChecksum, "ICMP checksum wrong")                                                   \
    X(kIcmpUnmatched, "ICMP error for no socket of ours")                                     \
    X(kIcmpIgnored, "ICMP type we leave to the kernel")                                       \
    X(kIcmpEchoToMany, "ICMP echo request to a group or a broadcast address, not answered")   \
    X(kIcmpEchoTooLong, "ICMP echo request too long to be answered")                          \
    X(kIcmpSequence, "ICMP error for a sequence number not in flight")                        \
    X(kIcmpMtuKnown, "ICMP packet too big that names no smaller MTU")                         \
    /* UDP */                                                                                 \
    X(kUdpTruncated, "UDP datagram shorter than its header says")                             \
    X(kUdpChecksum, "UDP checksum wrong")                                                     \
    X(kUdpNoSocket, "no UDP socket on the port")                                              \
    X(kUdpQueueFull, "UDP receive queue full")                                                \
    X(kUdpPathDisbelieved, "ICMP packet too big for a UDP socket that probes by itself")      \
    X(kUdpErrorQueueFull, "UDP error queue full")                                             \
    X(kRawQueueFull, "receive queue of a raw or ping socket full")                            \
    X(kRawChecksum, "checksum wrong where a raw socket has us check it")                      \
    /* TCP */                                                                                 \
    X(kTcpTruncated, "TCP segment shorter than its header says")                              \
    X(kTcpChecksum, "TCP checksum wrong")                                                     \
    X(kTcpOptionMalformed, "TCP option malformed")                                            \
    X(kTcpNotUnicast, "TCP segment to a broadcast or multicast address")                      \
    X(kTcpFlagsInvalid, "TCP flag combination impossible")                                    \
    X(kTcpNoListener, "no TCP socket on the port (reset sent)")                               \
    X(kTcpElsewhere, "segment that came while its port was taken over: the connection is the kernel's") \
    X(kTcpStray, "segment of no connection on a port that is listened on (reset sent)")       \
    X(kTcpStrayReset, "TCP reset for no connection of ours")                                  \
    X(kTcpOutOfWindow, "TCP segment outside the receive window")                              \
    X(kTcpPaws, "TCP timestamp older than the last (PAWS)")                                   \
    X(kTcpAckInvalid, "TCP acknowledges data never sent")                                     \
    X(kTcpNoAck, "TCP segment without ACK")                                                   \
    X(kTcpResetInvalid, "TCP reset with a wrong sequence number (challenge ACK sent)")        \
    X(kTcpSynInWindow, "TCP SYN on a live connection (challenge ACK sent)")                   \
    X(kTcpSynQueueFull, "too many half-open connections")                                     \
    X(kTcpSynData, "TCP data in a SYN without a valid Fast Open cookie")                      \
    X(kTcpDeferred, "TCP ACK without data for a listener that waits for data")                \
    X(kTcpSynCookieInvalid, "TCP ACK in a flood of SYNs whose cookie is not ours (reset sent)") \
    X(kTcpSynCookieEarly, "TCP segment that may have overtaken what brings its SYN cookie")    \
    X(kTcpSynCookieExpired, "TCP ACK whose SYN cookie is too old (reset sent)")               \
    X(kTcpAcceptQueueFull, "accept queue full")                                               \
    X(kTcpConnectionLimit, "connection table full")                                           \
    X(kTcpAfterClose, "TCP data after the application closed (reset sent)")                   \
    X(kTcpReceiveBufferFull, "no room for TCP data")                                          \
    X(kTcpReassemblyFull, "no room for out-of-order TCP data")                                \
    X(kTcpDuplicate, "TCP data received before")                                              \
    X(kTcpZeroWindow, "TCP data sent into a closed window")                                   \
    /* tenants */                                                                             \
    X(kTenantBadBlock, "application handed over a block it does not own")                     \
    X(kTenantBadLength, "application gave a block a length outside its bounds")               \
    X(kTenantBadRequest, "application sent a request that makes no sense")                    \
    X(kTenantBadAddress, "application named an address that is not ours")                     \
    X(kTenantBadSocket, "application named a socket that does not exist")                     \
    X(kTenantUnreadLost, "unread datagram of a socket that was passed on: one too many")      \
    X(kTenantNoBlock, "receive blocks of the application used up")                            \
    X(kTenantNoSocket, "socket records of the application used up")                           \
    X(kTenantOrphans, "closed connection reset: the application has left too many to end by themselves") \
    X(kTenantStreamShare, "connection holds more unread blocks than its part")               \
    X(kTenantConnectionShare, "connection refused: the application has its part of the stack's") \
    X(kTenantListenerShare, "listener refused: the application has its part of the stack's") \
    X(kTenantDatagramShare, "UDP socket refused: the application has its part of the stack's") \
    X(kTenantNoGrant, "raw or ping socket of an application that has not shown the kernel's") \
    X(kTenantPolicy, "not allowed by the policy")                                             \
    X(kStandInLimit, "connection cannot leave its program: too many have")                    \
    X(kStandInNoMemory, "no memory to carry bytes of connections that have left their programs")

enum class Drop : std::uint8_t {
#define CULVERT_DROP_ENUM(name, text) name,
    CULVERT_DROPS(CULVERT_DROP_ENUM)
#undef CULVERT_DROP_ENUM
    kCount
};

inline constexpr std::size_t kDropCount = static_cast<std::size_t>(Drop::kCount);

/// The name as written above without its k, in snake_case: "tcp_checksum".
const char* drop_name(Drop drop);
/// The sentence for a person.
const char* drop_text(Drop drop);

}  // namespace culvert
