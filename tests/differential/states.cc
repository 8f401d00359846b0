#include "states.h"

namespace differential::states {

void accepted(World& w) {
    w.fd = w.make_socket(SOCK_STREAM);
    w.accept_one();
}
void connected(World& w) {
    w.fd = w.make_socket(SOCK_STREAM);
    w.connect_out();
}
void listening(World& w) {
    w.fd = w.make_socket(SOCK_STREAM);
    w.bind_and_listen();
}

void learn_port(World& w) {
    Name name;
    name.length = sizeof name.storage;
    w.require(::getsockname(w.fd, name.get(), &name.length) == 0, "getsockname");
    w.bound_port = port_of(name);
}

void meet_udp_peer(World& w) {
    learn_port(w);
    w.peer_port = std::stoi(w.peer("udp"));
    w.peer("udp_to " + std::to_string(w.bound_port));
}

void connect_to_udp_peer(World& w) {
    Name name = w.other(w.peer_port);
    w.require(::connect(w.fd, name.get(), name.length) == 0, "connect");
}

void bound_datagram(World& w) {
    w.fd = w.make_socket(SOCK_DGRAM);
    Name name = w.own();
    w.require(::bind(w.fd, name.get(), name.length) == 0, "bind");
    meet_udp_peer(w);
}

void connected_datagram(World& w) {
    bound_datagram(w);
    connect_to_udp_peer(w);
}

}  // namespace differential::states
