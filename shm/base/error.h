// The error of an operation that can fail: an errno value and what was being done.
#pragma once

#include <cerrno>
#include <cstring>
#include <expected>
#include <string>
#include <utility>

namespace culvert {

/// errno value plus the step that failed, for a message a person can act on.
struct Error {
    int code = 0;
    std::string what;

    /// "bind 10.0.0.1:80: Address already in use"
    std::string message() const { return code != 0 ? what + ": " + std::strerror(code) : what; }
};

template <class T>
using Result = std::expected<T, Error>;

inline std::unexpected<Error> fail(int code, std::string what) { return std::unexpected(Error{code, std::move(what)}); }
inline std::unexpected<Error> fail_errno(std::string what) { return fail(errno, std::move(what)); }

}  // namespace culvert

/// TRY(expression): the value, or the error passed up to the caller (a GNU statement expression).
#define TRY(...)                                                              \
    ({                                                                        \
        auto try_result_ = (__VA_ARGS__);                                     \
        if (!try_result_) return std::unexpected(std::move(try_result_.error())); \
        std::move(*try_result_);                                              \
    })
#define TRY_VOID(...)                                                         \
    do {                                                                      \
        auto try_result_ = (__VA_ARGS__);                                     \
        if (!try_result_) return std::unexpected(std::move(try_result_.error())); \
    } while (0)
