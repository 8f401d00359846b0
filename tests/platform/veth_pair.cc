#include "tests/platform/veth_pair.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

extern char** environ;

namespace culvert::platform {
namespace {

[[noreturn]] void failed(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

constexpr const char* kThreadNamespace = "/proc/thread-self/ns/net";

UniqueFd open_namespace() {
    UniqueFd fd(::open(kThreadNamespace, O_RDONLY | O_CLOEXEC));
    if (!fd) failed("opening the network namespace");
    return fd;
}

UniqueFd new_namespace() {
    UniqueFd result;
    std::string error;
    std::thread([&] {
        if (::unshare(CLONE_NEWNET) == 0)
            result = open_namespace();
        else
            error = std::strerror(errno);
    }).join();
    if (!result) throw std::runtime_error("unshare: " + error);
    return result;
}

std::string path_of(const UniqueFd& fd) {
    return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd.get());
}

}  // namespace

void run(const std::vector<std::string>& command) {
    std::vector<char*> arguments;
    std::string text;
    for (const std::string& word : command) {
        arguments.push_back(const_cast<char*>(word.c_str()));
        text += word + " ";
    }
    arguments.push_back(nullptr);
    pid_t child;
    if (const int error = ::posix_spawnp(&child, arguments[0], nullptr, nullptr, arguments.data(), environ);
        error != 0) {
        errno = error;
        failed(text);
    }
    int status;
    if (::waitpid(child, &status, 0) != child || status != 0) throw std::runtime_error(text + "failed");
}

VethPair::VethPair(unsigned mtu) : home_(open_namespace()), ours_(new_namespace()), theirs_(new_namespace()) {
    const std::string size = std::to_string(mtu);
    const auto configure = [](const char* name, const std::string& host) {
        run({"ip", "link", "set", "lo", "up"});
        run({"ip", "link", "set", name, "up"});
        run({"ip", "address", "add", "10.99.0." + host + "/24", "dev", name});
        run({"ip", "address", "add", "fd99::" + host + "/64", "dev", name, "nodad"});
    };
    enter(ours_);
    run({"ip", "link", "add", kOurs, "mtu", size, "type", "veth", "peer", "name", kTheirs, "mtu", size, "netns",
         path_of(theirs_)});
    configure(kOurs, "1");
    in_their_namespace([&] { configure(kTheirs, "2"); });
}

VethPair::~VethPair() { enter(home_); }

void VethPair::enter(const UniqueFd& space) {
    if (::setns(space.get(), CLONE_NEWNET) != 0) failed("setns");
}

void VethPair::in_their_namespace(const std::function<void()>& work) {
    enter(theirs_);
    work();
    enter(ours_);
}

UniqueFd VethPair::their_udp_socket(Port port) {
    UniqueFd result;
    in_their_namespace([&] { result = udp_socket(port); });
    return result;
}

UniqueFd VethPair::udp_socket(Port port) {
    UniqueFd socket(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!socket) failed("socket");
    const int size = 64 << 20;
    ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    any.sin6_port = htons(port);
    if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0) failed("bind");
    return socket;
}

bool eventually(int fd, const std::function<bool()>& ready) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (!ready()) {
        if (std::chrono::steady_clock::now() > deadline) return false;
        pollfd event{fd, POLLIN, 0};
        ::poll(&event, fd >= 0 ? 1 : 0, 1);
    }
    return true;
}

void send_to(const UniqueFd& socket, const Address& address, Port port, std::span<const std::byte> payload) {
    sockaddr_in6 to{};
    to.sin6_family = AF_INET6;
    to.sin6_port = htons(port);
    std::memcpy(&to.sin6_addr, address.bytes().data(), 16);  // IPv4 is mapped already
    if (::sendto(socket.get(), payload.data(), payload.size(), 0, reinterpret_cast<const sockaddr*>(&to), sizeof to) !=
        static_cast<ssize_t>(payload.size()))
        failed("sendto");
}

Bytes receive_from(const UniqueFd& socket, int milliseconds) {
    pollfd event{socket.get(), POLLIN, 0};
    if (::poll(&event, 1, milliseconds) != 1) return {};
    Bytes buffer(65536);
    const ssize_t size = ::recv(socket.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (size < 0) failed("recv");
    buffer.resize(static_cast<std::size_t>(size));
    return buffer;
}

}  // namespace culvert::platform
