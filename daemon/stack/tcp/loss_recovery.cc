#include "daemon/stack/tcp/loss_recovery.h"

#include <algorithm>
#include <limits>

#include "shm/base/check.h"

namespace culvert::stack::tcp {

namespace {
constexpr std::uint8_t kDupThresh = 3;  // [RFC5681 3.2]

std::uint32_t saturate(std::uint64_t bytes) {
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes, std::numeric_limits<std::uint32_t>::max()));
}
}  // namespace

LossRecovery::~LossRecovery() { DCHECK(board_ == nullptr && flight_ == nullptr); }

void LossRecovery::release_flight() {
    if (flight_ != nullptr) flight_->destroy();
    flight_ = nullptr;
}

void LossRecovery::release(SackPool& pool) {
    if (board_ != nullptr) pool.destroy(board_);
    board_ = nullptr;
}

Position LossRecovery::loss_edge() const {
    return std::max(lost_below_, board_ == nullptr ? Position{0} : board_->loss_edge());
}

std::uint64_t LossRecovery::unsacked(Range range) const { return tcp::unsacked(range, board_); }

Range LossRecovery::next_hole(Range within) const {
    if (within.empty()) return {within.first, within.first};
    return board_ == nullptr ? within : board_->next_hole(within);
}

std::uint64_t LossRecovery::pipe_by_sack(Position snd_una, Position snd_nxt) const {
    const Position edge = std::clamp(loss_edge(), snd_una, std::max(snd_una, snd_nxt));
    const Position resent = std::clamp(high_rxt_, snd_una, std::max(snd_una, snd_nxt));
    // [RFC6675 4] (a) not lost and not SACKed, (b) sent again and not SACKed
    const std::uint64_t bytes = unsacked({edge, snd_nxt}) + unsacked({snd_una, resent});
    return bytes - std::min<std::uint64_t>(bytes, dup_bytes_);
}

LossRecovery::Verdict LossRecovery::on_ack(const AckFacts& facts, CongestionController& cc, SackPool& pool) {
    DCHECK(facts.snd_una <= facts.ack && facts.ack <= facts.snd_nxt);
    Verdict verdict;
    verdict.newly_acked = facts.ack - facts.snd_una;
    verdict.dsack = find_dsack(facts.sack, facts.ack, facts.snd_nxt);
    if (verdict.newly_acked > 0) timed_out_ = false;

    Delivery arrived;
    if (flight_ != nullptr) arrived = flight_->deliver(facts, board_, high_rxt_);
    const std::uint64_t sacked_before = sacked_bytes();
    const Position edge_before = loss_edge();
    const bool new_sacks = take_sacks(facts, cc, pool);
    if (blind_ && flight_ != nullptr && !flight_->lost.empty()) {
        judge_without_log(facts.ack);
        // There may be a scoreboard for us again before this flight is over; then all of it must be in the log.
        if (!flight_->unmark(board_, facts.now)) release_flight();
    }
    const std::uint64_t progress = verdict.newly_acked + sacked_bytes();
    verdict.delivered = progress > sacked_before ? progress - sacked_before : 0;

    if (blind_) count_without_sack(facts, cc.mss(), verdict);
    if (state_ == State::kOpen) {
        if (verdict.newly_acked > 0) dup_acks_ = 0;
        if (new_sacks && dup_acks_ < UINT8_MAX) ++dup_acks_;  // [RFC6675 2] DupAcks
    }
    high_rxt_ = std::max(high_rxt_, facts.ack);
    if (by_time()) judge_by_time(facts, arrived, verdict);
    if (flight_ != nullptr || cc.wants_delivery()) report_delivery(facts, arrived, verdict, cc);

    if (proves_spurious(facts, verdict) || refuted_by_frto(facts, arrived, verdict, cc)) {
        undo(facts, cc, verdict);
    } else if (state_ == State::kOpen) {
        verdict.grow = verdict.newly_acked > 0;
        // [RFC6582 3.2 step 2] [RFC6675 5] not again for the window that was already reduced for. Without SACK,
        // duplicates right at `recover` may be echoes of our own retransmissions.
        const bool fresh = by_time() || (blind_ ? facts.ack > recover_ : facts.ack >= recover_);
        const bool lost = anything_lost(facts.ack) || (!by_time() && dup_acks_ >= kDupThresh);
        if (fresh && lost && facts.ack < facts.snd_nxt) enter_recovery(facts, cc, verdict);
    } else if (facts.ack >= recover_) {
        const State from = state_;
        leave(from, verdict);
        if (from == State::kRecovery) cc.on_exit_recovery(facts.now);
        verdict.grow = from == State::kLoss;
        // Of what was sent during the episode some may be lost too: that is another one.
        if (by_time() && anything_lost(facts.ack)) enter_recovery(facts, cc, verdict);
    } else {
        on_partial_ack(facts, verdict, cc);
        verdict.grow = state_ == State::kLoss && verdict.newly_acked > 0;
    }

    if (probe_out_) close_probe(facts, cc, verdict);
    if (state_ == State::kRecovery) {
        const bool new_loss = by_time() ? verdict.newly_lost > 0 : loss_edge() > std::max(edge_before, facts.ack);
        reduce_proportionally(facts, verdict, new_loss, cc);
    }
    if (board_ != nullptr && board_->empty()) release(pool);
    return verdict;
}

/// True if the blocks told something new. Takes a scoreboard from the pool when the first block comes in.
bool LossRecovery::take_sacks(const AckFacts& facts, const CongestionController& cc, SackPool& pool) {
    if (!facts.sack_permitted) {
        blind_ = true;
        return false;
    }
    if (board_ != nullptr) board_->advance(facts.ack, cc.mss());
    std::span<const Range> blocks = facts.sack;
    const bool usable = std::ranges::any_of(
        blocks, [&](const Range& b) { return !b.empty() && b.end > facts.ack && b.end <= facts.snd_nxt; });
    if (!usable) return false;
    if (board_ == nullptr) {
        board_ = pool.create();
        blind_ = board_ == nullptr;
        if (blind_) return false;
        dup_bytes_ = 0;  // from now on SACK tells more exactly
    }
    const auto update = board_->update(blocks, facts.ack, facts.snd_nxt, cc.mss());
    if (flight_ != nullptr)
        for (std::uint32_t i = 0; i < update.forgotten_count; ++i) flight_->take_back(update.forgotten[i], facts.now);
    return update.new_information;
}

/// Duplicate ACKs, each of which says that one segment arrived. [RFC5681 3.2] [RFC6937 3, DeliveredData]
void LossRecovery::count_without_sack(const AckFacts& facts, std::uint32_t mss, Verdict& verdict) {
    if (verdict.newly_acked > 0) {
        // Duplicate ACKs have announced all but the segment that filled the gap.
        const std::uint64_t announced =
            std::min<std::uint64_t>(dup_bytes_, verdict.newly_acked - std::min<std::uint64_t>(verdict.newly_acked, mss));
        dup_bytes_ -= static_cast<std::uint32_t>(announced);
        verdict.delivered -= std::min(verdict.delivered, announced);
        if (state_ == State::kOpen) dup_bytes_ = 0;
    } else if (facts.duplicate && state_ != State::kLoss) {
        if (dup_acks_ < UINT8_MAX) ++dup_acks_;
        const std::uint64_t flight = facts.snd_nxt - facts.snd_una;
        const std::uint64_t limit = flight - std::min<std::uint64_t>(flight, mss);  // the first is what is missing
        const std::uint64_t more = std::min<std::uint64_t>(mss, limit - std::min<std::uint64_t>(limit, dup_bytes_));
        dup_bytes_ = saturate(dup_bytes_ + more);
        verdict.delivered += more;
    }
}

/// Whether this ACK shows that the episode retransmitted what was not lost.
bool LossRecovery::proves_spurious(const AckFacts& facts, const Verdict& verdict) {
    if (!undo_open_) return false;
    if (verdict.newly_acked > 0 && stamped_) {
        stamped_ = false;  // only the first ACK after the retransmission tells
        if (facts.ts_echo && before(*facts.ts_echo, first_rxt_ts_)) {  // [RFC3522 3.2] it answers the original
            undo_open_ = false;
            return true;
        }
    }
    if (verdict.dsack && undo_bytes_ > 0) {  // [RFC3708] every segment sent again arrived twice
        undo_bytes_ -= static_cast<std::uint32_t>(std::min<std::uint64_t>(undo_bytes_, verdict.dsack->size()));
        if (undo_bytes_ == 0) {
            undo_open_ = false;
            return true;
        }
    }
    return false;
}

void LossRecovery::enter_recovery(const AckFacts& facts, CongestionController& cc, Verdict& verdict) {
    const std::uint64_t flight = facts.snd_nxt - facts.ack;
    state_ = State::kRecovery;
    recover_ = facts.snd_nxt;
    probe_out_ = false;  // [RFC8985 7.1]
    frto_ = FRto::kOff;
    if (!by_time()) high_rxt_ = facts.ack;
    lost_below_ = std::min(facts.ack + cc.mss(), facts.snd_nxt);  // [RFC6675 5 step 4.3] the first segment goes at once
    rxt_mark_ = facts.snd_nxt;
    prr_delivered_ = 0;
    prr_out_ = 0;
    recover_fs_ = std::max(saturate(flight), 1u);
    undo_bytes_ = 0;
    rescued_ = false;
    undo_open_ = true;
    stamped_ = false;
    cc.on_enter_recovery(facts.now, flight);
    verdict.entered_recovery = true;
    verdict.grow = false;
}

/// Something was acknowledged or SACKed, but not all that was sent before the episode.
void LossRecovery::on_partial_ack(const AckFacts& facts, const Verdict& verdict, const CongestionController& cc) {
    if (by_time()) return;
    if (!blind_) {
        // More than two segments sent after the last retransmission were SACKed, yet a hole below is still open: by
        // the rule of RFC 6675 its retransmission is lost too. Without this, only a timeout would find out.
        if (board_ != nullptr && high_rxt_ > facts.ack &&
            board_->sacked_in({rxt_mark_, facts.snd_nxt}) > std::uint64_t{kDupThresh - 1} * cc.mss() &&
            !next_hole({facts.ack, high_rxt_}).empty()) {
            high_rxt_ = facts.ack;
            rxt_mark_ = facts.snd_nxt;
        }
    } else if (state_ == State::kRecovery && verdict.newly_acked > 0) {
        lost_below_ = std::min(facts.ack + cc.mss(), recover_);  // [RFC6582 3.2 step 3] the next one is missing too
        high_rxt_ = facts.ack;
    }
}

/// PRR: sends in proportion to what arrives, so that the window has shrunk to ssthresh when the episode ends.
void LossRecovery::reduce_proportionally(const AckFacts& facts, const Verdict& verdict, bool new_loss,
                                         const CongestionController& cc) {
    prr_delivered_ = saturate(prr_delivered_ + verdict.delivered);
    const std::uint64_t in_pipe = pipe(facts.ack, facts.snd_nxt);
    const std::uint64_t ssthresh = cc.ssthresh();
    std::uint64_t send = 0;
    if (in_pipe > ssthresh) {
        const std::uint64_t share = (prr_delivered_ * ssthresh + recover_fs_ - 1) / recover_fs_;
        send = share - std::min<std::uint64_t>(share, prr_out_);
    } else {
        // Grow back to ssthresh, but by more than was delivered only if the ACK shows the path is draining.
        std::uint64_t limit = std::max<std::uint64_t>(prr_delivered_ - std::min(prr_delivered_, prr_out_), verdict.delivered);
        if (verdict.newly_acked > 0 && !new_loss) limit += cc.mss();
        send = std::min(ssthresh - in_pipe, limit);
    }
    // The fast retransmit itself is never held back, nor is what a partial ACK asks for. [RFC6582 3.2 step 3]
    if (prr_out_ == 0 || (blind_ && verdict.newly_acked > 0)) send = std::max<std::uint64_t>(send, cc.mss());
    credit_ = saturate(send);
}

void LossRecovery::leave(State from, Verdict& verdict) {
    state_ = State::kOpen;
    lost_below_ = 0;
    frto_ = FRto::kOff;
    if (!by_time()) high_rxt_ = 0;
    // [RFC8985 6.2 step 4] sixteen recoveries without a D-SACK, and the window is the small one again
    if (reo_wnd_persist_ > 0 && --reo_wnd_persist_ == 0) reo_wnd_mult_ = 1;
    blind_ = false;
    dup_acks_ = 0;
    dup_bytes_ = 0;
    credit_ = 0;
    verdict.left_recovery = from != State::kOpen;
}

/// The next run of bytes that is lost and was not sent again.
Range LossRecovery::next_lost(Position snd_una, Position snd_nxt) const {
    if (by_time()) {
        for (const Range& range : flight_->lost.ranges()) {
            const Range hole = next_hole({std::max(range.first, snd_una), std::min(range.end, snd_nxt)});
            if (!hole.empty()) return hole;
        }
        return {};
    }
    return next_hole({std::max(high_rxt_, snd_una), std::min(loss_edge(), snd_nxt)});
}

LossRecovery::Permit LossRecovery::next_of_all(Position snd_una, Position snd_nxt, const CongestionController& cc,
                                               bool has_new_data) const {
    std::uint64_t window = credit_;
    if (state_ != State::kRecovery || cc.governs_recovery()) {
        const std::uint64_t in_pipe = pipe(snd_una, snd_nxt);
        window = cc.cwnd() - std::min<std::uint64_t>(cc.cwnd(), in_pipe);
    }
    const std::uint64_t mss = cc.mss();
    // [RFC6298 5.4] whatever is believed to be on the way: silence is what the timer was for
    if (head_due_ && state_ == State::kLoss) window = std::max(window, mss);
    if (frto_ == FRto::kSecondAck && (frto_sent_ > 0 || has_new_data)) {  // [RFC5682 2.1, 3.1 step 2b] two new segments
        if (frto_sent_ >= 2 || !has_new_data) return {};                     // the next ACK will tell
        return {.kind = Permit::Kind::kNewData, .range = {}, .bytes = std::max(window, mss)};
    }
    if (window == 0) return {};
    const auto retransmit = [&](Range hole, bool rescue) -> Permit {
        hole.end = std::min(hole.end, hole.first + mss);
        if (hole.size() > window) return {};  // [RFC6675 5 (C)] whole segments only
        return {.kind = Permit::Kind::kRetransmit, .range = hole, .bytes = 0, .rescue = rescue};
    };

    if (state_ != State::kOpen) {
        const Range lost = next_lost(snd_una, snd_nxt);
        if (!lost.empty()) return retransmit(lost, false);  // [RFC6675 4 NextSeg (1)]
    }
    if (has_new_data) return {.kind = Permit::Kind::kNewData, .range = {}, .bytes = window, .rescue = false};  // (2)
    // By time there is no guessing: what is lost will be known, and a tail that nobody speaks of is the timeout's.
    if (state_ != State::kRecovery || blind_ || by_time()) return {};

    const Position highest = board_ == nullptr ? snd_una : board_->highest();
    const Position from = std::max(high_rxt_, snd_una);
    const Range doubtful = next_hole({from, highest});
    if (!doubtful.empty()) return retransmit(doubtful, false);  // (3)
    if (!rescued_ && from < snd_nxt && highest < snd_nxt) {
        // (4) The tail may be lost too, and nothing after it would tell.
        const Position tail = std::max({from, highest, snd_nxt - std::min<Position>(mss, snd_nxt)});
        return retransmit({tail, snd_nxt}, true);
    }
    return {};
}

void LossRecovery::on_retransmitted(const Permit& permit, Range sent, Position snd_nxt,
                                    std::optional<std::uint32_t> ts_value) {
    if (permit.probe) return;
    head_due_ = false;
    if (permit.rescue) {
        rescued_ = true;  // HighRxt stays
    } else {
        high_rxt_ = std::max(high_rxt_, sent.end);
    }
    if (by_time()) flight_->lost.advance(sent.end);
    if (frto_ == FRto::kSecondAck) frto_ = FRto::kOff;  // there was nothing new to send
    if (undo_bytes_ == 0 && undo_open_ && !stamped_ && ts_value) {
        first_rxt_ts_ = *ts_value;
        stamped_ = true;
    }
    undo_bytes_ = saturate(std::uint64_t{undo_bytes_} + sent.size());
    rxt_mark_ = snd_nxt;
    on_new_data(sent.size());
}

void LossRecovery::on_new_data(std::uint64_t bytes) {
    if (frto_ == FRto::kSecondAck && frto_sent_ < 2) ++frto_sent_;
    if (state_ != State::kRecovery) return;
    prr_out_ = saturate(prr_out_ + bytes);
    credit_ -= static_cast<std::uint32_t>(std::min<std::uint64_t>(credit_, bytes));
}

void LossRecovery::on_timeout(Position snd_una, Position snd_nxt, Instant now, CongestionController& cc,
                              SackPool& pool, RoundTrip path, bool all) {
    // [RFC2018 8] [RFC6675 5.1] a receiver that had kept what it SACKed would have acknowledged it by now
    const bool reneged = board_ != nullptr && !board_->empty() && board_->ranges()[0].first <= snd_una;
    if (reneged || all || !by_time()) release(pool);
    cc.on_rto(now, snd_nxt - snd_una, !timed_out_);
    if (!timed_out_) {
        undo_open_ = true;
        undo_bytes_ = 0;
        stamped_ = false;
        rescued_ = false;
    }
    // [RFC5682 3.1 step 1] not for a timeout of a retransmission, nor in the middle of another recovery
    frto_ = state_ == State::kOpen && !reneged && !all ? FRto::kFirstAck : FRto::kOff;
    frto_sent_ = 0;
    probe_out_ = false;  // [RFC8985 7.1]
    timed_out_ = head_due_ = true;
    state_ = State::kLoss;
    recover_ = snd_nxt;  // [RFC6582 3.2 step 4]
    if (by_time()) {
        lost_total_ += flight_->mark_on_timeout({snd_una, std::min(snd_una + cc.mss(), snd_nxt)}, snd_nxt, board_,
                                                reordering_window(path), reneged || all, now);
        flight_->probe_due = false;
        lost_below_ = 0;
    } else {
        lost_below_ = snd_nxt;
        high_rxt_ = snd_una;
    }
    rxt_mark_ = snd_nxt;
    dup_acks_ = 0;
    dup_bytes_ = 0;
    credit_ = 0;
}

}  // namespace culvert::stack::tcp
