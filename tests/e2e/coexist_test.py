"""Nothing to give up: on the address that Culvert serves, the kernel's other servers and ping work on, also under load."""
import json
import signal
import socket

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, sha256
from servers import Nginx


class Coexist(Story):
    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab, under=cls.culvert)
        cls.kernel = Nginx(cls.lab, port=8080)  # on the same address, without Culvert

    def test_kernel_server_and_ping_while_nginx_is_under_load(self):
        load = self.lab.start("wrk", ["wrk", "-t1", "-c32", "-d100s", f"http://{self.lab.ip4()}/small"], host="client")
        before = None if ON_KERNEL else self.culvert.counters()["tcp_passive_opens"]
        for address, url in ((self.lab.ip4(), self.lab.ip4()), (self.lab.ip6(), f"[{self.lab.ip6()}]")):
            ping = self.lab.call("ping", "-c", "25", "-i", "0.2", address)
            self.assertIn(" 0% packet loss", ping)
            for _ in range(3):
                target = self.lab.path("kernel.bin")
                self.lab.call("curl", "-sSf", f"http://{url}:8080/big.bin", "-o", target)
                with open(target, "rb") as file:
                    self.assertEqual(sha256(file.read()), self.kernel.hashes["big.bin"])
        self.assertTrue(load.running(), "the load went on all the time")
        self.assertEqual(load.stop(signal.SIGINT), 0)  # wrk prints its result then
        self.assertNotIn("Socket errors", load.output())
        self.assertNotIn("Non-2xx", load.output())
        if before is not None:
            grown = self.culvert.counters()["tcp_passive_opens"] - before
            self.assertIn(grown, range(32, 40), "only connections to nginx's port came to Culvert")

    def test_kernel_flow_that_was_there_before_goes_on(self):
        """A connection the kernel accepted on a port stays the kernel's when Culvert takes the port over."""
        port = 8090
        program = ("import socket,sys\ns=socket.create_server(('', int(sys.argv[1])));c,_=s.accept();s.close()\n"
                   "while d:=c.recv(100): c.sendall(d)")
        server = self.lab.start("old server", [PYTHON, "-c", program, port])

        def connect():
            try:
                return socket.create_connection((self.lab.ip4(), port), 5)
            except OSError:
                return None
        with until(connect, "the old server") as connection:
            connection.settimeout(10)
            connection.sendall(b"before")
            self.assertEqual(connection.recv(100), b"before")
            taken = Nginx(self.lab, under=self.culvert, port=port)
            with self.carried(1):
                self.lab.call("curl", "-sSf", f"http://{self.lab.ip4()}:{port}/small")
            connection.sendall(b"after")
            self.assertEqual(connection.recv(100), b"after")
        self.assertEqual(server.wait(), 0)
        taken.program.stop()

    def test_other_traffic_of_the_host_is_the_kernels(self):
        """UDP to a kernel server, and a TCP connection that the host opens itself."""
        program = "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.bind(('',5353))\nd,a=s.recvfrom(100);s.sendto(d,a)"
        self.lab.start("udp", [PYTHON, "-c", program])
        client = ("import socket,sys,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(0.1)\n"
                  "for _ in range(100):\n s.sendto(b'hello',(sys.argv[1],5353))\n"
                  " try: print(s.recv(100).decode()); break\n except OSError: pass")
        self.assertEqual(self.lab.call(PYTHON, "-c", client, self.lab.ip4()).strip(), "hello")
        with self.lab.on("client"):
            kernel = socket.create_server(("", 8082))
        kernel.settimeout(10)
        self.lab.start("curl", ["curl", "-sS", "-m", "5", f"http://{self.lab.ip4('client')}:8082/"])
        connection, peer = kernel.accept()
        self.assertEqual(peer[0], self.lab.ip4())
        connection.close()
        kernel.close()


class GivingBack(Story):
    """SIGTERM: exit code 0, no XDP program left, and the same address is the kernel's again."""

    def test_daemon_ends_and_the_kernel_serves(self):
        nginx = Nginx(self.lab, under=self.culvert)
        self.lab.call("curl", "-sSf", f"http://{self.lab.ip4()}/small")
        if ON_KERNEL:
            self.skipTest("needs culvertd")
        link = json.loads(self.lab.call("ip", "-json", "link", "show", "dev", "veth0", host="server"))[0]
        self.assertIn("xdp", link, "an XDP program is attached while culvertd runs")
        self.assertEqual(self.culvert.stop(), 0)
        link = json.loads(self.lab.call("ip", "-json", "link", "show", "dev", "veth0", host="server"))[0]
        self.assertNotIn("xdp", link)
        # The kernel's own listener lies under Culvert's: nginx still serves.
        self.lab.wait_for_port(self.lab.ip4(), 80)
        self.assertIn("culvert", self.lab.call("curl", "-sSf", "-m", "5", f"http://{self.lab.ip4()}/small"))
        self.assertTrue(nginx.program.running())


if __name__ == "__main__":
    run()
