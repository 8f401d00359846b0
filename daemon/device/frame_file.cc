#include "daemon/device/frame_file.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "shm/base/check.h"

namespace culvert::device {
namespace {

/// Never waits: io_uring would arm a poll for a registered file, O_NONBLOCK or not, and the call would not return.
void prepare(io_uring_sqe& entry) {
    entry.flags |= IOSQE_FIXED_FILE;
    entry.rw_flags = RWF_NOWAIT;
}

}  // namespace

Result<std::unique_ptr<FrameFile>> FrameFile::create(FramePool& pool, UniqueFd fd, std::string name,
                                                     std::uint32_t tag) {
    if (pool.available() <= kSlots * kMaxFragments)
        return fail(ENOMEM, name + ": frame pool of " + std::to_string(pool.available()) + " chunks is too small, more than " +
                                std::to_string(kSlots * kMaxFragments) + " are needed");
    std::unique_ptr<FrameFile> file(new FrameFile(pool, std::move(fd), std::move(name), tag));
    TRY_VOID(file->set_up());
    return file;
}

Result<void> FrameFile::set_up() {
    if (const int result = ::io_uring_queue_init(kSlots, &ring_, 0); result < 0) return fail(-result, "io_uring_setup");
    ring_ready_ = true;
    const int fd = fd_.get();
    if (const int result = ::io_uring_register_files(&ring_, &fd, 1); result < 0) return fail(-result, "io_uring_register_files");
    for (Slot& slot : input_) {
        slot.pieces[0] = {&slot.header, sizeof slot.header};
        for (std::size_t i = 0; i < slot.chunks.size(); ++i) {
            slot.chunks[i] = pool_.data(pool_.allocate());
            slot.pieces[i + 1] = {slot.chunks[i], FramePool::kChunkSize};
        }
        if (tag_ == 0) continue;
        // The tag's place is left free, so that a frame is read with it where it was.
        std::byte* const first = slot.chunks[0];
        std::memcpy(first + kMacs, &tag_, sizeof tag_);
        std::copy_backward(slot.pieces.begin() + 1, slot.pieces.end() - 1, slot.pieces.end());
        slot.pieces[1] = {first, kMacs};
        slot.pieces[2] = {first + kMacs + sizeof tag_, FramePool::kChunkSize - kMacs - sizeof tag_};
    }
    return {};
}

FrameFile::~FrameFile() {
    if (!ring_ready_) return;
    ::io_uring_queue_exit(&ring_);
    for (const Slot& slot : input_)
        for (const std::byte* chunk : slot.chunks)
            if (chunk != nullptr) pool_.release(static_cast<ChunkIndex>((chunk - pool_.base()) / FramePool::kChunkSize));
}

io_uring_sqe& FrameFile::next_entry() {
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);
    CHECK(entry != nullptr);  // never more than kSlots before a submit
    return *entry;
}

/// Asks for `count` frames at once; results_ says what each read got: bytes, or -EAGAIN. A frame may come between two reads, so
/// there may be one behind a read that found nothing. Answers with how many reads got something.
std::uint32_t FrameFile::read_frames(std::uint32_t count) {
    const auto pieces = static_cast<unsigned>(1 + kMaxFragments + (tag_ != 0 ? 1 : 0));
    for (std::uint32_t i = 0; i < count; ++i) {
        io_uring_sqe& entry = next_entry();
        ::io_uring_prep_readv(&entry, 0, input_[i].pieces.data(), pieces, 0);
        prepare(entry);
        ::io_uring_sqe_set_data64(&entry, i);
        results_[i] = -EAGAIN;
    }
    ::io_uring_submit_and_wait(&ring_, count);
    io_uring_cqe* completion = nullptr;
    unsigned head = 0;
    unsigned seen = 0;
    std::uint32_t got = 0;
    io_uring_for_each_cqe(&ring_, head, completion) {
        results_[completion->user_data] = completion->res;
        got += completion->res != -EAGAIN;
        ++seen;
    }
    ::io_uring_cq_advance(&ring_, seen);
    return got;
}

/// False: not a frame for the stack (counted).
bool FrameFile::show(Slot& slot, std::uint32_t bytes, RxPacket& packet) {
    OffloadFacts facts;
    const std::size_t least = sizeof slot.header + (tag_ != 0 ? kMacs : 0);
    if (bytes <= least || !read_virtio_header(slot.header, facts)) {
        ++counts_.rx_refused;
        return false;
    }
    std::uint32_t left = bytes - static_cast<std::uint32_t>(sizeof slot.header);
    if (tag_ != 0) left += static_cast<std::uint32_t>(sizeof tag_);
    packet.length = left;
    packet.checksum = facts.checksum;
    packet.segment_size = facts.segment_size;
    const auto piece = [&](std::size_t i) {
        const std::uint32_t size = std::min(left, FramePool::kChunkSize);
        left -= size;
        return std::span<const std::byte>(slot.chunks[i], size);
    };
    packet.head = piece(0);
    std::size_t count = 0;
    for (; left > 0; ++count) slot.shown[count] = piece(count + 1);
    packet.rest = {slot.shown.data(), count};
    counts_.rx_merged += facts.segment_size != 0;
    return true;
}

std::size_t FrameFile::receive(std::span<RxPacket> burst) {
    const std::uint32_t limit = std::min<std::uint32_t>(static_cast<std::uint32_t>(burst.size()), kSlots);
    const std::uint32_t asked = std::min(next_try_, limit);
    if (asked == 0) return 0;
    const std::uint32_t got = read_frames(asked);
    // As many again as came, and a few more: an empty file costs few reads, a busy one gives full bursts.
    next_try_ = got == asked ? std::min(2 * asked, kSlots) : std::max(got + 1, kFirstTry);
    std::size_t packets = 0;
    for (std::uint32_t i = 0; i < asked; ++i) {
        if (results_[i] == -EAGAIN) continue;
        if (results_[i] < 0) {
            ++counts_.rx_errors;
            continue;
        }
        if (show(input_[i], static_cast<std::uint32_t>(results_[i]), burst[packets])) ++packets;
    }
    counts_.rx_packets += packets;
    return packets;
}

/// Fills the ring with whole packets; `descriptors` is how many of the queue they are.
std::uint32_t FrameFile::queue_writes(std::size_t& descriptors) {
    const auto pending = tx_.pending();
    std::uint32_t packets = 0;
    descriptors = 0;
    while (packets < kSlots && descriptors < pending.size()) {
        Slot& slot = output_[packets];
        const TxQueue::Descriptor& first = pending[descriptors];
        slot.header = make_virtio_header({pool_.data(first.chunk), first.length}, first.segment_size, first.transport_offset);
        slot.pieces[0] = {&slot.header, sizeof slot.header};
        unsigned pieces = 1;
        bool more = true;
        while (more) {
            const TxQueue::Descriptor& piece = pending[descriptors++];
            slot.pieces[pieces++] = {pool_.data(piece.chunk), piece.length};
            more = piece.more;
        }
        io_uring_sqe& entry = next_entry();
        ::io_uring_prep_writev(&entry, 0, slot.pieces.data(), pieces, 0);
        prepare(entry);
        counts_.tx_segmented += first.segment_size != 0;
        ++packets;
    }
    return packets;
}

/// What the kernel does not take (the interface is down, its queue full) is lost, as on any link, and counted.
bool FrameFile::flush() {
    while (!tx_.pending().empty()) {
        std::size_t descriptors = 0;
        const std::uint32_t packets = queue_writes(descriptors);
        ++counts_.tx_calls;
        ::io_uring_submit_and_wait(&ring_, packets);
        io_uring_cqe* completion = nullptr;
        unsigned head = 0;
        unsigned seen = 0;
        io_uring_for_each_cqe(&ring_, head, completion) {
            ++seen;
            ++(completion->res < 0 ? counts_.tx_refused : counts_.tx_packets);
        }
        ::io_uring_cq_advance(&ring_, seen);
        for (std::size_t i = 0; i < descriptors; ++i) pool_.release(tx_.pending()[i].chunk);
        tx_.consume(descriptors);
    }
    return false;
}

bool FrameFile::has_input() const {
    pollfd wanted{.fd = fd_.get(), .events = POLLIN, .revents = 0};
    return ::poll(&wanted, 1, 0) > 0 && (wanted.revents & POLLIN) != 0;
}

std::vector<Statistic> FrameFile::statistics() const {
    return {{"file_rx_packets", counts_.rx_packets},     {"file_rx_merged", counts_.rx_merged},
            {"file_rx_refused", counts_.rx_refused},     {"file_rx_errors", counts_.rx_errors},
            {"file_tx_packets", counts_.tx_packets},     {"file_tx_segmented", counts_.tx_segmented},
            {"file_tx_refused", counts_.tx_refused},     {"file_tx_calls", counts_.tx_calls}};
}

}  // namespace culvert::device
