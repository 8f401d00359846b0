// A datagram that is being put together from several sends (datagram_cork.cc).
#pragma once

#include <cstddef>
#include <cstdint>

#include "shm/socket_record.h"

namespace culvert::preload {

struct CorkedDatagram {
    shm::DatagramHeader header;  // as the first send has decided: destination, source, options
    std::uint32_t mtu;           // of the way there; 0: not known
    bool v4;
    std::uint32_t length;        // so far
    std::byte bytes[65536];

    /// Mapped, since nothing here may call malloc. Null: no memory.
    static CorkedDatagram* make() noexcept;
    static void destroy(CorkedDatagram* datagram) noexcept;
};

}  // namespace culvert::preload
