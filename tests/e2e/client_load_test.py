"""Load generators as clients under Culvert: wrk and redis-benchmark against kernel servers."""
from story import ON_KERNEL, Story, run
from netns import PYTHON
from servers import Nginx, Redis

# Connects and closes, so that its own end waits in TIME-WAIT.
RESTLESS = """
import socket, sys, time
begin = time.monotonic()
for _ in range(int(sys.argv[2])):
    s = socket.socket()
    s.connect((sys.argv[1], 80))
    s.close()
print(f'{int(sys.argv[2]) / (time.monotonic() - begin):.0f} connections a second')
"""
RESTLESS_COUNT = 20000


class ClientLoad(Story):
    """The daemon is on the client's host; nginx and redis run on kernel sockets of the server."""

    daemon_host = "client"

    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab)
        cls.redis = Redis(cls.lab)

    def test_wrk(self):
        with self.carried(64, "tcp_active_opens"):
            text = self.lab.call("wrk", "-t2", "-c64", "-d3s", f"http://{self.lab.ip4()}/small", under=self.culvert)
        self.assertNotIn("Socket errors", text)
        self.assertNotIn("Non-2xx", text)
        self.wait_for_no_sockets()

    def test_wrk_opens_a_connection_for_each_request(self):
        with self.carried(500, "tcp_active_opens"):
            text = self.lab.call("wrk", "-t1", "-c16", "-d2s", "-H", "Connection: close", f"http://{self.lab.ip4()}/small",
                                 under=self.culvert)
        self.assertNotIn("Socket errors", text)
        self.assertNotIn("Non-2xx", text)

    def test_thousands_of_connections_a_second_to_one_peer(self):
        """Ports are chosen that are not in TIME-WAIT since less than a second, so that the kernel need not help."""
        if ON_KERNEL:
            self.skipTest("counts what Culvert carries")
        before = self.culvert.counters()["tcp_active_opens"]
        text = self.lab.call(PYTHON, "-c", RESTLESS, self.lab.ip4(), RESTLESS_COUNT, under=self.culvert, timeout=300)
        kernels = RESTLESS_COUNT - (self.culvert.counters()["tcp_active_opens"] - before)
        print(f"{text.strip()}, {kernels} of {RESTLESS_COUNT} by the kernel")
        self.assertLess(kernels, RESTLESS_COUNT // 100)

    def test_redis_benchmark(self):
        with self.carried(100, "tcp_active_opens"):
            for pipeline in ("1", "16"):
                text = self.lab.call("redis-benchmark", "-h", self.lab.ip4(), "--csv", "-t", "get,set", "-n", "20000", "-c", "50",
                                     "-P", pipeline, under=self.culvert, timeout=120)
                self.assertNotIn("rror", text)

    def test_redis_cli(self):
        with self.carried(1, "tcp_active_opens"):
            self.assertEqual(self.lab.call("redis-cli", "-h", self.lab.ip4(), "ping", under=self.culvert).strip(), "PONG")


if __name__ == "__main__":
    run()
