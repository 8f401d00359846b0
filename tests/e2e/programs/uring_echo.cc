// An echo server all of whose socket I/O goes through an io_uring.  uring_echo PORT ring-first|listen-first|raw
//
//   ring-first    liburing's ring, then the listener
//   listen-first  the other way round, as most examples do it
//   raw           the ring by syscall(2) before the listener, as programs without liburing do; liburing only works on it
#include <liburing.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

struct Peer {
    int fd = -1;
    bool sending = false;
    std::size_t have = 0, sent = 0;
    char data[65536];
};

[[noreturn]] void fail(const char* what, int error) {
    std::fprintf(stderr, "%s: %s\n", what, std::strerror(error));
    std::exit(1);
}

int make_listener(std::uint16_t port) {
    const int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(port);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fail("bind", errno);
    if (::listen(fd, 128) != 0) fail("listen", errno);
    return fd;
}

void make_ring(io_uring& ring, bool raw) {
    if (!raw) {
        if (const int error = ::io_uring_queue_init(256, &ring, 0); error < 0) fail("io_uring_queue_init", -error);
        return;
    }
    io_uring_params parameters{};
    const auto fd = static_cast<int>(::syscall(SYS_io_uring_setup, 256, &parameters));
    if (fd < 0) fail("io_uring_setup", errno);
    if (const int error = ::io_uring_queue_mmap(fd, &parameters, &ring); error < 0) fail("io_uring_queue_mmap", -error);
    ring.ring_fd = ring.enter_ring_fd = fd;
    ring.features = parameters.features;
    for (unsigned i = 0; i < parameters.sq_entries; ++i) ring.sq.array[i] = i;
}

io_uring_sqe* entry(io_uring& ring) {
    io_uring_sqe* found = ::io_uring_get_sqe(&ring);
    while (found == nullptr) {
        ::io_uring_submit(&ring);
        found = ::io_uring_get_sqe(&ring);
    }
    return found;
}

void accept_one(io_uring& ring, int listener) {
    io_uring_sqe* const sqe = entry(ring);
    ::io_uring_prep_accept(sqe, listener, nullptr, nullptr, SOCK_CLOEXEC);
    ::io_uring_sqe_set_data(sqe, nullptr);
}

void go_on(io_uring& ring, Peer* peer) {
    io_uring_sqe* const sqe = entry(ring);
    if (peer->sending)
        ::io_uring_prep_send(sqe, peer->fd, peer->data + peer->sent, peer->have - peer->sent, MSG_NOSIGNAL);
    else
        ::io_uring_prep_recv(sqe, peer->fd, peer->data, sizeof peer->data, 0);
    ::io_uring_sqe_set_data(sqe, peer);
}

void serve(io_uring& ring, int listener) {
    accept_one(ring, listener);
    for (;;) {
        ::io_uring_submit_and_wait(&ring, 1);
        io_uring_cqe* cqe = nullptr;
        while (::io_uring_peek_cqe(&ring, &cqe) == 0) {
            auto* peer = static_cast<Peer*>(::io_uring_cqe_get_data(cqe));
            const int result = cqe->res;
            ::io_uring_cqe_seen(&ring, cqe);
            if (peer == nullptr) {
                accept_one(ring, listener);
                if (result < 0) fail("accept", -result);
                peer = new Peer;
                peer->fd = result;
            } else if (result <= 0) {
                ::close(peer->fd);
                delete peer;
                continue;
            } else if (!peer->sending) {
                peer->sending = true;
                peer->have = static_cast<std::size_t>(result);
                peer->sent = 0;
            } else if ((peer->sent += static_cast<std::size_t>(result)) == peer->have) {
                peer->sending = false;
            }
            go_on(ring, peer);
        }
    }
}

}  // namespace

int main(int count, char** words) {
    if (count != 3) return 2;
    const auto port = static_cast<std::uint16_t>(std::atoi(words[1]));
    const std::string how = words[2];
    io_uring ring{};
    int listener = -1;
    if (how == "listen-first") listener = make_listener(port);
    make_ring(ring, how == "raw");
    if (listener < 0) listener = make_listener(port);
    std::puts("serving");
    std::fflush(stdout);
    serve(ring, listener);
}
