"""Addresses, routes and links that change while programs run: Culvert follows, and programs see what they see on kernel sockets.

Run it with CULVERT_E2E=kernel, too: what is expected here is what the kernel does.
"""
import os
import socket
import threading
import time

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, Failure, command, sha256
from servers import pseudo_random

PORT = 7500
ECHO = """
import socket, sys, threading
s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('::', int(sys.argv[1]))); s.listen(100)
print('listening', flush=True)
def serve(c):
    try:
        while d := c.recv(65536): c.sendall(d)
    except OSError as e: print(type(e).__name__, e.errno, flush=True)
    c.close()
while True:
    c, a = s.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""
UDP_ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', int(sys.argv[1])))
while True:
    d, a = s.recvfrom(3000)
    try: s.sendto(d, a)
    except OSError as e: print(type(e).__name__, e.errno, flush=True)
"""
# Reads lines: an address to connect to, or "send". Prints the errno's name of each, or "ok".
ASKER = """
import errno, socket, sys
kept = None
for line in sys.stdin:
    word, *rest = line.split()
    try:
        if word == 'connect':
            with socket.create_connection((rest[0], int(rest[1])), float(rest[2])) as s:
                print('ok', s.getsockname()[0], flush=True)
        elif word == 'keep':
            kept = socket.create_connection((rest[0], int(rest[1])), 20); print('ok', flush=True)
        elif word == 'talk':
            kept.settimeout(float(rest[0]))
            kept.sendall(b'x'); print('ok' if kept.recv(10) == b'x' else 'end', flush=True)
        elif word == 'udp':
            with socket.socket(socket.AF_INET6 if ':' in rest[0] else socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.settimeout(float(rest[2])); s.sendto(b'x', (rest[0], int(rest[1]))); s.recv(10); print('ok', flush=True)
    except TimeoutError: print('timeout', flush=True)
    except OSError as e: print(errno.errorcode.get(e.errno, e.errno), flush=True)
"""


class Following(Story):
    def server(self, program=ECHO, port=PORT, name="echo"):
        started = self.lab.start(name, [PYTHON, "-c", program, port], under=self.culvert if not ON_KERNEL else None)
        if program is ECHO:
            until(lambda: "listening" in started.output(), "the server to listen", 20)
            self.culvert.wait_for_listener(port)
        return started

    def asker(self, host="server"):
        """A client on the server's side, under Culvert, that tries what it is told."""
        read, write = os.pipe()
        program = self.lab.start("asker", [PYTHON, "-c", ASKER], host=host, under=self.culvert if not ON_KERNEL else None, stdin=read)
        os.close(read)
        self.addCleanup(os.close, write)
        return _Asker(program, write)

    def ip(self, *words, host="server"):
        name = self.lab.server if host == "server" else self.lab.client
        return command("ip", "-n", name, *words)

    def echoes(self, address, port=PORT, seconds=1.0, source=None):
        """One connection, a word there and back."""
        try:
            with socket.create_connection((address, port), seconds, source) as connection:
                connection.settimeout(seconds)
                connection.sendall(b"word")
                return connection.recv(10) == b"word"
        except OSError:
            return False

    def gone(self, address, act):
        """Takes the address away by `act`; returns when nobody answers for it any more."""
        before = None if ON_KERNEL else self.culvert.stat()["control"]["addresses"]
        act()
        if not ON_KERNEL:  # that nothing is heard in time may have another reason
            until(lambda: self.culvert.stat()["control"]["addresses"] == before - 1, f"Culvert to let {address} go")
        until(lambda: not self.echoes(address, seconds=0.3), f"{address} to be gone", 20)

    def carried_now(self, act, what, name="tcp_passive_opens"):
        """`act` succeeds and what it does goes through Culvert; at once or very soon."""
        if ON_KERNEL:
            return until(act, what, 20)

        def through():
            try:
                before = self.culvert.counters()[name]
                return act() and self.culvert.counters()[name] > before
            except Failure:  # it is just beginning anew
                return False
        return until(through, f"{what}, through Culvert", 20)


class _Asker:
    def __init__(self, program, write):
        self.program, self.write, self.answers = program, write, 0

    def __call__(self, *words):
        os.write(self.write, (" ".join(map(str, words)) + "\n").encode())
        self.answers += 1
        lines = until(lambda: len(got := self.program.output().splitlines()) >= self.answers and got,
                      f"an answer to {words}: {self.program.output()}", 40)
        return lines[self.answers - 1]


class Addresses(Following):
    def test_wildcard_listener_gets_addresses_that_come(self):  # trap 23
        server, udp = self.server(), self.server(UDP_ECHO, PORT + 1, "udp")
        for family, address, prefix, far in ((4, "10.99.0.1", 24, "10.99.0.2"), (6, "fd99::1", 64, "fd99::2")):
            self.ip("address", "add", f"{far}/{prefix}", "dev", "veth0", *(["nodad"] if family == 6 else []), host="client")
            self.assertFalse(self.echoes(address, seconds=0.3))
            self.ip("address", "add", f"{address}/{prefix}", "dev", "veth0", *(["nodad"] if family == 6 else []))
            self.carried_now(lambda: self.echoes(address), f"a connection to {address}")
            self.gone(address, lambda: self.ip("address", "del", f"{address}/{prefix}", "dev", "veth0"))
            self.ip("address", "del", f"{far}/{prefix}", "dev", "veth0", host="client")
        self.assertTrue(self.echoes(self.lab.ip4(), seconds=20) and self.echoes(self.lab.ip6(), seconds=20))
        server.kill()
        udp.kill()

    def test_connection_on_an_address_that_goes_and_comes_back(self):
        """As on Linux: it is not reset; its packets are not heard until the address is back."""
        server = self.server()
        for family, address, prefix, far in ((4, "10.98.0.1", 24, "10.98.0.2"), (6, "fd98::1", 64, "fd98::2")):
            nodad = ["nodad"] if family == 6 else []
            self.ip("address", "add", f"{far}/{prefix}", "dev", "veth0", *nodad, host="client")
            self.ip("address", "add", f"{address}/{prefix}", "dev", "veth0", *nodad)
            self.carried_now(lambda: self.echoes(address), f"a connection to {address}")
            with socket.create_connection((address, PORT), 10) as connection:
                connection.sendall(b"before")
                self.assertEqual(connection.recv(10), b"before")
                self.gone(address, lambda: self.ip("address", "del", f"{address}/{prefix}", "dev", "veth0"))
                connection.settimeout(1)
                connection.sendall(b"lost?")
                self.assertRaises(TimeoutError, connection.recv, 10)
                self.ip("address", "add", f"{address}/{prefix}", "dev", "veth0", *nodad)
                connection.settimeout(30)
                self.assertEqual(connection.recv(10), b"lost?")
            self.ip("address", "del", f"{address}/{prefix}", "dev", "veth0")
            self.ip("address", "del", f"{far}/{prefix}", "dev", "veth0", host="client")
        self.assertTrue(server.running())
        server.kill()

    def test_listener_bound_to_one_address(self):
        """It serves that address alone, and again when the address has been away."""
        program = ECHO.replace("s.bind(('::', int(sys.argv[1])))", "s.bind(('::ffff:10.97.0.1', int(sys.argv[1])))")
        self.ip("address", "add", "10.97.0.2/24", "dev", "veth0", host="client")
        self.ip("address", "add", "10.97.0.1/24", "dev", "veth0")
        server = self.lab.start("bound", [PYTHON, "-c", program, PORT + 2], under=self.culvert if not ON_KERNEL else None)
        self.culvert.wait_for_listener(PORT + 2)
        self.carried_now(lambda: self.echoes("10.97.0.1", PORT + 2), "a connection")
        self.assertFalse(self.echoes(self.lab.ip4(), PORT + 2))
        self.ip("address", "del", "10.97.0.1/24", "dev", "veth0")
        until(lambda: not self.echoes("10.97.0.1", PORT + 2, 0.3), "the address to be gone", 20)
        self.ip("address", "add", "10.97.0.1/24", "dev", "veth0")
        self.carried_now(lambda: self.echoes("10.97.0.1", PORT + 2), "a connection again")
        self.ip("address", "del", "10.97.0.1/24", "dev", "veth0")
        self.ip("address", "del", "10.97.0.2/24", "dev", "veth0", host="client")
        server.kill()


class Routes(Following):
    def test_connect_says_what_the_routes_say(self):
        """No route, an unreachable one, a way that comes and goes: connect() and sendto() say what the kernel's say."""
        with self.lab.on("client"):
            listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
        self.addCleanup(listener.close)
        ask = self.asker()
        for family, net, far in ((4, "10.96.0.0/24", "10.96.0.9"), (6, "fd96::/64", "fd96::9")):
            self.ip("address", "add", f"{far}/{24 if family == 4 else 64}", "dev", "veth0", *(["nodad"] if family == 6 else []), host="client")
            via = self.lab.ip4("client") if family == 4 else self.lab.ip6("client")
            six = ["-6"] if family == 6 else []
            self.assertEqual(ask("connect", far, PORT, 2), "ENETUNREACH")
            self.assertEqual(ask("udp", far, 9, 0.2), "ENETUNREACH")
            self.ip(*six, "route", "add", net, "via", via)
            self.carried_now(lambda: ask("connect", far, PORT, 5).startswith("ok"), f"a connection to {far}", "tcp_active_opens")
            self.ip(*six, "route", "del", net)
            until(lambda: ask("connect", far, PORT, 2) == "ENETUNREACH", "the route to be gone", 20)
            self.ip(*six, "route", "add", "unreachable", net)
            until(lambda: ask("connect", far, PORT, 2) == "EHOSTUNREACH", "the route to be unreachable", 20)
            self.ip(*six, "route", "del", "unreachable", net)
            self.ip(*six, "route", "add", "prohibit", net)
            until(lambda: ask("connect", far, PORT, 2) == "EACCES", "the route to be prohibited", 20)
            self.ip(*six, "route", "del", "prohibit", net)
            self.ip(*six, "route", "add", "default", "via", via)
            self.carried_now(lambda: ask("connect", far, PORT, 5).startswith("ok"), "the default route to lead there", "tcp_active_opens")
            self.ip(*six, "route", "del", "default")
            self.ip("address", "del", f"{far}/{24 if family == 4 else 64}", "dev", "veth0", host="client")

    def test_preferred_source_of_a_route(self):
        ask = self.asker()
        with self.lab.on("client"):
            listener = socket.create_server(("", PORT + 3))
        self.addCleanup(listener.close)
        self.ip("address", "add", "10.77.0.51/24", "dev", "veth0")
        self.ip("address", "add", "10.95.0.9/24", "dev", "veth0", host="client")
        self.ip("route", "add", "10.95.0.0/24", "via", self.lab.ip4("client"), "src", "10.77.0.51")
        self.carried_now(lambda: ask("connect", "10.95.0.9", PORT + 3, 5) == "ok 10.77.0.51", "the source of the route", "tcp_active_opens")
        self.ip("route", "change", "10.95.0.0/24", "via", self.lab.ip4("client"), "src", self.lab.ip4())
        self.carried_now(lambda: ask("connect", "10.95.0.9", PORT + 3, 5) == f"ok {self.lab.ip4()}", "the other source", "tcp_active_opens")
        self.ip("route", "del", "10.95.0.0/24")
        self.ip("address", "del", "10.77.0.51/24", "dev", "veth0")
        self.ip("address", "del", "10.95.0.9/24", "dev", "veth0", host="client")

    def test_nobody_answers_for_the_neighbour(self):
        """A host of the link that is not there: EHOSTUNREACH after the kernel's time for it."""
        ask = self.asker()
        self.assertEqual(ask("connect", "10.77.0.77", PORT, 30), "EHOSTUNREACH")
        self.assertEqual(ask("connect", "fd77:1::77", PORT, 30), "EHOSTUNREACH")


class Links(Following):
    def transfer(self, act):
        """10 MB there and back; `act` in the middle."""
        data = pseudo_random(10 << 20, 3)
        server = self.server()
        with socket.create_connection((self.lab.ip4(), PORT), 20) as connection:
            connection.settimeout(60)
            half = threading.Event()
            received = bytearray()

            def send():
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            sender = threading.Thread(target=send)
            sender.start()
            while len(received) < len(data):
                if len(received) > len(data) // 3 and not half.is_set():
                    half.set()
                    act()
                part = connection.recv(1 << 16)
                if not part:
                    break
                received += part
            sender.join()
        self.assertEqual(sha256(bytes(received)), sha256(data))
        server.kill()

    def test_down_and_up_during_a_transfer(self):
        def down_and_up():
            for host in ("server", "client"):
                self.ip("link", "set", "veth0", "down", host=host)
                until(lambda: not self.up(host), "the link to be down")
                self.ip("link", "set", "veth0", "up", host=host)
                if host == "client":
                    self.ip("address", "replace", f"{self.lab.ip6('client')}/64", "dev", "veth0", "nodad", host="client")
                else:
                    self.ip("address", "replace", f"{self.lab.ip6()}/64", "dev", "veth0", "nodad")
        self.transfer(down_and_up)

    def up(self, host):
        return "state UP" in self.ip("link", "show", "veth0", host=host)

    def test_mtu_changes_during_a_transfer(self):
        def smaller():
            for host in ("server", "client"):
                self.ip("link", "set", "veth0", "mtu", 1280, host=host)
        self.transfer(smaller)

        def larger():
            for host in ("server", "client"):
                self.ip("link", "set", "veth0", "mtu", 1500, host=host)
        self.transfer(larger)

    def test_connect_while_the_link_is_down(self):
        ask = self.asker()
        with self.lab.on("client"):
            listener = socket.create_server(("", PORT + 4))
        self.addCleanup(listener.close)
        self.carried_now(lambda: ask("connect", self.lab.ip4("client"), PORT + 4, 5).startswith("ok"), "a connection", "tcp_active_opens")
        self.ip("link", "set", "veth0", "down")
        until(lambda: ask("connect", self.lab.ip4("client"), PORT + 4, 1) == "ENETUNREACH", "the way to be gone", 20)
        self.ip("link", "set", "veth0", "up")
        self.ip("address", "replace", f"{self.lab.ip6()}/64", "dev", "veth0", "nodad")
        self.carried_now(lambda: ask("connect", self.lab.ip4("client"), PORT + 4, 5).startswith("ok"), "a connection again",
                         "tcp_active_opens")


class Recreated(Following):
    def cpu(self, pid):
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def idle(self, *pids):
        """No program spins: less than 5 % of a core in some second."""
        def measure():
            before = [self.cpu(pid) for pid in pids]
            time.sleep(1)  # what is measured
            return all(self.cpu(pid) - old < 0.05 for pid, old in zip(pids, before))
        until(measure, "everybody to be idle: somebody spins")

    def test_interface_deleted_and_made_again(self):
        """Programs and daemon live on; what comes under the same name is served as the first was."""
        server, udp = self.server(), self.server(UDP_ECHO, PORT + 1, "udp")
        for _ in range(2):
            self.carried_now(lambda: self.echoes(self.lab.ip4()), "a connection")
            with socket.create_connection((self.lab.ip4(), PORT), 10) as connection:
                connection.sendall(b"x")
                self.assertEqual(connection.recv(10), b"x")
                self.ip("link", "del", "veth0")  # and with it its other end
                self.idle(server.pid, udp.pid, *([] if ON_KERNEL else [self.culvert.pid]))
            self.lab.make_link()
            self.carried_now(lambda: self.echoes(self.lab.ip4()), "a connection over the new interface")
            self.carried_now(lambda: self.echoes(self.lab.ip6()), "the same with IPv6")
        if not ON_KERNEL:
            self.assertTrue(self.culvert.program.running())
            self.assertEqual(self.culvert.stop(), 0)
        self.assertTrue(server.running() and udp.running())
        self.assertTrue(self.echoes(self.lab.ip4(), seconds=20))


if __name__ == "__main__":
    run()
