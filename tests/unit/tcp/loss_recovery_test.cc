#include "daemon/stack/tcp/loss_recovery.h"

#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <vector>

#include "daemon/base/rng.h"
#include "daemon/stack/tcp/reassembler.h"

namespace culvert::stack::tcp {
namespace {

using namespace std::chrono_literals;
using Kind = LossRecovery::Permit::Kind;
using State = LossRecovery::State;

constexpr std::uint32_t kMss = 1000;
constexpr Position kIss = Position{1} << 32;

/// A sender with segments of 1000 bytes; positions are written as segment numbers from 0.
class LossRecoveryTest : public testing::Test {
protected:
    ~LossRecoveryTest() override {
        r.release(pool);
        EXPECT_EQ(pool.used(), 0u) << "a scoreboard leaked";
    }
    static Position seg(std::uint64_t n) { return kIss + n * kMss; }

    /// Sends `n` segments of new data, whatever the window.
    void send(std::uint64_t n) { nxt += n * kMss; }
    /// An ACK up to segment `ack`, with SACK blocks [a, b) in segments.
    LossRecovery::Verdict ack(std::uint64_t to, std::vector<std::pair<std::uint64_t, std::uint64_t>> blocks = {},
                              std::optional<std::uint32_t> ts_echo = std::nullopt) {
        std::vector<Range> sack;
        for (auto [a, b] : blocks) sack.push_back({seg(a), seg(b)});
        const AckFacts facts{.snd_una = una, .ack = seg(to), .snd_nxt = nxt, .sack_permitted = sack_permitted,
                             .duplicate = seg(to) == una && nxt > una, .sack = sack, .ts_echo = ts_echo,
                             .now = Instant{} + 1s};
        const auto verdict = r.on_ack(facts, *cc, pool);
        una = seg(to);
        return verdict;
    }
    /// Everything that may be sent now, in segments: "r3" retransmits segment 3, "n5" sends new segment 5.
    std::string output(bool has_new_data = true, std::optional<std::uint32_t> ts = std::nullopt) {
        std::string out;
        for (int i = 0; i < 200; ++i) {
            const auto permit = r.next(una, nxt, *cc, has_new_data);
            if (permit.kind == Kind::kNothing || (permit.kind == Kind::kNewData && permit.bytes < kMss)) break;
            if (!out.empty()) out += ' ';
            if (permit.kind == Kind::kRetransmit) {
                EXPECT_LE(permit.range.size(), kMss);
                out += (permit.rescue ? "R" : "r") + std::to_string((permit.range.first - kIss) / kMss);
                r.on_retransmitted(permit, permit.range, nxt, ts);
            } else {
                out += "n" + std::to_string((nxt - kIss) / kMss);
                nxt += kMss;
                r.on_new_data(kMss);
            }
        }
        return out;
    }

    SackPool pool{4};
    CongestionState cc{Algorithm::kNewReno, kMss};
    LossRecovery r;
    Position una = kIss;
    Position nxt = kIss;
    bool sack_permitted = true;
};

TEST_F(LossRecoveryTest, SendsTheInitialWindow) {
    EXPECT_EQ(output(), "n0 n1 n2 n3 n4 n5 n6 n7 n8 n9");
    EXPECT_EQ(r.pipe(una, nxt), 10u * kMss);
    EXPECT_TRUE(ack(2).grow);
    EXPECT_EQ(output(), "n10 n11");
}

TEST_F(LossRecoveryTest, LimitedTransmitSendsNewDataForTheFirstDuplicates) {  // [RFC3042 2]
    output();
    ack(0, {{1, 2}});
    EXPECT_EQ(output(), "n10");
    ack(0, {{1, 3}});
    EXPECT_EQ(output(), "n11");
    EXPECT_EQ(r.state(), State::kOpen);
}

TEST_F(LossRecoveryTest, FastRetransmitFillsTheHoleAndPrrMeetsSsthresh) {  // [RFC6675 5] [RFC6937]
    output();
    ack(0, {{1, 2}});
    ack(0, {{1, 3}});
    const auto v = ack(0, {{1, 4}});
    EXPECT_TRUE(v.entered_recovery);
    EXPECT_FALSE(v.grow);
    EXPECT_EQ(v.delivered, 1u * kMss);
    EXPECT_EQ(cc->ssthresh(), 5u * kMss);
    EXPECT_EQ(output().substr(0, 2), "r0");
    std::string sent;
    for (std::uint64_t n = 5; n <= 10; ++n) {
        ack(0, {{1, n}});
        const std::string now = output();
        if (!now.empty()) sent += now + " ";
    }
    EXPECT_EQ(sent.find('r'), std::string::npos) << "the hole was filled already: " << sent;
    EXPECT_NE(sent.find('n'), std::string::npos);
    EXPECT_LE(r.pipe(una, nxt), 5u * kMss);
    EXPECT_GE(r.pipe(una, nxt), 4u * kMss);
    const auto end = ack(10);
    EXPECT_TRUE(end.left_recovery);
    EXPECT_FALSE(end.grow);
    EXPECT_EQ(cc->cwnd(), 5u * kMss);
    EXPECT_EQ(r.state(), State::kOpen);
}

TEST_F(LossRecoveryTest, SeveralHolesAreFilledInOrder) {  // [RFC6675 4 NextSeg (1)]
    send(20);
    cc->adopt(20'000, 20'000);
    ack(0, {{5, 6}});
    ack(0, {{5, 6}, {3, 4}});
    ack(0, {{9, 12}, {5, 6}, {3, 4}});
    ASSERT_EQ(r.state(), State::kRecovery);
    std::string sent = output();
    for (std::uint64_t n = 13; n <= 20; ++n) sent += " " + output() + (ack(0, {{9, n}, {5, 6}, {3, 4}}), "");
    sent += " " + output();
    std::string order;
    for (std::size_t i = 0; i < sent.size(); ++i)
        if (sent[i] == 'r') order += sent.substr(i, sent.find(' ', i) - i) + " ";
    EXPECT_EQ(order.substr(0, 24), "r0 r1 r2 r4 r6 r7 r8 ") << sent;
}

TEST_F(LossRecoveryTest, NoRecoveryTwiceForOneWindow) {  // [RFC6675 5] [RFC6582 3.2]
    output();
    ack(0, {{1, 4}});
    output();
    const std::uint32_t ssthresh = cc->ssthresh();
    ack(0, {{1, 5}});
    ack(4, {{5, 7}});  // another hole in the same window
    EXPECT_EQ(r.state(), State::kRecovery);
    EXPECT_EQ(cc->ssthresh(), ssthresh);
}

TEST_F(LossRecoveryTest, WithoutSackNewRenoRetransmitsOneSegmentAPartialAck) {  // [RFC6582 3.2]
    sack_permitted = false;
    ack(0);
    una = nxt = seg(1);  // SND.UNA must lie beyond `recover`, which starts below the stream
    send(10);
    EXPECT_EQ(r.duplicate_acks(), 0);
    ack(1);
    EXPECT_EQ(output(), "n11");  // limited transmit
    ack(1);
    EXPECT_EQ(output(), "n12");
    EXPECT_TRUE(ack(1).entered_recovery);
    EXPECT_EQ(output().substr(0, 2), "r1");
    ack(1);
    ack(1);
    EXPECT_EQ(output().find('r'), std::string::npos);
    ack(4);  // partial: 4 is missing as well
    EXPECT_EQ(r.state(), State::kRecovery);
    EXPECT_EQ(output().substr(0, 2), "r4");
    EXPECT_TRUE(ack((r.recovery_point() - kIss) / kMss).left_recovery);
}

TEST_F(LossRecoveryTest, WithoutSackDuplicatesOfOurOwnRetransmissionsDoNotCount) {  // [RFC6582 3.2 step 2]
    sack_permitted = false;
    output();
    r.on_timeout(una, nxt, Instant{} + 1s, *cc, pool);
    EXPECT_EQ(output(), "r0");
    ack(10);  // the others had arrived
    EXPECT_EQ(r.state(), State::kOpen);
    output();
    for (int i = 0; i < 4; ++i) EXPECT_FALSE(ack(10).entered_recovery);
}

TEST_F(LossRecoveryTest, TimeoutGoesBackAndSkipsWhatIsSackedAgain) {  // [RFC6675 5.1] [RFC2018 8]
    output();
    ack(0, {{4, 5}});
    r.on_timeout(una, nxt, Instant{} + 1s, *cc, pool);
    EXPECT_EQ(r.sacked_bytes(), 0u);
    EXPECT_EQ(pool.used(), 0u);
    EXPECT_EQ(r.pipe(una, nxt), 0u);
    EXPECT_EQ(output(), "r0");
    const auto v = ack(1, {{4, 6}});
    EXPECT_TRUE(v.grow);
    EXPECT_EQ(output(), "n10 n11");  // F-RTO asks with new data [RFC5682 2.1 step 2b]
    ack(1, {{4, 6}, {10, 11}});      // and hears that it is true [step 3a]
    cc->adopt(10'000, 10'000);
    EXPECT_EQ(output(), "r1 r2 r3 r6 r7 r8 r9 n12 n13");
    EXPECT_FALSE(ack(9).left_recovery);
    EXPECT_TRUE(ack(11).left_recovery);
}

TEST_F(LossRecoveryTest, ASecondTimeoutOfTheSameSegmentHoldsSsthresh) {  // [RFC5681 3.1]
    output();
    r.on_timeout(una, nxt, Instant{} + 1s, *cc, pool);
    EXPECT_EQ(cc->ssthresh(), 5'000u);
    EXPECT_EQ(output(), "r0");
    r.on_timeout(una, nxt, Instant{} + 3s, *cc, pool);
    EXPECT_EQ(cc->ssthresh(), 5'000u);
    EXPECT_EQ(output(), "r0");
}

TEST_F(LossRecoveryTest, ALostRetransmissionIsNoticedBeforeTheTimeout) {
    send(10);
    ack(0, {{1, 4}});
    EXPECT_EQ(output().substr(0, 2), "r0");
    ack(0, {{1, 10}});
    output();
    const std::uint64_t after = (nxt - kIss) / kMss;
    ASSERT_GT(after, 10u);
    send(4);  // sent after the retransmission, and all of it arrives
    std::string sent;
    for (std::uint64_t n = after; n <= after + 4; ++n) {
        ack(0, {{1, n}});
        sent += output() + " ";
    }
    EXPECT_NE(sent.find("r0"), std::string::npos) << sent;
    EXPECT_EQ(sent.find("r0", sent.find("r0") + 1), std::string::npos) << "once is enough: " << sent;
}

TEST_F(LossRecoveryTest, TheTailIsRescuedOnce) {  // [RFC6675 4 NextSeg (4)]
    send(10);
    ack(0, {{1, 4}});
    std::string sent = output(false);
    for (std::uint64_t n = 5; n <= 8; ++n) {
        ack(0, {{1, n}});
        sent += " " + output(false);
    }
    EXPECT_EQ(sent.find("r0"), 0u);
    EXPECT_NE(sent.find("R9"), std::string::npos) << sent;
    EXPECT_EQ(sent.find("R9", sent.find("R9") + 1), std::string::npos) << sent;
}

TEST_F(LossRecoveryTest, DuplicateSackUndoesANeedlessRecovery) {  // [RFC3708]
    output();
    ack(0, {{1, 4}});
    EXPECT_EQ(output(false), "r0");
    EXPECT_EQ(cc->cwnd(), 5'000u);
    ack(4);  // the original was only late
    const auto v = ack(4, {{0, 1}});
    EXPECT_EQ(v.dsack, (Range{seg(0), seg(1)}));
    EXPECT_TRUE(v.undone);
    EXPECT_EQ(cc->cwnd(), 10'000u);
    EXPECT_EQ(r.state(), State::kOpen);
    EXPECT_EQ(r.pipe(una, nxt), nxt - una);
}

TEST_F(LossRecoveryTest, TimestampsUndoASpuriousTimeout) {  // [RFC3522 3.2]
    output();
    r.on_timeout(una, nxt, Instant{} + 1s, *cc, pool);
    EXPECT_EQ(output(true, 5000), "r0");
    const auto v = ack(1, {}, 4990);  // echoes the original
    EXPECT_TRUE(v.undone);
    EXPECT_EQ(cc->cwnd(), 10'000u);
    EXPECT_EQ(r.state(), State::kOpen);
    EXPECT_EQ(output(), "n10");  // and nothing is sent again

    r.on_timeout(una, nxt, Instant{} + 2s, *cc, pool);
    EXPECT_EQ(output(true, 6000), "r1");
    EXPECT_FALSE(ack(2, {}, 6000).undone);
    EXPECT_EQ(r.state(), State::kLoss);
}

TEST_F(LossRecoveryTest, WithoutAScoreboardItRecoversLikeNewReno) {
    std::vector<SackScoreboard*> all;
    while (auto* board = pool.create()) all.push_back(board);
    output();
    for (std::uint64_t n = 2; n <= 4; ++n) ack(0, {{1, n}});
    EXPECT_EQ(r.state(), State::kRecovery);
    EXPECT_EQ(output().substr(0, 2), "r0");
    for (auto* board : all) pool.destroy(board);
}

TEST_F(LossRecoveryTest, AMisbehavingReceiverCannotBreakIt) {
    output();
    ack(0, {{100, 200}, {5, 3}, {0, 0}});  // never sent
    EXPECT_EQ(r.sacked_bytes(), 0u);
    EXPECT_EQ(pool.used(), 0u);
    ack(0, {{1, 10}});
    ack(3, {{5, 6}});  // takes SACKed data back
    r.on_timeout(una, nxt, Instant{} + 1s, *cc, pool);
    EXPECT_EQ(output(), "r3");
    EXPECT_TRUE(ack((nxt - kIss) / kMss).left_recovery);
}

/// Sender and receiver over a link with a delay that loses at random: everything arrives, in order, and fast recovery
/// rather than timeouts does the work.
struct Simulation {
    struct Result {
        std::uint64_t timeouts = 0;
        std::uint64_t retransmitted = 0;
        bool complete = false;
        bool leaked = false;
    };

    static Result run(std::uint64_t seed, double loss, bool sack, Algorithm algorithm, std::uint64_t total) {
        Rng rng(seed);
        SackPool boards(4);
        ReassemblyPool pieces(4000, 4000);
        Result result;
        {
            CongestionState cc(algorithm, kMss);
            LossRecovery r;
            Reassembler held;
            Position una = kIss, nxt = kIss, rcv = kIss;
            const Position end = kIss + total;
            Instant now = Instant{} + 1s;
            Instant rto = kNever;
            struct Segment { Instant at; Range range; };
            struct Ack { Instant at; Position ack; std::vector<Range> sack; };
            std::deque<Segment> data;
            std::deque<Ack> acks;
            const std::vector<std::byte> payload(kMss);

            const auto transmit = [&](Range range) {
                if (!rng.happens(loss)) data.push_back({now + 10ms, range});
                if (rto == kNever) rto = now + 200ms;
            };
            for (std::uint64_t events = 0; una < end && events < 2'000'000; ++events) {
                for (;;) {
                    const auto p = r.next(una, nxt, *cc, nxt < end);
                    if (p.kind == Kind::kRetransmit) {
                        transmit(p.range);
                        result.retransmitted += p.range.size();
                        r.on_retransmitted(p, p.range, nxt, std::nullopt);
                    } else if (p.kind == Kind::kNewData && p.bytes >= kMss) {
                        const Range range{nxt, std::min(nxt + kMss, end)};
                        transmit(range);
                        nxt = range.end;
                        r.on_new_data(range.size());
                    } else {
                        break;
                    }
                }
                const Instant next = std::min({data.empty() ? kNever : data.front().at,
                                               acks.empty() ? kNever : acks.front().at, rto});
                if (next == kNever) break;
                now = next;
                if (!data.empty() && data.front().at == now) {
                    const Range s = data.front().range;
                    data.pop_front();
                    std::optional<Range> dsack;
                    if (s.end <= rcv) {
                        dsack = s;
                    } else if (s.first <= rcv) {
                        rcv = s.end;
                        rcv += held.take_in_order(rcv, [](auto run) { return run.size(); }, pieces);
                    } else {
                        const std::span<const std::byte> bytes = std::span(payload).first(s.size());
                        dsack = held.insert(s.first, std::span(&bytes, 1), rcv, pieces).duplicate;
                    }
                    if (!rng.happens(loss / 2)) {
                        Ack a{now + 10ms, rcv, std::vector<Range>(sack ? 3 : 0)};
                        a.sack.resize(held.sack_blocks(a.sack, sack ? dsack : std::nullopt));
                        acks.push_back(std::move(a));
                    }
                } else if (!acks.empty() && acks.front().at == now) {
                    const Ack a = std::move(acks.front());
                    acks.pop_front();
                    const std::uint64_t flight = nxt - una;
                    const auto v = r.on_ack({.snd_una = una, .ack = a.ack, .snd_nxt = nxt, .sack_permitted = sack,
                                             .duplicate = a.ack == una && nxt > una, .sack = a.sack, .ts_echo = {},
                                             .now = now},
                                            *cc, boards);
                    una = a.ack;
                    if (v.grow)
                        cc->on_ack({.acked_bytes = v.newly_acked, .rtt = 20ms, .now = now, .in_flight = flight,
                                    .app_limited = false, .snd_una = una, .snd_nxt = nxt});
                    if (v.newly_acked > 0) rto = nxt > una ? now + 200ms : kNever;
                } else {
                    ++result.timeouts;
                    rto = kNever;
                    r.on_timeout(una, nxt, now, *cc, boards);
                }
            }
            result.complete = una == end && rcv == end;
            r.release(boards);
            held.clear(pieces);
        }
        result.leaked = boards.used() != 0 || pieces.used() != 0;
        return result;
    }
};

TEST(LossRecoverySimulation, EverythingArrivesOnABadLink) {
    constexpr std::uint64_t kTotal = 1'000'000;
    for (const Algorithm algorithm : {Algorithm::kNewReno, Algorithm::kCubic}) {
        for (const bool sack : {true, false}) {
            for (const double loss : {0.001, 0.02, 0.1, 0.3}) {
                for (std::uint64_t seed = 1; seed <= 5; ++seed) {
                    SCOPED_TRACE(testing::Message() << algorithm_name(algorithm) << " sack " << sack << " loss " << loss
                                                    << " seed " << seed);
                    const auto result = Simulation::run(seed, loss, sack, algorithm, kTotal);
                    ASSERT_TRUE(result.complete);
                    EXPECT_FALSE(result.leaked);
                    if (sack && loss <= 0.02) {
                        EXPECT_LE(result.timeouts, 3u);
                        EXPECT_LE(result.retransmitted, static_cast<std::uint64_t>(2 * loss * kTotal) + 20'000);
                    }
                }
            }
        }
    }
}

TEST(LossRecoverySimulation, NothingIsSentAgainOnAGoodLink) {
    const auto result = Simulation::run(1, 0, true, Algorithm::kCubic, 3'000'000);
    EXPECT_TRUE(result.complete);
    EXPECT_EQ(result.retransmitted, 0u);
    EXPECT_EQ(result.timeouts, 0u);
}

}  // namespace
}  // namespace culvert::stack::tcp
