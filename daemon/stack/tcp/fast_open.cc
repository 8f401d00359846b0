#include "daemon/stack/tcp/fast_open.h"

#include <sodium/utils.h>

#include <algorithm>
#include <cstring>

#include "daemon/stack/tcp/listener.h"

namespace culvert::stack::tcp {
namespace {

constexpr std::uint64_t kCookieUse = 0x7466632d636f6f6b;
/// A path that lost an option once may have lost it by chance, as it may any segment; one that does so again and again eats
/// it. Linux had the same rule, with four minutes to begin with.
constexpr Duration kFirstBlock = std::chrono::minutes(1);
constexpr unsigned kMaxDoublings = 10;  // 17 hours
constexpr Duration kInARow = std::chrono::hours(1);  // failures farther apart have nothing to do with each other

std::array<std::byte, 32> both(const Address& local, const Address& remote) {
    std::array<std::byte, 32> bytes;
    std::memcpy(bytes.data(), local.bytes().data(), 16);
    std::memcpy(bytes.data() + 16, remote.bytes().data(), 16);
    return bytes;
}

}  // namespace

FastOpenCookies::Cookie FastOpenCookies::make(const Address& local, const Address& remote,
                                              std::uint64_t generation) const {
    const std::uint64_t hash = sip_hash(derive_key(secret_, kCookieUse, generation), both(local, remote));
    Cookie cookie;
    std::memcpy(cookie.data(), &hash, sizeof hash);
    return cookie;
}

FastOpenCookies::Cookie FastOpenCookies::make(const Address& local, const Address& remote, Instant now) const {
    return make(local, remote, generation(now));
}

FastOpenCookies::Match FastOpenCookies::check(const Address& local, const Address& remote,
                                              std::span<const std::byte> cookie, Instant now) const {
    if (cookie.size() != sizeof(Cookie)) return Match::kNone;
    const std::uint64_t current = generation(now);
    const auto is = [&](std::uint64_t of) {  // in the same time whatever the guess
        const Cookie right = make(local, remote, of);
        return sodium_memcmp(right.data(), cookie.data(), sizeof right) == 0;
    };
    if (is(current)) return Match::kCurrent;
    return is(current - 1) ? Match::kOld : Match::kNone;
}

std::span<FastOpenCache::Entry> FastOpenCache::set_of(const Address& local, const Address& remote) {
    const std::uint64_t set = sip_hash(key_, both(local, remote)) % kSets;
    return std::span(entries_).subspan(set * kWays, kWays);
}

FastOpenCache::Entry* FastOpenCache::look_up(const Address& local, const Address& remote) {
    for (Entry& entry : set_of(local, remote))
        if (entry.mss != 0 && entry.remote == remote && entry.local == local) return &entry;
    return nullptr;
}

FastOpenCache::Entry& FastOpenCache::claim(const Address& local, const Address& remote, Instant now) {
    Entry* entry = look_up(local, remote);
    if (entry == nullptr) {
        const auto set = set_of(local, remote);
        entry = &*std::ranges::min_element(set, {}, [](const Entry& e) { return e.mss == 0 ? Instant::min() : e.used; });
        *entry = {.local = local, .remote = remote, .mss = 1};
    }
    entry->used = now;
    return *entry;
}

const FastOpenCache::Entry* FastOpenCache::find(const Address& local, const Address& remote, Instant now) {
    Entry* const entry = look_up(local, remote);
    if (entry == nullptr || entry->length == 0 || now < entry->blocked_until) return nullptr;
    entry->used = now;
    return entry;
}

bool FastOpenCache::blocked(const Address& local, const Address& remote, Instant now) {
    const Entry* const entry = look_up(local, remote);
    return entry != nullptr && now < entry->blocked_until;
}

void FastOpenCache::learn(const Address& local, const Address& remote, std::span<const std::byte> cookie,
                          std::uint16_t mss, Instant now) {
    Entry& entry = claim(local, remote, now);
    entry.mss = std::max<std::uint16_t>(mss, 1);
    entry.length = static_cast<std::uint8_t>(std::min(cookie.size(), entry.bytes.size()));
    std::copy_n(cookie.begin(), entry.length, entry.bytes.begin());
}

void FastOpenCache::failed(const Address& local, const Address& remote, Failure failure, Instant now) {
    Entry& entry = claim(local, remote, now);
    if (now - entry.blocked_until > kInARow) entry.failures = 0;
    if (entry.failures == 0) {
        entry.failures = 1;
        entry.blocked_until = now;
        if (failure == Failure::kOption) return;
    }
    entry.blocked_until = now + kFirstBlock * (1 << (entry.failures - 1));
    if (entry.failures <= kMaxDoublings) ++entry.failures;
}

void FastOpenCache::worked(const Address& local, const Address& remote, Instant now) {
    if (Entry* const entry = look_up(local, remote)) {
        entry->failures = 0;
        entry->used = now;
    }
}

void FastOpenQuota::roll(Instant now) {
    if (now < period_end_) return;
    resets_before_ = now < period_end_ + kResetPeriod ? resets_ : 0;
    resets_ = 0;
    period_end_ = now + kResetPeriod;
}

bool FastOpenQuota::room(std::uint32_t limit, Instant now) {
    roll(now);
    return std::uint64_t{pending_} + resets_ + resets_before_ < limit;
}

void FastOpenQuota::ended(bool reset, Instant now) {
    --pending_;
    if (!reset) return;
    roll(now);
    ++resets_;
}

void FastOpenPending::began(std::uint32_t connection, Listener& listener) {
    listeners_.emplace(connection, &listener);
    listener.fast_open.began();
}

void FastOpenPending::ended(std::uint32_t connection, bool reset, Instant now) {
    const auto at = listeners_.find(connection);
    if (at == listeners_.end()) return;  // the listener went first
    at->second->fast_open.ended(reset, now);
    listeners_.erase(at);
}

void FastOpenPending::forget(const Listener& listener) {
    if (listener.fast_open.pending() == 0) return;
    boost::unordered::erase_if(listeners_, [&](const auto& entry) { return entry.second == &listener; });
}

}  // namespace culvert::stack::tcp
