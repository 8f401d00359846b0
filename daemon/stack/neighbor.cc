#include "daemon/stack/neighbor.h"

#include <algorithm>
#include <utility>

#include "daemon/wire/ethernet.h"

namespace culvert::stack {

NeighborTable::NeighborTable(NeighborResolver& resolver, Counters& counters)
    : resolver_(resolver), counters_(counters) {
    entries_.reserve(256);
}

void NeighborTable::update(std::uint32_t interface, const Address& address, const MacAddress& mac, NeighborState state,
                           TxQueue& tx) {
    const Key key{interface, address};
    auto found = entries_.find(key);
    if (found == entries_.end()) {
        // The kernel keeps at most gc_thresh3 (1024) entries, so a full table means that its deletions were lost; the
        // dump that follows an overrun brings the rest.
        if (entries_.size() >= kMaxEntries && !make_room()) return;
        found = entries_.emplace(key, Entry{}).first;
    }
    Entry& entry = found->second;
    const bool was_usable = entry.usable();
    const bool was_stale = entry.state == NeighborState::kStale;
    const MacAddress old_mac = entry.mac;
    entry.state = state;
    entry.tx = &tx;
    if (entry.usable()) entry.mac = mac;
    if (was_usable != entry.usable() || (entry.usable() && old_mac != entry.mac) ||
        (state == NeighborState::kStale && !was_stale))
        ++generation_;

    if (entry.usable()) send_pending(entry);
    if (state == NeighborState::kFailed) drop_pending(entry);
}

/// [RFC1122 2.3.2.1 arp-flush] who ages entries (the kernel, or NeighborProber) says so.
void NeighborTable::remove(std::uint32_t interface, const Address& address, TxQueue& tx) {
    const auto found = entries_.find({interface, address});
    if (found == entries_.end()) return;
    if (found->second.usable()) ++generation_;
    Entry gone = std::move(found->second);
    entries_.erase(found);
    gone.tx = &tx;
    drop_pending(gone);
}

void NeighborTable::forget(std::uint32_t interface) {
    for (auto& [key, entry] : entries_) {
        if (key.interface != interface) continue;
        entry.state = NeighborState::kIncomplete;
        entry.last_asked = Instant::min();
    }
    ++generation_;
}

const MacAddress* NeighborTable::lookup(std::uint32_t interface, const Address& next_hop, Instant now) {
    const auto found = entries_.find({interface, next_hop});
    if (found == entries_.end() || !found->second.usable()) return nullptr;
    Entry& entry = found->second;
    if (entry.state == NeighborState::kStale) ask(found->first, entry, kConfirmInterval, now);
    return entry.usable() ? &entry.mac : nullptr;
}

/// Forgets who never answered and has nothing waiting: the kernel need not know them, so nobody else will remove them.
bool NeighborTable::make_room() {
    std::erase_if(entries_, [](const auto& item) { return !item.second.usable() && item.second.pending.empty(); });
    return entries_.size() < kMaxEntries;
}

/// [RFC1122 2.4 unresolved] Waits; only who has been asked in vain is unreachable.
void NeighborTable::enqueue(std::uint32_t interface, const Address& next_hop, TxPacket packet, TxQueue& tx,
                            Instant now) {
    const Key key{interface, next_hop};
    auto found = entries_.find(key);
    if (found == entries_.end()) {
        if (entries_.size() >= kMaxEntries && !make_room()) {
            counters_.drop(Drop::kNeighborQueueFull);
            tx.abandon(packet);
            return;
        }
        found = entries_.emplace(key, Entry{}).first;
    }
    Entry& entry = found->second;
    entry.tx = &tx;
    if (entry.usable()) {  // the caller's view was old
        entry.pending.push_back(packet);
        ++pending_total_;
        send_pending(entry);
        return;
    }
    entry.state = NeighborState::kIncomplete;
    if (ask(found->first, entry, kAskInterval, now) == OwnResolver::Answer::Kind::kUnreachable)
        return refuse(entry, packet, tx);
    if (entry.usable()) {  // our own ARP or ND knew it already
        wire::store_mac(packet.fragments[0].data(), entry.mac);
        tx.commit(packet);
        return;
    }
    if (entry.pending.size() >= kMaxPending) {
        // [RFC1122 2.3.2.2 arp-queue] at least the latest packet is saved: the oldest makes room.
        counters_.drop(Drop::kNeighborQueueFull);
        tx.abandon(entry.pending.front());
        entry.pending.erase(entry.pending.begin());
        --pending_total_;
    }
    if (pending_total_ >= kMaxPendingTotal) {  // a scan of dead addresses must not pin the frames of everybody
        counters_.drop(Drop::kNeighborQueueFull);
        tx.abandon(packet);
        return;
    }
    if (entry.pending.empty()) {
        entry.waiting_since = now;
        next_deadline_ = std::min(next_deadline_, now + kPendingTimeout);
    }
    entry.pending.push_back(packet);
    ++pending_total_;
}

void NeighborTable::advance(Instant now) {
    if (now < next_deadline_) return;
    // Dropping tells the observer, who may send and so add an entry: never while walking the table.
    Instant next = kNever;
    Entry* expired = nullptr;
    do {
        expired = nullptr;
        next = kNever;
        for (auto& [key, entry] : entries_) {
            if (entry.pending.empty()) continue;
            const Instant deadline = entry.waiting_since + kPendingTimeout;
            if (deadline > now) {
                next = std::min(next, deadline);
            } else {
                expired = &entry;
                break;
            }
        }
        if (expired != nullptr) {
            expired->state = NeighborState::kFailed;
            drop_pending(*expired);
        }
    } while (expired != nullptr);
    next_deadline_ = next;
}

/// [RFC1122 2.3.2.1 arp-flood]
OwnResolver::Answer::Kind NeighborTable::ask(const Key& key, Entry& entry, Duration interval, Instant now) {
    using Kind = OwnResolver::Answer::Kind;
    if (own_ != nullptr) {
        const OwnResolver::Answer answer = own_->resolve_own(key.interface, key.address, now);
        if (answer.kind == Kind::kReachable || answer.kind == Kind::kStale) {
            const bool news = !entry.usable() || entry.mac != answer.mac;
            entry.state = answer.kind == Kind::kReachable ? NeighborState::kReachable : NeighborState::kStale;
            entry.mac = answer.mac;
            if (news) ++generation_;
        }
        if (answer.kind == Kind::kUnreachable) {
            if (entry.usable()) ++generation_;
            entry.state = NeighborState::kFailed;
        }
        if (answer.kind != Kind::kNotOurs) return answer.kind;
    }
    if (entry.last_asked != Instant::min() && now - entry.last_asked < interval) return Kind::kAsked;
    entry.last_asked = now;
    resolver_.resolve(key.interface, key.address);
    return Kind::kAsked;
}

/// Nobody answers there: the sender hears of it at once. What it sends from within the notice gets no notice of its own.
void NeighborTable::refuse(Entry& entry, TxPacket& packet, TxQueue& tx) {
    if (!std::exchange(refusing_, true)) {
        entry.pending.push_back(packet);
        ++pending_total_;
        drop_pending(entry);
        refusing_ = false;
        return;
    }
    counters_.drop(Drop::kNeighborUnresolved);
    tx.abandon(packet);
}

void NeighborTable::send_pending(Entry& entry) {
    for (TxPacket& packet : entry.pending) {
        wire::store_mac(packet.fragments[0].data(), entry.mac);
        entry.tx->commit(packet);
    }
    pending_total_ -= entry.pending.size();
    entry.pending.clear();
}

void NeighborTable::drop_pending(Entry& entry) {
    // The observer may send again to the same neighbour: what it adds is not part of this.
    std::vector<TxPacket> dropped = std::move(entry.pending);
    entry.pending.clear();
    pending_total_ -= dropped.size();
    TxQueue* const tx = entry.tx;
    for (TxPacket& packet : dropped) {
        counters_.drop(Drop::kNeighborUnresolved);
        if (observer_ != nullptr) {
            const auto frame = packet.fragments[0];
            const bool tagged = wire::load_be16(frame.data() + 12) == static_cast<std::uint16_t>(wire::EtherType::kVlan) ||
                                wire::load_be16(frame.data() + 12) == static_cast<std::uint16_t>(wire::EtherType::kServiceVlan);
            observer_->on_unresolved(frame.subspan(wire::kEthernetHeaderLength + (tagged ? wire::kVlanTagLength : 0)));
        }
        tx->abandon(packet);
    }
}

}  // namespace culvert::stack
