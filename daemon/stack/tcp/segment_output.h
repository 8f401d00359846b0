// One segment out: header, options, payload gathered from the application's chunks, checksum, all in one pass.
#pragma once

#include <cstdint>

#include "daemon/base/counters.h"
#include "daemon/stack/ip_output.h"
#include "daemon/stack/tcp/segment.h"
#include "daemon/stack/tcp/send_queue.h"
#include "daemon/wire/tcp.h"

namespace culvert::stack::tcp {


class SegmentOutput {
public:
    SegmentOutput(IpOutput& ip, Counters& counters) : ip_(ip), counters_(counters) {}

    /// The clock of RFC 7323 timestamps: milliseconds. [RFC7323 5.4] between 1 ms and 1 s a tick.
    static std::uint32_t timestamp(Instant now) {
        return static_cast<std::uint32_t>(
            std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count());
    }

    /// `payload` may be null when `length` is 0. False: no frame is free (counted by IP).
    bool send(Path& path, const Address& local, const Address& remote, const wire::TcpHeader& header,
              const wire::TcpOptions& options, SendQueue::Reader* payload, std::uint32_t length, std::uint8_t tos,
              std::uint8_t ttl, Instant now);
    /// Several segments of `segment_size` payload bytes as one packet, for a device that cuts them
    /// (Interface::segmentation_limit): same header for all, PSH and FIN for the last.
    bool send_super(Path& path, const Address& local, const Address& remote, const wire::TcpHeader& header,
                    const wire::TcpOptions& options, SendQueue::Reader& payload, std::uint32_t length,
                    std::uint16_t segment_size, std::uint8_t tos, std::uint8_t ttl, Instant now);
    /// For segments of no connection: the path is looked up and forgotten.
    bool send_once(const Endpoint& local, const Endpoint& remote, const wire::TcpHeader& header,
                   const wire::TcpOptions& options, Instant now, std::uint8_t tos = 0, std::uint8_t ttl = 0);
    /// The answer to a segment that belongs to nothing. [RFC9293 3.10.7.1]
    void send_reset(const Segment& segment, Instant now);

private:
    IpOutput& ip_;
    Counters& counters_;
};

}  // namespace culvert::stack::tcp
