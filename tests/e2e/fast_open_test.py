"""TCP Fast Open (RFC 7413) with the kernel as the other end, in both directions, through unmodified Python programs."""
import os
import unittest

from story import ON_KERNEL, Story, run
from netns import PYTHON

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "fast_open.py")


class FastOpenServer(Story):
    """The server under Culvert, the kernel's client."""
    config = "[tcp]\nfast_open = \"both\"\n"

    @classmethod
    def prepare(cls):
        cls.lab.call("sysctl", "-qw", "net.ipv4.tcp_fastopen=3", host="server")
        cls.server = cls.lab.start("server", [PYTHON, PROGRAM, "server", "8001"], under=cls.culvert)
        cls.culvert.wait_for_listener(8001)

    def test_second_connection_brings_its_data_in_the_syn(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.subTest(address):
                first = self.lab.call(PYTHON, PROGRAM, "client", address, "8001")  # learns the cookie, then uses it
                self.assertIn("CONNECT with SYN / with SYN", first)
                with self.carried(2, "tcp_fast_open_passive"):
                    again = self.lab.call(PYTHON, PROGRAM, "client", address, "8001")
                self.assertEqual(again.splitlines(), ["MESSAGE with SYN / with SYN", "CONNECT with SYN / with SYN"])


@unittest.skipIf(ON_KERNEL, "the same as above")
class FastOpenClient(Story):
    """The kernel's server, the client under Culvert."""
    config = "[tcp]\nfast_open = \"client\"\n"
    daemon_host = "client"

    @classmethod
    def prepare(cls):
        cls.lab.call("sysctl", "-qw", "net.ipv4.tcp_fastopen=3", host="server")
        cls.server = cls.lab.start("server", [PYTHON, PROGRAM, "server", "8001"], host="server")
        cls.lab.wait_for_port(cls.lab.ip4(), 8001, cls.server)
        cls.lab.ping(cls.lab.ip6())  # a SYN lost to an unknown neighbour would count against the option

    def test_culvert_asks_then_brings_data_in_its_syn(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.subTest(address):
                first = self.lab.call(PYTHON, PROGRAM, "client", address, "8001", under=self.culvert)
                self.assertEqual(first.splitlines(), ["MESSAGE after SYN / after SYN", "CONNECT with SYN / with SYN"])
                with self.carried(2, "tcp_fast_open_active"):
                    again = self.lab.call(PYTHON, PROGRAM, "client", address, "8001", under=self.culvert)
                self.assertEqual(again.splitlines(), ["MESSAGE with SYN / with SYN", "CONNECT with SYN / with SYN"])


run()
