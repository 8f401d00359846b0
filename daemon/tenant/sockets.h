// The sockets of a tenant, as the stack's owners. Each stands between one record in shared memory and one object of
// the stack; what the stack tells them is staged here and published by the tenant at the end of the turn.
//
// | Kind      | meaning                                          | stack object        |
// | kFree     | record unused (daemon's range: in free_records_) | none                |
// | kIdle     | record taken, no operation has succeeded yet     | none                |
// | kStream   | connecting, connected or dead, not closed        | Connection, or none when dead |
// | kListener | listening                                        | Listener            |
// | kDatagram | bound                                            | udp::Socket         |
// | kRaw      | raw or ping, bound                               | raw::Socket         |
// | kMoved    | a connection that has left the program           | none: its StandIn has it |
#pragma once

#include "daemon/stack/raw.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/tenant/message_lane.h"
#include "daemon/tenant/receive_stage.h"
#include "daemon/tenant/tenant.h"
#include "shm/accept_queue.h"

namespace culvert::tenant {

/// Where an accepted connection came from.
struct AcceptTicket {
    std::uint32_t listener = shm::kNoIndex;  // record; kNoIndex: not an accepted connection, or accepted already
    std::uint32_t position = 0;              // in its accept queue
};

class StreamSocket final : public stack::tcp::ConnectionOwner {
public:
    void init(Tenant& tenant, std::uint32_t index) { tenant_ = &tenant, index_ = index; }
    void open(stack::tcp::Connection& connection, std::uint32_t status);
    /// Gives everything back; the connection (if any) goes on without us.
    void close(bool linger_zero);
    /// Nobody has accepted the connection, and its listener goes: another one on the same endpoint takes it, with all that has
    /// arrived. False: it does not, or the application has meddled with it; the connection is still ours.
    bool hand_to(stack::tcp::ListenerOwner& heir);

    /// The connection leaves the program, with what has arrived. An errno value; then it is still ours.
    int move_to(StandIn& stand_in);

    /// A look at the application's line: options have been applied before.
    void look(std::uint32_t app_flags);
    /// What is limited by the application's own word: SO_SNDBUF (then nothing is tuned) and TCP_NOTSENT_LOWAT; 0: neither.
    void limit_sending(std::uint32_t send_buffer, std::uint32_t notsent_lowat);
    /// Writes the daemon's line. Returns true if an application could want to know.
    bool publish(std::uint32_t app_flags);

    stack::tcp::Connection* connection() const { return connection_; }
    std::uint64_t unread() const { return delivered_ - consumed_; }

    void on_established(stack::tcp::Connection&) override;
    std::uint32_t on_data(stack::tcp::Connection&, stack::Payload payload, std::uint32_t length) override;
    void on_urgent(stack::tcp::Connection&, std::uint64_t ahead) override;
    void on_end_of_stream(stack::tcp::Connection&) override;
    void on_released(stack::tcp::Connection&, stack::SendChunk* first) override;
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t bytes) override;
    void on_soft_error(stack::tcp::Connection& connection, int error) override;
    void on_attempt_refused(stack::tcp::Connection&, const stack::IcmpError& error) override;
    void on_closed(stack::tcp::Connection&, int error) override;

    AcceptTicket ticket;

private:
    void update_consumed();
    void set_window_position();
    bool holds_its_share(std::uint32_t buffer);
    void take_output();
    void publish_send_limit(shm::DaemonLine& line);
    void catch_urgent(stack::Payload payload, std::uint32_t length);

    Tenant* tenant_ = nullptr;
    stack::tcp::Connection* connection_ = nullptr;
    std::uint32_t index_ = 0;
    std::uint32_t status_ = 0;            // kStatus*, as it will be published
    std::uint32_t published_status_ = 0;
    std::int32_t error_ = 0;              // to be published once
    bool read_shut_ = false;              // shutdown(SHUT_RD) has been seen ...
    bool read_shut_unsaid_ = false;       // ... and the watchers have not been told
    bool urgent_unsaid_ = false;          // urgent_ has changed
    bool fixed_send_limit_ = false;       // SO_SNDBUF
    std::uint32_t send_limit_ = 0;        // bytes that may be queued and in flight, as published but for notsent_lowat_
    std::uint32_t notsent_lowat_ = 0;
    std::uint64_t urgent_ = 0;            // shm/urgent.h; meant while kStatusUrgent, position kept for what comes later
    std::uint64_t delivered_ = 0;         // bytes staged for the application so far
    std::uint64_t consumed_ = 0;          // bytes that it has read, as far as we know
    std::uint64_t taken_ = 0;             // bytes taken off tx_list
    std::uint64_t released_ = 0;          // bytes acknowledged
    std::uint64_t published_released_ = 0;
    LentList lent_;
    ReceiveStage stage_;
};

class ListenSocket final : public stack::tcp::ListenerOwner {
public:
    ListenSocket(Tenant& tenant, std::uint32_t index, std::uint32_t queue, std::uint32_t backlog);
    ~ListenSocket();

    bool can_accept() override;
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& connection) override;

    void set_backlog(std::uint32_t backlog) { queue_.set_backlog(backlog); }
    bool taken(std::uint32_t position) const { return queue_.taken(position); }
    std::uint32_t waiting() const { return queue_.size(); }
    std::uint32_t backlog() const { return queue_.backlog(); }

    stack::tcp::Listener* listener = nullptr;  // null: shut, or it rests

private:
    Tenant& tenant_;
    std::uint32_t index_;
    std::uint32_t queue_index_;
    shm::AcceptQueueProducer queue_;
};

class DatagramSocket final : public stack::udp::SocketOwner {
public:
    DatagramSocket(Tenant& tenant, std::uint32_t index);
    ~DatagramSocket();

    void look(Instant now);
    bool publish(std::uint32_t app_flags);
    void set_options(const shm::SocketOptions& options);
    /// Tells the application how large a packet may be on the way to the connected peer.
    void publish_path(Instant now);

    bool on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo& info, stack::Payload payload,
                     std::uint32_t length) override;
    void on_error(stack::udp::Socket&, const stack::udp::DatagramError& error) override;

    /// Hears and sends nothing from now on. What has not been read, oldest first (Tenant::rest_datagrams).
    std::vector<UnreadDatagram> rest();

    stack::udp::Socket* socket = nullptr;  // null: it rests
    Endpoint local;
    Endpoint remote;  // port 0: not connected
    std::uint32_t interface = 0;  // hears through this one only; 0: all
    bool dual = false;
    bool bound_by_sending = false;  // shm::kBoundBySending: the policy is asked about each peer

private:
    /// The datagram that was staged last, as long as more of its flow may join it (UDP_GRO).
    struct Merging {
        shm::DatagramHeader header;
        std::uint32_t segments = 0;  // 0: nothing may join
    };

    void send(const MessageLane::Message& message, Instant now);
    bool merge(const shm::DatagramHeader& header, stack::Payload payload, std::uint32_t length);

    Tenant& tenant_;
    std::uint32_t index_;
    bool merges_ = false;             // UDP_GRO
    std::uint32_t path_mtu_ = 0;      // as published
    Merging merging_;
    MessageLane lane_;
    LentList errors_lent_;
    ReceiveStage error_stage_;
};

class RawSocket final : public stack::raw::SocketOwner {
public:
    /// `kind`: shm::raw_kind.
    RawSocket(Tenant& tenant, std::uint32_t index, std::uint32_t kind)
        : tenant_(tenant), index_(index), kind_(kind), lane_(tenant, index) {}
    ~RawSocket();

    /// Opens and binds at first, then binds again. An errno value.
    int bind(const Endpoint& local);
    void connect(const Address& remote);
    void set_options(const shm::SocketOptions& options);
    void block_types(const std::array<std::uint32_t, 8>& types);
    void set_checksum_offset(std::uint32_t offset);
    void look(Instant now);
    bool publish(std::uint32_t app_flags);

    bool on_packet(stack::raw::Socket&, const stack::raw::PacketInfo& info, stack::Payload payload,
                   std::uint32_t length) override;

    stack::raw::Socket* socket() const { return socket_; }
    std::uint32_t kind() const { return kind_; }
    const Endpoint& local() const { return local_; }
    const Address& remote() const { return remote_; }

private:
    void send(const MessageLane::Message& message, Instant now);
    stack::raw::Raw& sockets() const;

    Tenant& tenant_;
    const std::uint32_t index_;
    const std::uint32_t kind_;
    stack::raw::Socket* socket_ = nullptr;
    Endpoint local_;
    Address remote_;  // unspecified: not connected
    stack::raw::SocketOptions options_;
    MessageLane lane_;
};

struct Tenant::Slot {
    Kind kind = Kind::kFree;
    bool changed = false;          // is in changed_
    bool answered = false;         // an operation has been answered in this turn
    std::uint32_t operation_done = 0;
    std::uint32_t options_version = 0;
    bool linger_zero = false;
    bool suspect = false;          // nobody held it at the last look (remove_process)
    StreamSocket stream;
    std::unique_ptr<ListenSocket> listen;
    std::unique_ptr<DatagramSocket> datagram;
};

Endpoint from_wire(const shm::WireEndpoint& wire);
/// Of a raw or ping socket of that kind (shm::raw_kind).
shm::Policy::Protocol protocol_of_raw(std::uint32_t kind);
shm::WireEndpoint to_wire(const Endpoint& endpoint, std::uint16_t family);

}  // namespace culvert::tenant
