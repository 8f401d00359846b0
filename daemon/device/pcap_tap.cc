#include "daemon/device/pcap_tap.h"

#include <algorithm>

namespace culvert::device {
namespace {

struct FileHeader {
    std::uint32_t magic = 0xa1b23c4d;
    std::uint16_t version_major = 2;
    std::uint16_t version_minor = 4;
    std::uint32_t zone = 0;
    std::uint32_t accuracy = 0;
    std::uint32_t snap_length = 262144;
    std::uint32_t link_type = 1;
};
static_assert(sizeof(FileHeader) == 24);

struct PacketHeader {
    std::uint32_t seconds;
    std::uint32_t nanoseconds;
    std::uint32_t captured;
    std::uint32_t length;
};
static_assert(sizeof(PacketHeader) == 16);

constexpr Duration kSyncInterval = std::chrono::seconds(1);  // how old what tcpdump reads may be

}  // namespace

Result<std::unique_ptr<PcapTap>> PcapTap::open(Device& inner, const std::string& path, const Options& options) {
    std::FILE* file = std::fopen(path.c_str(), "wbe");
    if (file == nullptr) return fail_errno("creating the capture file " + path);
    std::unique_ptr<PcapTap> tap(new PcapTap(inner, file, options));
    const FileHeader header;
    tap->write(&header, sizeof header);
    tap->sync();
    return tap;
}

Result<std::unique_ptr<PcapTap>> PcapTap::open(std::unique_ptr<Device> inner, const std::string& path, const Options& options) {
    auto tap = TRY(open(*inner, path, options));
    tap->owned_ = std::move(inner);
    return tap;
}

void PcapTap::set_now(Instant now) {
    now_ = now;
    inner_.set_now(now);
    if (sync_at_ <= now) sync();
}

Instant PcapTap::next_deadline() const { return std::min(sync_at_, inner_.next_deadline()); }

void PcapTap::sync() {
    std::fflush(file_.get());
    sync_at_ = kNever;
}

void PcapTap::write(const void* bytes, std::size_t size) {
    std::fwrite(bytes, 1, size, file_.get());
    bytes_ += size;
}

bool PcapTap::start_packet(std::uint32_t length) {
    if (bytes_ + sizeof(PacketHeader) + length > options_.max_bytes) {
        ++skipped_;
        return false;
    }
    const auto nanoseconds = static_cast<std::uint64_t>((now_.time_since_epoch() + options_.wall_offset).count());
    const PacketHeader header = {static_cast<std::uint32_t>(nanoseconds / 1'000'000'000),
                                 static_cast<std::uint32_t>(nanoseconds % 1'000'000'000), length, length};
    write(&header, sizeof header);
    if (sync_at_ == kNever) sync_at_ = now_ + kSyncInterval;
    ++written_;
    return true;
}

std::size_t PcapTap::receive(std::span<RxPacket> burst) {
    const std::size_t count = inner_.receive(burst);
    for (const RxPacket& packet : burst.first(count)) {
        if (!start_packet(packet.length)) continue;
        write(packet.head.data(), packet.head.size());
        for (const std::span<const std::byte> fragment : packet.rest) write(fragment.data(), fragment.size());
    }
    return count;
}

bool PcapTap::flush() {
    TxQueue& queue = inner_.tx();
    const std::span<const TxQueue::Descriptor> fresh = queue.pending().subspan(seen_);
    for (std::size_t i = 0; i < fresh.size();) {
        std::uint32_t length = fresh[i].length;
        std::size_t end = i + 1;
        for (; fresh[end - 1].more; ++end) length += fresh[end].length;
        const bool room = start_packet(length);
        for (; i < end; ++i)
            if (room) write(queue.pool().data(fresh[i].chunk), fresh[i].length);
    }
    const bool left = inner_.flush();
    seen_ = queue.pending().size();  // the inner device takes from the front
    return left;
}

std::vector<Statistic> PcapTap::statistics() const {
    std::vector<Statistic> result = inner_.statistics();
    result.push_back({"pcap_packets", written_});
    result.push_back({"pcap_skipped", skipped_});
    return result;
}

}  // namespace culvert::device
