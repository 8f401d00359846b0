#include "daemon/cli/policy_text.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string_view>

#include <fmt/format.h>

#include "shm/policy.h"

namespace culvert::cli {
namespace {

constexpr std::size_t kMostProfileBytes = 64 * 1024;

bool is_name(std::string_view text) {
    return !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    });
}

Result<std::string> read_file(const std::string& path) {
    std::ifstream stream(path);
    if (!stream) return fail_errno(path);
    std::string text(kMostProfileBytes, '\0');
    stream.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (stream.bad()) return fail(EIO, path);
    text.resize(static_cast<std::size_t>(stream.gcount()));
    return text;
}

std::string known_profiles() {
    std::set<std::string> names;
    for (const std::string& folder : profile_folders()) {
        std::error_code error;
        for (const auto& entry : std::filesystem::directory_iterator(folder, error))
            if (is_name(entry.path().filename().string())) names.insert(entry.path().filename());
    }
    return fmt::format("{}", fmt::join(names, ", "));
}

/// The path of a profile: NAME in one of the folders, or whatever has a slash in it.
Result<std::string> find_profile(const std::string& name) {
    if (name.find('/') != std::string::npos) return name;
    if (is_name(name))
        for (const std::string& folder : profile_folders())
            if (const std::string path = folder + "/" + name; ::access(path.c_str(), R_OK) == 0) return path;
    const std::string known = known_profiles();
    return fail(0, fmt::format("no profile \"{}\" in {}; {}", name, fmt::join(profile_folders(), ", "),
                               known.empty() ? "there are none" : "there are " + known));
}

/// `origin` as it stands in front of line and column.
Result<std::string> checked(const std::string& origin, const std::string& text) {
    shm::Policy policy;
    shm::PolicyError error;
    if (!policy.parse(text, error)) {
        const shm::TextPosition where = shm::position_in(text, error.at);
        return fail(0, fmt::format("{}:{}:{}: {} (culvert(1), POLICY)", origin, where.line, where.column, error.text));
    }
    std::array<char, shm::kMostPolicyText + 1> compact;
    if (!shm::compact_policy(text, compact.data()))
        return fail(0, fmt::format("{}: longer than {} bytes, comments left out", origin, shm::kMostPolicyText));
    return std::string(compact.data());
}

}  // namespace

std::vector<std::string> profile_folders() {
    if (const char* const named = std::getenv("CULVERT_PROFILES"); named != nullptr && *named != '\0') return {named};
    std::vector<std::string> folders{"/etc/culvert/profiles"};
    std::error_code error;
    const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
    if (!error) folders.push_back(self.parent_path().parent_path() / "share/culvert/profiles");
    if (const std::string installed = CULVERT_PROFILE_DIR; std::ranges::find(folders, installed) == folders.end())
        folders.push_back(installed);
    return folders;
}

Result<std::optional<std::string>> policy_for(const std::string& policy, const std::string& profile, const char* inherited) {
    if (!policy.empty()) return std::optional(TRY(checked("--policy", policy)));
    if (!profile.empty()) {
        const std::string path = TRY(find_profile(profile));
        const auto text = read_file(path);
        if (!text) return fail(0, fmt::format("profile {}", text.error().message()));
        return std::optional(TRY(checked(path, *text)));
    }
    if (inherited != nullptr) return std::optional(TRY(checked(shm::kPolicyVariable, inherited)));
    return std::optional<std::string>();
}

}  // namespace culvert::cli
