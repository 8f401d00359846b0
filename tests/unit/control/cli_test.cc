// `culvert run`: what it says, and its exit codes, without a daemon. Plus the pieces it is made of.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "daemon/cli/admin_client.h"
#include "daemon/cli/library_path.h"
#include "daemon/cli/program.h"
#include "daemon/cli/tables.h"

namespace culvert::cli {
namespace {

struct Outcome {
    int code = -1;
    std::string out;
    std::string err;
};

std::string slurp(const std::filesystem::path& path) {
    std::ifstream stream(path);
    return {std::istreambuf_iterator<char>(stream), {}};
}

class CliTest : public testing::Test {
protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "culvert-cli-XXXXXX";
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder_ = name;
        socket_ = folder_ / "control.sock";
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    std::filesystem::path file(const std::string& name, const std::string& text, mode_t mode) {
        const std::filesystem::path path = folder_ / name;
        std::ofstream(path) << text;
        ::chmod(path.c_str(), mode);
        return path;
    }

    /// Runs `culvert ARGUMENTS` through the shell, without a library to preload.
    Outcome culvert(const std::string& arguments) {
        const std::string command = "CULVERT_LIBRARY=" + library_ + " '" CULVERT_BINARY "' " + arguments + " >" +
                                    (folder_ / "out").string() + " 2>" + (folder_ / "err").string();
        const int status = std::system(command.c_str());
        return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(folder_ / "out"), slurp(folder_ / "err")};
    }
    Outcome run(const std::string& arguments) { return culvert("run --socket " + socket_.string() + " " + arguments); }

    std::filesystem::path folder_;
    std::filesystem::path socket_;
    std::string library_ = "/nonexistent/libculvert.so";
};

TEST_F(CliTest, VersionAndHelp) {
    EXPECT_EQ(culvert("--version").out, "culvert " CULVERT_VERSION "\n");
    EXPECT_EQ(culvert("--help").code, 0);
    EXPECT_NE(culvert("--help").out.find("Exit status"), std::string::npos);
}

TEST_F(CliTest, WrongUsage) {
    EXPECT_EQ(culvert("").code, 2);
    EXPECT_EQ(culvert("ss --jsno").code, 2);
    const Outcome outcome = culvert("run");
    EXPECT_EQ(outcome.code, 125);
    EXPECT_NE(outcome.err.find("PROGRAM"), std::string::npos) << outcome.err;
}

TEST_F(CliTest, WithoutDaemonTheProgramRunsOnKernelSockets) {
    const Outcome outcome = run("-- sh -c 'echo hello; exit 7'");
    EXPECT_EQ(outcome.code, 7);
    EXPECT_EQ(outcome.out, "hello\n");
    EXPECT_NE(outcome.err.find("culvert: no daemon at " + socket_.string() +
                               " (No such file or directory); sh runs on kernel sockets\n"), std::string::npos)
        << outcome.err;
}

TEST_F(CliTest, StrictRefusesWithoutDaemon) {
    const Outcome outcome = run("--strict -- sh -c 'echo hello'");
    EXPECT_EQ(outcome.code, 125);
    EXPECT_EQ(outcome.out, "");
    EXPECT_NE(outcome.err.find("sh not started (--strict)"), std::string::npos) << outcome.err;
}

TEST_F(CliTest, OptionsAfterTheProgramAreTheProgramsOwn) {
    EXPECT_EQ(run("-- echo --strict --version -- x").out, "--strict --version -- x\n");
    EXPECT_EQ(run("echo --strict --help").out, "--strict --help\n");
    EXPECT_EQ(run("printf '%s|' 'a b' '' c").out, "a b||c|");
}

TEST_F(CliTest, ExitCodesOfEnv) {
    EXPECT_EQ(run("-- no-such-program-here").code, 127);
    EXPECT_EQ(run("-- /nonexistent/program").code, 127);
    const Outcome outcome = run("-- " + file("plain", "text", 0644).string());
    EXPECT_EQ(outcome.code, 126);
    EXPECT_NE(outcome.err.find("Permission denied"), std::string::npos) << outcome.err;
    EXPECT_EQ(run("-- " + folder_.string()).code, 126);
    EXPECT_EQ(run("-- " + file("bad", "#!/nonexistent/interpreter\n", 0755).string()).code, 127);
}

TEST_F(CliTest, ScriptWithoutFirstLineRunsInTheShell) {
    EXPECT_EQ(run("-- " + file("script", "exit 9\n", 0755).string()).code, 9);
}

TEST_F(CliTest, SetsTheEnvironment) {
    library_ = file("libfake.so", "", 0644).string();  // ld.so warns that it is no ELF file and goes on
    const Outcome outcome = run("--strict -- sh -c :");
    EXPECT_EQ(outcome.code, 125);
    ::setenv("LD_PRELOAD", "", 1);
    const Outcome environment = run("-- env");
    EXPECT_NE(environment.out.find("LD_PRELOAD=" + library_ + "\n"), std::string::npos) << environment.out;
    EXPECT_NE(environment.out.find("CULVERT_SOCKET=" + socket_.string() + "\n"), std::string::npos);
    EXPECT_EQ(environment.out.find("CULVERT_STRICT="), std::string::npos);
    EXPECT_EQ(culvert("run -- env").out.find("CULVERT_SOCKET="), std::string::npos);
}

TEST_F(CliTest, LiburingIsNamed) {
    const std::string folder = folder_.string();
    file("ring.c", "int io_uring_queue_init(void); extern int puts(const char*); extern char* getenv(const char*);\n"
                   "int main(void) { io_uring_queue_init(); return puts(getenv(\"LD_PRELOAD\") ? getenv(\"LD_PRELOAD\") : \"none\"); }", 0644);
    file("lib.c", "int io_uring_queue_init(void) { return 0; }", 0644);
    if (std::system(("cd " + folder + " && cc -shared -fPIC -Wl,-soname,liburing.so.2 lib.c -o liburing.so.2 && "
                     "cc ring.c -o ring ./liburing.so.2 -Wl,-rpath," + folder).c_str()) != 0)
        GTEST_SKIP() << "no C compiler to make a program with";
    library_ = file("libfake.so", "", 0644).string();
    const Outcome left = run("-- " + folder + "/ring");
    EXPECT_NE(left.err.find("ring is linked with liburing.so.2: should it make an io_uring, its sockets are the kernel's from then on"), std::string::npos) << left.err;
    EXPECT_EQ(left.out, library_ + "\n");
    EXPECT_EQ(run("-- true").err.find("liburing"), std::string::npos);
}

TEST_F(CliTest, PolicyIsCheckedBeforeTheProgramStarts) {
    const Outcome good = run("--policy 'tcp listen 80,443;  udp none # web' -- env");
    EXPECT_EQ(good.code, 0) << good.err;
    EXPECT_NE(good.out.find("\nCULVERT_POLICY=tcp listen 80,443;udp none\n"), std::string::npos) << good.out;
    EXPECT_EQ(run("-- env").out.find("CULVERT_POLICY="), std::string::npos);
    const Outcome bad = run("--policy 'tcp listen 80; udp nonne' -- echo hello");
    EXPECT_EQ(bad.code, 125);
    EXPECT_EQ(bad.out, "");
    EXPECT_EQ(bad.err.rfind("culvert: --policy:1:20: this is not understood: ", 0), 0u) << bad.err;
    // What is inherited is checked, too, and stays; an option wins.
    ::setenv("CULVERT_POLICY", "raw none", 1);
    EXPECT_NE(run("-- env").out.find("CULVERT_POLICY=raw none\n"), std::string::npos);
    EXPECT_NE(run("--policy all -- env").out.find("CULVERT_POLICY=all\n"), std::string::npos);
    ::setenv("CULVERT_POLICY", "raw", 1);
    const Outcome inherited = run("-- echo hello");
    ::unsetenv("CULVERT_POLICY");
    EXPECT_EQ(inherited.code, 125);
    EXPECT_EQ(inherited.err.rfind("culvert: CULVERT_POLICY:1:4: the rule says nothing", 0), 0u) << inherited.err;
}

TEST_F(CliTest, ProfilesAreFilesWithAPolicy) {
    EXPECT_NE(run("--profile redis -- env").out.find("CULVERT_POLICY=tcp all;udp,icmp,raw none;\n"), std::string::npos);
    const std::string own = file("mine", "# my own\ntcp listen 8080\n\nudp none\n", 0644);
    EXPECT_NE(run("--profile " + own + " -- env").out.find("CULVERT_POLICY=tcp listen 8080;udp none;\n"), std::string::npos);
    const Outcome bad = run("--profile " + file("bad", "# my own\ntcp listen 0\n", 0644).string() + " -- true");
    EXPECT_EQ(bad.code, 125);
    EXPECT_NE(bad.err.find("/bad:2:12: this is no port"), std::string::npos) << bad.err;
    const Outcome unknown = run("--profile ngnix -- true");
    EXPECT_EQ(unknown.code, 125);
    EXPECT_NE(unknown.err.find("no profile \"ngnix\" in "), std::string::npos) << unknown.err;
    EXPECT_NE(unknown.err.find("; there are haproxy, memcached, nginx, node, postgres, python, redis"), std::string::npos) << unknown.err;
    EXPECT_EQ(run("--profile ../profiles/nginx -- true").code, 125) << "a path is looked for where it says";
    EXPECT_EQ(run("--profile /nonexistent/x -- true").err, "culvert: profile /nonexistent/x: No such file or directory\n");
    EXPECT_EQ(run("--profile nginx --policy all -- true").code, 125);
    ::setenv("CULVERT_PROFILES", folder_.c_str(), 1);
    EXPECT_NE(run("--profile mine -- env").out.find("CULVERT_POLICY=tcp listen 8080;"), std::string::npos);
    EXPECT_EQ(run("--profile nginx -- true").code, 125);
    ::unsetenv("CULVERT_PROFILES");
}

TEST_F(CliTest, StatsChildsStatusAndSignals) {
    EXPECT_EQ(run("--stats -- sh -c 'exit 3'").code, 3);
    EXPECT_EQ(run("--stats -- sh -c 'kill -KILL $$'").code, 137);
    // SIGTERM sent to culvert (the parent of the program) ends the program.
    EXPECT_EQ(run("--stats -- sh -c 'trap \"exit 11\" TERM; kill -TERM $PPID; while :; do read x </dev/null; done'").code, 11);
}

TEST_F(CliTest, SsAndStatSayWhatToDo) {
    for (const char* command : {"ss", "stat"}) {
        const Outcome outcome = culvert(std::string(command) + " --socket " + socket_.string());
        EXPECT_EQ(outcome.code, 1);
        EXPECT_EQ(outcome.err, "culvert: cannot reach culvertd at " + socket_.string() +
                                   ": No such file or directory; is it running? (systemctl start culvertd)\n");
        EXPECT_EQ(outcome.out, "");
    }
}

TEST_F(CliTest, ReachableAndUnreachablePrograms) {
    const uid_t stranger = 12345;
    EXPECT_EQ(why_unreachable("/bin/sh", 0, 0), "");
    EXPECT_EQ(why_unreachable(file("s", "#! /bin/sh -e\n", 0755), 0, 0), "");
    EXPECT_EQ(why_unreachable("/nonexistent", 0, 0), "");
    const std::filesystem::path copy = folder_ / "copy";
    std::filesystem::copy_file(std::filesystem::canonical("/bin/true"), copy);
    ::chmod(copy.c_str(), 04755);
    EXPECT_EQ(why_unreachable(copy, stranger, ::getgid()), "it is set-user-ID");
    EXPECT_EQ(why_unreachable(copy, ::getuid(), ::getgid()), "");
    ::chmod(copy.c_str(), 02755);
    EXPECT_EQ(why_unreachable(copy, ::getuid(), stranger), "it is set-group-ID");
    ::chmod(copy.c_str(), 0755);
    {
        std::fstream stream(copy, std::ios::in | std::ios::out | std::ios::binary);
        stream.seekp(18).put('\x08');  // e_machine: MIPS
    }
    EXPECT_EQ(why_unreachable(copy, 0, 0), "it is built for another architecture than libculvert.so");
    EXPECT_EQ(why_unreachable(file("m", "#!" + copy.string() + "\n", 0755), 0, 0),
              "its interpreter " + copy.string() + ": it is built for another architecture than libculvert.so");
    EXPECT_EQ(why_unreachable(file("short", "\x7f" "ELF", 0755), 0, 0), "it is no complete ELF file");
}

TEST_F(CliTest, StaticProgramIsNamed) {
    // A dynamic program whose interpreter segment is taken out of the table is a static one to the kernel.
    const std::filesystem::path copy = folder_ / "static";
    std::filesystem::copy_file(std::filesystem::canonical("/bin/true"), copy);
    {
        std::fstream stream(copy, std::ios::in | std::ios::out | std::ios::binary);
        std::array<unsigned char, 64> header;
        stream.read(reinterpret_cast<char*>(header.data()), header.size());
        const unsigned count = header[56];
        const std::uint64_t table = header[32];
        bool erased = false;
        for (unsigned i = 0; i < count && !erased; ++i) {
            stream.seekg(static_cast<std::streamoff>(table + i * 56u));
            if (stream.get() != 3) continue;  // PT_INTERP
            stream.seekp(static_cast<std::streamoff>(table + i * 56u)).put(0);
            erased = true;
        }
        ASSERT_TRUE(erased);
    }
    EXPECT_EQ(why_unreachable(copy, 0, 0), "it is statically linked");
    const Outcome outcome = run("--strict -- " + copy.string());
    EXPECT_EQ(outcome.code, 125);
    EXPECT_NE(outcome.err.find("LD_PRELOAD cannot reach " + copy.string() + ": it is statically linked"), std::string::npos);
}

TEST(PreloadValue, IsPutInFrontOnce) {
    EXPECT_EQ(preload_value("/l.so", nullptr), "/l.so");
    EXPECT_EQ(preload_value("/l.so", ""), "/l.so");
    EXPECT_EQ(preload_value("/l.so", "/a.so /b.so"), "/l.so:/a.so /b.so");
    EXPECT_EQ(preload_value("/l.so", "/a.so:/l.so"), "/a.so:/l.so");
    EXPECT_EQ(preload_value("/l.so", "/l.so.1"), "/l.so:/l.so.1");
}

TEST(PreloadValue, StandsBehindASanitizer) {  // which ends the program if it is not the first library
    EXPECT_EQ(preload_value("/l.so", "libasan.so.8"), "libasan.so.8:/l.so");
    EXPECT_EQ(preload_value("/l.so", "/usr/lib/libclang_rt.asan-x86_64.so /a.so"), "/usr/lib/libclang_rt.asan-x86_64.so /a.so:/l.so");
    EXPECT_EQ(preload_value("/l.so", "/a.so:libasan.so.8"), "/l.so:/a.so:libasan.so.8");
    EXPECT_EQ(preload_value("/l.so", nullptr, "libasan.so.8"), "libasan.so.8:/l.so");
    EXPECT_EQ(preload_value("/l.so", "/a.so", "libasan.so.8"), "libasan.so.8:/l.so:/a.so");
}

TEST(NeededLibraries, AreReadFromTheFile) {
    const std::vector<std::string> needed = needed_libraries("/proc/self/exe");
    EXPECT_NE(std::find(needed.begin(), needed.end(), "libc.so.6"), needed.end());
    EXPECT_TRUE(needed_libraries("/etc/passwd").empty());
    EXPECT_TRUE(needed_libraries("/nonexistent").empty());
    // Cut off anywhere, it names fewer libraries or none.
    std::ifstream whole("/proc/self/exe", std::ios::binary);
    std::string bytes(4096, '\0');
    whole.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    const std::string path = testing::TempDir() + "/cut-" + std::to_string(::getpid());
    for (const std::size_t length : {4ul, 63ul, 64ul, 100ul, 500ul, 4096ul}) {
        std::ofstream(path, std::ios::binary) << bytes.substr(0, length);
        EXPECT_LE(needed_libraries(path).size(), needed.size());
    }
    ::unlink(path.c_str());
}

TEST(FindProgram, SearchesAsExecvp) {
    EXPECT_EQ(find_program("sh", "/nonexistent:/bin").value(), "/bin/sh");
    EXPECT_EQ(find_program("sh", "/nonexistent").error().code, ENOENT);
    EXPECT_EQ(find_program("", "/bin").error().code, ENOENT);
    EXPECT_EQ(find_program("etc", "/").error().code, EACCES);  // a folder
}

TEST(Tables, SocketsAndStatistics) {
    const nlohmann::json sockets = nlohmann::json::parse(R"({"sockets": [
        {"program": "nginx", "pid": 7, "proto": "tcp", "state": "LISTEN", "local": "0.0.0.0:80", "remote": "",
         "recv_q": 0, "send_q": 0, "path": "culvert", "why": ""},
        {"program": "nginx", "pid": 7, "proto": "tcp", "state": "-", "local": "", "remote": "",
         "recv_q": 0, "send_q": 0, "path": "kernel", "why": "loopback address"}]})");
    EXPECT_EQ(format_sockets(sockets),
              "PROGRAM(PID)  PROTO  STATE   LOCAL       REMOTE  RECV-Q  SEND-Q  PATH     WHY\n"
              "nginx(7)      tcp    LISTEN  0.0.0.0:80  -            0       0  culvert  -\n"
              "nginx(7)      tcp    -       -           -            0       0  kernel   loopback address\n");
    const nlohmann::json before = nlohmann::json::parse(R"({"version": "1", "pid": 1, "uptime_seconds": 2, "tenants": 0,
        "sockets": 0, "counters": {"rx_frames": 1, "tx_frames": 5}, "drops": {"tcp_checksum": 0}, "devices": []})");
    nlohmann::json after = before;
    after["counters"]["rx_frames"] = 4;
    EXPECT_EQ(format_statistics(before, false),
              "culvertd 1, pid 1, up 2 s, 0 tenants, 0 sockets\n"
              "counters\n"
              "  rx_frames  1  frames received\n"
              "  tx_frames  5  frames sent\n");
    EXPECT_NE(format_statistics(before, true).find("  tcp_checksum  0  TCP checksum wrong\n"), std::string::npos);
    after["engines"] = {{{"engine", 0}, {"tenants", 2}, {"sockets", 7}, {"counters", {{"rx_frames", 1}}}, {"drops", {{"tcp_checksum", 3}}}},
                        {{"engine", 1}, {"tenants", 0}, {"sockets", 0}, {"counters", {{"rx_frames", 3}}}, {"drops", {{"tcp_checksum", 0}}}}};
    EXPECT_EQ(format_statistics(after, false, true),
              "culvertd 1, pid 1, up 2 s, 0 tenants, 0 sockets\n"
              "engine 0: 2 tenants, 7 sockets, counters\n"
              "  rx_frames  1  frames received\n"
              "engine 0: 2 tenants, 7 sockets, drops\n"
              "  tcp_checksum  3  TCP checksum wrong\n"
              "engine 1: 0 tenants, 0 sockets, counters\n"
              "  rx_frames  3  frames received\n");
    EXPECT_EQ(format_difference(before, after), "counters\n  rx_frames  3  frames received\n");
}

}  // namespace
}  // namespace culvert::cli
