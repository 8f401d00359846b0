// Memory for descriptions: type-stable, malloc-free, without a lock.
//
// A slot is only ever a T or a free T whose `references` is 0, so a thread that read a pointer to it just before it was
// freed may still try to count itself in (and fails). Chunks are mapped when needed and never unmapped.
//
// No lock, because a signal handler may close or accept a socket while the thread that it interrupts does the same, and may
// fork there. The free slots are a Treiber stack; its head carries a tag that changes with every pop, so a thread that was
// away between its look and its exchange notices.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace culvert::preload {

template <class T>
class DescriptionPool {
public:
    /// A new T with no references, or null when there is no memory.
    template <class... Arguments>
    T* make(Arguments&&... arguments) noexcept {
        void* memory = take();
        return memory != nullptr ? ::new (memory) T(std::forward<Arguments>(arguments)...) : nullptr;
    }
    /// Destroys `object`, whose references are 0 and stay 0 until it is made again.
    void recycle(T& object) noexcept {
        object.~T();
        Slot* const slot = reinterpret_cast<Slot*>(&object);
        push(slot, slot);
    }

private:
    static constexpr std::size_t kChunk = 64 * 1024;
    static constexpr std::size_t kAlignment = 16;
    // Addresses of user space have 47 bits, of which the alignment makes four zero: the tag gets the other 21.
    static constexpr unsigned kAddressBits = 43;

    // `next` lies behind the object, which itself stays as the destructor left it (references == 0).
    struct alignas(kAlignment) Slot {
        alignas(T) std::byte memory[sizeof(T)];
        std::atomic<Slot*> next;
    };

    static Slot* slot_of(std::uint64_t head) noexcept {
        return reinterpret_cast<Slot*>((head & ((std::uint64_t{1} << kAddressBits) - 1)) * kAlignment);
    }
    static std::uint64_t head_of(Slot* slot, std::uint64_t tag) noexcept {
        return tag << kAddressBits | reinterpret_cast<std::uintptr_t>(slot) / kAlignment;
    }

    /// A chain that is linked already, from `first` to `last`.
    void push(Slot* first, Slot* last) noexcept {
        std::uint64_t old = head_.load(std::memory_order_relaxed);
        do {
            last->next.store(slot_of(old), std::memory_order_relaxed);
        } while (!head_.compare_exchange_weak(old, head_of(first, old >> kAddressBits), std::memory_order_release,
                                              std::memory_order_relaxed));
    }

    void* take() noexcept {
        std::uint64_t old = head_.load(std::memory_order_acquire);
        for (;;) {
            Slot* const slot = slot_of(old);
            if (slot == nullptr) return take_of_new_chunk();
            // Perhaps taken meanwhile: then this is nonsense, and the tag tells.
            Slot* const next = slot->next.load(std::memory_order_relaxed);
            if (head_.compare_exchange_weak(old, head_of(next, (old >> kAddressBits) + 1), std::memory_order_acquire,
                                            std::memory_order_acquire))
                return slot;
        }
    }

    void* take_of_new_chunk() noexcept {
        void* const chunk = ::mmap(nullptr, kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk == MAP_FAILED) return nullptr;
        auto* const slots = static_cast<Slot*>(chunk);
        constexpr std::size_t kSlots = kChunk / sizeof(Slot);
        static_assert(kSlots > 1);
        for (std::size_t i = 1; i + 1 < kSlots; ++i) slots[i].next.store(&slots[i + 1], std::memory_order_relaxed);
        push(&slots[1], &slots[kSlots - 1]);
        return &slots[0];
    }

    std::atomic<std::uint64_t> head_{0};
};

}  // namespace culvert::preload
