// A socket over Culvert's stack with the semantics of system calls, for one script. Nothing blocks: a call is *attempted*,
// again after every turn, until it has an outcome.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "daemon/stack/owner.h"
#include "daemon/stack/stack.h"
#include "tests/scripts/runner/world.h"

namespace culvert::script {

class CulvertSocket;

/// The descriptors of a script, and what sockets need of their world.
struct CulvertSockets {
    stack::Stack& stack;
    const Setup& setup;
    const Instant& now;
    std::map<int, std::unique_ptr<CulvertSocket>> open;
    std::vector<std::unique_ptr<CulvertSocket>> closed;  // their connections still end
    int next_fd = 3;
    Port next_port = 40001;

    int add(std::unique_ptr<CulvertSocket> socket);
    /// nullopt: it blocks, try again. `call` keeps how far it has come.
    std::optional<Outcome> attempt(Call& call, bool first_attempt, Instant started);
};

class CulvertSocket final : public stack::tcp::ConnectionOwner,
                            public stack::tcp::ListenerOwner,
                            public stack::udp::SocketOwner {
public:
    CulvertSocket(CulvertSockets& all, bool stream, bool blocking) : all_(all), stream_(stream), blocking_(blocking) {}
    ~CulvertSocket() override;

    Outcome bind(const Endpoint& local);
    Outcome listen(int backlog);
    std::optional<Outcome> accept(int flags);
    std::optional<Outcome> connect(const Endpoint& remote, bool first_attempt);
    std::optional<Outcome> send(Call& call, bool first_attempt);
    std::optional<Outcome> receive(Call& call);
    Outcome shutdown(int how);
    Outcome set_option(const Call& call);
    Outcome get_option(const Call& call);
    Outcome fcntl(int command, int argument);
    Outcome ioctl(int command) const;
    short events() const;
    void close();
    std::optional<std::int64_t> info(std::string_view field) const;

    // The stack's calls.
    void on_established(stack::tcp::Connection& connection) override;
    std::uint32_t on_data(stack::tcp::Connection& connection, stack::Payload payload, std::uint32_t length) override;
    void on_end_of_stream(stack::tcp::Connection& connection) override;
    void on_released(stack::tcp::Connection& connection, stack::SendChunk* first) override;
    void on_acknowledged(stack::tcp::Connection& connection, std::uint32_t bytes) override;
    void on_closed(stack::tcp::Connection& connection, int error) override;
    bool can_accept() override;
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& connection) override;
    bool on_datagram(stack::udp::Socket& socket, const stack::udp::DatagramInfo& info, stack::Payload payload,
                     std::uint32_t length) override;
    void on_error(stack::udp::Socket& socket, const stack::udp::DatagramError& error) override;

private:
    enum class Phase : std::uint8_t { kIdle, kConnecting, kConnected, kEnded };
    struct Chunk {
        stack::SendChunk chunk;
        Bytes bytes;
    };

    Outcome open_connection(const Endpoint& remote);
    void hand_over(std::span<const std::byte> bytes, bool more);
    std::optional<Outcome> send_stream(Call& call);
    Outcome send_datagram(const Call& call);
    Result<stack::udp::Socket*> datagram_socket();
    int take_error() { return std::exchange(error_, 0); }
    std::optional<Outcome> wait_or(int error, int flags) const;
    std::uint32_t room() const;
    void apply_options();

    CulvertSockets& all_;
    const bool stream_;
    bool blocking_;
    bool closed_ = false;
    Phase phase_ = Phase::kIdle;
    bool told_ = false;  // connect() has said that it is connected
    bool end_of_stream_ = false;
    bool shut_read_ = false, shut_write_ = false;
    bool linger_zero_ = false;
    int error_ = 0;
    int backlog_ = 0;
    std::uint32_t send_buffer_ = 4 << 20;
    std::optional<Endpoint> bound_;
    std::optional<Endpoint> peer_;
    stack::tcp::Options options_;
    std::uint32_t fast_open_queue_ = 0;  // TCP_FASTOPEN, before listen()
    std::map<std::pair<int, int>, int> chosen_;  // options as set, for getsockopt
    stack::tcp::Listener* listener_ = nullptr;
    stack::tcp::Connection* connection_ = nullptr;
    stack::udp::Socket* udp_ = nullptr;
    std::deque<std::unique_ptr<CulvertSocket>> accepted_;
    Bytes received_;
    std::deque<Bytes> datagrams_;
    std::map<stack::SendChunk*, std::unique_ptr<Chunk>> chunks_;
};

}  // namespace culvert::script
