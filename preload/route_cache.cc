#include "preload/route_cache.h"

#include <atomic>
#include <cstring>

namespace culvert::preload {

namespace {

constexpr std::int64_t kHoldsNs = 1'000'000'000;
constexpr std::size_t kEntries = 512;  // a power of two

struct Entry {
    std::atomic<bool> busy{false};
    RouteKey key;
    RouteAnswer answer;
    std::int64_t until = 0;
    std::uint32_t generation = 0;
};

constinit Entry entries[kEntries];
constinit std::atomic<std::uint32_t> generation{0};

std::size_t slot_of(const RouteKey& key) noexcept {
    std::uint64_t words[4];
    std::memcpy(words, key.remote.address, 16);
    std::memcpy(words + 2, key.source, 16);
    std::uint64_t hash = key.remote.port * 0x9e3779b97f4a7c15u + key.remote.interface;
    for (const std::uint64_t word : words) hash = (hash ^ word ^ hash >> 29) * 0xbf58476d1ce4e5b9u;
    return (hash >> 40) & (kEntries - 1);
}

/// An entry for one thread at a time; false when another has it, who may even be gone (fork).
class Claim {
public:
    explicit Claim(Entry& entry) noexcept : entry_(entry), have_(!entry.busy.exchange(true, std::memory_order_acquire)) {}
    ~Claim() {
        if (have_) entry_.busy.store(false, std::memory_order_release);
    }
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    explicit operator bool() const noexcept { return have_; }

private:
    Entry& entry_;
    bool have_;
};

bool look(const RouteKey& key, std::int64_t now, RouteAnswer& answer) noexcept {
    Entry& entry = entries[slot_of(key)];
    const Claim claim(entry);
    if (!claim || now >= entry.until || entry.generation != generation.load(std::memory_order_relaxed) ||
        std::memcmp(&entry.key, &key, sizeof key) != 0)
        return false;
    answer = entry.answer;
    return true;
}

}  // namespace

bool find_route(const RouteKey& key, std::int64_t now, RouteAnswer& answer) noexcept {
    RouteKey any = key;
    any.remote.port = 0;
    return look(any, now, answer) || look(key, now, answer);
}

void keep_route(const RouteKey& key, bool any_port, const RouteAnswer& answer, std::int64_t now) noexcept {
    RouteKey kept = key;
    if (any_port) kept.remote.port = 0;
    Entry& entry = entries[slot_of(kept)];
    const Claim claim(entry);
    if (!claim) return;
    entry.key = kept;
    entry.answer = answer;
    entry.until = now + kHoldsNs;
    entry.generation = generation.load(std::memory_order_relaxed);
}

void forget_routes() noexcept { generation.fetch_add(1, std::memory_order_relaxed); }

}  // namespace culvert::preload
