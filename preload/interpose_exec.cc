// exec with an environment of the caller's own. A server that hands its listeners to its successor (nginx on SIGUSR2) gives it
// few variables; without LD_PRELOAD the successor would serve through the kernel only. So where a listener of Culvert's is
// passed on, what is missing is added. A program that says LD_PRELOAD itself is believed. Connections that the next program
// will find become kernel sockets first (leave.cc). libc's exec functions call each other by names that nobody can interpose,
// so each is here, and so are those that start a shell: system(), popen(), wordexp().
//
// Also called in the child of a vfork: nothing is changed or allocated but on the stack.
#include "preload/interpose.h"

#include <alloca.h>
#include <fcntl.h>
#include <spawn.h>
#include <wordexp.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "preload/confined.h"
#include "preload/environment.h"
#include "preload/leave.h"
#include "preload/listener_mode.h"

using namespace culvert::preload;

namespace {

constexpr std::size_t kMostVariables = 16384;  // no stack for more

bool passes_listener_on() noexcept {
    const KeepErrno keep;
    bool found = false;
    FdTable::instance().for_each([&](int fd, Description& description) {
        if (found || description.kind() != Description::Kind::kSocket || !description.is_ours()) return;
        if (Socket::of(description).path() != Socket::Path::kListener) return;
        const int flags = raw::fcntl(fd, F_GETFD, 0);
        found = flags >= 0 && (flags & FD_CLOEXEC) == 0;
    });
    return found;
}

/// A listener that we alone hold waits again in accept() as the program wants it: whom it is passed to may not know us.
/// Undone if the exec fails.
class BlockingAgain {
public:
    BlockingAgain() noexcept {
        if (!in_borrowed_memory()) set(false);
    }
    ~BlockingAgain() {
        if (!in_borrowed_memory()) set(true);
    }
    BlockingAgain(const BlockingAgain&) = delete;

private:
    static void set(bool nonblocking) noexcept {
        if (is_confined()) return;
        const KeepErrno keep;
        FdTable::instance().for_each([nonblocking](int fd, Description& description) {
            if (description.kind() != Description::Kind::kSocket || !description.is_ours()) return;
            const Socket& socket = Socket::of(description);
            if (socket.path() != Socket::Path::kListener || socket.nonblocking() || socket.is_shared() || socket.is_resting()) return;
            nonblocking ? never_block(fd) : block_again(fd);
        });
    }
};

/// Calls run(environment) with what `envp` lacks.
template <class Run>
int with_environment(char* const envp[], Run run) noexcept {
    char* missing[kMostRemembered];
    if (envp == nullptr || !passes_listener_on()) return run(envp);
    const int more = missing_variables(envp, missing);
    std::size_t count = 0;
    while (envp[count] != nullptr) ++count;
    if (more == 0 || count > kMostVariables) return run(envp);
    auto** const all = static_cast<char**>(::alloca((count + static_cast<std::size_t>(more) + 1) * sizeof(char*)));
    *std::copy_n(missing, more, std::copy_n(envp, count, all)) = nullptr;
    return run(all);
}

/// Replaces the program: everything that is to be passed on goes first. Returns only if it fails.
template <class Run>
int replace_program(char* const envp[], Run run) noexcept {
    leave_by_exec(false);
    const BlockingAgain blocking;
    return with_environment(envp, run);
}

LibcFunction<int(const char*, char* const[], char* const[])> libc_execve{"execve"};
LibcFunction<int(const char*, char* const[], char* const[])> libc_execvpe{"execvpe"};
LibcFunction<int(int, char* const[], char* const[])> libc_fexecve{"fexecve"};
LibcFunction<int(int, const char*, char* const[], char* const[], int)> libc_execveat{"execveat"};
using Spawn = int(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*, char* const[], char* const[]);
LibcFunction<Spawn> libc_posix_spawn{"posix_spawn"};
LibcFunction<Spawn> libc_posix_spawnp{"posix_spawnp"};
LibcFunction<int(posix_spawn_file_actions_t*, int, int)> libc_adddup2{"posix_spawn_file_actions_adddup2"};
LibcFunction<int(const char*)> libc_system{"system"};
LibcFunction<FILE*(const char*, const char*)> libc_popen{"popen"};
LibcFunction<int(const char*, wordexp_t*, int)> libc_wordexp{"wordexp"};

/// The words of execl() and its like, from `first` on. Steps through `arguments` up to the null behind them.
std::size_t count_words(const char* first, va_list& arguments) noexcept {
    std::size_t count = 0;
    for (const char* word = first; word != nullptr; word = va_arg(arguments, const char*)) ++count;
    return count;
}

void copy_words(const char* first, va_list arguments, char** words) noexcept {
    for (const char* word = first; word != nullptr; word = va_arg(arguments, const char*)) *words++ = const_cast<char*>(word);
    *words = nullptr;
}

}  // namespace

CULVERT_EXPORT int execve(const char* path, char* const argv[], char* const envp[]) noexcept {
    return replace_program(envp, [&](char* const all[]) { return libc_execve(path, argv, all); });
}
CULVERT_EXPORT int execv(const char* path, char* const argv[]) noexcept { return execve(path, argv, environ); }
CULVERT_EXPORT int execvpe(const char* file, char* const argv[], char* const envp[]) noexcept {
    return replace_program(envp, [&](char* const all[]) { return libc_execvpe(file, argv, all); });
}
CULVERT_EXPORT int execvp(const char* file, char* const argv[]) noexcept { return execvpe(file, argv, environ); }
CULVERT_EXPORT int fexecve(int fd, char* const argv[], char* const envp[]) noexcept {
    return replace_program(envp, [&](char* const all[]) { return libc_fexecve(fd, argv, all); });
}
CULVERT_EXPORT int execveat(int folder, const char* path, char* const argv[], char* const envp[], int flags) noexcept {
    if (libc_execveat.get() == nullptr) {
        errno = ENOSYS;
        return -1;
    }
    return replace_program(envp, [&](char* const all[]) { return libc_execveat(folder, path, argv, all, flags); });
}

// The words are put into an array on the stack: in the child of a vfork there may be no allocation.
#define CULVERT_WORDS(words, first)                                                        \
    va_list arguments;                                                                     \
    va_start(arguments, first);                                                            \
    const std::size_t count = count_words(first, arguments);                               \
    va_end(arguments);                                                                     \
    auto** const words = static_cast<char**>(::alloca((count + 1) * sizeof(char*)));       \
    va_start(arguments, first);                                                            \
    copy_words(first, arguments, words)

CULVERT_EXPORT int execl(const char* path, const char* first, ...) noexcept {
    CULVERT_WORDS(words, first);
    va_end(arguments);
    return execve(path, words, environ);
}
CULVERT_EXPORT int execlp(const char* file, const char* first, ...) noexcept {
    CULVERT_WORDS(words, first);
    va_end(arguments);
    return execvpe(file, words, environ);
}
CULVERT_EXPORT int execle(const char* path, const char* first, ...) noexcept {
    CULVERT_WORDS(words, first);
    char* const* const envp = va_arg(arguments, char**);  // behind the null
    va_end(arguments);
    return execve(path, words, envp);
}
#undef CULVERT_WORDS

// The child is libc's own and never comes by here: what it shall find must be there before.
CULVERT_EXPORT int posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
                               const posix_spawnattr_t* attributes, char* const argv[], char* const envp[]) noexcept {
    leave_by_exec(true);
    return with_environment(envp, [&](char* const all[]) { return libc_posix_spawn(pid, path, actions, attributes, argv, all); });
}
CULVERT_EXPORT int posix_spawnp(pid_t* pid, const char* file, const posix_spawn_file_actions_t* actions,
                                const posix_spawnattr_t* attributes, char* const argv[], char* const envp[]) noexcept {
    leave_by_exec(true);
    return with_environment(envp, [&](char* const all[]) { return libc_posix_spawnp(pid, file, actions, attributes, argv, all); });
}
CULVERT_EXPORT int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t* actions, int fd, int copy) noexcept {
    if (const SocketRef socket = our_socket(fd)) socket->spawned.store(true, std::memory_order_relaxed);
    return libc_adddup2(actions, fd, copy);
}

// Shells that libc starts by itself. They find what is left open, as with any other exec.
CULVERT_EXPORT int system(const char* command) {
    if (command != nullptr) leave_by_exec(false);
    return libc_system.get()(command);
}
CULVERT_EXPORT FILE* popen(const char* command, const char* mode) {
    leave_by_exec(false);
    return libc_popen.get()(command, mode);
}
CULVERT_EXPORT FILE* _IO_popen(const char* command, const char* mode) { return popen(command, mode); }
CULVERT_EXPORT int wordexp(const char* words, wordexp_t* result, int flags) {
    if ((flags & WRDE_NOCMD) == 0 && (std::strchr(words, '`') != nullptr || std::strstr(words, "$(") != nullptr)) leave_by_exec(false);
    return libc_wordexp.get()(words, result, flags);
}
