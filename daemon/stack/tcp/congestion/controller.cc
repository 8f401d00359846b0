#include "daemon/stack/tcp/congestion/controller.h"

#include <algorithm>
#include <type_traits>

#include "daemon/stack/tcp/congestion/bbr.h"
#include "daemon/stack/tcp/congestion/cubic.h"
#include "daemon/stack/tcp/congestion/dctcp.h"
#include "daemon/stack/tcp/congestion/new_reno.h"
#include "shm/base/check.h"

namespace culvert::stack::tcp {

std::string_view algorithm_name(Algorithm algorithm) {
    switch (algorithm) {
        case Algorithm::kNewReno: return "reno";
        case Algorithm::kCubic: return "cubic";
        case Algorithm::kBbr: return "bbr";
        case Algorithm::kDctcp: return "dctcp";
    }
    return "?";
}

std::optional<Algorithm> parse_algorithm(std::string_view name) {
    if (name == "cubic") return Algorithm::kCubic;
    if (name == "reno" || name == "newreno") return Algorithm::kNewReno;
    if (name == "bbr") return Algorithm::kBbr;
    if (name == "dctcp") return Algorithm::kDctcp;
    return std::nullopt;
}

std::uint32_t CongestionController::initial_window(std::uint32_t mss) {
    return std::min(10 * mss, std::max(2 * mss, 14600u));
}

CongestionController::CongestionController(std::uint32_t mss)
    : cwnd_(initial_window(std::max(mss, 1u))), mss_(std::max(mss, 1u)) {}

void CongestionController::set_mss(std::uint32_t mss) {
    const bool untouched = cwnd_ == initial_window(mss_) && ssthresh_ == UINT32_MAX;
    mss_ = std::max(mss, 1u);
    cwnd_ = untouched ? initial_window(mss_) : std::max(cwnd_, mss_);
}

void CongestionController::adopt(std::uint32_t cwnd, std::uint32_t ssthresh) {
    cwnd_ = std::max(cwnd, mss_);
    ssthresh_ = ssthresh;
}

void CongestionController::on_idle_restart() {
    // ssthresh keeps what was learned about the path (RFC 7661 spirit), so slow start finds the way back quickly.
    if (cwnd_ > initial_window(mss_)) ssthresh_ = std::max(ssthresh_, cwnd_ - cwnd_ / 4);
    cwnd_ = std::min(cwnd_, initial_window(mss_));  // [RFC5681 4.1]
}

bool CongestionController::may_grow(const AckEvent& event) const {
    if (event.in_flight + mss_ > cwnd_) return true;
    if (in_slow_start()) return cwnd_ < 2 * event.in_flight;
    return !event.app_limited;
}

std::uint32_t CongestionController::flight_size(std::uint64_t in_flight) const {
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(in_flight, cwnd_));
}

void CongestionController::grow(std::uint64_t bytes) {
    constexpr std::uint64_t kMaxWindow = std::uint64_t{1} << 30;  // the largest window RFC 7323 can advertise
    cwnd_ = static_cast<std::uint32_t>(std::max<std::uint64_t>(cwnd_, std::min(cwnd_ + bytes, kMaxWindow)));
}

template <typename Controller, typename... More>
void CongestionState::emplace(std::uint32_t mss, More&... more) {
    static_assert(sizeof(Controller) <= kBytes && alignof(Controller) <= 8);
    static_assert(std::is_trivially_destructible_v<Controller>);
    auto* const controller = new (storage_) Controller(mss, more...);
    DCHECK(static_cast<void*>(static_cast<CongestionController*>(controller)) == static_cast<void*>(storage_));
    // A pointer to a member that was not overridden has the type of the base's.
    controller->set_wants_delivery(!std::is_same_v<decltype(&Controller::on_delivery),
                                                   void (CongestionController::*)(const DeliveryEvent&)>);
}

void CongestionState::create(Algorithm algorithm, std::uint32_t mss, BbrPool* models) {
    switch (algorithm) {
        case Algorithm::kNewReno: return emplace<NewReno>(mss);
        case Algorithm::kCubic: return emplace<Cubic>(mss);
        case Algorithm::kDctcp: return emplace<Dctcp>(mss);
        case Algorithm::kBbr:
            if (BbrModel* const model = models != nullptr ? models->create() : nullptr) return emplace<Bbr>(mss, *model);
            return emplace<Cubic>(mss);
    }
    CHECK(false);
}

bool CongestionState::change(Algorithm algorithm, BbrPool* models) {
    if (get()->algorithm() == algorithm) return true;
    if (models != nullptr) release(*models);
    const std::uint32_t cwnd = get()->cwnd();
    const std::uint32_t ssthresh = get()->ssthresh();
    create(algorithm, get()->mss(), models);
    get()->adopt(cwnd, ssthresh);
    return get()->algorithm() == algorithm;
}

void CongestionState::release(BbrPool& models) {
    if (get()->algorithm() != Algorithm::kBbr) return;
    const std::uint32_t cwnd = get()->cwnd();
    const std::uint32_t ssthresh = get()->ssthresh();
    const std::uint32_t mss = get()->mss();
    models.destroy(&static_cast<Bbr*>(get())->model());
    emplace<NewReno>(mss);
    get()->adopt(cwnd, ssthresh);
}

}  // namespace culvert::stack::tcp
