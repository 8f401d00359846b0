#include "tests/scripts/runner/culvert_socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/sockios.h>

#include <algorithm>
#include <cstring>

#include "daemon/stack/tcp/connection.h"
#include "daemon/stack/tcp/listener.h"
#include "daemon/stack/udp.h"

namespace culvert::script {
namespace {

Outcome done(std::int64_t value) { return {.value = value, .data = {}, .poll = {}}; }
Outcome failed(int error) { return {.value = -1, .error = error, .data = {}, .poll = {}}; }

template <class T>
std::optional<T> value_of(const Bytes& bytes) {
    T value;
    if (bytes.size() < sizeof value) return std::nullopt;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
}

}  // namespace

// --- descriptors ----------------------------------------------------------------------------------------------------

int CulvertSockets::add(std::unique_ptr<CulvertSocket> socket) {
    open.emplace(next_fd, std::move(socket));
    return next_fd++;
}

std::optional<Outcome> CulvertSockets::attempt(Call& call, bool first_attempt, Instant started) {
    using Name = Call::Name;
    if (call.name == Name::kSocket) {
        const int type = call.first & 0xf;
        if (type != SOCK_STREAM && type != SOCK_DGRAM) throw Unsupported("only SOCK_STREAM and SOCK_DGRAM sockets are played here");
        return done(add(std::make_unique<CulvertSocket>(*this, type == SOCK_STREAM, (call.first & SOCK_NONBLOCK) == 0)));
    }
    if (call.name == Name::kPoll) {
        Outcome outcome = done(0);
        outcome.poll = call.poll;
        for (pollfd& entry : outcome.poll) {
            entry.revents = open.at(entry.fd)->events() & static_cast<short>(entry.events | POLLERR | POLLHUP);
            outcome.value += entry.revents != 0;
        }
        const bool over = call.second >= 0 && now - started >= std::chrono::milliseconds(call.second);
        if (outcome.value == 0 && !over) return std::nullopt;
        return outcome;
    }
    const auto found = open.find(call.fd);
    if (found == open.end()) return failed(EBADF);
    CulvertSocket& socket = *found->second;
    switch (call.name) {
        case Name::kBind: return socket.bind(*call.address);
        case Name::kListen: return socket.listen(call.first);
        case Name::kAccept: return socket.accept(call.second);
        case Name::kConnect: return socket.connect(*call.address, first_attempt);
        case Name::kReceive: return socket.receive(call);
        case Name::kSend: return socket.send(call, first_attempt);
        case Name::kShutdown: return socket.shutdown(call.first);
        case Name::kSetOption: return socket.set_option(call);
        case Name::kGetOption: return socket.get_option(call);
        case Name::kFcntl: return socket.fcntl(call.first, call.second);
        case Name::kIoctl: return socket.ioctl(call.first);
        case Name::kClose:
            socket.close();
            closed.push_back(std::move(found->second));
            open.erase(found);
            return done(0);
        case Name::kSocket:
        case Name::kPoll: break;
    }
    return failed(ENOSYS);
}

// --- a socket's life -------------------------------------------------------------------------------------------------

CulvertSocket::~CulvertSocket() = default;  // the world ends the stack first

Outcome CulvertSocket::bind(const Endpoint& local) {
    if (bound_) return failed(EINVAL);
    bound_ = local;
    return done(0);
}

Outcome CulvertSocket::listen(int backlog) {
    backlog_ = std::max(backlog, 0);
    if (listener_ != nullptr) return done(0);
    if (!bound_) return failed(EINVAL);
    stack::tcp::ListenerOptions options = options_;
    options.fast_open_queue = fast_open_queue_;
    const auto made = all_.stack.listen(*bound_, false, options, *this);
    if (!made) return failed(made.error().code);
    listener_ = *made;
    return done(0);
}

bool CulvertSocket::can_accept() { return accepted_.size() <= static_cast<std::size_t>(backlog_); }

stack::tcp::ConnectionOwner* CulvertSocket::on_accept(stack::tcp::Connection& connection) {
    auto child = std::make_unique<CulvertSocket>(all_, true, true);
    child->connection_ = &connection;
    child->phase_ = Phase::kConnected;
    child->told_ = true;
    child->options_ = options_;
    accepted_.push_back(std::move(child));
    return accepted_.back().get();
}

std::optional<Outcome> CulvertSocket::wait_or(int error, int flags) const {
    if (!blocking_ || (flags & MSG_DONTWAIT) != 0) return failed(error);
    return std::nullopt;
}

std::optional<Outcome> CulvertSocket::accept(int flags) {
    if (listener_ == nullptr) return failed(EINVAL);
    if (accepted_.empty()) return wait_or(EAGAIN, 0);
    auto child = std::move(accepted_.front());
    accepted_.pop_front();
    child->blocking_ = (flags & SOCK_NONBLOCK) == 0;
    return done(all_.add(std::move(child)));
}

Outcome CulvertSocket::open_connection(const Endpoint& remote) {
    const auto source = all_.stack.source_for(remote);
    if (!source) return failed(source.error().code);
    Endpoint local = bound_.value_or(Endpoint{*source, 0});
    if (local.address.is_unspecified()) local.address = *source;
    if (local.port == 0) local.port = all_.next_port++;
    const auto opened = all_.stack.connect(local, remote, options_, *this, all_.now);
    if (!opened) return failed(opened.error().code);
    connection_ = *opened;
    peer_ = remote;
    phase_ = Phase::kConnecting;
    return done(0);
}

std::optional<Outcome> CulvertSocket::connect(const Endpoint& remote, bool first_attempt) {
    if (!stream_) {
        const auto socket = datagram_socket();
        if (!socket) return failed(socket.error().code);
        all_.stack.connect_udp(**socket, &remote);
        peer_ = remote;
        return done(0);
    }
    if (first_attempt) {
        switch (phase_) {
            case Phase::kIdle: {
                const Outcome opened = open_connection(remote);
                if (opened.value < 0) return opened;
                return wait_or(EINPROGRESS, 0);
            }
            case Phase::kConnecting: return wait_or(EALREADY, 0);
            case Phase::kConnected:
                if (told_) return failed(EISCONN);
                told_ = true;
                return done(0);
            case Phase::kEnded:
                if (const int error = take_error(); error != 0) return failed(error);
                return failed(ECONNABORTED);
        }
    }
    if (phase_ == Phase::kConnecting) return std::nullopt;
    if (phase_ == Phase::kEnded) return failed(error_ != 0 ? take_error() : ECONNABORTED);
    told_ = true;
    return done(0);
}

void CulvertSocket::on_established(stack::tcp::Connection&) { phase_ = Phase::kConnected; }

void CulvertSocket::on_closed(stack::tcp::Connection&, int error) {
    connection_ = nullptr;
    phase_ = Phase::kEnded;
    if (error != 0 && !closed_) error_ = error;
    end_of_stream_ = true;
}

Outcome CulvertSocket::shutdown(int how) {
    if (!stream_ && !peer_) return failed(ENOTCONN);
    if (stream_ && (phase_ == Phase::kIdle || phase_ == Phase::kEnded)) return failed(ENOTCONN);
    if (how == SHUT_RD || how == SHUT_RDWR) shut_read_ = true;
    if (how == SHUT_WR || how == SHUT_RDWR) {
        shut_write_ = true;
        if (connection_ != nullptr) connection_->shutdown_write();
    }
    return done(0);
}

void CulvertSocket::close() {
    closed_ = true;
    if (listener_ != nullptr) all_.stack.close(*std::exchange(listener_, nullptr));
    for (auto& child : accepted_) {
        // [RFC9293 3.10.4] nobody will ever read them: as Linux resets what close() finds in the queue.
        if (child->connection_ != nullptr) child->connection_->abort();
        all_.closed.push_back(std::move(child));
    }
    accepted_.clear();
    if (udp_ != nullptr) all_.stack.close(*std::exchange(udp_, nullptr));
    if (connection_ != nullptr) connection_->close(*this, !received_.empty(), linger_zero_);
}

// --- bytes -------------------------------------------------------------------------------------------------------------

void CulvertSocket::hand_over(std::span<const std::byte> bytes, bool more) {
    if (bytes.empty()) return;
    auto chunk = std::make_unique<Chunk>();
    chunk->bytes.assign(bytes.begin(), bytes.end());
    chunk->chunk.data = chunk->bytes.data();
    chunk->chunk.length = static_cast<std::uint32_t>(bytes.size());
    stack::SendChunk* const raw = &chunk->chunk;
    chunks_.emplace(raw, std::move(chunk));
    connection_->send(raw, raw, more);
}

void CulvertSocket::on_released(stack::tcp::Connection&, stack::SendChunk* first) {
    while (first != nullptr) {
        stack::SendChunk* const next = first->next;
        chunks_.erase(first);
        first = next;
    }
}
void CulvertSocket::on_acknowledged(stack::tcp::Connection&, std::uint32_t) {}

std::uint32_t CulvertSocket::room() const {
    const std::uint32_t out = connection_->unacknowledged_bytes();
    return out >= send_buffer_ ? 0 : send_buffer_ - out;
}

std::optional<Outcome> CulvertSocket::send(Call& call, bool first_attempt) {
    if (first_attempt && (call.first & ~(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE | MSG_OOB)) != 0)
        throw Unsupported("only MSG_DONTWAIT, MSG_NOSIGNAL, MSG_MORE and MSG_OOB are played here");
    if (!stream_) return send_datagram(call);
    return send_stream(call);
}

/// call.length: what is left; call.data: all of it.
std::optional<Outcome> CulvertSocket::send_stream(Call& call) {
    const auto written = static_cast<std::int64_t>(call.data.size() - call.length);
    if (error_ != 0) return written > 0 ? done(written) : failed(take_error());
    if (shut_write_ || phase_ == Phase::kIdle || phase_ == Phase::kEnded) return written > 0 ? done(written) : failed(EPIPE);
    if (phase_ == Phase::kConnecting) return wait_or(EAGAIN, call.first);
    const auto take = std::min<std::size_t>(call.length, room());
    hand_over(std::span(call.data).subspan(call.data.size() - call.length, take), (call.first & MSG_MORE) != 0);
    call.length -= take;
    if ((call.first & MSG_OOB) != 0) connection_->mark_urgent(0);
    if (call.length == 0) return done(static_cast<std::int64_t>(call.data.size()));
    if (blocking_ && (call.first & MSG_DONTWAIT) == 0) return std::nullopt;
    const auto total = static_cast<std::int64_t>(call.data.size() - call.length);
    return total > 0 ? done(total) : failed(EAGAIN);
}

std::uint32_t CulvertSocket::on_data(stack::tcp::Connection& connection, stack::Payload payload, std::uint32_t length) {
    std::uint32_t left = length;
    for (const auto& piece : payload) {
        const auto n = std::min<std::size_t>(left, piece.size());
        if (!shut_read_ && !closed_) received_.insert(received_.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(n));
        left -= static_cast<std::uint32_t>(n);
    }
    if (shut_read_ || closed_) connection.consumed(length);
    return length;
}
void CulvertSocket::on_end_of_stream(stack::tcp::Connection&) { end_of_stream_ = true; }

std::optional<Outcome> CulvertSocket::receive(Call& call) {
    if ((call.first & ~(MSG_DONTWAIT | MSG_PEEK | MSG_WAITALL)) != 0)
        throw Unsupported("only MSG_DONTWAIT, MSG_PEEK and MSG_WAITALL are played here");
    const bool peek = (call.first & MSG_PEEK) != 0;
    if (!stream_) {
        if (error_ != 0) return failed(take_error());
        if (datagrams_.empty()) return wait_or(EAGAIN, call.first);
        Outcome outcome;
        outcome.data = datagrams_.front();
        if (!peek) datagrams_.pop_front();
        outcome.data.resize(std::min(outcome.data.size(), call.length));
        outcome.value = static_cast<std::int64_t>(outcome.data.size());
        return outcome;
    }
    if (listener_ != nullptr || phase_ == Phase::kIdle) return failed(ENOTCONN);
    const std::size_t wanted = (call.first & MSG_WAITALL) != 0 && blocking_ ? call.length : std::size_t{1};
    if (received_.size() < wanted && error_ == 0 && !end_of_stream_ && !shut_read_) return wait_or(EAGAIN, call.first);
    if (received_.empty()) return error_ != 0 ? failed(take_error()) : done(0);
    const std::size_t length = std::min(call.length, received_.size());
    Outcome outcome = done(static_cast<std::int64_t>(length));
    outcome.data.assign(received_.begin(), received_.begin() + static_cast<std::ptrdiff_t>(length));
    if (peek) return outcome;
    received_.erase(received_.begin(), received_.begin() + static_cast<std::ptrdiff_t>(length));
    if (connection_ != nullptr) connection_->consumed(static_cast<std::uint32_t>(length));
    return outcome;
}

// --- datagrams ---------------------------------------------------------------------------------------------------------

Result<stack::udp::Socket*> CulvertSocket::datagram_socket() {
    if (udp_ != nullptr) return udp_;
    const Endpoint local = bound_.value_or(Endpoint{Address::any(all_.setup.local.address.family()), all_.next_port++});
    const auto made = all_.stack.bind_udp(local, false, *this);
    if (made) udp_ = *made;
    return made;
}

Outcome CulvertSocket::send_datagram(const Call& call) {
    if (error_ != 0) return failed(take_error());
    const auto destination = call.address ? call.address : peer_;
    if (!destination) return failed(EDESTADDRREQ);
    const auto socket = datagram_socket();
    if (!socket) return failed(socket.error().code);
    const std::span<const std::byte> piece(call.data);
    const auto sent = all_.stack.send_datagram(**socket, *destination, stack::Payload(&piece, 1),
                                               static_cast<std::uint32_t>(call.length), {}, all_.now);
    return sent ? done(static_cast<std::int64_t>(call.length)) : failed(sent.error().code);
}

bool CulvertSocket::on_datagram(stack::udp::Socket&, const stack::udp::DatagramInfo&, stack::Payload payload, std::uint32_t) {
    Bytes whole;
    for (const auto& piece : payload) whole.insert(whole.end(), piece.begin(), piece.end());
    datagrams_.push_back(std::move(whole));
    return true;
}
void CulvertSocket::on_error(stack::udp::Socket&, const stack::udp::DatagramError& error) { error_ = error.error; }

// --- options -----------------------------------------------------------------------------------------------------------

void CulvertSocket::apply_options() {
    if (connection_ != nullptr) connection_->set_options(options_);
}

Outcome CulvertSocket::set_option(const Call& call) {
    const auto is = [&](int level, int name) { return call.first == level && call.second == name; };
    if (is(SOL_SOCKET, SO_LINGER)) {
        const auto value = value_of<linger>(call.data);
        if (!value) return failed(EINVAL);
        linger_zero_ = value->l_onoff != 0 && value->l_linger == 0;
        return done(0);
    }
    if (is(IPPROTO_TCP, TCP_CONGESTION)) {
        const std::string_view name(reinterpret_cast<const char*>(call.data.data()), call.data.size());
        if (name == "reno") options_.congestion = stack::tcp::Congestion::kNewReno;
        else if (name == "cubic") options_.congestion = stack::tcp::Congestion::kCubic;
        else if (name == "bbr") options_.congestion = stack::tcp::Congestion::kBbr;
        else if (name == "dctcp") options_.congestion = stack::tcp::Congestion::kDctcp;
        else return failed(ENOENT);
        apply_options();
        return done(0);
    }
    const auto number = value_of<int>(call.data);
    if (!number) return failed(EINVAL);
    const auto positive = static_cast<std::uint32_t>(std::max(*number, 0));
    if (is(SOL_SOCKET, SO_REUSEADDR) || is(SOL_SOCKET, SO_REUSEPORT)) {
    } else if (is(SOL_SOCKET, SO_KEEPALIVE)) options_.keep_alive = *number != 0;
    else if (is(SOL_SOCKET, SO_RCVBUF)) options_.receive_buffer = std::max(positive * 2, 2304u);
    else if (is(SOL_SOCKET, SO_SNDBUF)) send_buffer_ = std::max(positive * 2, 4608u);
    else if (is(IPPROTO_TCP, TCP_NODELAY)) options_.no_delay = *number != 0;
    else if (is(IPPROTO_TCP, TCP_CORK)) options_.cork = *number != 0;
    else if (is(IPPROTO_TCP, TCP_QUICKACK)) options_.quick_ack = *number != 0;
    else if (is(IPPROTO_TCP, TCP_KEEPIDLE)) options_.keep_alive_idle = std::chrono::seconds(*number);
    else if (is(IPPROTO_TCP, TCP_KEEPINTVL)) options_.keep_alive_interval = std::chrono::seconds(*number);
    else if (is(IPPROTO_TCP, TCP_KEEPCNT)) options_.keep_alive_count = positive;
    else if (is(IPPROTO_TCP, TCP_USER_TIMEOUT)) options_.user_timeout = std::chrono::milliseconds(*number);
    else if (is(IPPROTO_TCP, TCP_FASTOPEN)) fast_open_queue_ = positive;
    else if (is(IPPROTO_TCP, TCP_MAXSEG)) options_.max_segment = static_cast<std::uint16_t>(*number);
    else if (is(IPPROTO_IP, IP_TOS) || is(IPPROTO_IPV6, IPV6_TCLASS)) options_.tos = static_cast<std::uint8_t>(*number);
    else if (is(IPPROTO_IP, IP_TTL) || is(IPPROTO_IPV6, IPV6_UNICAST_HOPS)) options_.ttl = static_cast<std::uint8_t>(*number);
    else throw Unsupported("setsockopt: this option is not played here");
    chosen_[{call.first, call.second}] = *number;
    apply_options();
    return done(0);
}

Outcome CulvertSocket::get_option(const Call& call) {
    int value = 0;
    if (call.first == SOL_SOCKET && call.second == SO_ERROR) {
        value = take_error();
    } else if (call.first == IPPROTO_TCP && call.second == TCP_MAXSEG) {
        value = connection_ != nullptr ? static_cast<int>(connection_->info().mss) : 536;
    } else if (const auto known = chosen_.find({call.first, call.second}); known != chosen_.end()) {
        value = known->second;
    } else {
        throw Unsupported("getsockopt: this option is not played here unless it was set before");
    }
    Outcome outcome = done(0);
    outcome.data.resize(sizeof value);
    std::memcpy(outcome.data.data(), &value, sizeof value);
    return outcome;
}

Outcome CulvertSocket::fcntl(int command, int argument) {
    if (command == F_GETFL) return done(O_RDWR | (blocking_ ? 0 : O_NONBLOCK));
    if (command != F_SETFL) throw Unsupported("fcntl: only F_GETFL and F_SETFL are played here");
    blocking_ = (argument & O_NONBLOCK) == 0;
    return done(0);
}

Outcome CulvertSocket::ioctl(int command) const {
    Outcome outcome = done(0);
    if (command == FIONREAD)
        outcome.number = static_cast<int>(stream_ ? received_.size() : datagrams_.empty() ? 0 : datagrams_.front().size());
    else if (command == TIOCOUTQ)
        outcome.number = connection_ != nullptr ? static_cast<int>(connection_->unacknowledged_bytes()) : 0;
    else if (command == SIOCOUTQNSD)
        outcome.number = connection_ != nullptr ? static_cast<int>(connection_->info().unsent_bytes) : 0;
    else
        throw Unsupported("ioctl: only SIOCINQ, SIOCOUTQ and SIOCOUTQNSD are played here");
    return outcome;
}

short CulvertSocket::events() const {
    int events = 0;
    if (!stream_) return static_cast<short>(POLLOUT | (datagrams_.empty() ? 0 : POLLIN) | (error_ != 0 ? POLLERR : 0));
    if (listener_ != nullptr) return accepted_.empty() ? short{0} : short{POLLIN};
    if (phase_ == Phase::kIdle) return POLLOUT | POLLHUP;
    if (phase_ == Phase::kConnecting) return 0;
    if (error_ != 0) events |= POLLERR;
    const bool no_more = end_of_stream_ || shut_read_;
    if (!received_.empty() || no_more) events |= POLLIN;
    if (no_more) events |= POLLRDHUP;
    if (phase_ == Phase::kEnded || (no_more && shut_write_)) events |= POLLHUP;
    if (phase_ == Phase::kEnded || shut_write_ || room() > 0) events |= POLLOUT;
    return static_cast<short>(events);
}

std::optional<std::int64_t> CulvertSocket::info(std::string_view field) const {
    stack::tcp::Info info;
    if (connection_ != nullptr) info = connection_->info();
    const auto segments = [&](std::uint64_t bytes) {
        return static_cast<std::int64_t>(info.mss == 0 ? 0 : (bytes + info.mss - 1) / info.mss);
    };
    const auto us = [](Duration time) { return std::chrono::duration_cast<std::chrono::microseconds>(time).count(); };
    constexpr std::uint32_t kNoThreshold = 0x7fffffff;
    if (field == "tcpi_state") return static_cast<std::int64_t>(info.state);
    if (field == "tcpi_ca_state") return static_cast<std::int64_t>(info.ca_state);
    if (field == "tcpi_snd_cwnd") return info.mss == 0 ? 0 : info.cwnd_bytes / info.mss;
    if (field == "tcpi_snd_ssthresh")
        return info.ssthresh_bytes >= kNoThreshold ? kNoThreshold : info.mss == 0 ? 0 : info.ssthresh_bytes / info.mss;
    if (field == "tcpi_snd_mss") return info.mss;
    if (field == "tcpi_unacked") return segments(info.in_flight_bytes);
    if (field == "tcpi_notsent_bytes") return info.unsent_bytes;
    if (field == "tcpi_total_retrans") return info.total_retransmits;
    if (field == "tcpi_backoff") return info.backoffs;
    if (field == "tcpi_rtt") return us(info.srtt);
    if (field == "tcpi_rttvar") return us(info.rttvar);
    if (field == "tcpi_rto") return us(info.rto);
    if (field == "tcpi_min_rtt") return us(info.min_rtt);
    if (field == "tcpi_snd_wscale") return info.send_scale;
    if (field == "tcpi_rcv_wscale") return info.receive_scale;
    if (field == "tcpi_snd_wnd") return info.send_window;
    if (field == "tcpi_options")
        return (info.timestamps ? TCPI_OPT_TIMESTAMPS : 0) | (info.sack ? TCPI_OPT_SACK : 0) | (info.window_scaling ? TCPI_OPT_WSCALE : 0) |
               (info.ecn ? TCPI_OPT_ECN : 0) | (info.ecn_seen ? TCPI_OPT_ECN_SEEN : 0) |
               (info.syn_data ? TCPI_OPT_SYN_DATA : 0);
    return std::nullopt;
}

}  // namespace culvert::script
