// A connection that has left its program: on exec to one that Culvert is not loaded into, or by SCM_RIGHTS.
//
//   holder -- theirs <==TCP over a loopback==> ours -- StandIn -- stack::tcp::Connection -- peer      (stand_in_maker.h)
//
// | the peer ...          | the holder sees    | | the holder ...              | the peer gets              |
// | sends                 | bytes              | | writes                      | the bytes                  |
// | sends an urgent octet | SIGURG, MSG_OOB    | | sends one (MSG_OOB)         | the octet, urgent          |
// | sends FIN             | end of stream      | | shuts down, or closes       | FIN                        |
// | resets, is silent     | ECONNRESET         | | closes with unread bytes    | RST                        |
// |                       |                    | | has closed, and more comes  | RST                        |
//
// The kernel does the holder's side of all this; here bytes are copied. Both ways they lie in pieces of one pool, which an
// idle stand-in has none of. What the holder does not read stays in pieces and closes the peer's window, as unread bytes
// close it in a segment; what the peer does not take stays in the kernel's buffers and stops the holder's writes.
//
// A stand-in outlives the program (and its tenant): its holder may be somebody else. Chunks of the tenant's that are in flight
// when the connection moves go back to the tenant, which waits for them before it ends.
//
// Used on the engine's thread. No system call here can block: `ours` is the daemon's alone, and nothing but bytes comes out of it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "daemon/base/counters.h"
#include "daemon/stack/owner.h"
#include "daemon/stack/tcp/connection.h"
#include "daemon/tenant/commons.h"
#include "shm/base/unique_fd.h"

namespace culvert::tenant {

class StandIns;
class Tenant;

/// Memory for bytes on their way. As a chunk of the stack's it holds what the holder has written.
struct Piece {
    static constexpr std::uint32_t kBytes = 16 * 1024 - 64;
    static constexpr std::uint32_t kTag = UINT32_MAX;  // of its chunk; a tenant's chunks have block numbers

    stack::SendChunk chunk;
    Piece* next = nullptr;
    std::uint32_t begin = 0, end = 0;
    std::byte bytes[kBytes];
};

/// All pieces of an engine: made when needed, at most `limit`, never given back.
class PiecePool {
public:
    explicit PiecePool(std::uint32_t limit) : limit_(limit) {}
    /// Null when somebody who has `mine` gets no more: the fuller the pool, the less one may have.
    Piece* take(std::uint32_t mine);
    void give(Piece* piece);
    std::uint32_t used() const { return used_; }
    std::uint32_t limit() const { return limit_; }
    /// So many more could be taken by somebody who has none.
    std::uint32_t room() const { return limit_ - used_; }

private:
    std::uint32_t limit_;
    std::uint32_t used_ = 0;
    std::vector<std::unique_ptr<Piece>> all_;
    Piece* free_ = nullptr;
};

class StandIn final : public stack::tcp::ConnectionOwner {
public:
    StandIn(StandIns& all, Tenant& home, UniqueFd socket);
    ~StandIn() override;

    /// Bytes that were there before: the peer's, unread. False: no memory for them.
    bool queue_unread(std::span<const std::byte> bytes);
    /// The last urgent octet comes after `ahead` more bytes than have been queued so far; negative: it is among them.
    void expect_urgent(std::int64_t ahead);
    /// Takes the connection over; null: it has ended with `error`. `end_of_stream`: the peer's FIN has been seen.
    void begin(stack::tcp::Connection* connection, int error, bool end_of_stream);
    /// Does what can be done now, not too much of it. False: there is more to be done at once.
    bool work();
    /// What epoll says of the socket.
    void note(std::uint32_t events);
    bool done() const { return done_; }
    /// Resets both ends.
    void abort();

    int fd() const { return socket_.get(); }
    stack::tcp::Connection* connection() const { return connection_; }
    std::uint32_t unread() const { return inbound_bytes_; }

    void on_established(stack::tcp::Connection&) override {}
    std::uint32_t on_data(stack::tcp::Connection&, stack::Payload payload, std::uint32_t length) override;
    void on_urgent(stack::tcp::Connection&, std::uint64_t ahead) override { expect_urgent(static_cast<std::int64_t>(ahead)); }
    void on_end_of_stream(stack::tcp::Connection&) override;
    void on_released(stack::tcp::Connection&, stack::SendChunk* first) override;
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t) override {}
    void on_closed(stack::tcp::Connection&, int error) override;

    // Of the list of work, and for people.
    bool queued = false;
    std::uint32_t tenant_id = 0;
    std::uint32_t pid = 0;
    std::string program;

private:
    static constexpr std::uint32_t kMostOutbound = 32;  // pieces on their way to the peer: half a megabyte
    static constexpr int kSteps = 16;                   // pieces read and written a turn

    std::uint32_t append(std::span<const std::byte> bytes);
    bool write_out();
    bool read_in();
    ssize_t read_piece(Piece& piece, bool& urgent);
    void settle();
    void holder_gone();

    StandIns& all_;
    Tenant& home_;  // alive as long as one of its chunks is on its way
    UniqueFd socket_;
    stack::tcp::Connection* connection_ = nullptr;
    Piece* oldest_ = nullptr;  // from the peer
    Piece* newest_ = nullptr;
    std::uint32_t inbound_ = 0;  // pieces
    std::uint32_t inbound_bytes_ = 0;
    std::uint32_t outbound_ = 0;  // pieces
    std::uint64_t queued_ = 0;      // bytes from the peer so far,
    std::uint64_t written_ = 0;     // how many of them have gone to the holder,
    std::uint64_t urgent_end_ = 0;  // and how many there are up to the last urgent octet, with it
    int error_ = 0;               // with which the connection ended
    bool readable_ = true;
    bool writable_ = true;
    bool peer_ended_ = false;
    bool end_said_ = false;     // ... to the holder
    bool holder_ended_ = false;
    bool done_ = false;
};

/// The stand-ins of an engine.
class StandIns {
public:
    static constexpr std::uint32_t kMost = 512;     // two descriptors each
    static constexpr std::uint32_t kMostOfOne = 256;  // of one program
    static constexpr std::uint32_t kPieces = 4096;  // 64 MiB

    StandIns(Counters& counters, Commons& commons, std::uint32_t most = kMost, std::uint32_t pieces = kPieces);
    ~StandIns();
    StandIns(const StandIns&) = delete;

    /// Readable when turn() would find something.
    int fd() const { return epoll_.get(); }
    /// Null: too many, or the kernel refuses. `home`: the tenant that the connection comes from.
    StandIn* add(Tenant& home, UniqueFd socket);
    /// Takes back what add() gave, before anything was begun.
    void cancel(StandIn& stand_in);
    /// True if there was something to do.
    bool turn();
    /// turn() must be called again without waiting for fd().
    bool has_work() const { return !work_.empty(); }
    /// A strangers' socket that we let go of: its last close may take as long as its SO_LINGER says, so it is not done here.
    void bury(UniqueFd theirs) { buried_.push_back(std::move(theirs)); }
    /// What has been buried since; to be closed by somebody who may wait.
    std::vector<UniqueFd> take_buried() { return std::exchange(buried_, {}); }
    bool has_buried() const { return !buried_.empty(); }
    /// Resets all of them; before the tenants and the stack go.
    void end_all();

    std::size_t size() const { return list_.size(); }
    template <class Visit>
    void for_each(Visit&& visit) const {
        for (const auto& stand_in : list_) visit(*stand_in);
    }

private:
    friend class StandIn;
    void queue(StandIn& stand_in);

    Counters& counters_;
    Part connections_;  // in the stack's table, as tenants have theirs
    PiecePool pool_;
    std::uint32_t most_;
    bool starved_ = false;  // somebody got no piece to read into
    UniqueFd epoll_;
    std::vector<std::unique_ptr<StandIn>> list_;
    std::vector<StandIn*> work_;
    std::vector<UniqueFd> buried_;
};

}  // namespace culvert::tenant
