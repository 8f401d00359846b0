// What the environment said when the program was started. Programs overwrite it (to show a title in ps), replace it (nginx's
// workers have next to none), and execute their successors with another one.
#pragma once

namespace culvert::preload {

/// Copies LD_PRELOAD and Culvert's own variables. Once, when the library is loaded.
void remember_environment() noexcept;

/// secure_getenv(), or, where the variable is gone, what it was at the start; null: never there.
const char* environment(const char* name) noexcept;

/// The variables that `envp` lacks of those remembered, as "NAME=value", into `missing`; how many.
constexpr int kMostRemembered = 4;
int missing_variables(char* const envp[], char* missing[kMostRemembered]) noexcept;

}  // namespace culvert::preload
