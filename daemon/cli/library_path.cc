#include "daemon/cli/library_path.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string_view>

namespace culvert::cli {

std::vector<std::string> library_candidates() {
    if (const char* override_path = std::getenv("CULVERT_LIBRARY"); override_path != nullptr && *override_path != '\0')
        return {override_path};
    std::vector<std::string> candidates;
    std::error_code error;
    const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
    if (!error) {
        const std::filesystem::path prefix = self.parent_path().parent_path();
        candidates.push_back(prefix / "lib/libculvert.so");
        candidates.push_back(prefix / "lib/culvert/libculvert.so");
    }
    candidates.push_back(CULVERT_LIBRARY_DIR "/libculvert.so");
    candidates.push_back("/usr/lib/culvert/libculvert.so");
    candidates.push_back("/usr/local/lib/culvert/libculvert.so");
    return candidates;
}

std::string find_library() {
    for (const std::string& candidate : library_candidates())
        if (::access(candidate.c_str(), R_OK) == 0) return candidate;
    return {};
}

bool must_be_first(std::string_view library) {
    library.remove_prefix(library.rfind('/') + 1);  // npos + 1 is 0
    return library.starts_with("libasan.so") || library.starts_with("libclang_rt.asan");
}

std::string preload_value(const std::string& library, const char* existing, const std::string& first) {
    const std::string ours = first.empty() ? library : first + ":" + library;
    if (existing == nullptr || *existing == '\0') return ours;
    // ld.so(8): the list is separated by spaces or colons.
    std::string_view rest(existing);
    while (!rest.empty()) {
        const std::size_t end = rest.find_first_of(": ");
        if (rest.substr(0, end) == library) return existing;
        if (end == std::string_view::npos) break;
        rest.remove_prefix(end + 1);
    }
    const std::string_view all(existing);
    if (must_be_first(all.substr(0, all.find_first_of(": ")))) return std::string(all) + ":" + library;
    return ours + ":" + existing;
}

}  // namespace culvert::cli
