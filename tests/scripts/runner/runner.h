// Plays one script in one world: each event at its time, each packet and each outcome against what the script says.
#pragma once

#include <optional>
#include <string>

#include "tests/scripts/runner/script.h"
#include "tests/scripts/runner/world.h"

namespace culvert::script {

struct Play {
    bool ipv6 = false;
    /// How far from its time an event may happen. The script's own setting is used if it is larger.
    Duration tolerance = std::chrono::milliseconds(4);
    MakeWorld make_world = nullptr;
    /// PSH where the script has none is no difference: when to push beyond [RFC9293 3.9.1 MUST-61] is a stack's own choice.
    bool extra_push = false;
};

struct Verdict {
    enum class Kind { kPassed, kFailed, kUnsupported };
    Kind kind = Kind::kPassed;
    Place place;             // of the event
    std::string text;        // what is wrong, expected and actual
    std::string transcript;  // everything so far
};

Verdict play(const Script& script, const Play& how);

/// Whether the script is to be run over this family (--ip_version).
bool wants(const Script& script, bool ipv6);

}  // namespace culvert::script
