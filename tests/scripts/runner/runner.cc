#include "tests/scripts/runner/runner.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <sstream>

#include "tests/scripts/runner/assertion.h"
#include "tests/scripts/runner/calls.h"
#include "tests/scripts/runner/constants.h"
#include "tests/scripts/runner/flow.h"

namespace culvert::script {
namespace {

using std::chrono::milliseconds;

constexpr Duration kAnyTimeLimit = std::chrono::seconds(600);  // "*": but not for ever

struct Failure {
    std::string text;
};

std::string seconds(Duration time) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6f", std::chrono::duration<double>(time).count());
    return text;
}

std::uint64_t number_setting(const Script& script, const char* name, std::uint64_t usual) {
    const auto found = script.settings.find(name);
    if (found == script.settings.end()) return usual;
    std::uint64_t value = 0;
    const char* const end = found->second.data() + found->second.size();
    if (std::from_chars(found->second.data(), end, value).ptr != end)
        throw Unsupported("--" + found->first + "=" + found->second + ": not a number");
    return value;
}

void check_settings(const Script& script) {
    for (const auto& [name, value] : script.settings) {
        constexpr std::string_view kKnown[] = {"ip_version", "mtu", "tolerance_usecs", "kernel_tolerance_usecs",
                                               "tcp_ts_tick_usecs", "bind_port", "connect_port", "local_ip", "remote_ip"};
        if (std::ranges::find(kKnown, name) == std::end(kKnown)) throw Unsupported("--" + name + ": no such setting");
    }
}

/// sysctl -q net.ipv4.tcp_ecn=1 [name=value...], one or several commands.
void read_sysctls(const std::string& command, std::map<std::string, std::string>& into) {
    std::istringstream lines(command);
    for (std::string line; std::getline(lines, line, '\n');) {
        std::size_t at = line.find_first_not_of(" \t");
        if (at == std::string::npos) continue;
        if (line.compare(at, 7, "sysctl ") != 0)
            throw Unsupported("`" + line.substr(at) + "`: only sysctl is understood; nothing is run by a shell");
        at += 7;
        while (at < line.size()) {
            at = line.find_first_not_of(" \t;", at);
            if (at == std::string::npos) break;
            if (line[at] == '-') {
                at = std::min(line.find_first_of(" \t", at), line.size());
                continue;
            }
            const std::size_t equals = line.find('=', at);
            if (equals == std::string::npos) throw Unsupported("sysctl: expected NAME=VALUE");
            const std::string name = line.substr(at, equals - at);
            const bool quoted = equals + 1 < line.size() && (line[equals + 1] == '"' || line[equals + 1] == '\'');
            const std::size_t first = equals + (quoted ? 2 : 1);
            const std::size_t end = std::min(quoted ? line.find(line[equals + 1], first) : line.find_first_of(" \t;", first), line.size());
            into[name] = line.substr(first, end - first);
            at = end + (quoted ? 1 : 0);
        }
    }
}

Setup make_setup(const Script& script, bool ipv6) {
    Setup setup;
    setup.ipv6 = ipv6;
    // As packetdrill: the same MSS over both families.
    setup.mtu = static_cast<std::uint32_t>(number_setting(script, "mtu", 1500)) + (ipv6 ? 20 : 0);
    setup.local = {ipv6 ? *Address::parse("fd3d:a0b:17d6::1") : Address::v4(192, 168, 0, 1),
                   static_cast<Port>(number_setting(script, "bind_port", 8080))};
    setup.remote = {ipv6 ? *Address::parse("fd3d:fa7b:d17d::1") : Address::v4(192, 0, 2, 1),
                    static_cast<Port>(number_setting(script, "connect_port", 8080))};
    const auto address = [&](const char* name, Address& into) {
        const auto found = script.settings.find(name);
        if (found == script.settings.end()) return;
        const auto parsed = Address::parse(found->second);
        if (!parsed || parsed->is_v4() == ipv6) throw Unsupported(std::string("--") + name + ": not an address of this family");
        into = *parsed;
    };
    address("local_ip", setup.local.address);
    address("remote_ip", setup.remote.address);
    for (const Event& event : script.events)
        if (const auto* command = std::get_if<Command>(&event.what)) read_sysctls(command->text, setup.sysctls);
    return setup;
}

/// An inbound SYN makes the script's side the client: then its port is not the one that connect() would go to.
bool script_connects(const Script& script) {
    for (const Event& event : script.events)
        if (const auto* call = std::get_if<Syscall>(&event.what))
            if (call->name == "connect" || (call->name == "sendto" && call->arguments.size() == 6)) return true;
    return false;
}

class Player {
public:
    Player(const Script& script, const Play& how)
        : script_(script),
          setup_(make_setup(script, how.ipv6)),
          tolerance_(std::max<Duration>(how.tolerance, std::chrono::microseconds(number_setting(script, "tolerance_usecs", 0)))),
          calls_(setup_),
          flow_(setup_.local, client_endpoint(), std::chrono::microseconds(number_setting(script, "tcp_ts_tick_usecs", 0))),
          world_(how.make_world(setup_)) {
        flow_.allows_extra_push = how.extra_push;
    }

    void run() {
        for (const Event& event : script_.events) {
            event_ = &event;
            const Duration earliest = scheduled(event.when, event.when.earliest);
            const Duration latest = scheduled(event.when, event.when.latest);
            if (const auto* packet = std::get_if<Packet>(&event.what); packet != nullptr && !packet->inbound) {
                receive(*packet, event.when, earliest, latest);
            } else {
                if (event.when.base != When::Base::kAnyTime) world_->run_until(earliest);
                act(event, earliest);
                previous_ = event.when.base == When::Base::kAnyTime ? world_->now() : earliest;
            }
            settle(false);
        }
        settle(true);
        // What left after the last word of the script is nobody's business; what left before was not expected.
        if (const auto left = next_of_ours(world_->now())) throw Failure{"a packet left that nothing expects\n  actual:   " + show(*left)};
    }
    std::string transcript() const { return transcript_; }
    Place place() const { return event_ != nullptr ? event_->place : Place{}; }

private:
    struct Waiting {
        const Event* event;
        Call call;
        World::Ticket ticket;
        Duration ends;
    };

    Endpoint client_endpoint() const {
        return script_connects(script_) ? setup_.remote : Endpoint{setup_.remote.address, 50001};
    }
    Duration scheduled(const When& when, Duration time) const {
        switch (when.base) {
            case When::Base::kStart: return time;
            case When::Base::kPrevious: return previous_ + time;
            case When::Base::kAnyTime: return world_->now();
        }
        return time;
    }
    void note(const std::string& line) { transcript_ += "  " + seconds(world_->now()) + "  " + line + "\n"; }

    void act(const Event& event, Duration at) {
        if (const auto* packet = std::get_if<Packet>(&event.what)) {
            const auto bytes = flow_.build(*packet);
            if (!bytes) throw Failure{bytes.error()};
            note(event.source);
            world_->inject(*bytes);
        } else if (const auto* syscall = std::get_if<Syscall>(&event.what)) {
            invoke(event, *syscall, at);
        } else if (const auto* assertion = std::get_if<Assertion>(&event.what)) {
            check(*assertion);
        } else {
            note(event.source);  // sysctls have been set before the script began
        }
    }

    void invoke(const Event& event, const Syscall& syscall, Duration at) {
        settle(true);
        const Call call = calls_.prepare(syscall);
        flow_.ignores_payload = flow_.ignores_payload || calls_.ignores_payload;
        if (call.name == Call::Name::kConnect || (call.name == Call::Name::kSend && call.address)) flow_.new_active_open();
        const World::Ticket ticket = world_->begin(call);
        if (event.when.ends) {
            note(event.source + "   (begins)");
            waiting_.push_back({&event, call, ticket, at + (*event.when.ends - event.when.earliest)});
            return;
        }
        const auto finished = world_->finished(ticket, world_->now() + tolerance_);
        if (!finished) throw Failure{"the call blocks\n  expected: " + event.source};
        judge(event, syscall, call, finished->outcome);
    }

    void judge(const Event& event, const Syscall& syscall, const Call& call, const Outcome& outcome) {
        note(event.source + (event.when.ends ? "   (is back)" : ""));
        calls_.ignores_payload = calls_.ignores_payload || flow_.ignores_payload;
        if (const auto wrong = calls_.check(syscall, call, outcome)) throw Failure{*wrong + "\n  expected: " + event.source};
    }

    /// Calls that were begun and should be back. `all`: nothing else can happen before they are.
    void settle(bool all) {
        while (!waiting_.empty()) {
            const Waiting& first = waiting_.front();
            const auto finished = world_->finished(first.ticket, all ? std::max(world_->now(), first.ends + tolerance_) : world_->now());
            if (!finished) {
                if (!all && world_->now() <= first.ends + tolerance_) return;
                event_ = first.event;
                throw Failure{"the call has not come back by " + seconds(first.ends + tolerance_) + "\n  expected: " + first.event->source};
            }
            const Waiting done = first;
            waiting_.erase(waiting_.begin());
            const Event* const before = std::exchange(event_, done.event);
            judge(*done.event, std::get<Syscall>(done.event->what), done.call, finished->outcome);
            if (finished->at < done.ends - tolerance_ || finished->at > done.ends + tolerance_)
                throw Failure{"the call came back at " + seconds(finished->at) + ", not at " + seconds(done.ends) + "\n  expected: " + done.event->source};
            event_ = before;
        }
    }

    std::string show(const World::Departed& departed) {
        const auto packet = decode(departed.packet);
        return seconds(departed.at) + " > " + (packet ? flow_.describe(*packet) : packet.error().why);
    }

    void receive(const Packet& wanted, const When& when, Duration earliest, Duration latest) {
        const bool any = when.base == When::Base::kAnyTime;
        const Duration deadline = any ? world_->now() + kAnyTimeLimit : latest + tolerance_;
        const auto departed = next_of_ours(deadline);
        const auto expected = [&] {
            return "\n  expected: " + (any ? std::string("*") : seconds(earliest) + (latest != earliest ? "~" + seconds(latest) : "")) +
                   event_->source.substr(event_->source.find_first_of(" \t>"));
        };
        if (!departed) throw Failure{"no packet has left until " + seconds(deadline) + expected()};
        const auto packet = decode(departed->packet);
        if (!packet) throw Failure{"the packet cannot be read: " + packet.error().why + expected()};
        const std::string actual = "\n  actual:   " + seconds(departed->at) + " > ";
        if (const auto wrong = flow_.match(wanted, *packet, departed->at)) throw Failure{*wrong + expected() + actual + flow_.describe(*packet)};
        if (!any && (departed->at < earliest - tolerance_ || departed->at > latest + tolerance_))
            throw Failure{std::string("the packet left too ") + (departed->at < earliest ? "early" : "late") + expected() + actual + flow_.describe(*packet)};
        transcript_ += "  " + seconds(departed->at) + "  > " + flow_.describe(*packet) + "\n";
        previous_ = any || latest != earliest ? departed->at : earliest;
    }

    /// The next packet that is TCP or UDP: the kernel also asks for routers and joins groups.
    std::optional<World::Departed> next_of_ours(Duration deadline) {
        for (;;) {
            auto departed = world_->next_packet(deadline);
            if (!departed) return departed;
            const auto packet = decode(departed->packet);
            if (packet || !packet.error().ignorable) return departed;
        }
    }

    void check(const Assertion& assertion) {
        const auto fd = calls_.subject();
        const auto wrong = evaluate(assertion.text, [&](std::string_view name) -> std::optional<std::int64_t> {
            if (const auto value = constant(name)) return value;
            return fd ? world_->info(*fd, name) : std::nullopt;
        });
        note("%{" + assertion.text + "}%");
        if (wrong) throw Failure{"the assertion " + *wrong};
    }

    const Script& script_;
    const Setup setup_;
    const Duration tolerance_;
    Calls calls_;
    Flow flow_;
    std::unique_ptr<World> world_;
    const Event* event_ = nullptr;
    Duration previous_{};
    std::vector<Waiting> waiting_;
    std::string transcript_;
};

}  // namespace

bool wants(const Script& script, bool ipv6) {
    const auto found = script.settings.find("ip_version");
    return found == script.settings.end() || found->second == "both" || found->second == (ipv6 ? "ipv6" : "ipv4");
}

Verdict play(const Script& script, const Play& how) {
    std::optional<Player> player;
    const auto verdict = [&](Verdict::Kind kind, std::string text) {
        return Verdict{kind, player ? player->place() : Place{}, std::move(text), player ? player->transcript() : ""};
    };
    try {
        check_settings(script);
        player.emplace(script, how);
        player->run();
        return verdict(Verdict::Kind::kPassed, "");
    } catch (const Failure& failure) {
        return verdict(Verdict::Kind::kFailed, failure.text);
    } catch (const Unsupported& unsupported) {
        return verdict(Verdict::Kind::kUnsupported, unsupported.what());
    } catch (const Complaint& complaint) {
        Verdict failed = verdict(Verdict::Kind::kFailed, complaint.text);
        failed.place = complaint.place;
        return failed;
    }
}

}  // namespace culvert::script
