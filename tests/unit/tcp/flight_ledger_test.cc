// No byte gets lost in the books. Whatever is sent, acknowledged, found lost, sent again, probed, timed out, undone and forgotten,
// every byte of [SND.UNA, SND.NXT) is SACKed, in the log of the flight, or waiting to be sent again; one that is nowhere would
// count as in flight for ever and be sent by nobody (simulation, seed 7909: 36-byte segments, more ranges than a scoreboard holds).
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "daemon/base/rng.h"
#include "daemon/stack/tcp/flight.h"
#include "daemon/stack/tcp/loss_recovery.h"

namespace culvert::stack::tcp {
namespace {

using namespace std::chrono_literals;
using Kind = LossRecovery::Permit::Kind;

/// A sender on an arbitrary path, and a receiver that is a bitmap.
class Ledger {
public:
    Ledger(std::uint64_t seed, std::uint32_t mss, std::uint32_t pieces, bool tells_of_all)
        : rng_(seed), mss_(mss), flights_(pieces), cc_(Algorithm::kCubic, mss), tells_of_all_(tells_of_all) {
        cc_->adopt(40 * mss, 40 * mss);
    }
    ~Ledger() {
        if (other_ != nullptr) boards_.destroy(other_);
        r_.release(boards_);
        r_.release_flight();
        EXPECT_EQ(boards_.used(), 0u);
        EXPECT_EQ(flights_.used(), 0u);
    }

    void step() {
        now_ += Duration(static_cast<Duration::rep>(rng_.below(rng_.happens(0.05) ? 80'000'000 : 2'000'000)));
        const std::uint64_t what = rng_.below(100);
        if (what < 30) {
            send_new();
        } else if (what < 75) {
            arrive();
        } else if (what < 90) {
            output();
        } else if (what < 92) {
            if (una_ < nxt_) time_out(rng_.happens(0.1));
        } else if (what < 95) {
            probe();
        } else if (other_ != nullptr) {
            boards_.destroy(std::exchange(other_, nullptr));
        } else if (rng_.happens(0.3)) {
            other_ = boards_.create();  // now there is none for us, unless we have it
        }
        if (r_.flight() != nullptr && r_.flight()->timer_at <= now_)
            r_.on_timer(una_, nxt_, {.srtt = 10ms, .minimum = 5ms}, now_, *cc_);
    }

    /// Empty: the books are right.
    std::string mistake() {
        if (!r_.by_time() || una_ == nxt_) return {};
        constexpr std::uint8_t kLogged = 1, kLost = 2, kSacked = 4;
        std::vector<std::uint8_t> where(nxt_ - una_);
        const auto note = [&](Range range, std::uint8_t what) {
            for (Position p = std::max(range.first, una_); p < std::min(range.end, nxt_); ++p) where[p - una_] |= what;
        };
        r_.flight()->log.for_each([&](const SentRun& run) {
            note(run.range, kLogged);
            return true;
        });
        for (const Range& range : r_.flight()->lost.ranges()) note(range, kLost);
        if (r_.board() != nullptr)
            for (const Range& range : r_.board()->ranges()) note(range, kSacked);
        std::uint64_t pipe = 0;
        for (Position p = una_; p < nxt_; ++p) {
            const std::uint8_t at = where[p - una_];
            if (at == 0) return "byte " + std::to_string(p - una_) + " of " + std::to_string(nxt_ - una_) + " is nowhere";
            if ((at & kSacked) != 0 && !got_[p - kFirst]) return "SACKed, but never received";
            pipe += (at & (kLost | kSacked)) == 0;
        }
        if (r_.pipe(una_, nxt_) != pipe) return "pipe " + std::to_string(r_.pipe(una_, nxt_)) + " is not " + std::to_string(pipe);
        return {};
    }
    /// The path is good from here on: everything arrives within so many timeouts.
    bool finishes() {
        loss_ = 0;
        for (int i = 0; i < 400 && una_ < nxt_; ++i) {
            time_out(false);
            for (int j = 0; j < 200 && una_ < nxt_; ++j) {
                output();
                for (std::size_t left = wire_.size(); left > 0; --left) arrive();
                now_ += 6ms;
                if (r_.flight() != nullptr && r_.flight()->timer_at <= now_)
                    r_.on_timer(una_, nxt_, {.srtt = 10ms, .minimum = 5ms}, now_, *cc_);
            }
            now_ += 1s;
        }
        return una_ == nxt_;
    }
    std::size_t most_ranges() const { return most_ranges_; }

private:
    static constexpr Position kFirst = Position{1} << 32;

    void log(Range range, bool again) { r_.record(flights_, range, again, una_, nxt_, 10ms, now_); }
    void send_new() {
        for (std::uint64_t n = 1 + rng_.below(6); n > 0 && nxt_ - una_ < 400u * mss_; --n) {
            const Range range{nxt_, nxt_ + (rng_.happens(0.7) ? mss_ : 1 + rng_.below(mss_))};
            log(range, false);
            nxt_ = range.end;
            got_.resize(nxt_ - kFirst);
            r_.on_new_data(range.size());
            wire_.push_back(range);
        }
    }
    void output() {
        for (int i = 0; i < 50; ++i) {
            const auto permit = r_.next(una_, nxt_, *cc_, false);
            if (permit.kind != Kind::kRetransmit) return;
            Range range = permit.range;
            if (rng_.happens(0.1)) range.end = range.first + 1 + rng_.below(range.size());  // SACK blocks took its room
            r_.on_retransmitted(permit, range, nxt_, std::nullopt);
            log(range, true);
            wire_.push_back(range);
        }
    }
    void probe() {
        if (una_ == nxt_ || r_.state() != LossRecovery::State::kOpen || r_.flight() == nullptr) return;
        const Range tail{nxt_ - std::min<std::uint64_t>(nxt_ - una_, mss_), nxt_};
        r_.on_retransmitted({.kind = Kind::kRetransmit, .range = tail, .probe = true}, tail, nxt_, std::nullopt);
        r_.flight()->forget(tail);
        log(tail, true);
        r_.on_probe_sent(nxt_, true);
        wire_.push_back(tail);
    }
    void time_out(bool all) { r_.on_timeout(una_, nxt_, now_, *cc_, boards_, {.srtt = 10ms, .minimum = 5ms}, all); }

    void arrive() {
        if (wire_.empty()) return;
        const std::size_t at = rng_.happens(0.8) ? 0 : rng_.below(wire_.size());
        const Range range = wire_[at];
        wire_.erase(wire_.begin() + static_cast<std::ptrdiff_t>(at));
        if (rng_.happens(loss_)) return;
        bool news = false;
        for (Position p = range.first; p < range.end; ++p) {
            news = news || !got_[p - kFirst];
            got_[p - kFirst] = true;
        }
        if (rng_.happens(loss_)) return;  // its ACK
        Position ack = una_;
        while (ack < nxt_ && got_[ack - kFirst]) ++ack;
        std::vector<Range> blocks;
        if (!news) blocks.push_back(range);
        if (range.first > ack) blocks.push_back(around(range.first));
        for (int i = 0; i < 2 && ack < nxt_ && tells_of_all_; ++i)
            if (const Position p = ack + rng_.below(nxt_ - ack); got_[p - kFirst]) blocks.push_back(around(p));
        take_ack(ack, blocks);
    }
    Range around(Position p) const {
        Range range{p, p};
        while (range.first > una_ && got_[range.first - 1 - kFirst]) --range.first;
        while (range.end < nxt_ && got_[range.end - kFirst]) ++range.end;
        return range;
    }
    void take_ack(Position ack, const std::vector<Range>& blocks) {
        const AckFacts facts{.snd_una = una_, .ack = ack, .snd_nxt = nxt_, .sack_permitted = true, .duplicate = ack == una_,
                             .sack = blocks, .ts_echo = {}, .srtt = 10ms, .min_rtt = 5ms, .now = now_};
        if (una_ == nxt_) {
            r_.on_late_ack(facts, *cc_);
            return;
        }
        r_.on_ack(facts, *cc_, boards_);
        una_ = ack;
        if (una_ == nxt_) r_.on_flight_empty(now_);
        if (r_.board() != nullptr) most_ranges_ = std::max(most_ranges_, r_.board()->ranges().size());
    }

    Rng rng_;
    std::uint32_t mss_;
    SackPool boards_{1};
    SackScoreboard* other_ = nullptr;
    FlightPool flights_;
    CongestionState cc_;
    LossRecovery r_;
    bool tells_of_all_;
    double loss_ = 0.3;
    Instant now_{1h};
    Position una_ = kFirst, nxt_ = kFirst;
    std::vector<bool> got_;
    std::vector<Range> wire_;
    std::size_t most_ranges_ = 0;
};

TEST(FlightLedger, EveryByteIsSomewhere) {
    std::size_t most = 0;
    for (const std::uint32_t pieces : {64u, 4u, 1u}) {  // 1: the Flight, and no piece for a longer log
        for (std::uint64_t seed = 1; seed <= 40; ++seed) {
            Ledger ledger(seed, 10, pieces, seed % 2 == 0);
            for (int i = 0; i < 1500; ++i) {
                ledger.step();
                if (i % 3 != 0) continue;
                ASSERT_EQ(ledger.mistake(), "") << "seed " << seed << ", " << pieces << " pieces, step " << i;
            }
            EXPECT_TRUE(ledger.finishes()) << "seed " << seed << ", " << pieces << " pieces";
            most = std::max(most, ledger.most_ranges());
        }
    }
    EXPECT_EQ(most, SackScoreboard::kMaxRanges) << "no scoreboard was ever full";
}

}  // namespace
}  // namespace culvert::stack::tcp
