// Dedicated addresses from wish to use: asked for, proved to be nobody else's, announced, defended, given up.
//
//   state       | meaning                                   | ARP, ND                   | used by the stack
//   ------------+-------------------------------------------+---------------------------+------------------
//   kDelayed    | a random time before the first probe      | nothing                   | no
//   kProbing    | probes are out (RFC 5227 2.1, RFC 4862 5.4)| a sign of another owner  | no
//   kAssigned   | ours; IPv4 is announced twice             | answered and defended     | yes
//   kDuplicate  | somebody else's: named, counted, tried again| nothing                 | no
//
//   configured --> kDelayed --> kProbing --> kAssigned --lifetime over--> gone (autoconfigured addresses only)
//                     ^             |
//                     +-- 60 s -- kDuplicate      (addresses that we choose ourselves: another one, three times)
//
// Interface::addresses holds the assigned ones and nothing else, so a tentative address is used for nothing
// [RFC4862 5.4]. Each IPv6 address joins its solicited-node group with the first probe.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/stack/link/control_output.h"
#include "daemon/stack/link/link_interface.h"
#include "daemon/stack/link/multicast_groups.h"

namespace culvert::stack {

enum class AddressState : std::uint8_t { kDelayed, kProbing, kAssigned, kDuplicate };

/// What becomes of dedicated addresses. On the engine's thread; must not call back.
class AddressObserver {
public:
    virtual ~AddressObserver() = default;
    enum class Event : std::uint8_t { kAssigned, kDuplicate, kDefended, kRemoved };
    virtual void on_address(std::uint32_t interface, const Address& address, unsigned prefix_length, Event event) = 0;
};

/// Whoever keeps tables of own addresses: Interface::addresses has changed.
class AddressUser {
public:
    virtual ~AddressUser() = default;
    virtual void on_addresses_changed(Interface& interface) = 0;
};

class AddressConfiguration {
public:
    static constexpr std::size_t kMaxConfigured = 64;        // of an interface, from the configuration
    static constexpr std::size_t kMaxAutoconfigured = 16;    // of an interface, from routers; as Linux
    static constexpr Duration kRetryDuplicate = std::chrono::seconds(60);  // [RFC5227 1.1] RATE_LIMIT_INTERVAL
    static constexpr Duration kDefendInterval = std::chrono::seconds(10);  // [RFC5227 1.1] DEFEND_INTERVAL
    static constexpr unsigned kIdentifierRetries = 3;                      // [RFC7217 6] IDGEN_RETRIES

    AddressConfiguration(ControlOutput& output, MulticastGroups& groups, TimerWheel& wheel, Counters& counters, Rng& rng,
                         AddressUser& user, const std::uint64_t (&stable_secret)[2]);
    ~AddressConfiguration();
    void set_observer(AddressObserver* observer) { observer_ = observer; }

    /// Exactly these addresses are configured now; autoconfigured ones stay. An IPv6 address, or `autoconfigures`, brings
    /// a link-local address with it unless there is one among them [RFC4291 2.8].
    void configure(LinkInterface& link, std::span<const InterfaceAddress> addresses, Instant now);
    /// [RFC4862 5.5.3] The /64 `prefix` gives an address; kNever: forever.
    void autoconfigure(LinkInterface& link, const Address& prefix, Instant valid_until, Instant preferred_until,
                       Instant now);
    /// The interface came up, or has another MAC: everybody is told, and what could not be probed is.
    void announce_all(LinkInterface& link, Instant now);

    std::optional<AddressState> state(const LinkInterface& link, const Address& address) const;
    bool is_assigned(const LinkInterface& link, const Address& address) const {
        return state(link, address) == AddressState::kAssigned;
    }
    /// The assigned link-local IPv6 address.
    std::optional<Address> link_local(const LinkInterface& link) const;
    /// [RFC7527 4.2] True if `nonce` came from us: our own probe on its way back.
    bool sent_nonce(const LinkInterface& link, const Address& address, const wire::NdpNonce& nonce) const;
    /// Somebody else uses, or is about to use, `address`. Does what the state asks for.
    void conflict(LinkInterface& link, const Address& address, Instant now);

    /// Of a kAddressTimer.
    Instant on_timer(TimerNode& node, Instant now);

private:
    enum class Origin : std::uint8_t { kConfigured, kLinkLocal, kAutoconfigured };
    struct Entry : TimerNode {
        Entry() : TimerNode(kAddressTimer) {}
        LinkInterface* link = nullptr;
        Address address;
        unsigned prefix_length = 0;
        Origin origin = Origin::kConfigured;
        AddressState state = AddressState::kDelayed;
        unsigned sent = 0;           // probes, then announcements, in this state
        unsigned announcements = 0;  // still to be sent
        unsigned attempt = 0;        // [RFC7217 5] DAD_Counter
        wire::NdpNonce nonce{};
        Instant next_step = kNever;  // of probing or announcing
        Instant valid_until = kNever;
        Instant preferred_until = kNever;
        Instant last_conflict = Instant::min();
        bool deprecated = false;
        MulticastMember group;  // the solicited-node group
    };

    Entry* find(const LinkInterface& link, const Address& address);
    const Entry* find(const LinkInterface& link, const Address& address) const {
        return const_cast<AddressConfiguration*>(this)->find(link, address);
    }
    void add(LinkInterface& link, const InterfaceAddress& wanted, Origin origin, Instant now);
    void remove(Entry& entry);
    void start(Entry& entry, Instant now);
    void probe(Entry& entry, Instant now);
    void assign(Entry& entry, Instant now);
    void announce(Entry& entry, Instant now);
    void duplicate(Entry& entry, Instant now);
    bool lifetimes(Entry& entry, Instant now);
    void arm(Entry& entry);
    void publish(LinkInterface& link);
    void tell(const Entry& entry, AddressObserver::Event event);

    ControlOutput& output_;
    MulticastGroups& groups_;
    TimerWheel& wheel_;
    Counters& counters_;
    Rng& rng_;
    AddressUser& user_;
    AddressObserver* observer_ = nullptr;
    std::uint64_t stable_secret_[2];
    std::vector<std::unique_ptr<Entry>> entries_;  // of all interfaces, in the order in which they were asked for
};

}  // namespace culvert::stack
