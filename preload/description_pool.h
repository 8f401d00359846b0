// Memory for descriptions: type-stable, malloc-free.
//
// A slot is only ever a T or a free T whose `references` is 0, so a thread that read a pointer to it just before it was
// freed may still try to count itself in (and fails). Chunks are mapped when needed and never unmapped.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>

#include "preload/spin_lock.h"

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
        Slot* slot = reinterpret_cast<Slot*>(&object);
        SpinGuard guard(lock_);
        slot->next = free_;
        free_ = slot;
    }
    SpinLock& lock() noexcept { return lock_; }

private:
    static constexpr std::size_t kChunk = 64 * 1024;
    // `next` lies behind the object, which itself stays as the destructor left it (references == 0).
    struct Slot {
        alignas(T) std::byte memory[sizeof(T)];
        Slot* next;
    };

    void* take() noexcept {
        SpinGuard guard(lock_);
        if (free_ == nullptr) {
            void* chunk = ::mmap(nullptr, kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (chunk == MAP_FAILED) return nullptr;
            Slot* slots = static_cast<Slot*>(chunk);
            for (std::size_t i = kChunk / sizeof(Slot); i > 0; --i) {
                slots[i - 1].next = free_;
                free_ = &slots[i - 1];
            }
        }
        return std::exchange(free_, free_->next);
    }

    SpinLock lock_;
    Slot* free_ = nullptr;
};

}  // namespace culvert::preload
