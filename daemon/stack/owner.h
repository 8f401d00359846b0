// Who uses the stack: the interfaces that a tenant's sockets implement.
//
// All calls are made on the engine's thread, from within calls of the Stack. An owner may call back into the object that
// is calling it, except where noted.
#pragma once

#include <cstdint>
#include <span>

#include "daemon/wire/address.h"

namespace culvert::stack {

/// Bytes to send. The memory belongs to the owner until released; it may change under us (it is the application's), so
/// it is read once per transmission and never interpreted. Intrusive: the owner has one per block, none is allocated.
struct SendChunk {
    SendChunk* next = nullptr;
    const std::byte* data = nullptr;
    std::uint32_t length = 0;
    std::uint32_t tag = 0;  // the owner's (block number)
};

/// Payload as it lies in the packet's fragments. Valid during the call only.
using Payload = std::span<const std::span<const std::byte>>;

namespace tcp {

class Connection;

class ConnectionOwner {
public:
    virtual ~ConnectionOwner() = default;
    /// connect() has succeeded (active opens only).
    virtual void on_established(Connection& connection) = 0;
    /// `length` in-order bytes. Returns how many were taken; the rest counts as not received (the peer sends it again).
    virtual std::uint32_t on_data(Connection& connection, Payload payload, std::uint32_t length) = 0;
    /// The peer has sent FIN and everything before it has been delivered.
    virtual void on_end_of_stream(Connection& connection) = 0;
    /// A list of chunks (linked by next, ends with nullptr) that the peer has acknowledged or that will never be sent.
    virtual void on_released(Connection& connection, SendChunk* first) = 0;
    /// A SendChunk list's front part was acknowledged: `bytes` in all since the last call. For send-buffer accounting.
    virtual void on_acknowledged(Connection& connection, std::uint32_t bytes) = 0;
    /// The connection has ended: error 0 (closed in order), ECONNRESET, ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH ...
    /// Last call; every chunk has been released before. The Connection must not be used afterwards.
    virtual void on_closed(Connection& connection, int error) = 0;
};

class ListenerOwner {
public:
    virtual ~ListenerOwner() = default;
    /// May another connection be completed? Asked before the last step of the handshake; false = keep it waiting
    /// (the ACK is dropped and counted, as on Linux when the accept queue is full).
    virtual bool can_accept() = 0;
    /// An established connection. Returns its owner, or nullptr to refuse it (it is reset).
    virtual ConnectionOwner* on_accept(Connection& connection) = 0;
};

}  // namespace tcp

namespace udp {

class Socket;

/// Where a datagram came from and to which of our addresses.
struct DatagramInfo {
    Endpoint remote;
    Address local;
    std::uint32_t interface = 0;
    std::uint8_t ttl = 0;
    std::uint8_t tos = 0;
};

class SocketOwner {
public:
    virtual ~SocketOwner() = default;
    /// False: no room; the stack counts Drop::kUdpQueueFull.
    virtual bool on_datagram(Socket& socket, const DatagramInfo& info, Payload payload, std::uint32_t length) = 0;
    /// An ICMP error for a connected socket.
    virtual void on_error(Socket& socket, int error) = 0;
};

}  // namespace udp
}  // namespace culvert::stack
