// Process-wide set-up of the shim.
#pragma once

namespace culvert::preload {

/// Installs the fork handlers and remembers which process owns this memory. Idempotent; called when the library is loaded
/// and by the first socket().
void start_once() noexcept;

}  // namespace culvert::preload
