#include "tests/sim/application.h"

#include <algorithm>
#include <chrono>

namespace culvert::sim {

void Application::on_established(stack::tcp::Connection&) {
    expect(!established_, "established twice");
    established_ = true;
    maybe_vanish(0.01);
}

std::uint32_t Application::on_data(stack::tcp::Connection& from, stack::Payload payload, std::uint32_t length) {
    expect(!orphaned_ && !closed_ && !end_, "data after the end");
    // Now and then there is no room for all of it.
    const std::uint32_t take = rng_.happens(0.02) ? static_cast<std::uint32_t>(rng_.below(length + 1)) : length;
    std::uint32_t left = take;
    for (const auto& piece : payload)
        for (const std::byte b : piece.first(std::min<std::size_t>(left, piece.size()))) {
            if (b != stream_byte(dialogue_.in_stream, received_) && !wrong_) {
                wrong_ = true;
                expect(false, "wrong byte");
            }
            ++received_;
            --left;
        }
    unread_ += take;
    largest_buffer_ = std::max(largest_buffer_, from.receive_buffer());
    expect(left == 0, "payload shorter than its length");
    expect(unread_ <= largest_buffer_, "more delivered than the receive buffer holds");
    expect(received_ <= dialogue_.in_bytes, "more bytes than were sent");
    maybe_vanish(0.005);
    return take;
}

void Application::on_end_of_stream(stack::tcp::Connection&) {
    expect(!orphaned_ && !end_, "end of stream twice, or to nobody");
    end_ = true;
    if (!erratic_) expect(received_ == dialogue_.in_bytes, "end of stream before its last byte");
    maybe_vanish(0.05);
}

void Application::on_released(stack::tcp::Connection&, stack::SendChunk* first) {
    while (first != nullptr) {
        auto* const next = first->next;
        expect(chunks_.erase(first) == 1, "a chunk came back that was not out");
        first = next;
    }
    maybe_vanish(0.005);
}

void Application::on_acknowledged(stack::tcp::Connection&, std::uint32_t bytes) {
    acknowledged_ += bytes;
    expect(acknowledged_ <= sent_, "more acknowledged than sent");
    maybe_vanish(0.005);
}

void Application::on_closed(stack::tcp::Connection&, int error) {
    expect(!closed_, "closed twice");
    expect(chunks_.empty(), "closed before every chunk came back");
    closed_ = true;
    error_ = error;
    connection = nullptr;
}

void Application::act() {
    maybe_vanish(0.01);
    if (connection == nullptr || orphaned_) return;
    if (rng_.happens(0.01)) {
        // What has been promised to the peer may still come, though the buffer is smaller now.
        largest_buffer_ = std::max(largest_buffer_, connection->receive_buffer());
        connection->set_options(draw_options(rng_, keep_alive_));
    }
    if (unread_ > 0 && rng_.happens(0.7)) {
        const auto n = static_cast<std::uint32_t>(rng_.happens(0.5) ? unread_ : 1 + rng_.below(unread_));
        largest_buffer_ = std::max(largest_buffer_, connection->receive_buffer());
        unread_ -= n;
        connection->consumed(n);
    }
    while (connection != nullptr && !orphaned_ && sent_ < dialogue_.out_bytes && chunks_.size() < 40 && rng_.happens(0.8)) send_piece();
    if (connection != nullptr && !orphaned_ && sent_ == dialogue_.out_bytes && !shut_ && rng_.happens(0.5)) {
        shut_ = true;
        connection->shutdown_write();
    }
}

void Application::maybe_vanish(double chance) {
    if (!erratic_ || connection == nullptr || orphaned_ || !rng_.happens(chance)) return;
    if (rng_.happens(0.4)) {
        aborted_ = true;
        connection->abort();
    } else {
        orphaned_ = true;
        connection->close(*this, rng_.happens(0.3), rng_.happens(0.1));
    }
}

void Application::send_piece() {
    const std::uint64_t n = std::min(dialogue_.out_bytes - sent_, rng_.below(6000));
    auto entry = std::make_unique<Entry>();
    entry->bytes.resize(n);
    for (std::uint64_t i = 0; i < n; ++i) entry->bytes[i] = stream_byte(dialogue_.out_stream, sent_ + i);
    entry->chunk.data = entry->bytes.data();
    entry->chunk.length = static_cast<std::uint32_t>(n);
    sent_ += n;
    auto* const chunk = &entry->chunk;
    chunks_.emplace(chunk, std::move(entry));
    connection->send(chunk, chunk);
}

stack::tcp::Options Application::draw_options(Rng& rng, bool keep_alive) {
    stack::tcp::Options options;
    if (keep_alive) {  // a peer that vanished without a trace must be noticed
        options.keep_alive = true;
        options.keep_alive_idle = 20s;
        options.keep_alive_interval = 5s;
    }
    options.no_delay = rng.happens(0.5);
    options.cork = rng.happens(0.1);
    options.quick_ack = rng.happens(0.1);
    options.fast_open = rng.happens(0.2);
    if (rng.happens(0.4)) options.receive_buffer = static_cast<std::uint32_t>(2048 + rng.below(200'000));
    if (rng.happens(0.2)) options.max_segment = static_cast<std::uint16_t>(100 + rng.below(2000));
    if (rng.happens(0.1)) options.max_pacing_rate = 50'000 + rng.below(10'000'000);
    options.congestion = static_cast<stack::tcp::Congestion>(rng.below(stack::tcp::kCongestionCount));
    return options;
}

std::string Application::describe() const {
    return name_ + " sent " + std::to_string(sent_) + "/" + std::to_string(dialogue_.out_bytes) + " acked " +
           std::to_string(acknowledged_) + " received " + std::to_string(received_) + "/" +
           std::to_string(dialogue_.in_bytes) + " unread " + std::to_string(unread_) + (end_ ? " end" : "") +
           (shut_ ? " shut" : "") + (orphaned_ ? " orphaned" : "") + (aborted_ ? " aborted" : "") +
           (closed_ ? " closed with " + std::to_string(error_) : "") +
           (connection != nullptr ? " state " + std::to_string(static_cast<int>(connection->state())) + " rto " +
                                        std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(connection->info().rto).count()) + " ms"
                                  : "");
}

void Application::check_end() {
    expect(closed_, "never told of the end");
    expect(chunks_.empty(), "chunks kept");
    if (closed_ && error_ == 0 && !erratic_) {
        expect(end_ && received_ == dialogue_.in_bytes, "ended in order without the peer's whole stream");
        expect(acknowledged_ == dialogue_.out_bytes, "ended in order with bytes unacknowledged");
    }
}

}  // namespace culvert::sim
