"""A flood of SYNs from addresses that do not answer, 100,000 a second: who is connected goes on, who comes is served."""
import os
import re
import socket
import time
import unittest

from story import ON_KERNEL, Story, run, until
from netns import BUILD, PYTHON

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")
SECONDS = 5
RATE = 100_000


@unittest.skipIf(ON_KERNEL, "the kernel's own cookies are not our subject")
class Flood(Story):
    @classmethod
    def prepare(cls):
        # Answers to the spoofed addresses go to the client, which drops them.
        cls.lab.call("ip", "route", "add", "198.18.0.0/15", "via", cls.lab.ip4("client"), host="server")
        cls.echo = cls.lab.start("asyncio", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 8001, cls.echo, under=cls.culvert, addresses=2)

    def connect(self):
        client = socket.create_connection((self.lab.ip4(), 8001), timeout=10)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def echo_once(self, client, text):
        client.sendall(text)
        got = b""
        while len(got) < len(text):
            piece = client.recv(len(text) - len(got))
            self.assertTrue(piece, "the connection ended")
            got += piece
        self.assertEqual(got, text)

    def test_who_is_connected_goes_on_and_who_comes_is_served(self):
        link = self.lab.call("ip", "link", "show", "veth0", host="server")
        mac = re.search(r"link/ether (\S+)", link).group(1)
        old = self.connect()
        self.echo_once(old, b"before")
        before = self.culvert.counters()
        flood = self.lab.start("syn_flood", [os.path.join(BUILD, "bin", "syn_flood"), "veth0", mac,
                                             self.lab.ip4(), "8001", str(RATE), str(SECONDS)], host="client")
        until(lambda: self.culvert.counters()["tcp_syn_cookies_sent"] > 0, "the first cookie")
        served, slowest = 0, 0.0
        while flood.running():
            started = time.monotonic()
            with self.connect() as client:
                slowest = max(slowest, time.monotonic() - started)
                self.echo_once(client, b"new %d" % served)
            self.echo_once(old, b"old %d" % served)
            served += 1
        after = self.culvert.counters()
        sent = int(re.search(r"sent (\d+)", flood.output()).group(1))
        cookies = after["tcp_syn_cookies_sent"] - before["tcp_syn_cookies_sent"]
        print(f"{sent} SYNs, {cookies} cookies, {served} clients served, slowest connect {slowest * 1000:.0f} ms")
        self.assertGreater(served, 10)
        self.assertLess(slowest, 3.5, "one lost SYN costs a second, two cost three")
        self.assertGreater(cookies, 1000)
        self.assertGreater(after["tcp_syn_cookies_accepted"], before["tcp_syn_cookies_accepted"])
        self.echo_once(old, b"after")
        old.close()


run()
