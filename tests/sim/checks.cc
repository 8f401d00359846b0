// What must hold, whatever the weather.
#include <algorithm>
#include <cerrno>

#include "tests/sim/world.h"

namespace culvert::sim {
namespace {

// In fair weather a few losses in a row on top of a full accept queue cost some minutes. In bad weather timers back off to two minutes each, and
// fifteen of them end the connection; orphans are given up by theirs.
constexpr Duration kFairPatience = std::chrono::seconds(600);
constexpr Duration kBadPatience = std::chrono::seconds(2400);

bool plausible(int error) {
    return error == 0 || error == ETIMEDOUT || error == ECONNRESET || error == ECONNREFUSED || error == EHOSTUNREACH ||
           error == EPIPE || error == ECONNABORTED || error == ENOBUFS;
}

}  // namespace

void World::check_stalls() {
    for (const auto& each : applications_) {
        Application& application = *each;
        if (application.closed()) continue;
        if (application.progress() != application.seen_progress) {
            application.seen_progress = application.progress();
            application.progressed_at = now_;
        }
        const bool fair = plan_.orderly() && now_ > calm_since_;
        if (now_ - std::max(application.progressed_at, calm_since_) > (fair ? kFairPatience : kBadPatience))
            failures_.add(application.describe() + ": stands still");
    }
}

void World::check_pairs() {
    for (const auto& application : applications_) {
        application->check_end();
        failures_.expect(plausible(application->error()), application->describe() + ": no error for an application");
    }
    for (const Pair& pair : pairs_) {
        ++totals_.connections;
        if (pair.client != nullptr) ++(pair.client->error() == 0 ? totals_.in_order : totals_.with_error);
        if (!plan_.orderly()) continue;
        const auto complete = [](const Application* server) { return server->complete(); };
        const auto reset_late = [](const Application* server) { return server->reset_after_the_end(); };
        const bool client = pair.client->complete(), server = std::ranges::any_of(pair.servers, complete);
        const bool fine = (client && server) || (client && std::ranges::any_of(pair.servers, reset_late)) ||
                          (server && pair.client->reset_after_the_end());
        // A cookie lives for two minutes at most. Where the accept queue was full each time that the ACK came through, and what
        // came in between was lost, it is too old in the end, and the client is reset. (seed 3706)
        const bool cookie_grew_old = pair.servers.empty() && pair.client->error() == ECONNRESET &&
                                     server_->counters.tcp_syn_cookies_sent > 0;
        failures_.expect(fine || cookie_grew_old, pair.client->describe() + ": did not end in order, in fair weather: " +
                                   (pair.servers.empty() ? "never accepted" : pair.servers.front()->describe()));
    }
    // The counters tell the same story. A connection may be refused by its owner after it was counted.
    failures_.expect(client_->counters.tcp_passive_opens == 0, "client: counted connections that it never accepted");
    if (!plan_.erratic) {
        std::size_t accepted = 0, crossed = 0;
        for (const Pair& pair : pairs_) (pair.crossed ? crossed : accepted) += pair.servers.size();
        failures_.expect(server_->counters.tcp_passive_opens == accepted,
                         "server: accepted " + std::to_string(accepted) + ", counted " + std::to_string(server_->counters.tcp_passive_opens));
        failures_.expect(server_->counters.tcp_active_opens == crossed,
                         "server: opened " + std::to_string(crossed) + ", counted " + std::to_string(server_->counters.tcp_active_opens));
    }
}

/// Sockets are closed; then time passes until nothing is waited for: TIME-WAIT, half-open connections, learnt MTUs.
void World::wind_up() {
    winding_up_ = true;
    for (Wire& wire : wires_) wire.link.cut_off = false;
    server_->stack.close(*listener_);
    if (client_datagrams_) {
        client_datagrams_->close();
        server_datagrams_->close();
    }
    agenda_ = {};
    for (const Instant end = now_ + 20min; now_ < end && next() != kNever;) step();
    for (SimHost* host : hosts_) {
        host->check_budgets();
        host->check_nothing_left(0);
    }
    std::uint64_t duplicated = 0;
    for (const Wire& wire : wires_) duplicated += wire.link.duplicated;
    const auto heard = [&](const SimHost& by, const SimHost& of) {
        failures_.expect(by.counters.tcp_segments_in <= of.counters.tcp_segments_out + duplicated,
                         by.name + ": received more segments than were sent");
    };
    heard(*client_, *server_);
    heard(*server_, *client_);
}

void World::count() {
    totals_.worlds = 1;
    for (const Pair& pair : pairs_) totals_.bytes += pair.dialogue.out_bytes + pair.dialogue.in_bytes;
    for (const SimHost* host : hosts_) {
        const Counters& c = host->counters;
        totals_.segments += c.tcp_segments_out;
        totals_.retransmits += c.tcp_retransmits;
        totals_.timeouts += c.tcp_timeouts;
        totals_.recoveries += c.tcp_fast_retransmits;
        totals_.out_of_order += c.tcp_out_of_order;
        totals_.probes += c.tcp_zero_window_probes;
        totals_.no_frame += c.dropped(Drop::kTxNoFrame);
        totals_.cookies += c.tcp_syn_cookies_accepted;
        totals_.forwarded += c.ip_forwarded;
        totals_.reassembled += c.ip_reassembled;
        totals_.merged += c.tcp_segments_merged;
        totals_.black_holes += c.tcp_mtu_black_holes;
    }
    for (const Wire& wire : wires_) totals_.marked += wire.link.marked;
    if (client_datagrams_) totals_.datagrams += client_datagrams_->received + server_datagrams_->received;
}

std::string World::first_culprit() const {
    if (failures_.none()) return "all";
    const std::string& line = failures_.lines().front();
    const auto colon = line.find(':');
    const auto end = line.find(' ');
    if (colon == std::string::npos || end == std::string::npos || end <= colon + 1) return "all";
    return line.substr(colon, end - colon) + " ";
}

Totals& Totals::operator+=(const Totals& other) {
    // Both are plain lists of the same kind of number.
    static_assert(sizeof(Totals) % sizeof(std::uint64_t) == 0 && std::is_trivially_copyable_v<Totals>);
    auto* const sums = reinterpret_cast<std::uint64_t*>(this);
    const auto* const more = reinterpret_cast<const std::uint64_t*>(&other);
    for (std::size_t i = 0; i < sizeof(Totals) / sizeof(std::uint64_t); ++i) sums[i] += more[i];
    return *this;
}

std::string Totals::describe() const {
    const auto n = [](std::uint64_t number, const char* what) { return ", " + std::to_string(number) + " " + what; };
    return std::to_string(worlds) + " worlds" + n(connections, "connections") + n(in_order, "of them in order") +
           n(with_error, "with an error") + n(both_active, "opened from both ends") + n(bytes, "bytes") +
           n(segments, "segments") + n(retransmits, "retransmitted") + n(timeouts, "timeouts") + n(recoveries, "recoveries") +
           n(out_of_order, "out of order") + n(probes, "window probes") + n(no_frame, "without a frame") +
           n(cookies, "cookies") + n(marked, "marked") + n(told_too_big, "told too big") + n(forwarded, "forwarded") +
           n(datagrams, "datagrams") + n(reassembled, "put together") + n(merged, "merged") + n(black_holes, "black holes");
}

std::string Plan::describe() const {
    std::string text = std::to_string(connections) + " connections over IPv" + (v6 ? "6" : "4") + ", MTU " + std::to_string(mtu);
    if (erratic) text += ", erratic";
    if (harsh) text += ", harsh";
    if (tight) text += ", tight";
    if (routed) text += ", routed";
    if (datagrams) text += ", datagrams";
    const Weather& w = weather;
    const auto percent = [](double part) { return std::to_string(part * 100).substr(0, 4) + " %"; };
    text += "; loss " + percent(w.loss) + ", bursts " + percent(w.burst) + " of " + percent(w.burst_more) + ", duplicates " +
            percent(w.duplicate) + ", reordered " + percent(w.reorder) + ", damaged " + percent(w.corrupt) + ", delay " +
            std::to_string(w.delay.count() / 1000) + " us, jitter " + std::to_string(w.jitter.count() / 1000) + " us";
    if (w.bytes_per_second > 0)
        text += ", " + std::to_string(static_cast<std::uint64_t>(w.bytes_per_second)) + " B/s, queue " +
                std::to_string(static_cast<std::uint64_t>(w.longest_queue));
    return text;
}

}  // namespace culvert::sim
