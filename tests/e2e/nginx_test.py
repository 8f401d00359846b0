"""An unmodified nginx - master, two workers as www-data - serves kernel clients through Culvert."""
import concurrent.futures
import http.client
import os
import signal
import subprocess

from story import ON_KERNEL, Story, run, until
from netns import sha256
from servers import SMALL_BYTES, Clients, Nginx, fetch


class NginxStory(Story):
    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab, under=cls.culvert)

    def tearDown(self):
        self.assertEqual(self.nginx.errors(), [])

    def test_every_close_is_clean(self):
        """HTTP/1.1 with Connection: close, one connection a request."""
        with self.carried(50):
            for _ in range(50):
                self.assertEqual(fetch(self.lab.ip4(), headers={"Connection": "close"}), (200, SMALL_BYTES))

    def test_keepalive_serves_many_requests_on_one_connection(self):
        connection = http.client.HTTPConnection(self.lab.ip4(), timeout=20)
        with self.carried(1):
            for _ in range(500):
                connection.request("GET", "/small")
                self.assertEqual(connection.getresponse().read(), SMALL_BYTES)
        connection.close()

    def test_files_by_sendfile_arrive_unchanged(self):
        with self.carried(8):
            for name, expected in self.nginx.hashes.items():
                for _ in range(4):
                    status, body = fetch(self.lab.ip4(), "/" + name)
                    self.assertEqual((status, len(body), sha256(body)), (200, len(self.nginx.files[name]), expected))

    def test_sixteen_clients_load_the_big_file_at_once(self):
        with self.carried(16), concurrent.futures.ThreadPoolExecutor(16) as pool:
            hashes = list(pool.map(lambda _: sha256(fetch(self.lab.ip4(), "/big.bin")[1]), range(16)))
        self.assertEqual(set(hashes), {self.nginx.hashes["big.bin"]})

    def test_range_of_a_file(self):
        status, body = fetch(self.lab.ip4(), "/big.bin", headers={"Range": "bytes=4000000-4999999"})
        self.assertEqual((status, body), (206, self.nginx.files["big.bin"][4000000:5000000]))

    def test_slow_reader_gets_everything(self):
        """The client's window closes and opens again: zero-window probes, no byte lost."""
        with self.carried(1):
            text = self.lab.call("curl", "-sS", "--limit-rate", "5M", "-o", self.lab.path("slow.bin"), "-w", "%{http_code}",
                                 f"http://{self.lab.ip4()}/big.bin")
        with open(self.lab.path("slow.bin"), "rb") as file:
            self.assertEqual((text, sha256(file.read())), ("200", self.nginx.hashes["big.bin"]))

    def test_ipv6_client(self):
        with self.carried(20):
            for _ in range(20):
                self.assertEqual(fetch(self.lab.ip6()), (200, SMALL_BYTES))
            self.assertEqual(sha256(fetch(self.lab.ip6(), "/big.bin")[1]), self.nginx.hashes["big.bin"])

    def test_client_on_loopback_is_served_by_the_same_nginx(self):
        before = None if ON_KERNEL else self.culvert.counters()["tcp_passive_opens"]
        for address in ("127.0.0.1", "[::1]"):
            text = self.lab.call("curl", "-sS", f"http://{address}/small", host="server")
            self.assertEqual(text.encode(), SMALL_BYTES)
            text = self.lab.call("curl", "-sS", f"http://{address}/big.bin", "-o", self.lab.path("loop.bin"), host="server")
            with open(self.lab.path("loop.bin"), "rb") as file:
                self.assertEqual(sha256(file.read()), self.nginx.hashes["big.bin"])
        if not ON_KERNEL:
            self.assertEqual(self.culvert.counters()["tcp_passive_opens"], before, "loopback is the kernel's")

    def test_open_connections_stand_in_culvert_ss(self):
        connections = []
        for _ in range(64):
            connection = http.client.HTTPConnection(self.lab.ip4(), timeout=20)
            connection.request("GET", "/small")
            self.assertEqual(connection.getresponse().read(), SMALL_BYTES)
            connections.append(connection)
        if not ON_KERNEL:
            established = [line for line in self.culvert.sockets() if line["state"] == "ESTABLISHED"]
            self.assertGreaterEqual(len(established), 64)
            self.assertEqual({line["path"] for line in established}, {"culvert"})
            self.assertTrue(all(line["program"] == "nginx" for line in established), established[:3])
        for connection in connections:
            connection.close()

    def test_wrk_sees_no_error(self):
        with self.carried(64):
            text = self.lab.call("wrk", "-t1", "-c64", "-d3s", f"http://{self.lab.ip4()}/small")
        self.assertNotIn("Socket errors", text)
        self.assertNotIn("Non-2xx", text)

    def test_reload_under_load_loses_no_connection_attempt(self):
        """nginx -s reload while clients connect: old workers finish, new ones take over, every reply is right."""
        with Clients(4, self.lab.ip4()) as clients:
            for _ in range(3):
                old = self.nginx.workers()
                self.lab.call(*self.nginx.words, "-s", "reload", host="server", under=self.culvert)
                until(lambda: len(self.nginx.workers()) == 2 and not set(old) & set(self.nginx.workers()),
                      "nginx to have two new workers and no old one", 20)
        self.assertGreater(clients.served, 20)
        with self.carried(1):
            self.assertEqual(fetch(self.lab.ip4()), (200, SMALL_BYTES))

    def test_a_worker_that_is_killed_is_replaced(self):
        victim = until(lambda: len(self.nginx.workers()) == 2 and self.nginx.workers(), "nginx to have its workers")[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(self.nginx.workers()) == 2 and victim not in self.nginx.workers(), "nginx to start a new worker")
        for _ in range(50):
            self.assertEqual(fetch(self.lab.ip4()), (200, SMALL_BYTES))
        with open(f"{self.nginx.directory}/error.log", "r+") as log:  # nginx rightly complains about the signal
            self.assertIn("exited on signal 9", log.read())
            log.truncate(0)


class DaemonizedNginx(Story):
    """As the package runs it: the program that was started ends, the master lives on in the background."""

    def test_serves_and_quits(self):
        nginx = Nginx(self.lab, under=self.culvert, daemonize=True)
        with self.carried(10):
            for _ in range(10):
                self.assertEqual(fetch(self.lab.ip4()), (200, SMALL_BYTES))
        master = nginx.master()
        self.lab.call(*nginx.words, "-s", "quit", host="server", under=self.culvert)
        until(lambda: not os.path.exists(f"/proc/{master}"), "the nginx master to end")
        self.assertEqual(nginx.errors(), [])
        self.wait_for_no_sockets()
        refused = subprocess.run(["curl", "-sS", "-m", "5", f"http://{self.lab.ip4()}/small"], capture_output=True)
        self.assertEqual(refused.returncode, 7, "the kernel refuses the port that nobody owns any more")


if __name__ == "__main__":
    run()
