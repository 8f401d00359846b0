"""The kernel's TCP as the peer: streams both ways at once, every byte checked, at every MTU, over both families, with each
congestion control, on a good link, on one that loses packets in both directions, and behind one that swallows long packets."""
import os
import unittest

from story import Story, run
from netns import BUILD, ON_KERNEL, PYTHON, command

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "exchange.py")
LOSS = os.path.join(BUILD, "tests/e2e/loss.bpf.o")
CONTROLS = ["cubic", "reno", "bbr", "dctcp"]
# 64 by hand (CULVERT_PEER_MEGABYTES=64), fewer where every commit waits for it.
MEGABYTES = int(os.environ.get("CULVERT_PEER_MEGABYTES", "8"))


class Exchange:
    """A server for each congestion control, and streams both ways to each of them."""

    @classmethod
    def prepare(cls):
        cls.ports = {}
        for port, control in enumerate(CONTROLS, 9000):
            server = cls.lab.start(f"exchange_{control}", [PYTHON, PROGRAM, "serve", port, control], under=cls.culvert)
            cls.lab.wait_for_port(cls.lab.ip4(), port, server, under=cls.culvert)
            cls.ports[control] = port

    def exchange(self, megabytes):
        for control, port in self.ports.items():
            for address in (self.lab.ip4(), self.lab.ip6()):
                with self.subTest(control=control, address=address), self.carried(1):
                    text = self.lab.call(PYTHON, PROGRAM, "ask", address, port, megabytes, timeout=180)
                    self.assertEqual(text.strip(), "same")

    def lose(self, section, directions=("ingress", "egress")):
        """At the client's end of the link; "ingress": what the server has sent."""
        def tc(*words):
            command("tc", *words)
        def cut(where):  # at the server's end: segments are lost, not forty at once
            command("ip", "netns", "exec", self.lab.server, "ethtool", "-K", "veth0", "tso", where)
        cut("off")
        self.addCleanup(cut, "on")
        tc("qdisc", "add", "dev", "veth0", "clsact")
        self.addCleanup(tc, "qdisc", "del", "dev", "veth0", "clsact")
        for direction in directions:
            tc("filter", "add", "dev", "veth0", direction, "bpf", "direct-action", "object-file", LOSS, "section", section)


class Peer(Exchange):
    """What is tried at each MTU; the classes below give the number."""

    def test_on_a_good_link(self):
        self.exchange(MEGABYTES)

    def test_one_packet_in_a_hundred_is_lost(self):
        self.lose("loss10")
        with self.carried(1, "tcp_retransmits"):
            self.exchange(MEGABYTES)

    def test_one_packet_in_twenty_is_lost(self):
        self.lose("loss50")
        with self.carried(1, "tcp_retransmits"):
            self.exchange(max(MEGABYTES // 8, 1))



@unittest.skipIf(ON_KERNEL, "the kernel does not look for black holes unless it is told to")
class BlackHole(Exchange, Story):
    """A router on the server's way out passes nothing above 1300 bytes, without a word."""

    def test_long_packets_vanish(self):
        self.exchange(1)
        self.assertEqual(self.culvert.counters()["tcp_mtu_black_holes"], 0)
        self.lose("hole1300", ("ingress",))
        with self.carried(2 * len(CONTROLS), "tcp_mtu_black_holes"):
            self.exchange(1)


class Peer1280(Peer, Story):
    mtu = 1280


class Peer1500(Peer, Story):
    mtu = 1500


class Peer9000(Peer, Story):
    mtu = 9000


class Peer65535(Peer, Story):
    mtu = 65535


if __name__ == "__main__":
    run()
