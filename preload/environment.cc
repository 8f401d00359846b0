#include "preload/environment.h"

#include <cstdlib>
#include <cstring>

#include "shm/attach_protocol.h"

namespace culvert::preload {
namespace {

/// "NAME=value"; empty: not set, or too long to be kept.
struct Variable {
    const char* name;
    char text[1040];
};
constinit Variable variables[kMostRemembered] = {{"LD_PRELOAD", {}}, {shm::kSocketPathVariable, {}}, {shm::kStrictVariable, {}},
                                                  {shm::kPolicyVariable, {}}};

/// What `entry` of an environment says of `name`; null: another variable.
const char* value_in(const char* entry, const char* name) noexcept {
    const std::size_t length = std::strlen(name);
    return std::strncmp(entry, name, length) == 0 && entry[length] == '=' ? entry + length + 1 : nullptr;
}

}  // namespace

void remember_environment() noexcept {
    for (Variable& variable : variables) {
        const char* const value = ::secure_getenv(variable.name);
        const std::size_t name = std::strlen(variable.name);
        if (value == nullptr || name + 1 + std::strlen(value) >= sizeof variable.text) continue;
        std::memcpy(variable.text, variable.name, name);
        variable.text[name] = '=';
        std::strcpy(variable.text + name + 1, value);
    }
}

const char* environment(const char* name) noexcept {
    if (const char* const value = ::secure_getenv(name)) return value;
    for (const Variable& variable : variables)
        if (const char* const value = value_in(variable.text, name)) return value;
    return nullptr;
}

int missing_variables(char* const envp[], char* missing[kMostRemembered]) noexcept {
    int count = 0;
    for (Variable& variable : variables) {
        bool there = variable.text[0] == '\0';
        for (char* const* entry = envp; !there && *entry != nullptr; ++entry) there = value_in(*entry, variable.name) != nullptr;
        if (!there) missing[count++] = variable.text;
    }
    return count;
}

}  // namespace culvert::preload
