// One end's application: sends its stream in odd pieces, reads by fits and starts, changes its mind about options, checks
// every byte that it gets. An erratic one may abort or close at any moment, also in the middle of a call of the stack.
#pragma once

#include <cerrno>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "daemon/stack/tcp/connection.h"
#include "tests/sim/sim_host.h"

namespace culvert::sim {

/// Byte `offset` of stream `stream`.
inline std::byte stream_byte(std::uint64_t stream, std::uint64_t offset) {
    const std::uint64_t x = (offset + 1) * 0x9e3779b97f4a7c15u ^ stream * 0xc2b2ae3d27d4eb4fu;
    return static_cast<std::byte>(x >> 53);
}

/// What the two ends of a connection have to say to each other.
struct Dialogue {
    std::uint64_t out_stream = 0, out_bytes = 0;
    std::uint64_t in_stream = 0, in_bytes = 0;
    Dialogue reversed() const { return {in_stream, in_bytes, out_stream, out_bytes}; }
};

class Application final : public stack::tcp::ConnectionOwner {
public:
    /// `keep_alive`: in every set of options it draws.
    Application(std::string name, const Dialogue& dialogue, bool erratic, bool keep_alive, Rng& rng, Failures& failures)
        : name_(std::move(name)), dialogue_(dialogue), erratic_(erratic), keep_alive_(keep_alive), rng_(rng), failures_(failures) {}

    void on_established(stack::tcp::Connection&) override;
    std::uint32_t on_data(stack::tcp::Connection&, stack::Payload payload, std::uint32_t length) override;
    void on_end_of_stream(stack::tcp::Connection&) override;
    void on_released(stack::tcp::Connection&, stack::SendChunk* first) override;
    void on_acknowledged(stack::tcp::Connection&, std::uint32_t bytes) override;
    void on_closed(stack::tcp::Connection&, int error) override;

    /// connect() was refused.
    void never_opened() {
        closed_ = true;
        error_ = ENOBUFS;
    }
    /// A moment of its life.
    void act();

    /// Random options, of any kind that a program may set.
    static stack::tcp::Options draw_options(Rng& rng, bool keep_alive);

    bool closed() const { return closed_; }
    int error() const { return error_; }
    /// The whole dialogue took place, as far as this end can know.
    bool complete() const {
        return closed_ && error_ == 0 && end_ && received_ == dialogue_.in_bytes && acknowledged_ == dialogue_.out_bytes;
    }
    /// It has had everything and said everything; but the last ACKs were lost, and when it asked again, the peer's TIME-WAIT
    /// was over, so that nobody knew any more.
    bool reset_after_the_end() const {
        return closed_ && error_ == ECONNRESET && end_ && shut_ && received_ == dialogue_.in_bytes;
    }
    /// Grows whenever something has moved.
    std::uint64_t progress() const { return received_ + acknowledged_ + sent_ + end_ + closed_ + established_; }
    std::string describe() const;
    /// Whatever happened: no wrong byte, nothing kept, and told of the end.
    void check_end();

    stack::tcp::Connection* connection = nullptr;
    std::uint64_t seen_progress = 0;  // of whoever watches for stalls
    Instant progressed_at{};

private:
    void expect(bool holds, const char* what) {
        if (!holds) failures_.add(describe() + ": " + what);
    }
    void maybe_vanish(double chance);
    void send_piece();

    struct Entry {
        stack::SendChunk chunk;
        Bytes bytes;
    };
    std::string name_;
    Dialogue dialogue_;
    const bool erratic_;
    const bool keep_alive_;
    Rng& rng_;
    Failures& failures_;
    std::map<stack::SendChunk*, std::unique_ptr<Entry>> chunks_;
    std::uint64_t sent_ = 0, received_ = 0, acknowledged_ = 0, unread_ = 0;
    std::uint32_t largest_buffer_ = 0;
    bool established_ = false, end_ = false, closed_ = false, shut_ = false, orphaned_ = false, aborted_ = false;
    bool wrong_ = false;
    int error_ = -1;
};

}  // namespace culvert::sim
