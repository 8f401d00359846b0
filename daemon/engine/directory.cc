#include "daemon/engine/directory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <system_error>

#include "shm/base/check.h"

namespace culvert::engine {
namespace {

constexpr std::uint64_t kUsesMask = (1u << 24) - 1;

std::uint64_t key_of(std::uint32_t engine, std::uint32_t hash) {
    return std::uint64_t{hash} << 32 | std::uint64_t{engine + 1} << 24;
}
std::uint32_t hash_of(std::uint64_t word) { return static_cast<std::uint32_t>(word >> 32); }
std::uint32_t engine_of(std::uint64_t word) { return static_cast<std::uint32_t>(word >> 24 & 0xff) - 1; }

}  // namespace

Directory::Directory(std::uint64_t flows) : set_count_(std::max<std::uint64_t>(flows / (kWays / 2), 64)) {
    static_assert(sizeof(Set) == kWays * sizeof(Word) && Word::is_always_lock_free);
    // Anonymous memory reads as zero, which is an empty place, and costs nothing until it is touched.
    void* memory = ::mmap(nullptr, set_count_ * sizeof(Set), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "directory of flows: mmap");
    sets_ = static_cast<Set*>(memory);
    for (auto& ports : ports_) ports = std::vector<std::atomic<EngineSet>>(65536);
}

Directory::~Directory() { ::munmap(sets_, set_count_ * sizeof(Set)); }

// --- flows ------------------------------------------------------------------------------------------------------------

bool Directory::flow_began(std::uint32_t engine, std::uint32_t hash, bool share) {
    const std::lock_guard lock(lock_of(hash));
    const std::uint64_t key = key_of(engine, hash);
    Word* empty = nullptr;
    bool elsewhere = false;
    for (Word& word : set_of(hash).words) {
        const std::uint64_t value = word.load(std::memory_order_relaxed);
        if (value == 0) {
            if (empty == nullptr) empty = &word;
        } else if (hash_of(value) == hash) {
            if ((value & ~kUsesMask) != key) {
                elsewhere = true;
                continue;
            }
            DCHECK((value & kUsesMask) != kUsesMask);
            word.store(value + 1, std::memory_order_relaxed);  // two flows of one hash
            return true;
        }
    }
    if (elsewhere && !share) return false;
    if (empty != nullptr) {
        // Release: whoever finds the engine here finds the flow there, when it looks through the ring's order.
        empty->store(key + 1, std::memory_order_release);
        return true;
    }
    const std::lock_guard cold(ports_mutex_);
    ++unlisted_[std::uint64_t{engine} << 32 | hash];
    overflows_.fetch_add(1, std::memory_order_relaxed);
    return true;
}

void Directory::flow_ended(std::uint32_t engine, std::uint32_t hash) {
    const std::lock_guard lock(lock_of(hash));
    const std::uint64_t key = key_of(engine, hash);
    for (Word& word : set_of(hash).words) {
        const std::uint64_t value = word.load(std::memory_order_relaxed);
        if ((value & ~kUsesMask) != key) continue;
        word.store((value & kUsesMask) == 1 ? 0 : value - 1, std::memory_order_relaxed);
        return;
    }
    const std::lock_guard cold(ports_mutex_);
    const auto at = unlisted_.find(std::uint64_t{engine} << 32 | hash);
    CHECK(at != unlisted_.end());
    if (--at->second == 0) unlisted_.erase(at);
    overflows_.fetch_sub(1, std::memory_order_relaxed);
}

EngineSet Directory::owner(std::uint32_t hash) const {
    EngineSet owners = 0;
    for (const Word& word : set_of(hash).words) {
        const std::uint64_t value = word.load(std::memory_order_acquire);
        if (value != 0 && hash_of(value) == hash) owners |= EngineSet{1} << engine_of(value);
    }
    return owners;
}

// --- ports ------------------------------------------------------------------------------------------------------------

void Directory::bound(std::uint32_t engine, Protocol protocol, const Endpoint& local) {
    const std::lock_guard lock(ports_mutex_);
    ++bound_[{protocol, local.port, engine, local.address}];
    ports_[static_cast<std::size_t>(protocol)][local.port].fetch_or(EngineSet{1} << engine, std::memory_order_relaxed);
}

void Directory::unbound(std::uint32_t engine, Protocol protocol, const Endpoint& local) {
    const std::lock_guard lock(ports_mutex_);
    const auto at = bound_.find({protocol, local.port, engine, local.address});
    CHECK(at != bound_.end());
    if (--at->second != 0) return;
    // Another address of the engine with that port would stand beside it.
    const auto same = [&](auto entry) {
        return entry != bound_.end() && entry->first.protocol == protocol && entry->first.port == local.port &&
               entry->first.engine == engine;
    };
    const auto next = bound_.erase(at);
    if (!same(next) && (next == bound_.begin() || !same(std::prev(next))))
        ports_[static_cast<std::size_t>(protocol)][local.port].fetch_and(~(EngineSet{1} << engine), std::memory_order_relaxed);
}

EngineSet Directory::bound_to(Protocol protocol, const Endpoint& local) const {
    EngineSet engines = bound_to(protocol, local.port);
    if (engines == 0) return 0;
    const std::lock_guard lock(ports_mutex_);
    const Address any = Address::any(local.address.family());
    for (std::uint32_t engine = 0; engine < kMaxEngines; ++engine) {
        if ((engines >> engine & 1) == 0) continue;
        if (!bound_.contains({protocol, local.port, engine, local.address}) &&
            !bound_.contains({protocol, local.port, engine, any}))
            engines &= ~(EngineSet{1} << engine);
    }
    return engines;
}

}  // namespace culvert::engine
