#include "shm/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace culvert::shm {

namespace {

/// What Boost.Interprocess calls a memory-mappable object, over a descriptor that somebody else owns.
struct MappableFd {
    int fd;
    boost::interprocess::mapping_handle_t get_mapping_handle() const { return {fd, false}; }
};

Result<boost::interprocess::mapped_region> map(int fd, std::uint64_t size) {
    try {
        return boost::interprocess::mapped_region(MappableFd{fd}, boost::interprocess::read_write, 0, size);
    } catch (const boost::interprocess::interprocess_exception& e) {
        return fail(e.get_native_error(), "mapping the shared segment");
    }
}

// Raw calls: in the shim libc's own names are interposed.
long raw_fcntl(int fd, int command, long argument) { return ::syscall(SYS_fcntl, fd, command, argument); }

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

}  // namespace

Result<Segment> Segment::create(const Geometry& geometry, const char* name, UniqueFd& fd) {
    if (!valid(geometry)) return fail(EINVAL, "segment geometry");
    const Layout layout(geometry);
    UniqueFd memory(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!memory) return fail_errno("memfd_create");
    if (::ftruncate(memory.get(), static_cast<off_t>(layout.size_bytes)) != 0) return fail_errno("sizing the segment");
    // An application that could shrink it could kill the daemon with SIGBUS.
    if (raw_fcntl(memory.get(), F_ADD_SEALS, kSeals) != 0) return fail_errno("sealing the segment");
    auto region = map(memory.get(), layout.size_bytes);
    if (!region) return std::unexpected(region.error());
    Segment segment(geometry, std::move(*region));
    SegmentHeader& header = segment.header();
    header.abi_version = kAbiVersion;
    header.geometry = geometry;
    header.size_bytes = layout.size_bytes;
    header.magic = kMagic;
    fd = std::move(memory);
    return segment;
}

Result<Segment> Segment::open(int fd, const Geometry& geometry) {
    if (!valid(geometry)) return fail(EPROTO, "segment geometry");
    const Layout layout(geometry);
    struct stat status{};
    if (::fstat(fd, &status) != 0) return fail_errno("segment");
    if (static_cast<std::uint64_t>(status.st_size) != layout.size_bytes) return fail(EPROTO, "segment size");
    if ((raw_fcntl(fd, F_GET_SEALS, 0) & kSeals) != kSeals) return fail(EPROTO, "segment is not sealed");
    auto region = map(fd, layout.size_bytes);
    if (!region) return std::unexpected(region.error());
    Segment segment(geometry, std::move(*region));
    const SegmentHeader& header = segment.header();
    if (header.magic != kMagic || header.abi_version != kAbiVersion || !(header.geometry == geometry))
        return fail(EPROTO, "segment header");
    return segment;
}

}  // namespace culvert::shm
