#include "daemon/tenant/stand_in.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "daemon/tenant/tenant.h"

namespace culvert::tenant {

// --- memory -------------------------------------------------------------------------------------------------------------

Piece* PiecePool::take(std::uint32_t mine) {
    const std::uint32_t left = limit_ - used_;
    const bool granted = left > limit_ / 2 || (left > limit_ / 8 && mine < 16) || (left > 0 && mine < 2);
    if (!granted) return nullptr;
    if (free_ == nullptr) {
        all_.push_back(std::make_unique_for_overwrite<Piece>());
        all_.back()->next = nullptr;
        free_ = all_.back().get();
    }
    Piece* const piece = std::exchange(free_, free_->next);
    piece->next = nullptr;
    piece->begin = piece->end = 0;
    ++used_;
    return piece;
}

void PiecePool::give(Piece* piece) {
    piece->next = free_;
    free_ = piece;
    --used_;
}

// --- one stand-in ---------------------------------------------------------------------------------------------------------

StandIn::StandIn(StandIns& all, Tenant& home, UniqueFd socket) : all_(all), home_(home), socket_(std::move(socket)) {}

StandIn::~StandIn() {
    while (oldest_ != nullptr) all_.pool_.give(std::exchange(oldest_, oldest_->next));
}

/// Copies behind what is there; how many bytes there was memory for.
std::uint32_t StandIn::append(std::span<const std::byte> bytes) {
    std::uint32_t copied = 0;
    while (copied < bytes.size()) {
        if (newest_ == nullptr || newest_->end == Piece::kBytes) {
            Piece* const piece = all_.pool_.take(inbound_);
            if (piece == nullptr) break;
            (newest_ != nullptr ? newest_->next : oldest_) = piece;
            newest_ = piece;
            ++inbound_;
        }
        const auto size = static_cast<std::uint32_t>(std::min<std::size_t>(bytes.size() - copied, Piece::kBytes - newest_->end));
        std::memcpy(newest_->bytes + newest_->end, bytes.data() + copied, size);
        newest_->end += size;
        copied += size;
    }
    inbound_bytes_ += copied;
    queued_ += copied;
    return copied;
}

bool StandIn::queue_unread(std::span<const std::byte> bytes) { return append(bytes) == bytes.size(); }

/// [RFC9293 3.8.5 MUST-32] Only an octet further on is news.
void StandIn::expect_urgent(std::int64_t ahead) {
    urgent_end_ = std::max(urgent_end_, static_cast<std::uint64_t>(static_cast<std::int64_t>(queued_) + ahead + 1));
}

void StandIn::begin(stack::tcp::Connection* connection, int error, bool end_of_stream) {
    connection_ = connection;
    error_ = error;
    peer_ended_ = end_of_stream;
    if (connection != nullptr) {
        all_.connections_.take();
        connection->set_owner(*this);
    }
    all_.queue(*this);
}

std::uint32_t StandIn::on_data(stack::tcp::Connection&, stack::Payload payload, std::uint32_t length) {
    std::uint32_t taken = 0;
    for (const auto& fragment : payload) {
        const std::size_t want = std::min<std::size_t>(fragment.size(), length - taken);
        const std::uint32_t copied = append(fragment.first(want));
        taken += copied;
        if (copied < want || taken == length) break;
    }
    if (taken < length) all_.counters_.drop(Drop::kStandInNoMemory);
    all_.queue(*this);
    return taken;
}

void StandIn::on_end_of_stream(stack::tcp::Connection&) {
    peer_ended_ = true;
    all_.queue(*this);
}

void StandIn::on_released(stack::tcp::Connection&, stack::SendChunk* first) {
    // The tenant's come before ours: they were queued before the connection moved.
    stack::SendChunk* const theirs = first != nullptr && first->tag != Piece::kTag ? first : nullptr;
    stack::SendChunk* last = nullptr;
    while (first != nullptr && first->tag != Piece::kTag) last = std::exchange(first, first->next);
    if (theirs != nullptr) {
        last->next = nullptr;
        home_.take_back(theirs);
    }
    while (first != nullptr) {
        stack::SendChunk* const chunk = std::exchange(first, first->next);
        all_.pool_.give(reinterpret_cast<Piece*>(chunk));
        --outbound_;
    }
    all_.queue(*this);  // there is room to read into
}

void StandIn::on_closed(stack::tcp::Connection&, int error) {
    connection_ = nullptr;
    all_.connections_.give();
    error_ = error;
    peer_ended_ = true;
    all_.queue(*this);
}

void StandIn::note(std::uint32_t events) {
    if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) readable_ = true;
    if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0) writable_ = true;
    // After its end of stream nobody reads here, so nobody would find the reset.
    if ((events & EPOLLERR) != 0 && holder_ended_) holder_gone();
    all_.queue(*this);
}

/// Nobody holds the other end any more and what we have can go nowhere, or it was closed with bytes unread.
void StandIn::holder_gone() {
    if (connection_ != nullptr) connection_->abort();  // calls on_closed
    done_ = true;
}

void StandIn::abort() {
    if (connection_ != nullptr) connection_->abort();
    done_ = true;
}

/// False: there is more, and room for it.
bool StandIn::write_out() {
    for (int step = 0; oldest_ != nullptr && writable_; ++step) {
        if (step == kSteps) return false;
        std::size_t size = oldest_->end - oldest_->begin;
        int urgent = 0;
        if (urgent_end_ > written_) [[unlikely]] {  // the octet goes alone: of a longer write that is cut short the kernel marks another
            const std::uint64_t before = urgent_end_ - 1 - written_;
            urgent = before == 0 ? MSG_OOB : 0;
            size = static_cast<std::size_t>(std::min<std::uint64_t>(size, std::max<std::uint64_t>(before, 1)));
        }
        const ssize_t sent = ::send(socket_.get(), oldest_->bytes + oldest_->begin, size, MSG_DONTWAIT | MSG_NOSIGNAL | urgent);
        if (sent < 0) {
            if (errno == EINTR) continue;
            writable_ = false;
            if (errno != EAGAIN && errno != ENOBUFS) holder_gone();
            return true;
        }
        oldest_->begin += static_cast<std::uint32_t>(sent);
        inbound_bytes_ -= static_cast<std::uint32_t>(sent);
        written_ += static_cast<std::uint64_t>(sent);
        all_.counters_.stand_in_bytes += static_cast<std::uint64_t>(sent);
        if (oldest_->begin == oldest_->end) {
            all_.pool_.give(std::exchange(oldest_, oldest_->next));
            if (oldest_ == nullptr) newest_ = nullptr;
            --inbound_;
        }
        if (connection_ != nullptr) connection_->consumed(static_cast<std::uint32_t>(sent), all_.pool_.room() < all_.pool_.limit() / 2);
    }
    return true;
}

/// recv(), but never past an urgent octet, which comes alone. The socket has it in line (SO_OOBINLINE), and a recv() that begins at
/// it would go on behind it; so no more is read than was there when it was asked whether the mark stands here.
ssize_t StandIn::read_piece(Piece& piece, bool& urgent) {
    int there = 0;
    int at_mark = 0;
    if (::ioctl(socket_.get(), FIONREAD, &there) != 0 || there <= 0) {
        const ssize_t got = ::recv(socket_.get(), piece.bytes, 1, MSG_DONTWAIT | MSG_PEEK);
        if (got <= 0) return got;  // the end, an error, or nothing
        errno = EINTR;             // something has come this moment
        return -1;
    }
    urgent = ::ioctl(socket_.get(), SIOCATMARK, &at_mark) == 0 && at_mark != 0;
    const std::size_t most = urgent ? 1 : std::min<std::size_t>(static_cast<std::size_t>(there), Piece::kBytes);
    return ::recv(socket_.get(), piece.bytes, most, MSG_DONTWAIT);
}

/// False: there is more, and room for it.
bool StandIn::read_in() {
    for (int step = 0; readable_ && !holder_ended_ && outbound_ < kMostOutbound && connection_ != nullptr; ++step) {
        if (step == kSteps) return false;
        Piece* const piece = all_.pool_.take(outbound_);
        if (piece == nullptr) {
            all_.counters_.drop(Drop::kStandInNoMemory);
            all_.starved_ = true;  // looked at again when pieces have come back
            return true;
        }
        bool urgent = false;
        const ssize_t got = read_piece(*piece, urgent);
        if (got <= 0) {
            const int error = got < 0 ? errno : 0;
            all_.pool_.give(piece);
            if (error == EINTR) continue;
            readable_ = false;
            if (error == EAGAIN) return true;
            if (error != 0) {
                holder_gone();
                return true;
            }
            holder_ended_ = true;
            connection_->shutdown_write();
            // Closed, or only shut down? A kernel that does not know the other end any more answers a probe with a reset.
            const int on = 1;
            const int idle_s = 30;
            ::setsockopt(socket_.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
            ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
            return true;
        }
        piece->chunk = {nullptr, piece->bytes, static_cast<std::uint32_t>(got), Piece::kTag};
        ++outbound_;
        all_.counters_.stand_in_bytes += static_cast<std::uint64_t>(got);
        connection_->send(&piece->chunk, &piece->chunk);
        if (urgent && connection_ != nullptr) connection_->mark_urgent(0);
    }
    return true;
}

void StandIn::settle() {
    if (done_ || oldest_ != nullptr) return;
    if (connection_ == nullptr && error_ != 0) {
        done_ = true;  // closed as it is, it resets the other end
        return;
    }
    if (peer_ended_ && !std::exchange(end_said_, true)) ::shutdown(socket_.get(), SHUT_WR);
    if (connection_ != nullptr) return;
    // Both sides have ended in order: so shall the pair, and what the holder has not read yet stays readable.
    const linger off{0, 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &off, sizeof off);
    done_ = true;
}

bool StandIn::work() {
    if (done_) return true;
    const bool written = write_out();
    const bool read = done_ || read_in();
    if (!done_) settle();
    return written && read;
}

// --- all of them ------------------------------------------------------------------------------------------------------------

StandIns::StandIns(Counters& counters, Commons& commons, std::uint32_t most, std::uint32_t pieces)
    : counters_(counters), connections_(commons, commons.connections), pool_(pieces), most_(most), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

StandIns::~StandIns() { end_all(); }

StandIn* StandIns::add(Tenant& home, UniqueFd socket) {
    const auto of_one = std::ranges::count_if(list_, [&](const auto& other) { return other->tenant_id == home.id(); });
    if (list_.size() >= most_ || of_one >= std::min<std::ptrdiff_t>(kMostOfOne, (most_ + 1) / 2)) {
        counters_.drop(Drop::kStandInLimit);
        return nullptr;
    }
    auto stand_in = std::make_unique<StandIn>(*this, home, std::move(socket));
    stand_in->tenant_id = home.id();
    stand_in->program = home.program();
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    event.data.ptr = stand_in.get();
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stand_in->fd(), &event) != 0) return nullptr;
    list_.push_back(std::move(stand_in));
    ++counters_.stand_ins;
    return list_.back().get();
}

void StandIns::cancel(StandIn& stand_in) {
    std::erase(work_, &stand_in);
    std::erase_if(list_, [&](const auto& each) { return each.get() == &stand_in; });
    --counters_.stand_ins;
}

void StandIns::queue(StandIn& stand_in) {
    if (std::exchange(stand_in.queued, true)) return;
    work_.push_back(&stand_in);
}

bool StandIns::turn() {
    if (list_.empty()) return false;
    std::array<epoll_event, 64> events;
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
    for (int i = 0; i < count; ++i) static_cast<StandIn*>(events[static_cast<std::size_t>(i)].data.ptr)->note(events[static_cast<std::size_t>(i)].events);
    if (starved_ && pool_.room() > pool_.limit() / 16) {
        starved_ = false;
        for (const auto& stand_in : list_) queue(*stand_in);
    }
    if (work_.empty()) return false;
    bool any_done = false;
    const std::vector<StandIn*> now = std::exchange(work_, {});
    for (StandIn* const stand_in : now) {
        stand_in->queued = false;
        if (!stand_in->work()) queue(*stand_in);
        any_done |= stand_in->done();
    }
    if (any_done) {
        std::erase_if(work_, [](const StandIn* each) { return each->done(); });
        std::erase_if(list_, [](const auto& each) { return each->done(); });
    }
    return true;
}

void StandIns::end_all() {
    for (const auto& stand_in : list_) stand_in->abort();
    work_.clear();
    list_.clear();
}

}  // namespace culvert::tenant
