// exec with an environment of the caller's own. A server that hands its listeners to its successor (nginx on SIGUSR2) gives it
// few variables; without LD_PRELOAD the successor would serve through the kernel only. So where a listener of Culvert's is
// passed on, what is missing is added. A program that says LD_PRELOAD itself is believed.
//
// Also called in the child of a vfork: nothing is changed or allocated but on the stack.
#include "preload/interpose.h"

#include <alloca.h>
#include <fcntl.h>
#include <spawn.h>

#include <algorithm>

#include "preload/environment.h"

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

LibcFunction<int(const char*, char* const[], char* const[])> libc_execve{"execve"};
LibcFunction<int(const char*, char* const[], char* const[])> libc_execvpe{"execvpe"};
LibcFunction<int(int, char* const[], char* const[])> libc_fexecve{"fexecve"};
LibcFunction<int(int, const char*, char* const[], char* const[], int)> libc_execveat{"execveat"};
using Spawn = int(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*, char* const[], char* const[]);
LibcFunction<Spawn> libc_posix_spawn{"posix_spawn"};
LibcFunction<Spawn> libc_posix_spawnp{"posix_spawnp"};

}  // namespace

CULVERT_EXPORT int execve(const char* path, char* const argv[], char* const envp[]) noexcept {
    return with_environment(envp, [&](char* const all[]) { return libc_execve(path, argv, all); });
}
CULVERT_EXPORT int execvpe(const char* file, char* const argv[], char* const envp[]) noexcept {
    return with_environment(envp, [&](char* const all[]) { return libc_execvpe(file, argv, all); });
}
CULVERT_EXPORT int fexecve(int fd, char* const argv[], char* const envp[]) noexcept {
    return with_environment(envp, [&](char* const all[]) { return libc_fexecve(fd, argv, all); });
}
CULVERT_EXPORT int execveat(int folder, const char* path, char* const argv[], char* const envp[], int flags) noexcept {
    if (libc_execveat.get() == nullptr) {
        errno = ENOSYS;
        return -1;
    }
    return with_environment(envp, [&](char* const all[]) { return libc_execveat(folder, path, argv, all, flags); });
}
CULVERT_EXPORT int posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
                               const posix_spawnattr_t* attributes, char* const argv[], char* const envp[]) noexcept {
    return with_environment(envp, [&](char* const all[]) { return libc_posix_spawn(pid, path, actions, attributes, argv, all); });
}
CULVERT_EXPORT int posix_spawnp(pid_t* pid, const char* file, const posix_spawn_file_actions_t* actions,
                                const posix_spawnattr_t* attributes, char* const argv[], char* const envp[]) noexcept {
    return with_environment(envp, [&](char* const all[]) { return libc_posix_spawnp(pid, file, actions, attributes, argv, all); });
}
