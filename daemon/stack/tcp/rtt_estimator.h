// Round-trip time and retransmission timeout, RFC 6298, with Linux's bounds.
//
//   RTO = (SRTT + max(4 * RTTVAR, min_rto)) << backoffs, at most 120 s
//
// The floor applies to the variance term, as in Linux: a peer that delays its ACKs by up to min_rto never causes a
// timeout. Karn's rule is the caller's: no sample from a segment that was sent twice, unless a timestamp tells the
// copies apart.
#pragma once

#include <cstdint>

#include "daemon/base/instant.h"

namespace culvert::stack::tcp {

class RttEstimator {
public:
    /// [RFC6298 2.1]
    static constexpr Duration kInitialRto = std::chrono::seconds(1);
    /// [RFC6298 5.7] for data, once the SYN had to be sent again and nothing was measured.
    static constexpr Duration kInitialRtoAfterSynLoss = std::chrono::seconds(3);
    /// RFC 6298 2.4 says 1 s SHOULD; Linux has used 200 ms for two decades, and servers rely on it.
    static constexpr Duration kDefaultMinRto = std::chrono::milliseconds(200);
    /// [RFC6298 2.5] may be bounded, by no less than 60 s.
    static constexpr Duration kMaxRto = std::chrono::seconds(120);
    /// The minimum is that of the last one to two windows.
    static constexpr Duration kMinRttWindow = std::chrono::seconds(10);

    RttEstimator() = default;
    explicit RttEstimator(Duration min_rto);

    /// A measured round trip. Ends the backoff. [RFC6298 2.2, 2.3]
    void sample(Duration rtt, Instant now);
    /// The retransmission timer fired: double the timeout. [RFC6298 5.5]
    void back_off() {
        if (backoffs_ < kMaxBackoffs) ++backoffs_;
    }
    /// New data was acknowledged, though nothing could be measured (Karn): the path works, start from RTO again.
    /// Linux does so too; RFC 6298 5 leaves the backoff standing until a sample and so stalls longer.
    void reset_backoff() { backoffs_ = 0; }
    /// The connection was established after the SYN had timed out. [RFC6298 5.7]
    void on_syn_lost() {
        syn_lost_ = true;
        backoffs_ = 0;
    }

    Duration rto() const;
    bool has_sample() const { return srtt_ != Duration::zero(); }
    /// Zero before the first sample.
    Duration srtt() const { return srtt_; }
    Duration rttvar() const { return rttvar_; }
    unsigned backoffs() const { return backoffs_; }
    /// The least sample of the last window (two at most); Duration::max() before the first sample.
    Duration min_rtt() const;

private:
    static constexpr std::uint8_t kMaxBackoffs = 16;

    Duration srtt_{0};
    Duration rttvar_{0};
    Instant window_start_{};
    std::uint32_t window_min_us_ = UINT32_MAX;    // of the window that is running
    std::uint32_t previous_min_us_ = UINT32_MAX;  // of the one before
    std::uint32_t min_rto_us_ = 200'000;
    std::uint8_t backoffs_ = 0;
    bool syn_lost_ = false;
};
static_assert(sizeof(RttEstimator) <= 48);

}  // namespace culvert::stack::tcp
