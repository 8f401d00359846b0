#include "daemon/stack/reassembly.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "daemon/stack/keyed_hash.h"
#include "daemon/wire/ethernet.h"
#include "daemon/wire/ipv4.h"
#include "daemon/wire/ipv6.h"
#include "shm/base/check.h"

namespace culvert::stack {
namespace {

/// Walks the words of a bit map that hold the bits [first, last); act(word, mask) returns false to stop.
template <class Words, class Act>
bool for_each_word(Words& words, std::uint32_t first, std::uint32_t last, Act act) {
    for (std::uint32_t at = first; at < last;) {
        const std::uint32_t next = std::min(last, (at / 64 + 1) * 64);
        const std::uint32_t count = next - at;
        const std::uint64_t mask = (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << (at % 64);
        if (!act(words[at / 64], mask)) return false;
        at = next;
    }
    return true;
}

constexpr std::uint32_t kTcpHeader = 20, kUdpHeader = 8, kIcmpHeader = 8;

}  // namespace

Reassembly::Reassembly(const Limits& limits, const std::uint64_t (&secret)[2], Counters& counters)
    : counters_(counters),
      secret_{secret[0], secret[1]},
      chunks_per_source_(std::max<std::uint32_t>(limits.chunks / 4, kMaxChunks)),
      memory_(limits.chunks),
      pool_(limits.datagrams),
      buckets_(std::bit_ceil(std::size_t{limits.datagrams} * 2), kNone),
      sources_(kSources) {
    CHECK(limits.datagrams > 0 && limits.chunks >= kMaxChunks);
    for (std::uint32_t i = limits.datagrams; i > 0; --i) {
        pool_[i - 1].chain = free_;
        free_ = i - 1;
    }
    quote_.reserve(wire::kIpv6HeaderLength + wire::kIpv6FragmentHeaderLength + kLongestQuote);
}

// --- one fragment ----------------------------------------------------------------------------------------------------

/// What is wrong with the fragment by itself.
Drop Reassembly::check(const FragmentPart& part) {
    const bool v4 = part.destination.is_v4();
    // [RFC791 3.2] [RFC8200 4.5] every fragment but the last is a multiple of 8 bytes long
    if (part.length == 0 || (part.more && part.length % 8 != 0)) return Drop::kIpFragmentMalformed;
    const std::uint32_t longest = v4 ? kMaxData - static_cast<std::uint32_t>(wire::kIpv4HeaderLength) : kMaxData;
    if (part.offset + part.length > longest) return Drop::kIpFragmentTooLong;
    // [RFC1858 3] [RFC3128] [RFC7112 5] the first fragment holds the transport header, so that whoever filters on the way
    // has seen the ports; none overwrites it.
    const auto protocol = static_cast<wire::IpProtocol>(part.protocol);
    if (part.offset == 0) {
        const std::uint32_t header = protocol == wire::IpProtocol::kTcp      ? kTcpHeader
                                     : protocol == wire::IpProtocol::kUdp    ? kUdpHeader
                                     : protocol == wire::IpProtocol::kIcmpv6 ? kIcmpHeader
                                                                             : 0;
        if (part.length < header) return Drop::kIpFragmentTiny;
    } else if (v4 && part.offset == 8 && protocol == wire::IpProtocol::kTcp) {
        return Drop::kIpFragmentTiny;
    }
    return Drop::kNone;
}

std::uint64_t Reassembly::hash(const FragmentPart& part) const {
    // [RFC8200 4.5] the next header is no part of the key; [RFC791 3.2] the protocol is
    const std::uint64_t id = std::uint64_t{part.identification} << 8 | (part.destination.is_v4() ? part.protocol : 0u);
    return hash_address(hash_address(mix(secret_[0] ^ id), part.source), part.destination);
}

std::uint32_t Reassembly::bucket_of(const Datagram& d) const {
    FragmentPart part;
    part.source = d.source;
    part.destination = d.destination;
    part.identification = d.identification;
    part.protocol = d.protocol;
    return static_cast<std::uint32_t>(hash(part) & (buckets_.size() - 1));
}

std::uint32_t Reassembly::find(const FragmentPart& part, std::uint32_t bucket) const {
    std::uint32_t index = buckets_[bucket];
    while (index != kNone) {
        const Datagram& d = pool_[index];
        if (d.identification == part.identification && d.source == part.source && d.destination == part.destination &&
            (!d.v4 || d.protocol == part.protocol))
            break;
        index = d.chain;
    }
    return index;
}

std::expected<const RxPacket*, Drop> Reassembly::add(const FragmentPart& part, Instant now) {
    DCHECK(finished_ == kNone);
    if (const Drop drop = check(part); drop != Drop::kNone) return std::unexpected(drop);
    const auto bucket = static_cast<std::uint32_t>(hash(part) & (buckets_.size() - 1));
    std::uint32_t index = find(part, bucket);
    if (index != kNone && pool_[index].v4 &&
        sources_[pool_[index].source_index].arrivals - pool_[index].arrivals > kMaxDistance) {
        counters_.drop(Drop::kIpReassemblyStale);
        unlink(index);
        index = kNone;
    }
    if (index == kNone) index = open(part, bucket, now);
    Datagram& d = pool_[index];
    if (d.poisoned) return std::unexpected(Drop::kIpFragmentOverlap);
    d.arrivals = ++sources_[d.source_index].arrivals;

    const std::uint32_t end = part.offset + part.length;
    // The end is where the last fragment says, once and for all.
    const bool ends_differ = part.more ? d.total != 0 && end >= d.total
                                       : (d.total != 0 && d.total != end) || d.end > end;
    std::uint32_t units_there = 0;
    const std::uint32_t first = part.offset / 8, last = (end + 7) / 8;
    for_each_word(d.have, first, last, [&](std::uint64_t word, std::uint64_t mask) {
        units_there += static_cast<std::uint32_t>(std::popcount(word & mask));
        return true;
    });
    if (units_there == last - first && (part.more || d.total == end) && end <= d.end && same_bytes(d, part))
        return std::unexpected(Drop::kIpFragmentDuplicate);  // [RFC8200 4.5] the network's, no attack
    if (ends_differ || units_there != 0) return give_up(index, Drop::kIpFragmentOverlap);

    if (!write(index, part)) return give_up(index, Drop::kIpReassemblyNoRoom);
    for_each_word(d.have, first, last, [](std::uint64_t& word, std::uint64_t mask) {
        word |= mask;
        return true;
    });
    d.received += part.length;
    d.end = std::max(d.end, end);
    d.ecn_seen = static_cast<std::uint8_t>(d.ecn_seen | 1u << (part.tos & 3));
    if (!part.more) d.total = end;
    if (part.offset == 0) {
        d.first_length = part.length;
        d.protocol = part.protocol;  // [RFC8200 4.5] the first fragment's next header counts
        d.ttl = part.ttl;
        d.tos = part.tos;
    }
    if (d.total == 0 || d.received != d.total) return nullptr;
    return finish(index);
}

std::uint32_t Reassembly::open(const FragmentPart& part, std::uint32_t bucket, Instant now) {
    const auto source_index = static_cast<std::uint32_t>(hash_address(secret_[1], part.source) & (kSources - 1));
    Source& source = sources_[source_index];
    if (source.count >= kMaxPerSource) evict(source.datagrams, &Datagram::of_source, kNone);
    if (free_ == kNone) make_room(kNone);
    const std::uint32_t index = free_;
    CHECK(index != kNone);  // every datagram in use can be evicted
    Datagram& d = pool_[index];
    free_ = d.chain;
    d.source = part.source;
    d.destination = part.destination;
    d.identification = part.identification;
    d.protocol = part.protocol;
    d.ttl = part.ttl;
    d.tos = part.tos;
    d.ecn_seen = 0;
    d.v4 = part.destination.is_v4();
    d.dedicated = part.dedicated;
    d.poisoned = false;
    d.interface = part.interface;
    d.source_index = source_index;
    d.received = d.end = d.total = d.first_length = 0;
    d.arrivals = source.arrivals;
    d.deadline = now + (d.v4 ? kTimeoutV4 : kTimeoutV6);
    d.chunks.fill(kNoChunk);
    d.have.fill(0);
    d.chain = buckets_[bucket];
    buckets_[bucket] = index;
    append(age_list(d), &Datagram::by_age, index);
    append(source.datagrams, &Datagram::of_source, index);
    ++source.count;
    ++used_;
    return index;
}

/// The datagram is lost, and `drop` is the reason for this fragment.
std::expected<const RxPacket*, Drop> Reassembly::give_up(std::uint32_t index, Drop drop) {
    Datagram& d = pool_[index];
    if (d.v4 || drop != Drop::kIpFragmentOverlap) {
        unlink(index);
    } else {
        // [RFC5722 3] [RFC8200 4.5] also the fragments that have not come yet
        d.poisoned = true;
        free_memory(d);
    }
    return std::unexpected(drop);
}

/// Copies the part to its place, taking chunks as needed. False: there is no memory, even without the older datagrams.
bool Reassembly::write(std::uint32_t index, const FragmentPart& part) {
    Datagram& d = pool_[index];
    Source& source = sources_[d.source_index];
    const std::size_t begin = prefix(d) + part.offset;
    const std::size_t first = part.offset == 0 ? 0 : begin / FramePool::kChunkSize;
    const std::size_t last = (begin + part.length - 1) / FramePool::kChunkSize;
    for (std::size_t i = first; i <= last; ++i) {
        if (d.chunks[i] != kNoChunk) continue;
        while (source.chunks >= chunks_per_source_)
            if (!evict(source.datagrams, &Datagram::of_source, index)) return false;
        while (memory_.available() == 0)
            if (!make_room(index)) return false;
        d.chunks[i] = memory_.allocate();
        ++source.chunks;
    }
    std::size_t at = begin;
    for_each_piece(*part.packet, part.data_offset, part.length, [&](std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const std::size_t inside = at % FramePool::kChunkSize;
            const std::size_t here = std::min(bytes.size(), FramePool::kChunkSize - inside);
            std::memcpy(memory_.data(d.chunks[at / FramePool::kChunkSize]) + inside, bytes.data(), here);
            bytes = bytes.subspan(here);
            at += here;
        }
    });
    DCHECK(at == begin + part.length);
    return true;
}

bool Reassembly::same_bytes(const Datagram& d, const FragmentPart& part) const {
    auto& memory = const_cast<FramePool&>(memory_);  // data() of a const pool would be the same pointer
    std::size_t at = prefix(d) + part.offset;
    bool same = true;
    for_each_piece(*part.packet, part.data_offset, part.length, [&](std::span<const std::byte> bytes) {
        while (same && !bytes.empty()) {
            const std::size_t inside = at % FramePool::kChunkSize;
            const std::size_t here = std::min(bytes.size(), FramePool::kChunkSize - inside);
            same = std::memcmp(memory.data(d.chunks[at / FramePool::kChunkSize]) + inside, bytes.data(), here) == 0;
            bytes = bytes.subspan(here);
            at += here;
        }
    });
    return same;
}

// --- the whole -------------------------------------------------------------------------------------------------------

std::expected<const RxPacket*, Drop> Reassembly::finish(std::uint32_t index) {
    Datagram& d = pool_[index];
    constexpr unsigned kNotCapable = 1u << 0, kCongestion = 1u << 3;
    // [RFC3168 5.3] a congestion mark on any fragment marks the whole; one next to a fragment of a sender that does not
    // speak ECN was forged
    if ((d.ecn_seen & kCongestion) != 0) {
        if ((d.ecn_seen & kNotCapable) != 0) {
            unlink(index);
            return std::unexpected(Drop::kIpFragmentEcn);
        }
        d.tos |= 3;
    }
    write_header(d);
    const std::size_t length = prefix(d) + d.total;
    const std::size_t count = (length + FramePool::kChunkSize - 1) / FramePool::kChunkSize;
    for (std::size_t i = 0; i < count; ++i)
        rest_[i] = {memory_.data(d.chunks[i]), std::min<std::size_t>(FramePool::kChunkSize, length - i * FramePool::kChunkSize)};
    whole_ = {.head = rest_[0],
              .rest = std::span(rest_).subspan(1, count - 1),
              .length = static_cast<std::uint32_t>(length),
              .checksum = ChecksumState::kUnverified};
    finished_ = index;
    return &whole_;
}

/// Ethernet and IP in front of the data, as if the packet had come in one piece.
void Reassembly::write_header(const Datagram& d) {
    const std::span<std::byte> head(memory_.data(d.chunks[0]), prefix(d));
    const wire::EthernetHeader ethernet{.destination = d.interface->mac,
                                        .source = {},
                                        .ether_type = d.v4 ? wire::EtherType::kIpv4 : wire::EtherType::kIpv6};
    const std::size_t link = prefix(d) - (d.v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength);
    if (!d.interface->is_only_vlan()) {
        wire::emit(ethernet, head);
    } else {
        wire::emit_tagged(ethernet, d.interface->service_tag ? wire::EtherType::kServiceVlan : wire::EtherType::kVlan,
                          d.interface->vlan, head);
    }
    const auto at_ip = head.subspan(link);
    const auto protocol = static_cast<wire::IpProtocol>(d.protocol);
    if (d.v4) {
        wire::emit(wire::Ipv4Header{.source = d.source,
                                    .destination = d.destination,
                                    .protocol = protocol,
                                    .hop_limit = d.ttl,
                                    .traffic_class = d.tos,
                                    .identification = static_cast<std::uint16_t>(d.identification),
                                    .dont_fragment = false},
                   d.total, at_ip);
    } else {
        wire::emit(wire::Ipv6Header{.source = d.source,
                                    .destination = d.destination,
                                    .protocol = protocol,
                                    .hop_limit = d.ttl,
                                    .traffic_class = d.tos},
                   d.total, at_ip);
    }
}

void Reassembly::release() {
    CHECK(finished_ != kNone);
    unlink(std::exchange(finished_, kNone));
}

// --- time and room ---------------------------------------------------------------------------------------------------

Instant Reassembly::next_deadline() const {
    Instant next = kNever;
    for (const List& list : ages_)
        if (list.first != kNone) next = std::min(next, pool_[list.first].deadline);
    return next;
}

void Reassembly::advance(Instant now, Observer& observer) {
    for (const List& list : ages_) {
        while (list.first != kNone && pool_[list.first].deadline <= now) {
            const std::uint32_t index = list.first;
            const Datagram& d = pool_[index];
            quote_.clear();
            if (!d.poisoned) {
                counters_.drop(Drop::kIpReassemblyTimeout);
                if (d.first_length != 0) make_quote(d, quote_);
            }
            Interface& interface = *d.interface;
            const bool tell = !d.poisoned;
            const bool dedicated = d.dedicated;
            unlink(index);
            if (tell) observer.on_timeout(interface, dedicated, quote_, now);
        }
    }
}

/// The first fragment as it was on the wire, but for IP options.
void Reassembly::make_quote(const Datagram& d, std::vector<std::byte>& out) const {
    auto& memory = const_cast<FramePool&>(memory_);
    const std::size_t ip = d.v4 ? wire::kIpv4HeaderLength : wire::kIpv6HeaderLength + wire::kIpv6FragmentHeaderLength;
    const std::size_t data = std::min<std::size_t>(d.first_length, kLongestQuote);  // lies in the first chunk
    out.resize(ip + data);
    if (d.v4) {
        wire::emit(wire::Ipv4Header{.source = d.source,
                                    .destination = d.destination,
                                    .protocol = static_cast<wire::IpProtocol>(d.protocol),
                                    .hop_limit = d.ttl,
                                    .traffic_class = d.tos,
                                    .identification = static_cast<std::uint16_t>(d.identification),
                                    .dont_fragment = false,
                                    .more_fragments = true},
                   d.first_length, out);
    } else {
        wire::emit(wire::Ipv6Header{.source = d.source,
                                    .destination = d.destination,
                                    .protocol = wire::IpProtocol::kFragment,
                                    .hop_limit = d.ttl,
                                    .traffic_class = d.tos},
                   wire::kIpv6FragmentHeaderLength + d.first_length, out);
        std::byte* const to = out.data() + wire::kIpv6HeaderLength;
        wire::store_8(to, d.protocol);
        wire::store_8(to + 1, 0);
        wire::store_be16(to + 2, 1);  // offset 0, more to come
        wire::store_be32(to + 4, d.identification);
    }
    std::memcpy(out.data() + ip, memory.data(d.chunks[0]) + prefix(d), data);
}

/// Gives up the oldest of all datagrams but `keep`. False: there is no other.
bool Reassembly::make_room(std::uint32_t keep) {
    const auto deadline = [&](const List& list) { return list.first == kNone ? kNever : pool_[list.first].deadline; };
    // By deadline, not by age: IPv6 has twice the time, so the one that has least left of it goes first.
    const bool v4_first = deadline(ages_[0]) <= deadline(ages_[1]);
    return evict(ages_[v4_first ? 0 : 1], &Datagram::by_age, keep) ||
           evict(ages_[v4_first ? 1 : 0], &Datagram::by_age, keep);
}

bool Reassembly::evict(const List& list, Links Datagram::*links, std::uint32_t keep) {
    std::uint32_t index = list.first;
    if (index == keep && index != kNone) index = (pool_[index].*links).next;
    if (index == kNone) return false;
    if (!pool_[index].poisoned) counters_.drop(Drop::kIpReassemblyNoRoom);
    unlink(index);
    return true;
}

void Reassembly::free_memory(Datagram& d) {
    for (ChunkIndex& chunk : d.chunks) {
        if (chunk == kNoChunk) continue;
        memory_.release(std::exchange(chunk, kNoChunk));
        --sources_[d.source_index].chunks;
    }
}

/// Out of every list, its memory back in the pools.
void Reassembly::unlink(std::uint32_t index) {
    Datagram& d = pool_[index];
    std::uint32_t* at = &buckets_[bucket_of(d)];
    while (*at != index) at = &pool_[*at].chain;
    *at = d.chain;
    free_memory(d);
    remove(age_list(d), &Datagram::by_age, index);
    Source& source = sources_[d.source_index];
    remove(source.datagrams, &Datagram::of_source, index);
    --source.count;
    --used_;
    d.chain = free_;
    free_ = index;
}

void Reassembly::append(List& list, Links Datagram::*links, std::uint32_t index) {
    pool_[index].*links = {.previous = list.last, .next = kNone};
    (list.last != kNone ? (pool_[list.last].*links).next : list.first) = index;
    list.last = index;
}

void Reassembly::remove(List& list, Links Datagram::*links, std::uint32_t index) {
    const Links own = pool_[index].*links;
    (own.previous != kNone ? (pool_[own.previous].*links).next : list.first) = own.next;
    (own.next != kNone ? (pool_[own.next].*links).previous : list.last) = own.previous;
}

}  // namespace culvert::stack
