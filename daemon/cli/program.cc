#include "daemon/cli/program.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "shm/base/unique_fd.h"

namespace culvert::cli {
namespace {

constexpr int kMaxInterpreters = 5;  // as many as the kernel follows (BINPRM)
constexpr std::size_t kHeadBytes = 256;  // BINPRM_BUF_SIZE: the kernel reads no longer first line
constexpr std::size_t kMaxProgramHeaders = 256;

#if defined(__x86_64__)
constexpr int kOurMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr int kOurMachine = EM_AARCH64;
#else
#error "which ELF machine is this?"
#endif

enum class Runnable { kYes, kAbsent, kForbidden };

Runnable runnable(const std::string& path) {
    struct stat status;
    if (::stat(path.c_str(), &status) != 0) return errno == EACCES ? Runnable::kForbidden : Runnable::kAbsent;
    if (!S_ISREG(status.st_mode) || ::access(path.c_str(), X_OK) != 0) return Runnable::kForbidden;
    return Runnable::kYes;
}

bool read_at(int fd, void* into, std::size_t bytes, off_t offset) {
    return ::pread(fd, into, bytes, offset) == static_cast<ssize_t>(bytes);
}

/// The interpreter named by "#!", if `head` begins with one.
std::optional<std::string> script_interpreter(std::string_view head) {
    if (!head.starts_with("#!")) return std::nullopt;
    head.remove_prefix(2);
    head = head.substr(0, head.find_first_of(std::string_view("\n\0", 2)));
    const std::size_t begin = head.find_first_not_of(" \t");
    if (begin == std::string_view::npos) return std::nullopt;
    head.remove_prefix(begin);
    return std::string(head.substr(0, head.find_first_of(" \t\r")));
}

/// What the dynamic linker and a person want to know of an ELF file.
struct Elf {
    bool complete = true;      // false: damaged
    std::string linker;        // of PT_INTERP; empty: none
    bool go = false;           // built by the Go tool chain
};

/// A note of PT_NOTE whose owner is "Go": the build ID that cmd/link puts there.
bool has_go_note(int fd, const Elf64_Phdr& segment) {
    std::array<char, 4096> notes;  // they come first; what lies beyond is a core dump's
    const std::size_t size = std::min<std::size_t>(segment.p_filesz, notes.size());
    if (!read_at(fd, notes.data(), size, static_cast<off_t>(segment.p_offset))) return false;
    std::size_t at = 0;
    while (at + sizeof(Elf64_Nhdr) <= size) {
        Elf64_Nhdr note;
        std::memcpy(&note, notes.data() + at, sizeof note);
        at += sizeof note;
        const auto padded = [](std::size_t bytes) { return (bytes + 3) & ~std::size_t{3}; };
        if (note.n_namesz > size - at) return false;
        if (note.n_namesz == 4 && std::memcmp(notes.data() + at, "Go\0", 4) == 0) return true;
        if (padded(note.n_namesz) + padded(note.n_descsz) > size - at) return false;
        at += padded(note.n_namesz) + padded(note.n_descsz);
    }
    return false;
}

Elf read_elf(int fd, const Elf64_Ehdr& header) {
    Elf elf;
    std::vector<Elf64_Phdr> segments(header.e_phnum);
    elf.complete = header.e_phentsize == sizeof(Elf64_Phdr) && header.e_phnum <= kMaxProgramHeaders &&
                   read_at(fd, segments.data(), segments.size() * sizeof(Elf64_Phdr), static_cast<off_t>(header.e_phoff));
    if (!elf.complete) return elf;
    for (const Elf64_Phdr& segment : segments) {
        if (segment.p_type == PT_INTERP) {
            char linker[128] = {};
            const std::size_t length = std::min<std::size_t>(segment.p_filesz, sizeof linker - 1);
            elf.complete = read_at(fd, linker, length, static_cast<off_t>(segment.p_offset));
            elf.linker = linker;
        } else if (segment.p_type == PT_NOTE) {
            elf.go = elf.go || has_go_note(fd, segment);
        }
    }
    return elf;
}

std::string why_elf_unreachable(int fd) {
    Elf64_Ehdr header;
    if (!read_at(fd, &header, sizeof header, 0)) return "it is no complete ELF file";
    if (header.e_ident[EI_CLASS] == ELFCLASS32 && kOurMachine == EM_X86_64) return "it is a 32-bit program, and libculvert.so is a 64-bit library";
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kOurMachine)
        return "it is built for another architecture than libculvert.so";
    const Elf elf = read_elf(fd, header);
    if (!elf.complete) return "its ELF header is damaged";
    // Also when it is linked dynamically: the runtime makes its system calls itself.
    if (elf.go) return "it is a Go program, which makes its system calls without libc";
    if (elf.linker.empty()) return "it is statically linked";
    if (elf.linker.find("ld-musl") != std::string::npos) return "it is linked with musl, libculvert.so with glibc";
    return {};
}

/// What "#!/usr/bin/env NAME" starts; empty: not that, or not to be found.
std::string program_of_env(const std::string& interpreter, std::string_view rest) {
    if (!interpreter.ends_with("/env")) return {};
    const std::size_t begin = rest.find_first_not_of(" \t");
    if (begin == std::string_view::npos) return {};
    rest.remove_prefix(begin);
    const std::string name(rest.substr(0, rest.find_first_of(" \t\r")));
    if (name.empty() || name.front() == '-' || name.find('=') != std::string::npos) return {};
    return find_program(name, std::getenv("PATH")).value_or("");
}

}  // namespace

Result<std::string> find_program(const std::string& name, const char* search_path) {
    if (name.find('/') != std::string::npos) {
        switch (runnable(name)) {
            case Runnable::kYes: return name;
            case Runnable::kForbidden: return fail(EACCES, name);
            case Runnable::kAbsent: return fail(ENOENT, name);
        }
    }
    bool forbidden = false;
    std::string_view rest = search_path != nullptr ? search_path : "/bin:/usr/bin";
    for (;;) {
        const std::size_t colon = rest.find(':');
        const std::string_view folder = rest.substr(0, colon);
        const std::string path = folder.empty() ? name : fmt::format("{}/{}", folder, name);
        const Runnable found = name.empty() ? Runnable::kAbsent : runnable(path);
        if (found == Runnable::kYes) return path;
        forbidden |= found == Runnable::kForbidden;
        if (colon == std::string_view::npos) break;
        rest.remove_prefix(colon + 1);
    }
    return fail(forbidden ? EACCES : ENOENT, name);
}

std::string why_unreachable(const std::string& path, uid_t uid, gid_t gid) {
    std::string file = path;
    for (int depth = 0; depth < kMaxInterpreters; ++depth) {
        const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
        if (!fd) return {};
        char head[kHeadBytes] = {};
        const ssize_t length = ::pread(fd.get(), head, sizeof head, 0);
        const std::string_view text(head, length > 0 ? static_cast<std::size_t>(length) : 0);
        if (const std::optional<std::string> interpreter = script_interpreter(text)) {
            const std::string_view first_line = text.substr(0, text.find_first_of(std::string_view("\n\0", 2)));
            const std::string meant = program_of_env(*interpreter, first_line.substr(first_line.find(*interpreter) + interpreter->size()));
            file = meant.empty() ? *interpreter : meant;  // set-user-ID bits and capabilities of a script are ignored by the kernel
            continue;
        }
        const std::string of = file == path ? "" : fmt::format("its interpreter {}: ", file);
        if (!text.starts_with(std::string_view(ELFMAG, SELFMAG))) return {};
        struct stat status;
        if (::fstat(fd.get(), &status) == 0) {
            if ((status.st_mode & S_ISUID) != 0 && status.st_uid != uid) return of + "it is set-user-ID";
            if ((status.st_mode & S_ISGID) != 0 && status.st_gid != gid) return of + "it is set-group-ID";
        }
        if (uid != 0 && ::fgetxattr(fd.get(), "security.capability", nullptr, 0) > 0)
            return of + "it has file capabilities";
        const std::string reason = why_elf_unreachable(fd.get());
        return reason.empty() ? reason : of + reason;
    }
    return {};
}

std::vector<std::string> needed_libraries(const std::string& path) {
    constexpr std::size_t kMaxEntries = 4096;
    constexpr std::size_t kMaxName = 256;
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    Elf64_Ehdr header;
    if (!fd || !read_at(fd.get(), &header, sizeof header, 0) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return {};
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum > kMaxProgramHeaders) return {};
    std::vector<Elf64_Phdr> segments(header.e_phnum);
    if (!read_at(fd.get(), segments.data(), segments.size() * sizeof(Elf64_Phdr), static_cast<off_t>(header.e_phoff))) return {};

    std::vector<Elf64_Dyn> entries;
    for (const Elf64_Phdr& segment : segments) {
        if (segment.p_type != PT_DYNAMIC) continue;
        entries.resize(std::min<std::size_t>(segment.p_filesz / sizeof(Elf64_Dyn), kMaxEntries));
        if (!read_at(fd.get(), entries.data(), entries.size() * sizeof(Elf64_Dyn), static_cast<off_t>(segment.p_offset))) return {};
    }
    // The names' table is told by its address; where in the file that is, the segments say.
    std::optional<std::uint64_t> names;
    for (const Elf64_Dyn& entry : entries) {
        if (entry.d_tag != DT_STRTAB) continue;
        for (const Elf64_Phdr& segment : segments)
            if (segment.p_type == PT_LOAD && entry.d_un.d_ptr >= segment.p_vaddr && entry.d_un.d_ptr - segment.p_vaddr < segment.p_filesz)
                names = entry.d_un.d_ptr - segment.p_vaddr + segment.p_offset;
    }
    std::vector<std::string> found;
    for (const Elf64_Dyn& entry : entries) {
        if (entry.d_tag == DT_NULL) break;
        if (entry.d_tag != DT_NEEDED || !names || entry.d_un.d_val > INT32_MAX) continue;
        char name[kMaxName] = {};
        if (::pread(fd.get(), name, sizeof name - 1, static_cast<off_t>(*names + entry.d_un.d_val)) > 0) found.emplace_back(name);
    }
    return found;
}

}  // namespace culvert::cli
