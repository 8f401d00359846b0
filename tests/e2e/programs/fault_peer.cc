// A server and a client that are quick to start, for the story in tests/e2e/fault_points_test.py: no language runtime, no output.
//
//   fault_peer serve PORT          echoes, one connection after the other
//   fault_peer fork PORT           a child for each connection
//   fault_peer client ADDRESS PORT a connection, some bytes there and back, shutdown, close; twice
//
// Exit code 0: all went well; 1: something failed, as it may when the other side dies.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

char buffer[30000];

bool echo(int fd) {
    for (;;) {
        const ssize_t got = ::read(fd, buffer, sizeof buffer);
        if (got <= 0) return got == 0;
        for (ssize_t sent = 0; sent < got;) {
            const ssize_t one = ::write(fd, buffer + sent, static_cast<std::size_t>(got - sent));
            if (one <= 0) return false;
            sent += one;
        }
    }
}

int serve(int port, bool forks) {
    ::signal(SIGPIPE, SIG_IGN);
    const int listener = ::socket(AF_INET6, SOCK_STREAM, 0);
    const int on = 1;
    ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(static_cast<std::uint16_t>(port));
    if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::listen(listener, 64) != 0) return 1;
    for (;;) {
        const int fd = ::accept(listener, nullptr, nullptr);
        if (fd < 0) continue;
        if (!forks) {
            echo(fd);
        } else if (const pid_t child = ::fork(); child == 0) {
            ::close(listener);
            ::_exit(echo(fd) ? 0 : 1);
        } else if (child > 0) {
            ::waitpid(child, nullptr, 0);
        }
        ::close(fd);
    }
}

int client(const char* host, int port) {
    for (int round = 0; round < 2; ++round) {
        const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<std::uint16_t>(port));
        ::inet_pton(AF_INET, host, &address.sin_addr);
        if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 1;
        std::memset(buffer, 'a' + round, sizeof buffer);
        if (::write(fd, buffer, sizeof buffer) != static_cast<ssize_t>(sizeof buffer)) return 1;
        if (::shutdown(fd, SHUT_WR) != 0) return 1;
        std::size_t got = 0;
        for (ssize_t one; (one = ::read(fd, buffer, sizeof buffer)) != 0; got += static_cast<std::size_t>(one))
            if (one < 0) return 1;
        if (got != sizeof buffer) return 1;
        ::close(fd);
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 3) return serve(std::atoi(argv[2]), std::strcmp(argv[1], "fork") == 0);
    if (argc == 4) return client(argv[2], std::atoi(argv[3]));
    return 2;
}
