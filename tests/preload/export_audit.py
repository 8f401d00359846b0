#!/usr/bin/env python3
"""Does libculvert.so interpose every name of libc through which a program reaches a descriptor?

usage: export_audit.py LIBCULVERT EXPORTS_MAP HARMLESS

Three questions:
 1. Is what the library exports exactly what exports.map lists? (nothing of libstdc++, no forgotten shell)
 2. Is every descriptor-touching name that this libc has either interposed or listed as harmless with a reason?
    Aliases of what we interpose (__x, x64, __x_chk, __x64, x_time64 ...) are looked for too: a libc upgrade that adds one fails here
    rather than in somebody's application.
 3. Is every reason about a name that exists, or at least not interposed after all?
"""
import ctypes
import re
import subprocess
import sys

# Everything that takes or makes a descriptor, or closes one. Names that this libc lacks do no harm.
CURATED = """
socket socketpair bind listen accept accept4 connect shutdown close close_range closefrom dup dup2 dup3 fcntl fcntl64 ioctl
read readv pread pread64 preadv preadv64 preadv2 preadv64v2 write writev pwrite pwrite64 pwritev pwritev64 pwritev2 pwritev64v2
send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg sendfile sendfile64 splice tee vmsplice copy_file_range
getsockname getpeername getsockopt setsockopt sockatmark isfdtype poll ppoll select pselect
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
fdopen fclose dprintf vdprintf fdopendir fstat fstat64 fstatat fstatat64 lseek lseek64 isatty ttyname ttyname_r
ftruncate ftruncate64 fsync fdatasync syncfs sync_file_range readahead flock lockf lockf64 fchmod fchown fchdir futimens futimes
posix_fadvise posix_fadvise64 posix_fallocate posix_fallocate64 fallocate fallocate64 fgetxattr fsetxattr
pipe pipe2 eventfd eventfd_read eventfd_write timerfd_create signalfd inotify_init inotify_init1 memfd_create pidfd_open pidfd_getfd
open open64 openat openat64 creat creat64
fork _Fork forkpty vfork clone execve execv execvp execvpe execl execlp execle fexecve execveat posix_spawn posix_spawnp system popen wordexp daemon
aio_read aio_read64 aio_write aio_write64 lio_listio lio_listio64 bindresvport rcmd rcmd_af syscall
""".split()

ALIASES = ["__{}", "{}64", "__{}64", "__{}_chk", "__{}64_chk", "{}_time64", "__{}_time64", "__libc_{}", "__{}_nocancel", "_IO_{}"]


def symbols(path):
    """Public dynamic symbols that `path` defines; libc's private ones (GLIBC_PRIVATE) are nobody's to call."""
    found = set()
    for line in subprocess.run(["nm", "-D", "--defined-only", "--with-symbol-versions", path], check=True,
                               capture_output=True, text=True).stdout.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[1] not in "TWi":
            continue
        name, _, version = fields[2].partition("@")
        if "GLIBC_PRIVATE" not in version:
            found.add(name)
    return found


def libc_path():
    ctypes.CDLL("libc.so.6")
    with open("/proc/self/maps") as maps:
        return next(line.split()[-1] for line in maps if "/libc.so.6" in line or "/libc-2." in line)


def mapped(path):
    text = re.sub(r"#.*", "", open(path).read())
    body = text.split("global:")[1].split("local:")[0]
    return {name.strip() for name in body.split(";") if name.strip()}


def reasons(path):
    listed = {}
    for number, line in enumerate(open(path), 1):
        fields = line.split("#")[0].split(None, 1)
        if not fields:
            continue
        if len(fields) < 2:
            sys.exit(f"{path}:{number}: {fields[0]} has no reason")
        listed[fields[0]] = fields[1].strip()
    return listed


def main():
    library, exports_map, harmless_path = sys.argv[1:]
    exported, wanted, harmless, libc = symbols(library), mapped(exports_map), reasons(harmless_path), symbols(libc_path())
    wrong = []
    wrong += [f"{name}: exported but not in exports.map" for name in sorted(exported - wanted)]
    wrong += [f"{name}: in exports.map but not exported" for name in sorted(wanted - exported)]
    candidates = set(CURATED) | {pattern.format(name) for name in CURATED for pattern in ALIASES}
    for name in sorted(candidates & libc):
        if name not in exported and name not in harmless:
            wrong.append(f"{name}: libc has it, we neither interpose it nor say why not (tests/preload/harmless.txt)")
    wrong += [f"{name}: interposed, yet listed as harmless" for name in sorted(exported & harmless.keys())]
    for line in wrong:
        print(line)
    print(f"{len(exported)} names interposed, {len(candidates & libc & harmless.keys())} left alone with a reason, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
