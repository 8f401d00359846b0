// A threaded echo server, built with AddressSanitizer.  sanitized_echo PORT
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

namespace {

constexpr std::size_t kRoom = 65536;

void echo(int fd) {
    const auto data = std::make_unique<char[]>(kRoom);
    for (ssize_t got; (got = ::read(fd, data.get(), kRoom)) > 0;)
        for (ssize_t sent = 0; sent < got;) {
            const ssize_t now = ::write(fd, data.get() + sent, static_cast<std::size_t>(got - sent));
            if (now <= 0) break;
            sent += now;
        }
    ::close(fd);
}

}  // namespace

int main(int count, char** words) {
    if (count != 2) return 2;
    const int listener = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(static_cast<std::uint16_t>(std::atoi(words[1])));
    if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::listen(listener, 128) != 0) {
        std::perror("listen");
        return 1;
    }
    for (;;) {
        const int fd = ::accept(listener, nullptr, nullptr);
        if (fd >= 0) std::thread(echo, fd).detach();
    }
}
