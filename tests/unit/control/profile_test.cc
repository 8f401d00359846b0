// packaging/profiles: every file is a policy, and means what its table in the README says.
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "shm/policy.h"

namespace culvert::shm {
namespace {

using Protocol = Policy::Protocol;
using Call = Policy::Call;

/// tcp listen, tcp connect, udp listen, udp connect, raw listen: of the wildcard address and of a peer somewhere; then the same
/// on loopback. "C": through Culvert.
std::string meaning(const Policy& policy) {
    const Policy::AddressBytes any{};
    const Policy::AddressBytes peer = {0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    const Policy::AddressBytes loopback = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    std::string text;
    const auto add = [&](Protocol protocol, Call call, const Policy::AddressBytes& address) {
        text += policy.allows(protocol, call, address, 4711) ? 'C' : 'k';
    };
    add(Protocol::kTcp, Call::kListen, any);
    add(Protocol::kTcp, Call::kConnect, peer);
    add(Protocol::kUdp, Call::kListen, any);
    add(Protocol::kUdp, Call::kConnect, peer);
    add(Protocol::kRaw, Call::kListen, any);
    text += ' ';
    add(Protocol::kTcp, Call::kListen, loopback);
    add(Protocol::kTcp, Call::kConnect, loopback);
    add(Protocol::kUdp, Call::kListen, loopback);
    return text;
}

TEST(Profiles, MeanWhatTheReadmeSays) {
    const std::map<std::string, std::string> expected{
        {"nginx", "CCCkk kkk"},  {"redis", "CCkkk kkk"},  {"memcached", "CkCkk kkk"}, {"haproxy", "CCCkk kkk"},
        {"postgres", "CCkkk kkk"}, {"python", "CCCCk kkk"}, {"node", "CCCkk kkk"},
    };
    std::map<std::string, std::string> found;
    const std::filesystem::path folder = CULVERT_SOURCE_DIR "/packaging/profiles";
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().filename() == "README.md") continue;
        SCOPED_TRACE(entry.path());
        std::ifstream stream(entry.path());
        const std::string text{std::istreambuf_iterator<char>(stream), {}};
        Policy policy;
        PolicyError error;
        ASSERT_TRUE(policy.parse(text, error)) << position_in(text, error.at).line << ": " << error.text;
        std::array<char, kMostPolicyText + 1> compact;
        EXPECT_TRUE(compact_policy(text, compact.data())) << "it does not fit the environment";
        EXPECT_NE(text.find("# systemd: systemctl edit "), std::string::npos) << "says how a service gets it";
        found[entry.path().filename()] = meaning(policy);
    }
    EXPECT_EQ(found, expected);
}

TEST(Profiles, AreAllInstalled) {
    std::ifstream stream(CULVERT_SOURCE_DIR "/packaging/CMakeLists.txt");
    const std::string rules{std::istreambuf_iterator<char>(stream), {}};
    for (const auto& entry : std::filesystem::directory_iterator(CULVERT_SOURCE_DIR "/packaging/profiles")) {
        const bool installed = rules.find("profiles/" + entry.path().filename().string()) != std::string::npos;
        EXPECT_TRUE(installed || entry.path().extension() == ".md") << entry.path();
    }
}

}  // namespace
}  // namespace culvert::shm
