"""Load generators as clients under Culvert: wrk and redis-benchmark against kernel servers."""
from story import Story, run
from servers import Nginx, Redis


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
