// States that the cases of several files begin in; each makes w.fd, and has its peer ready.
#pragma once

#include "world.h"

namespace differential::states {

void accepted(World& w);
void connected(World& w);
void listening(World& w);
/// Tells w its port.
void learn_port(World& w);
/// The peer has a UDP socket, and sends to w's port from now on.
void meet_udp_peer(World& w);
void connect_to_udp_peer(World& w);
void bound_datagram(World& w);
void connected_datagram(World& w);

}  // namespace differential::states
