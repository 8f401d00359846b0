// Runs a fuzz target without libFuzzer: over the files of a corpus, and over seeded mutations of them, so that CTest
// walks a little off the known path in every run, and always the same way.
//
//   fuzz_frames_replay [--mutations N] [--seed S] FILE_OR_FOLDER...
//
// After a crash the last line says which: "seed S, mutation N of FILE"; `--seed S --only N FILE` repeats just that one.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "daemon/base/rng.h"
#include "tests/fuzz/target.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

char current[512];  // what is running

void report_crash(int number) {
    (void)!write(STDERR_FILENO, current, std::strlen(current));
    signal(number, SIG_DFL);
    raise(number);
}

Bytes read_file(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void mutate(Bytes& bytes, culvert::Rng& rng) {
    for (std::uint64_t n = 1 + rng.below(6); n > 0; --n) {
        const std::size_t at = bytes.empty() ? 0 : rng.below(bytes.size());
        const auto place = bytes.begin() + static_cast<std::ptrdiff_t>(at);
        switch (rng.below(6)) {
            case 0:
                if (!bytes.empty()) *place = static_cast<std::uint8_t>(rng.next());
                break;
            case 1:
                if (!bytes.empty()) *place ^= static_cast<std::uint8_t>(1u << rng.below(8));
                break;
            case 2: bytes.insert(place, static_cast<std::uint8_t>(rng.next())); break;
            case 3:
                if (!bytes.empty()) bytes.erase(place);
                break;
            case 4: {  // a piece again, somewhere else
                const std::size_t length = std::min<std::size_t>(bytes.size() - at, 1 + rng.below(16));
                const Bytes piece(place, place + static_cast<std::ptrdiff_t>(length));
                const std::size_t to = rng.below(bytes.size() + 1);
                bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(to), piece.begin(), piece.end());
                break;
            }
            default:
                if (!bytes.empty()) bytes.resize(1 + rng.below(bytes.size()));
        }
    }
}

}  // namespace

// The sanitizers' last word is an abort too, so that report_crash has the very last.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() { return "abort_on_error=1"; }
extern "C" __attribute__((visibility("default"))) const char* __ubsan_default_options() { return "abort_on_error=1"; }

int main(int argc, char** argv) {
    for (const int number : {SIGABRT, SIGFPE, SIGBUS}) signal(number, report_crash);
    std::uint64_t mutations = 0, seed = 1;
    std::uint64_t only = UINT64_MAX;
    std::vector<std::filesystem::path> files;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        const auto value = [&] { return i + 1 < argc ? std::strtoull(argv[++i], nullptr, 10) : 0; };
        if (argument == "--mutations") mutations = value();
        else if (argument == "--seed") seed = value();
        else if (argument == "--only") mutations = (only = value()) + 1;
        else if (std::filesystem::is_directory(argument))
            for (const auto& entry : std::filesystem::directory_iterator(argument)) files.push_back(entry.path());
        else files.emplace_back(argument);
    }
    std::sort(files.begin(), files.end());
    if (files.empty()) {
        std::fprintf(stderr, "no inputs: an empty corpus tests nothing\n");
        return 2;
    }
    for (const auto& file : files) {
        const Bytes original = read_file(file);
        if (only == UINT64_MAX) {
            std::snprintf(current, sizeof current, "%s itself\n", file.c_str());
            LLVMFuzzerTestOneInput(original.data(), original.size());
        }
        for (std::uint64_t n = 0; n < mutations; ++n) {
            if (only != UINT64_MAX && n != only) continue;
            culvert::Rng rng(seed * 1'000'003 + n);
            Bytes bytes = original;
            mutate(bytes, rng);
            std::snprintf(current, sizeof current, "seed %llu, mutation %llu of %s\n",
                          static_cast<unsigned long long>(seed), static_cast<unsigned long long>(n), file.c_str());
            LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        }
    }
    std::printf("%zu inputs, %llu mutations of each\n", files.size(), static_cast<unsigned long long>(mutations));
    return 0;
}
