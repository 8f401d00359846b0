"""The same bulk transfers at every MTU of the link: whole files both ways, checked by hash, and iperf3 in both directions."""
import concurrent.futures
import http.client
import os

from story import Story, run
from netns import ON_KERNEL, PYTHON, sha256
from servers import Nginx

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


class Mtu:
    """What is tried at each MTU; the classes below give the number."""

    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab, under=cls.culvert)
        cls.echo = cls.lab.start("echo", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 8001, cls.echo, under=cls.culvert, addresses=2)
        cls.iperf = cls.lab.start("iperf3", ["iperf3", "-s", "-p", "5201"], under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 5201, cls.iperf, under=cls.culvert)

    def test_download(self):
        """Where several segments fit into one packet of the kernel's they leave as one."""
        before = self.super_packets()
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried(4):
                with concurrent.futures.ThreadPoolExecutor(4) as pool:
                    hashes = set(pool.map(lambda _: self._hash_of_big_file(address), range(4)))
                self.assertEqual(hashes, {self.nginx.hashes["big.bin"]})
        if not ON_KERNEL:
            self.assertEqual(self.super_packets() > before, self.mtu < 30000)

    def super_packets(self):
        return 0 if ON_KERNEL else self.culvert.counters()["tcp_super_packets_out"]

    @staticmethod
    def _hash_of_big_file(address):
        connection = http.client.HTTPConnection(address, 80, timeout=30)
        connection.request("GET", "/big.bin")
        body = connection.getresponse().read()
        connection.close()
        return sha256(body)

    def test_both_ways_at_once(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried(1):
                text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, "8001", "16")
            self.assertTrue(text.startswith("same"), text)

    def test_iperf3(self):
        for direction in ([], ["-R"]):
            with self.carried(2):
                text = self.lab.call("iperf3", "-c", self.lab.ip4(), "-p", "5201", "-t", "2", *direction, timeout=60)
            self.assertIn("receiver", text)


class Mtu1500(Mtu, Story):
    mtu = 1500


class Mtu9000(Mtu, Story):
    mtu = 9000


class Mtu65535(Mtu, Story):
    mtu = 65535


class Mtu1280(Mtu, Story):
    """The smallest that IPv6 allows."""
    mtu = 1280


if __name__ == "__main__":
    run()
