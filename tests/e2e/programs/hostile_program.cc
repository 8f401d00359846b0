// A malicious program for the story in tests/e2e/hostile_test.py: it attaches like a shim, listens, sends, asks for everything
// that can be asked for, and all the while writes nonsense over its segment, at one structure after the other.
//
//   hostile_program CONTROL-SOCKET PORT SEED MILLISECONDS-FOR-EACH
//
// Prints how many structures it went through. Its own end of the segment is believed in nothing: it must not crash before its time.
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "shm/attach_protocol.h"
#include "shm/wakeup.h"
#include "tests/support/app_side.h"
#include "tests/support/scribbler.h"

namespace {

using namespace culvert;

bool receive(int socket, void* data, std::size_t size, int (&fds)[2]) {
    iovec part{data, size};
    alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(size)) return false;
    if (const cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr && header->cmsg_len == CMSG_LEN(2 * sizeof(int)))
        std::memcpy(fds, CMSG_DATA(header), sizeof fds);
    return true;
}

void send_message(int socket, const void* data, std::size_t size, int fd) {
    iovec part{const_cast<void*>(data), size};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        cmsghdr* const header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    ::sendmsg(socket, &message, MSG_NOSIGNAL);
}

shm::WireEndpoint any_address(std::uint16_t port) {
    shm::WireEndpoint endpoint{};
    endpoint.address[10] = endpoint.address[11] = 0xff;
    endpoint.port = port;
    endpoint.family = 4;
    return endpoint;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) return 2;
    const int control = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    if (::connect(control, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 1;
    shm::Hello hello;
    hello.pid = static_cast<std::uint32_t>(::getpid());
    std::strcpy(hello.program, "hostile");
    send_message(control, &hello, sizeof hello, -1);
    shm::Welcome welcome;
    int fds[2] = {-1, -1};
    if (!receive(control, &welcome, sizeof welcome, fds) || welcome.status != shm::AttachStatus::kOk) return 1;
    auto segment = shm::Segment::open(fds[0], welcome.geometry);
    if (!segment) return 1;
    const shm::Geometry geometry = welcome.geometry;
    test::AppSide side(std::move(*segment), welcome.process_slot);
    for (int i = 0; i < 4; ++i) {
        const int queue = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        const shm::AddQueue request;
        send_message(control, &request, sizeof request, queue);
        shm::Answer answer;
        int none[2];
        if (!receive(control, &answer, sizeof answer, none)) return 1;
    }
    const auto port = static_cast<std::uint16_t>(std::atoi(argv[2]));
    side.submit(side.socket(), shm::Operation::kListen, any_address(port), {}, 64);
    for (std::uint16_t i = 0; i < 16; ++i) side.submit(side.socket(), shm::Operation::kBindDatagram, any_address(static_cast<std::uint16_t>(port + 1 + i)), {});
    shm::signal_eventfd(fds[1]);

    test::Random random(static_cast<std::uint32_t>(std::atoi(argv[3])));
    const shm::Layout layout(geometry);
    std::vector<test::SegmentPart> parts = test::segment_parts(layout);
    for (const test::SegmentPart& field : test::segment_fields(layout)) parts.push_back(field);
    parts.push_back({"everything", 0, layout.size_bytes, layout.size_bytes, 1});
    for (const test::SegmentPart& part : parts) {
        const test::ScribblingThread thread(test::Scribbler(side.segment, part, random()));
        const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(std::atoi(argv[4]));
        while (std::chrono::steady_clock::now() < end) {
            for (int i = 0; i < 200; ++i) {
                const std::uint32_t index = random() % 4 == 0 ? random() % geometry.sockets : random() % 24;
                switch (random() % 5) {
                    case 0: side.send(index, std::string(random() % 3000, 'h')); break;
                    case 1: side.submit(index, static_cast<shm::Operation>(random() % 20), any_address(static_cast<std::uint16_t>(port + random() % 40)),
                                        any_address(static_cast<std::uint16_t>(random())), random()); break;
                    case 2: side.segment.socket(index).app.options_version.fetch_add(2); break;
                    case 3: side.segment.header().tx_starved.store(1); break;
                    default: break;
                }
                side.segment.dirty().post(index);
            }
            shm::signal_eventfd(fds[1]);
            ::usleep(200);  // the daemon shall do other things, too
        }
    }
    std::printf("%zu structures\n", parts.size());
    return 0;
}
