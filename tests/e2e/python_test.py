"""Unmodified Python programs under Culvert: http.server, asyncio, blocking sockets, select; as server and as client."""
import os
import random
import socket
import time

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, sha256
from servers import pseudo_random

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


class PythonServers(Story):
    """Servers under Culvert, kernel clients."""

    @classmethod
    def prepare(cls):
        cls.file = pseudo_random(3 << 20, 5)
        with open(cls.lab.path("file.bin"), "wb") as file:
            file.write(cls.file)
        cls.http = cls.lab.start("http.server", [PYTHON, "-m", "http.server", "8000", "--directory", cls.lab.directory],
                                 under=cls.culvert)
        cls.echo = cls.lab.start("asyncio", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], under=cls.culvert)
        cls.udp = cls.lab.start("udp", [PYTHON, f"{PROGRAMS}/udp_echo.py", "8002"], under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 8000, cls.http, under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 8001, cls.echo, under=cls.culvert, addresses=2)

    def test_http_server_sends_files(self):
        with self.carried(10):
            for _ in range(10):
                target = self.lab.path("fetched.bin")
                self.lab.call("curl", "-sSf", f"http://{self.lab.ip4()}:8000/file.bin", "-o", target)
                with open(target, "rb") as file:
                    self.assertEqual(sha256(file.read()), sha256(self.file))

    def test_asyncio_echoes_both_ways_at_once(self):
        with self.carried(1):
            text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", self.lab.ip4(), "8001", "8")
        self.assertTrue(text.startswith("same"), text)

    def test_asyncio_echoes_over_ipv6(self):
        with self.carried(1):
            text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", self.lab.ip6(), "8001", "2")
        self.assertTrue(text.startswith("same"), text)

    def test_udp_echo(self):
        for family, address in ((socket.AF_INET, self.lab.ip4()), (socket.AF_INET6, self.lab.ip6())):
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.connect((address, 8002))
                client.settimeout(0.2)

                def answered():  # until the server has bound its port
                    try:
                        client.send(b"ready?")
                        return client.recv(100)
                    except OSError:
                        return None
                until(answered, "the UDP server to answer")
                client.settimeout(10)
                with self.carried(100, "udp_in"):
                    for size in [0, 1, 2, 3, *range(10, 1400, 14)][:100]:
                        data = random.Random(size).randbytes(size)
                        client.send(data)
                        self.assertEqual(client.recv(65536), data)

    def test_large_datagrams_come_back_too(self):
        """Fragments are the kernel's; the kernel's socket under the Culvert socket receives them."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect((self.lab.ip4(), 8002))
            client.settimeout(10)
            data = random.Random(1).randbytes(9000)
            client.send(data)
            self.assertEqual(client.recv(65536), data)


class PythonClients(Story):
    """Clients under Culvert on the daemon's host, kernel servers on the other."""

    @classmethod
    def prepare(cls):
        cls.file = pseudo_random(3 << 20, 6)
        with open(cls.lab.path("file.bin"), "wb") as file:
            file.write(cls.file)
        cls.http = cls.lab.start("http.server", [PYTHON, "-m", "http.server", "8000", "--directory", cls.lab.directory],
                                 host="client")
        cls.echo = cls.lab.start("asyncio", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], host="client")
        cls.lab.wait_for_port(cls.lab.ip4("client"), 8000, cls.http)
        cls.lab.wait_for_port(cls.lab.ip4("client"), 8001, cls.echo)

    def test_blocking_client_connects_through_culvert(self):
        for address, own in ((self.lab.ip4("client"), self.lab.ip4()), (self.lab.ip6("client"), self.lab.ip6())):
            with self.carried(1, "tcp_active_opens"):
                text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, "8001", "4", host="server", under=self.culvert)
            self.assertEqual(text.split(), ["same", own, address])

    def test_curl_connects_through_culvert(self):
        with self.carried(5, "tcp_active_opens"):
            for _ in range(5):
                target = self.lab.path("fetched.bin")
                self.lab.call("curl", "-sSf", f"http://{self.lab.ip4('client')}:8000/file.bin", "-o", target, host="server",
                              under=self.culvert)
                with open(target, "rb") as file:
                    self.assertEqual(sha256(file.read()), sha256(self.file))

    def test_refused_connection_says_so(self):
        code = "import socket,sys\ntry: socket.create_connection((sys.argv[1], 9), 10)\nexcept ConnectionRefusedError: print('refused')"
        text = self.lab.call(PYTHON, "-c", code, self.lab.ip4("client"), host="server", under=self.culvert)
        self.assertEqual(text.strip(), "refused")

    def test_connect_to_nobody_times_out(self):
        """No such host on the link: EHOSTUNREACH from the resolution or the caller's own time limit, not a hang."""
        code = ("import socket,sys\ntry: socket.create_connection((sys.argv[1], 80), 6)\n"
                "except (TimeoutError, OSError) as error: print('failed', type(error).__name__)")
        started = time.monotonic()
        text = self.lab.call(PYTHON, "-c", code, "10.77.0.99", host="server", under=self.culvert, timeout=30)
        self.assertTrue(text.startswith("failed"), text)
        self.assertLess(time.monotonic() - started, 20)

    def test_nothing_is_left(self):
        self.lab.call("curl", "-sSf", f"http://{self.lab.ip4('client')}:8000/", "-o", "/dev/null", host="server", under=self.culvert)
        self.wait_for_no_sockets()


class TwoPrograms(Story):
    """Two programs under the same daemon reach each other on the interface's own address, inside the stack."""

    def test_client_and_server_under_one_daemon(self):
        echo = self.lab.start("asyncio", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], under=self.culvert)
        self.lab.wait_for_port(self.lab.ip4(), 8001, echo, under=self.culvert, addresses=2)
        for address in (self.lab.ip4(), self.lab.ip6()):
            before = None if ON_KERNEL else self.culvert.counters()
            with self.carried(1, "tcp_passive_opens"), self.carried(1, "tcp_active_opens"):
                text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, "8001", "8", host="server", under=self.culvert)
            self.assertEqual(text.split(), ["same", address, address])
            if before is not None:
                after = self.culvert.counters()
                self.assertGreater(after["local_frames"], before["local_frames"])
                self.assertLess(after["tx_bytes"] - before["tx_bytes"], 1 << 20, "the bytes stayed inside the stack")

    def test_kernel_client_of_the_same_host_is_served_too(self):
        """A program without Culvert on the daemon's host connects to the interface's own address: the kernel's socket answers."""
        echo = self.lab.start("asyncio", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8003"], under=self.culvert)
        self.lab.wait_for_port(self.lab.ip4(), 8003, echo, under=self.culvert, addresses=2)
        text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", self.lab.ip4(), "8003", "1", host="server")
        self.assertTrue(text.startswith("same"), text)


if __name__ == "__main__":
    run()
