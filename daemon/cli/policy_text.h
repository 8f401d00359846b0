// The policy of `culvert run`: from the command line, from a profile, or as it was inherited; checked before the program starts.
//
//   --policy TEXT -----------------------+
//   --profile nginx --> profiles/nginx --+--> shm::Policy says yes --> CULVERT_POLICY, comments taken out
//   CULVERT_POLICY in the environment ---+
//
// A profile is a file with a policy and comments, nothing else; packaging/profiles/README.md.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "shm/base/error.h"

namespace culvert::cli {

/// Folders in which --profile NAME is looked for, in order. CULVERT_PROFILES, if set, is the only one.
std::vector<std::string> profile_folders();

/// What CULVERT_POLICY shall be; nothing: neither an option nor the environment says. `inherited`: its present value, may be null.
/// Errors: one line for a person, with line and column where the text is wrong.
Result<std::optional<std::string>> policy_for(const std::string& policy, const std::string& profile, const char* inherited);

}  // namespace culvert::cli
