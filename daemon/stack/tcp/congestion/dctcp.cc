#include "daemon/stack/tcp/congestion/dctcp.h"

#include <algorithm>

namespace culvert::stack::tcp {

// [RFC8257 3.3] steps 1 to 8. SACKs are left out, as step 1 says.
void Dctcp::on_delivery(const DeliveryEvent& event) {
    if (last_una_ == 0) {
        last_una_ = event.snd_una - std::min<std::uint64_t>(event.newly_delivered, event.snd_una);
        window_end_ = last_una_;
    }
    const std::uint64_t acked = event.snd_una - std::min(last_una_, event.snd_una);
    last_una_ = event.snd_una;
    acked_bytes_ += acked;
    if (event.echo) marked_bytes_ += acked;
    if (event.snd_una <= window_end_ || acked_bytes_ == 0) return;
    const float fraction = static_cast<float>(marked_bytes_) / static_cast<float>(acked_bytes_);
    alpha_ = alpha_ * (1 - kGain) + kGain * fraction;
    window_end_ = event.snd_nxt;
    acked_bytes_ = marked_bytes_ = 0;
}

// [RFC8257 3.3] step 9; at most once a window, as the connection sees to. Loss: RenoBase. [RFC8257 3.4]
void Dctcp::on_congestion_echo(Instant, std::uint64_t) {
    const auto kept = static_cast<std::uint32_t>(static_cast<double>(cwnd_) * (1 - static_cast<double>(alpha_) / 2));
    shrink_for_mark(kept);
}

}  // namespace culvert::stack::tcp
