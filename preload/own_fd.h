// Descriptors of the shim's own: high numbers, close-on-exec, protected from the application.
#pragma once

namespace culvert::preload {

/// Moves `fd` close to the soft limit of descriptor numbers, so that the application's numbers stay the lowest free ones,
/// and protects it. Returns the new number, or `fd` itself when there is no room above. -1 stays -1.
int move_away(int fd) noexcept;
/// Unprotects and closes; -1 is ignored. Keeps errno.
void close_own(int fd) noexcept;

}  // namespace culvert::preload
