// Telling the caches what will be read soon.
#pragma once

namespace culvert {

/// Announces the line of `address`, which need not be readable, and does not wait for it. The empty statement is there
/// because g++ 12 drops calls of functions that do nothing but prefetch: it takes them for pure.
[[gnu::always_inline]] inline void prefetch_line(const void* address) {
    __builtin_prefetch(address);
    asm volatile("" : : "r"(address));
}

}  // namespace culvert
