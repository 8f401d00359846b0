// A TCP connection: the part that its owner uses. (The connection engineer fills in the rest.)
#pragma once

#include <cstdint>

#include "daemon/base/instant.h"
#include "daemon/stack/owner.h"
#include "daemon/stack/stack.h"

namespace culvert::stack::tcp {

class Connection {
public:
    const Endpoint& local() const;
    const Endpoint& remote() const;
    State state() const;
    Info info() const;

    /// Appends a list of chunks (first .. last, linked by next). They come back through on_released. Allowed until
    /// shutdown_write(); afterwards, or when the connection has ended, they come back at once. Marks for output.
    void send(SendChunk* first, SendChunk* last);
    /// FIN after everything appended so far. Idempotent.
    void shutdown_write();
    /// The application has taken `bytes` of delivered data: the window may open. Marks for output if the peer should know.
    void consumed(std::uint32_t bytes);
    /// Sends RST and ends; on_closed(ECONNABORTED) is called before it returns.
    void abort();
    /// The application has closed its socket: `orphan` becomes the owner (it only gets on_released, on_acknowledged and
    /// on_closed). FIN after all data; with unread data (or linger_zero) RST at once [RFC1122 4.2.2.13].
    /// Later data from the peer is answered with RST.
    void close(ConnectionOwner& orphan, bool unread_data, bool linger_zero);
    void set_owner(ConnectionOwner& owner);
    void set_options(const Options& options);
    /// Bytes appended and not yet acknowledged.
    std::uint32_t unacknowledged_bytes() const;
    /// What may stand in the owner's receive queue (delivered, not consumed) at most.
    std::uint32_t receive_buffer() const;
};

}  // namespace culvert::stack::tcp
