#include "daemon/tenant/sockets.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "daemon/stack/icmp.h"
#include "daemon/tenant/error_entry.h"
#include "daemon/tenant/stand_in.h"
#include "shm/block_list.h"
#include "shm/urgent.h"
#include "shm/base/fault_point.h"

namespace culvert::tenant {

namespace {
constexpr std::uint32_t kMinSendLimit = 4096;  // also where SO_SNDBUF says less
constexpr std::uint32_t kScarceShare = 16;     // receive blocks of a stream while its tenant has next to none
}

void StreamSocket::open(stack::tcp::Connection& connection, std::uint32_t status) {
    connection_ = &connection;
    status_ = status;
    published_status_ = 0;
    error_ = 0;
    read_shut_ = read_shut_unsaid_ = false;
    delivered_ = consumed_ = taken_ = released_ = published_released_ = urgent_ = 0;
    urgent_unsaid_ = false;
    ticket = {};
    fixed_send_limit_ = false;
    send_limit_ = tenant_->send_limits_.standard;
    const shm::SocketOptions& options = tenant_->segment_.socket(index_).options;
    const std::uint32_t send_buffer = options.send_buffer;
    const std::uint32_t notsent_lowat = options.notsent_lowat;
    limit_sending(send_buffer, notsent_lowat);
}

void StreamSocket::limit_sending(std::uint32_t send_buffer, std::uint32_t notsent_lowat) {
    const SendLimits& limits = tenant_->send_limits_;
    if (send_buffer != 0) {
        fixed_send_limit_ = true;
        send_limit_ = std::max(std::min(send_buffer, limits.most), kMinSendLimit);
    }
    notsent_lowat_ = notsent_lowat;
    publish_send_limit(tenant_->segment_.socket(index_).daemon);
}

/// The send buffer follows the congestion window, twice, as Linux's does: one for what is in flight, one for what comes next.
/// While the tenant's blocks are scarce it follows what it holds, downwards. With TCP_NOTSENT_LOWAT it is so much more than
/// what has been sent, if that is less.
void StreamSocket::publish_send_limit(shm::DaemonLine& line) {
    const SendLimits& limits = tenant_->send_limits_;
    const std::uint64_t queued = taken_ - released_;
    if (!fixed_send_limit_ && connection_ != nullptr) {
        if (tenant_->ledger_.transmit_scarce()) {
            const auto least = std::max<std::uint64_t>(limits.least, queued / 2);
            if (send_limit_ > least) {
                send_limit_ = static_cast<std::uint32_t>(least);
                ++tenant_->counters_.tcp_memory_pressure;
            }
        } else {
            const std::uint64_t wanted = std::max<std::uint64_t>(2ull * connection_->congestion_window(), limits.standard);
            send_limit_ = std::max(send_limit_, static_cast<std::uint32_t>(std::min<std::uint64_t>(wanted, limits.most)));
        }
    }
    std::uint64_t limit = send_limit_;
    if (notsent_lowat_ != 0 && connection_ != nullptr)
        limit = std::min(limit, queued - std::min<std::uint64_t>(queued, connection_->unsent_bytes()) + notsent_lowat_);
    if (limit != line.send_limit.load(std::memory_order_relaxed))
        line.send_limit.store(static_cast<std::uint32_t>(limit), std::memory_order_release);
}

void StreamSocket::update_consumed() {
    const std::uint64_t consumed =
        tenant_->segment_.socket(index_).app.rx_consumed.load(std::memory_order_acquire);
    const std::uint64_t fresh = consumed - consumed_;
    if (fresh == 0) return;
    if (fresh > delivered_ - consumed_) {
        tenant_->drop(Drop::kTenantBadRequest);  // claims to have read what was never delivered
        return;
    }
    consumed_ = consumed;
    if ((status_ & shm::kStatusUrgent) != 0 && shm::urgent_ahead(urgent_, consumed_) < 0) {
        status_ &= ~shm::kStatusUrgent;
        tenant_->mark_changed(index_);
    }
    if (connection_ == nullptr) return;
    connection_->consumed(static_cast<std::uint32_t>(fresh), tenant_->ledger_.receive_scarce());
    set_window_position();  // otherwise a reader beyond the old mark would call us at every read
}

void StreamSocket::set_window_position() {
    tenant_->segment_.socket(index_).daemon.window_position.store(consumed_ + connection_->receive_buffer() / 2,
                                                                  std::memory_order_relaxed);
}

void StreamSocket::take_output() {
    const std::uint32_t newest = shm::take_all(tenant_->segment_.socket(index_).app.tx_list);
    if (newest == shm::kEmptyList) return;
    const BlockLedger::Taken taken = tenant_->ledger_.take_chain(newest);
    if (taken.first == nullptr) return;
    taken_ += taken.bytes;
    if (connection_ != nullptr && (status_ & shm::kStatusWriteClosed) == 0) {
        connection_->send(taken.first, taken.last, taken.more_to_come);
        // What the flush sends makes room; what it cannot send while blocks are scarce takes it away, before any ACK.
        if (notsent_lowat_ != 0 || tenant_->ledger_.transmit_scarce()) tenant_->mark_changed(index_);
        if (taken.urgent) connection_->mark_urgent(taken.behind_urgent);
    } else {
        released_ += tenant_->ledger_.release(taken.first);
        tenant_->mark_changed(index_);
    }
}

void StreamSocket::look(std::uint32_t app_flags) {
    update_consumed();
    take_output();
    if ((app_flags & shm::kAppShutRead) != 0 && !read_shut_) {
        read_shut_ = read_shut_unsaid_ = true;  // whoever waits to read has an end of stream now, by the application's own word
        tenant_->mark_changed(index_);
    }
    if ((app_flags & shm::kAppShutWrite) != 0 && (status_ & shm::kStatusWriteClosed) == 0) {
        status_ |= shm::kStatusWriteClosed;
        if (connection_ != nullptr) connection_->shutdown_write();
        tenant_->mark_changed(index_);
    }
    // Somebody waits for room; it may be there already.
    if ((app_flags & shm::kAppWantWrite) != 0) tenant_->mark_changed(index_);
}

void StreamSocket::close(bool linger_zero) {
    update_consumed();
    take_output();
    if (connection_ != nullptr) {
        stack::tcp::Connection* connection = connection_;
        connection_ = nullptr;
        // As tcp_max_orphans of Linux: a program that opens and closes, to a peer that never answers, leaves no more behind
        // than it may have open.
        if (tenant_->orphans_ >= tenant_->segment_.geometry().sockets && !linger_zero) {
            tenant_->drop(Drop::kTenantOrphans);
            linger_zero = true;
        }
        ++tenant_->orphans_;
        CULVERT_FAULT_POINT(connection_orphaned);
        connection->close(*tenant_->orphan(), unread() != 0, linger_zero);
    }
    stage_.clear();
    tenant_->ledger_.reclaim(lent_);
    status_ = 0;
}

bool StreamSocket::hand_to(stack::tcp::ListenerOwner& heir) {
    if (connection_ == nullptr || consumed_ != 0 || taken_ != 0 || urgent_ != 0 || !heir.can_accept()) return false;
    stack::tcp::Connection& connection = *connection_;
    stack::tcp::ConnectionOwner* const owner = heir.on_accept(connection);
    if (owner == nullptr) return false;
    connection_ = nullptr;
    connection.set_owner(*owner);
    shm::Segment& segment = tenant_->segment_;
    stage_.publish(segment, segment.socket(index_).daemon.rx_list);  // says how long the last block is
    // The blocks are the application's to spoil; how many there are and how much they hold is not believed beyond what we know.
    std::uint64_t left = delivered_;
    tenant_->ledger_.for_each_lent(lent_, [&](std::uint32_t block) {
        const std::uint32_t length = segment.block_meta()[block].length.load(std::memory_order_relaxed);
        const std::span<const std::byte> bytes(segment.block(block), std::min<std::uint64_t>({length, shm::kBlockSize, left}));
        if (bytes.empty()) return false;
        const std::uint32_t taken = owner->on_data(connection, {&bytes, 1}, static_cast<std::uint32_t>(bytes.size()));
        left -= taken;
        return taken == bytes.size();
    });
    if (left != 0) {  // no room there: a stream with a hole is worse than none
        ++tenant_->orphans_;
        connection.close(*tenant_->orphan(), true, true);
        owner->on_closed(connection, ECONNRESET);
    } else {
        tenant_->connections_.give();  // the heir has taken one; otherwise the orphan gives ours back
        if ((status_ & shm::kStatusPeerClosed) != 0) owner->on_end_of_stream(connection);
    }
    close(true);  // gives back what is left here
    return true;
}

int StreamSocket::move_to(StandIn& stand_in) {
    shm::Segment& segment = tenant_->segment_;
    stage_.publish(segment, segment.socket(index_).daemon.rx_list);  // says how long the last block is
    tenant_->ledger_.collect_returned();
    // What is still lent has not been read: the last unread() bytes of the stream. The lengths are the application's to spoil.
    std::uint64_t left = unread();
    bool room = true;
    // An octet that was taken out of band is not read again in line.
    const bool in_line = (segment.socket(index_).options.flags & shm::kOptionUrgentInline) != 0;
    const std::uint32_t taken = in_line ? 0 : segment.socket(index_).app.urgent_read.load(std::memory_order_relaxed);
    const std::int64_t urgent = (status_ & shm::kStatusUrgent) != 0 ? shm::urgent_ahead(urgent_, consumed_) : -1;
    const std::uint64_t hole = taken == shm::urgent_mark(consumed_) ? 0
                               : urgent >= 0 && taken == shm::urgent_mark(consumed_ + static_cast<std::uint64_t>(urgent))
                                   ? static_cast<std::uint64_t>(urgent)
                                   : UINT64_MAX;
    bool passed = false;
    tenant_->ledger_.for_each_lent(lent_, [&](std::uint32_t block) {
        const shm::BlockMeta& meta = segment.block_meta()[block];
        const std::uint32_t offset = std::min(meta.offset.load(std::memory_order_relaxed), shm::kBlockSize);
        const std::uint32_t length = std::min(meta.length.load(std::memory_order_relaxed), shm::kBlockSize - offset);
        if (length > left) return false;
        const std::uint64_t at = unread() - left;
        left -= length;
        const std::span bytes{segment.block(block) + offset, length};
        if (hole >= at && hole - at < length) {
            passed = true;
            room = stand_in.queue_unread(bytes.first(hole - at)) && stand_in.queue_unread(bytes.subspan(hole - at + 1));
        } else {
            room = stand_in.queue_unread(bytes);
        }
        return room;
    });
    if (!room) return ENOBUFS;
    if (left != 0) {
        tenant_->drop(Drop::kTenantBadRequest);
        return EBUSY;
    }
    if (urgent >= 0 && static_cast<std::uint64_t>(urgent) != hole) stand_in.expect_urgent(urgent - static_cast<std::int64_t>(unread()));
    stack::tcp::Connection* const connection = std::exchange(connection_, nullptr);
    if (passed && connection != nullptr) connection->consumed(1, false);
    const bool ended = (status_ & shm::kStatusPeerClosed) != 0;
    if (connection != nullptr) tenant_->connections_.give();  // the stand-in takes one
    stand_in.begin(connection, connection != nullptr ? 0 : segment.socket(index_).daemon.error.load(std::memory_order_relaxed), ended);
    stage_.clear();
    tenant_->ledger_.reclaim(lent_);
    ticket = {};
    status_ = published_status_ = 0;
    return 0;
}

bool StreamSocket::publish(std::uint32_t app_flags) {
    shm::DaemonLine& line = tenant_->segment_.socket(index_).daemon;
    bool news = std::exchange(read_shut_unsaid_, false);
    if (urgent_unsaid_) {
        // Before the bytes: whoever finds them must know already that they are not to be read like all others.
        urgent_unsaid_ = false;
        tenant_->segment_.socket(index_).urgent.store(urgent_, std::memory_order_release);
        published_status_ |= shm::kStatusUrgent;
        line.status.store(published_status_, std::memory_order_release);
        news = true;
    }
    if (!stage_.empty()) {
        stage_.publish(tenant_->segment_, line.rx_list);
        CULVERT_FAULT_POINT(data_published);
        line.rx_delivered.store(delivered_, std::memory_order_release);
        news = true;
    }
    if (connection_ != nullptr) set_window_position();
    if (released_ != published_released_) {
        published_released_ = released_;
        line.tx_released.store(released_, std::memory_order_release);
    }
    if (error_ != 0) {
        line.error.store(error_, std::memory_order_release);
        error_ = 0;
        news = true;
    }
    if (status_ != published_status_) {
        published_status_ = status_;
        line.status.store(status_, std::memory_order_release);
        news = true;
    }
    publish_send_limit(line);
    if ((app_flags & shm::kAppWantWrite) != 0) {
        // Tell a waiting sender when there is much room: fewer and larger writes, as Linux does.
        const std::uint64_t queued = taken_ - released_;
        const std::uint32_t limit = line.send_limit.load(std::memory_order_relaxed);
        const std::uint64_t room = queued < limit ? limit - queued : 0;
        if (tenant_->has_transmit_blocks() && shm::worth_writing(room, limit, notsent_lowat_)) {
            tenant_->segment_.socket(index_).app.flags.fetch_and(~shm::kAppWantWrite, std::memory_order_seq_cst);
            news = true;
        }
    }
    return news;
}

void StreamSocket::on_established(stack::tcp::Connection& connection) {
    shm::SocketRecord& record = tenant_->segment_.socket(index_);
    const auto family = record.operation.remote.family;
    record.local = to_wire(connection.local(), family);
    record.remote = to_wire(connection.remote(), family);
    status_ = (status_ & ~shm::kStatusConnecting) | shm::kStatusReady;
    tenant_->mark_changed(index_);
}

/// A block holds what comes in one turn, however little: a peer that sends byte after byte to a reader that does not read would
/// have a block for each. So once half of the blocks is lent, a stream gets twice those of its receive buffer at most, and a few
/// while they are scarce: who holds much gets no more, who holds little goes on.
bool StreamSocket::holds_its_share(std::uint32_t buffer) {
    const auto over = [&] {
        if (lent_.count <= kScarceShare) return false;
        if (tenant_->ledger_.receive_nearly_spent()) return true;
        return tenant_->ledger_.receive_half_spent() && lent_.count > kScarceShare + 2 * (buffer / shm::kBlockSize);
    };
    if (!over()) return false;
    tenant_->ledger_.collect_returned();
    return over();
}

std::uint32_t StreamSocket::on_data(stack::tcp::Connection& connection, stack::Payload payload, std::uint32_t length) {
    if (holds_its_share(connection.receive_buffer())) {
        tenant_->drop(Drop::kTenantStreamShare);
        return 0;
    }
    const std::uint32_t taken = stage_.append(tenant_->segment_, tenant_->ledger_, lent_, payload, length);
    if (taken < length) tenant_->drop(Drop::kTenantNoBlock);
    CULVERT_FAULT_POINT(data_staged);
    if ((status_ & shm::kStatusUrgent) != 0) [[unlikely]]
        catch_urgent(payload, taken);
    delivered_ += taken;
    if (taken != 0) tenant_->mark_changed(index_);
    return taken;
}

/// [RFC9293 3.8.5 MUST-32] Only an octet further on is news.
void StreamSocket::on_urgent(stack::tcp::Connection&, std::uint64_t ahead) {
    if (read_shut_) return;
    const std::uint64_t position = delivered_ + ahead;
    if ((urgent_ & shm::kUrgentKnown) != 0 && shm::urgent_ahead(urgent_, position) >= 0) return;
    urgent_ = shm::urgent_word(position);
    urgent_unsaid_ = true;
    status_ |= shm::kStatusUrgent;
    tenant_->mark_changed(index_);
}

/// The first `length` bytes of `payload` come next: is the urgent octet among them?
void StreamSocket::catch_urgent(stack::Payload payload, std::uint32_t length) {
    const std::int64_t ahead = shm::urgent_ahead(urgent_, delivered_);
    if ((urgent_ & shm::kUrgentArrived) != 0 || ahead < 0 || ahead >= std::int64_t{length}) return;
    auto at = static_cast<std::size_t>(ahead);
    for (const auto& fragment : payload) {
        if (at < fragment.size()) {
            urgent_ = shm::with_octet(urgent_, static_cast<std::uint8_t>(fragment[at]));
            urgent_unsaid_ = true;
            return;
        }
        at -= fragment.size();
    }
}

void StreamSocket::on_end_of_stream(stack::tcp::Connection&) {
    status_ |= shm::kStatusPeerClosed;
    tenant_->mark_changed(index_);
}

void StreamSocket::on_released(stack::tcp::Connection&, stack::SendChunk* first) {
    CULVERT_FAULT_POINT(data_acknowledged);
    tenant_->ledger_.release(first);
    tenant_->wake_starved();
}

void StreamSocket::on_acknowledged(stack::tcp::Connection&, std::uint32_t bytes) {
    released_ += bytes;
    tenant_->mark_changed(index_);
}

/// As Linux: with IP_RECVERR it is an error at once, else one that SO_ERROR tells whoever asks, until something arrives again.
void StreamSocket::on_soft_error(stack::tcp::Connection& connection, int error) {
    shm::SocketRecord& record = tenant_->segment_.socket(index_);
    const std::uint32_t wants = connection.remote().address.is_v4() ? shm::kOptionErrors4 : shm::kOptionErrors6;
    if (error == 0 || (record.options.flags & wants) == 0)
        return shm::soft_error(record.daemon).store(static_cast<std::uint32_t>(error), std::memory_order_relaxed);
    error_ = error;
    tenant_->mark_changed(index_);
}

/// Into the error queue, where Linux puts it: of IPv4 always, of IPv6 with IPV6_RECVERR.
void StreamSocket::on_attempt_refused(stack::tcp::Connection& connection, const stack::IcmpError& error) {
    shm::SocketRecord& record = tenant_->segment_.socket(index_);
    if (!error.by_icmp || (!connection.remote().address.is_v4() && (record.options.flags & shm::kOptionErrors6) == 0)) return;
    ReceiveStage stage;
    if (!append_error(tenant_->segment_, tenant_->ledger_, stage, lent_, error_header(error, record.operation.remote.family), error.quoted))
        return tenant_->drop(Drop::kTenantNoBlock);
    stage.publish(tenant_->segment_, record.daemon.error_list);
}

void StreamSocket::on_closed(stack::tcp::Connection&, int error) {
    connection_ = nullptr;
    tenant_->connections_.give();
    status_ = (status_ & ~shm::kStatusConnecting) | shm::kStatusDead | shm::kStatusPeerClosed;
    error_ = error;
    tenant_->mark_changed(index_);
}

}  // namespace culvert::tenant
