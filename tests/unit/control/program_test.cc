// Which programs LD_PRELOAD reaches: each kind is made by the compiler here, and looked at.
#include "daemon/cli/program.h"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace culvert::cli {
namespace {

class ProgramTest : public testing::Test {
protected:
    static constexpr uid_t kStranger = 12345;

    void SetUp() override {
        std::string name = testing::TempDir() + "culvert-program-XXXXXX";
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder_ = name;
        if (std::system("cc --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "no C compiler to make programs with";
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    std::string file(const std::string& name, const std::string& text) {
        const std::filesystem::path path = folder_ / name;
        std::ofstream(path) << text;
        ::chmod(path.c_str(), 0755);
        return path;
    }
    std::string compile(const std::string& name, const std::string& flags, const std::string& source = "int main(void) { return 0; }") {
        const std::string code = file(name + ".c", source);
        const std::string out = folder_ / name;
        const std::string log = folder_ / (name + ".log");
        EXPECT_EQ(std::system(("cc " + code + " -o " + out + " " + flags + " 2>" + log).c_str()), 0) << "cc " << flags;
        return out;
    }
    static std::string why(const std::string& path, uid_t uid = 0) { return why_unreachable(path, uid, ::getgid()); }

    std::filesystem::path folder_;
};

constexpr const char* kGoNote = R"(
    __asm__(".section .note.go.buildid,\"a\",@note\n"
            ".long 4, 8, 4\n"
            ".ascii \"Go\\0\\0\"\n"
            ".ascii \"build-id\"\n"
            ".text\n");
    int main(void) { return 0; }
)";

TEST_F(ProgramTest, OrdinaryOnesAreReached) {
    EXPECT_EQ(why(compile("dynamic", "")), "");
    EXPECT_EQ(why(compile("fixed", "-no-pie")), "");
    EXPECT_EQ(needed_libraries(compile("plain", "")), std::vector<std::string>{"libc.so.6"});
}

TEST_F(ProgramTest, StaticOnesAreNot) {
    EXPECT_EQ(why(compile("static", "-static")), "it is statically linked");
    EXPECT_EQ(why(compile("static-pie", "-static-pie")), "it is statically linked");
}

TEST_F(ProgramTest, GoIsNotReachedHoweverItIsLinked) {
    EXPECT_EQ(why(compile("go", "-static", kGoNote)), "it is a Go program, which makes its system calls without libc");
    EXPECT_EQ(why(compile("cgo", "", kGoNote)), "it is a Go program, which makes its system calls without libc");
    // Another owner's note of that length is no sign.
    std::string other = kGoNote;
    other.replace(other.find("Go"), 2, "Do");
    EXPECT_EQ(why(compile("other", "", other)), "");
}

TEST_F(ProgramTest, OfAnotherLibcOrAnotherWordLength) {
    EXPECT_EQ(why(compile("musl", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1")), "it is linked with musl, libculvert.so with glibc");
#ifdef __x86_64__
    EXPECT_EQ(why(compile("small", "-m32 -nostdlib -static", "void _start(void) { for (;;) {} }")),
              "it is a 32-bit program, and libculvert.so is a 64-bit library");
#endif
}

TEST_F(ProgramTest, ThatGainPrivileges) {
    const std::string program = compile("privileged", "");
    ::chmod(program.c_str(), 04755);
    EXPECT_EQ(why(program, kStranger), "it is set-user-ID");
    EXPECT_EQ(why(program, ::getuid()), "") << "it is the caller's own: nothing is gained";
    ::chmod(program.c_str(), 0755);
    const vfs_cap_data capabilities{.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE, .data = {{1u << CAP_NET_BIND_SERVICE, 0}, {0, 0}}};
    if (::setxattr(program.c_str(), "security.capability", &capabilities, sizeof capabilities, 0) != 0)
        GTEST_SKIP() << "file capabilities cannot be set here: " << std::strerror(errno);
    EXPECT_EQ(why(program, kStranger), "it has file capabilities");
    EXPECT_EQ(why(program, 0), "") << "root has them anyway";
}

TEST_F(ProgramTest, ScriptsAreWhatTheirInterpreterIs) {
    const std::string interpreter = compile("interpreter", "-static");
    const std::string script = file("script", "#!" + interpreter + " -x\n");
    EXPECT_EQ(why(script), "its interpreter " + interpreter + ": it is statically linked");
    EXPECT_EQ(why(file("second", "#!" + script + "\n")), "its interpreter " + interpreter + ": it is statically linked");
    const std::string path = std::getenv("PATH");
    ::setenv("PATH", (folder_.string() + ":" + path).c_str(), 1);
    EXPECT_EQ(why(file("by-env", "#!/usr/bin/env interpreter\n")), "its interpreter " + interpreter + ": it is statically linked");
    EXPECT_EQ(why(file("by-env-too", "#! /usr/bin/env  interpreter -x\n")), "its interpreter " + interpreter + ": it is statically linked");
    EXPECT_EQ(why(file("option", "#!/usr/bin/env -S interpreter\n")), "") << "env itself";
    EXPECT_EQ(why(file("nothing", "#!/usr/bin/env\n")), "");
    EXPECT_EQ(why(file("shell", "#!/bin/sh\n")), "");
    ::setenv("PATH", path.c_str(), 1);
    const std::string loop = (folder_ / "loop").string();
    EXPECT_EQ(why(file("loop", "#!" + loop + "\n")), "") << "the kernel gives up as well";
}

TEST_F(ProgramTest, LiburingIsSeen) {
    compile("liburing.so.2", "-shared -fPIC -Wl,-soname,liburing.so.2", "int io_uring_queue_init(void) { return 0; }");
    const std::string program = compile("ring", "-no-pie " + (folder_ / "liburing.so.2").string(),
                                        "int io_uring_queue_init(void); int main(void) { return io_uring_queue_init(); }");
    EXPECT_EQ(needed_libraries(program), (std::vector<std::string>{"liburing.so.2", "libc.so.6"}));
    EXPECT_EQ(why(program), "") << "it is reached, and says nothing on its rings";
    EXPECT_TRUE(needed_libraries("/nonexistent").empty());
    EXPECT_TRUE(needed_libraries(file("text", "hello")).empty());
}

TEST_F(ProgramTest, DamagedFilesDoNoHarm) {
    std::ifstream stream(compile("whole", ""), std::ios::binary);
    const std::string whole{std::istreambuf_iterator<char>(stream), {}};
    unsigned state = 20261121;
    const auto below = [&](std::size_t limit) { return (state = state * 1103515245u + 12345u) / 65536u % limit; };
    for (int round = 0; round < 400; ++round) {
        std::string damaged = whole.substr(0, round % 4 == 0 ? below(whole.size()) : whole.size());
        for (std::size_t i = 0; i < 8 && damaged.size() > 64; ++i) damaged[below(1024) % damaged.size()] = static_cast<char>(below(256));
        const std::string path = file("damaged", damaged);
        (void)why(path);
        (void)needed_libraries(path);
    }
}

}  // namespace
}  // namespace culvert::cli
