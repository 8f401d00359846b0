"""The daemon goes away and comes back, and nobody starts an application anew: kill -9 under load, SIGTERM, restart.

While it is away the kernel serves; connections that it had end with a reset at both ends. When it is back, listeners and UDP
sockets are Culvert's again without anybody touching them, also those of idle programs that sleep in epoll_wait, and of
programs that were started without a daemon. What the kernel has begun meanwhile it also ends.
"""
import os
import signal
import socket
import statistics
import threading
import time
import unittest

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, sha256
from servers import SMALL_BYTES, Nginx, Redis, RedisClient

ROUNDS = 10
MOST_CPU = 0.05          # of a core, of a worker without a daemon
SERVED_AGAIN = 1.0       # seconds until the kernel serves
CARRIED_AGAIN = 2.0      # seconds until Culvert does

ECHO = """
import socket, sys
s = socket.create_server(('', int(sys.argv[1])), backlog=100)
print('listening', flush=True)
while True:
    c, a = s.accept()
    try:
        while d := c.recv(65536): c.sendall(d)
        print('closed', flush=True)
    except OSError as e:
        print(type(e).__name__, flush=True)
    c.close()
"""
# The same, and who keeps one connection waiting keeps nobody else: the peer of a killed daemon is told nothing until there is another.
ECHO_TO_ALL = """
import socket, sys, threading
s = socket.create_server(('', int(sys.argv[1])), backlog=100)
print('listening', flush=True)
def serve(c):
    try:
        while d := c.recv(65536): c.sendall(d)
    except OSError: pass
    c.close()
while True:
    threading.Thread(target=serve, args=s.accept()[:1], daemon=True).start()
"""
UDP_BLOCKING = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', int(sys.argv[1])))
while True:
    d, a = s.recvfrom(2000); s.sendto(d, a)
"""
UDP_POLL = """
import select, socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', int(sys.argv[1]))); s.setblocking(False)
p = select.poll(); p.register(s, select.POLLIN)
while True:
    p.poll()
    try: d, a = s.recvfrom(2000)
    except BlockingIOError: continue
    s.sendto(d, a)
"""
UDP_EPOLL = """
import select, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', int(sys.argv[1]))); s.setblocking(False)
p = select.epoll(); p.register(s, select.EPOLLIN | select.EPOLLET)
while True:
    p.poll()
    while True:
        try: d, a = s.recvfrom(2000)
        except BlockingIOError: break
        s.sendto(d, a)
"""
ACCEPT_POLL = """
import select, socket, sys
s = socket.create_server(('', int(sys.argv[1])), backlog=100); s.setblocking(False)
p = select.poll(); p.register(s, select.POLLIN)
while True:
    p.poll()
    try: c, a = s.accept()
    except BlockingIOError: continue
    c.setblocking(True)
    c.sendall(c.recv(1000)); c.close()
"""
CLIENT = """
import socket, sys, time
for n in range(1000000):
    try:
        with socket.create_connection((sys.argv[1], 7300), 5) as s:
            s.sendall(b'hello'); assert s.recv(10) == b'hello'
        print('ok', flush=True)
    except ConnectionResetError: print('reset', flush=True)
    except OSError as e: print('FAILED', type(e).__name__, e, flush=True)
    time.sleep(0.02)
"""

# Accepts and says a byte, and from then on only waits; "fork": each connection in a process that has no listener.
HOST = """
import os, select, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
s = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
held = []
while True:
    c, a = s.accept()
    d = c.recv(1)
    if d == b'?':  # leave what comes now in the queue
        c.sendall(b'!')
        held.append(c)
        select.select([c], [], [])
        continue
    c.sendall(b'!')
    if sys.argv[2] == 'fork' and os.fork() == 0:
        s.close()
        try: c.recv(1)
        except OSError: pass
        signal.pause()
    if sys.argv[2] == 'fork': c.close()
    else: held.append(c)
"""
# Has one client, and no listener any more; makes a socket when it has lost it.
SINGLE = """
import socket, sys
s = socket.create_server(('', int(sys.argv[1])))
c, a = s.accept(); s.close()
c.sendall(b'!')
while True:
    try: c.recv(1)
    except OSError: pass
    socket.socket().close()
"""
# Connects to each address and says a byte, then only waits; when it has lost a connection it makes a socket, as a client does.
GUEST = """
import select, socket, sys, time
made = [socket.create_connection((a, int(sys.argv[1])), 20) for a in sys.argv[2:]]
for c in made: c.sendall(b'!')
while True:
    for c in made:
        try: c.setblocking(True); c.recv(1)
        except OSError: pass
    socket.socket().close()
    time.sleep(0.1)
"""


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def begin_request(address, path, port=80):
    connection = socket.create_connection((address, port), 20)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def read_body(connection, data=b""):
    """The body of the one answer that comes, of which `data` is there already; the connection stays open."""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            raise AssertionError("the connection ended before the answer's head did")
        data += part
    head, body = data.split(b"\r\n\r\n", 1)
    length = int([line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")][0].split(b":")[1])
    while len(body) < length:
        part = connection.recv(1 << 16)
        if not part:
            raise AssertionError(f"the connection ended after {len(body)} bytes of {length}")
        body += part
    return body


@unittest.skipIf(ON_KERNEL, "these stories are about the daemon")
class Outage(Story):
    def listens(self, port, count=1):
        lines = [line for line in self.culvert.sockets()
                 if line["path"] == "culvert" and line["state"] == "LISTEN" and line["local"].endswith(f":{port}")]
        return len(lines) >= count

    def bound(self, port):
        return any(line["path"] == "culvert" and line["proto"] == "udp" and line["local"].endswith(f":{port}")
                   for line in self.culvert.sockets())

    def assert_reset_at_once(self, connection):
        """The peer says something and is told, not after a time-out of its own."""
        connection.settimeout(20)
        begin = time.monotonic()
        try:
            while True:
                connection.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
                if not connection.recv(65536):
                    self.fail("an end of stream where a reset should be")
        except (ConnectionResetError, BrokenPipeError):
            pass
        connection.close()
        return time.monotonic() - begin

    def idle_cpu(self, pids, loads):
        """How much of a core the busiest of these programs takes without a daemon and without anything to do."""
        for load in loads:
            os.killpg(load.pid, signal.SIGSTOP)

        def measure():
            before = [cpu_seconds(pid) for pid in pids]
            begin = time.monotonic()
            time.sleep(1)  # what is measured
            most = max(cpu_seconds(pid) - old for pid, old in zip(pids, before)) / (time.monotonic() - begin)
            return (most,) if most < MOST_CPU else None
        try:
            return until(measure, "the programs to be idle: one of them spins")[0]
        finally:
            for load in loads:
                os.killpg(load.pid, signal.SIGCONT)

    def served_by_kernel(self, port=80):
        begin = time.monotonic()
        until(lambda: self._small(port), "the kernel to serve", 30)
        return time.monotonic() - begin

    def _small(self, port, seconds=1):
        try:
            with socket.create_connection((self.lab.ip4(), port), seconds) as connection:
                connection.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return read_body(connection) == SMALL_BYTES
        except OSError:
            return False


class KilledUnderLoad(Outage):
    def test_ten_times_in_a_row(self):
        """nginx and redis under load: resets, the kernel, Culvert again, and a download of the kernel's that goes on."""
        nginx = Nginx(self.lab, under=self.culvert)
        redis = Redis(self.lab, under=self.culvert)
        echo = self.lab.start("echo", [PYTHON, "-c", ECHO, 7000], under=self.culvert)
        self.culvert.wait_for_listener(7000)
        workers = nginx.workers()
        resets, served, carried, cpu = [], [], [], []
        for turn in range(ROUNDS):
            # Anew each time: what is connected while the daemon is away stays the kernel's.
            loads = [self.lab.start("load", ["sh", "-c", f"while :; do {command}; done"], host="client") for command in
                     (f"wrk -t1 -c16 -d1000s http://{self.lab.ip4()}/small",
                      f"redis-benchmark -h {self.lab.ip4()} -t get -n 100000000 -c 8")]
            keep = begin_request(self.lab.ip4(), "/small")
            self.assertEqual(read_body(keep), SMALL_BYTES)
            talker = socket.create_connection((self.lab.ip4(), 7000), 20)
            talker.sendall(b"x")
            self.assertEqual(talker.recv(10), b"x")
            opened = self.culvert.counters()["tcp_segments_in"]
            until(lambda: self.culvert.counters()["tcp_segments_in"] > opened + 500, "the load to arrive", 30)
            self.culvert.program.kill()
            served.append(self.served_by_kernel())
            resets.append(self.assert_reset_at_once(keep))
            until(lambda: echo.output().count("ConnectionResetError") == turn + 1, "the program's end to be reset", 30)
            resets.append(self.assert_reset_at_once(talker))
            with RedisClient(self.lab.ip4()) as client:
                self.assertEqual(client.ask("SET", "turn", turn), "OK")
            download = begin_request(self.lab.ip4(), "/big.bin")
            first = download.recv(1000)
            self.assertTrue(first)
            cpu.append(self.idle_cpu([*workers, redis.program.pid, echo.pid], loads))
            self.culvert.start()
            begin = time.monotonic()
            for port, count in ((80, 2 * len(workers)), (6379, 2), (7000, 1)):
                until(lambda: self.listens(port, count), f"Culvert to listen on port {port} again", 30)
            carried.append(time.monotonic() - begin)
            with self.carried(3):
                self.assertTrue(self._small(80, 20))
                with RedisClient(self.lab.ip4()) as client:
                    self.assertEqual(client.ask("GET", "turn"), str(turn).encode())
                with socket.create_connection((self.lab.ip4(), 7000), 20) as talker:
                    talker.sendall(b"y")
                    self.assertEqual(talker.recv(10), b"y")
            download.settimeout(20)
            self.assertEqual(sha256(read_body(download, first)), nginx.hashes["big.bin"])
            download.close()
            for load in loads:
                load.kill()
        print(f"reset after {max(resets):.3f} s, the kernel after {max(served):.3f} s, Culvert again after "
              f"{statistics.median(carried):.2f} s ({max(carried):.2f} s at most), CPU {max(cpu):.3f}")
        self.assertEqual(nginx.workers(), workers, "nobody was started anew")
        self.assertTrue(redis.program.running() and echo.running())
        self.assertLess(statistics.median(resets), SERVED_AGAIN)
        self.assertLess(statistics.median(served), SERVED_AGAIN)
        self.assertLess(statistics.median(carried), CARRIED_AGAIN)


class SilentPeers(Outage):
    """Peers that only wait learn what has happened once there is a daemon again: it makes them ask."""

    def talk(self, address, port, word=b"."):
        connection = socket.create_connection((address, port), 20)
        connection.settimeout(30)
        connection.sendall(word)
        self.assertEqual(connection.recv(10), b"!")
        return connection

    def restart(self):
        self.culvert.program.kill()
        self.culvert.start()
        return time.monotonic()

    def assert_told(self, waiting, begin):
        """Each of them is reset, and has said nothing."""
        for name, connection in waiting:
            connection.settimeout(30)
            try:
                self.fail(f"{name}: {connection.recv(1)!r} where a reset should be")
            except ConnectionResetError:
                connection.close()
            except TimeoutError:
                self.fail(f"{name}: {connection.getsockname()} to {connection.getpeername()} was told nothing\n" +
                          self.lab.call("ss", "-tanoi"))
        return time.monotonic() - begin

    def control(self, name):
        return self.culvert.stat()["control"][name]

    def test_clients_of_a_server(self):
        host = self.lab.start("host", [PYTHON, "-c", HOST, 7050, "one"], under=self.culvert)
        self.culvert.wait_for_listener(7050)
        took = []
        for _ in range(3):
            with self.carried(5):
                waiting = [(address, self.talk(address, 7050)) for address in (self.lab.ip4(), self.lab.ip6()) for _ in range(2)]
                last = self.talk(self.lab.ip4(), 7050, b"?")
                queued = [(f"in the queue, {address}", socket.create_connection((address, 7050), 20))
                          for address in (self.lab.ip4(), self.lab.ip6())]
                until(lambda: self.culvert.counters()["tcp_established"] >= 7, "the connections to be in the queue", 30)
            self.culvert.program.kill()
            until(lambda: self.is_reset(last), "the program to hear of the daemon's end", 30)
            kernels = self.talk(self.lab.ip4(), 7050)
            self.culvert.start()
            begin = time.monotonic()
            until(lambda: self.listens(7050), "Culvert to listen again", 30)
            took.append(self.assert_told(waiting + queued, begin))
            self.assertGreaterEqual(self.control("dead_flows_probed"), 6)
            self.assertEqual([self.control(f"dead_flows_{name}") for name in ("unproved", "limited")], [0, 0])
            kernels.setblocking(False)
            with self.assertRaises(BlockingIOError, msg="the kernel's connection goes on"):
                kernels.recv(1)
            kernels.close()
        print(f"told after {max(took):.2f} s")
        host.kill()

    def is_reset(self, connection):
        try:
            connection.sendall(b"x")
        except OSError:
            return True
        return False

    def test_clients_of_processes_without_the_listener(self):
        host = self.lab.start("host", [PYTHON, "-c", HOST, 7051, "fork"], under=self.culvert)
        self.culvert.wait_for_listener(7051)
        with self.carried(4):
            waiting = [(address, self.talk(address, 7051)) for address in (self.lab.ip4(), self.lab.ip6()) for _ in range(2)]
        begin = self.restart()
        self.assert_told(waiting, begin)
        until(lambda: self.listens(7051), "Culvert to listen again", 30)
        self.assertEqual(self.control("dead_flows_reported"), 4, "once each")
        host.kill()

    def test_client_of_a_server_that_has_closed_its_listener(self):
        single = self.lab.start("single", [PYTHON, "-c", SINGLE, 7052], under=self.culvert)
        self.culvert.wait_for_listener(7052)
        with self.carried(1):
            waiting = socket.create_connection((self.lab.ip4(), 7052), 20)
            self.assertEqual(waiting.recv(10), b"!")
        self.assert_told([("single", waiting)], self.restart())
        single.kill()

    def test_servers_of_a_client(self):
        listeners = [socket.create_server((address, 7053), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
                     for address in (self.lab.ip4("client"), self.lab.ip6("client"))]
        with self.carried(2, "tcp_active_opens"):
            guest = self.lab.start("guest", [PYTHON, "-c", GUEST, 7053, self.lab.ip4("client"), self.lab.ip6("client")], under=self.culvert)
            waiting = []
            for listener in listeners:
                listener.settimeout(30)
                waiting.append(listener.accept()[0])
                waiting[-1].settimeout(30)
                self.assertEqual(waiting[-1].recv(10), b"!")
        self.assert_told([("server", connection) for connection in waiting], self.restart())
        self.assertEqual(self.control("dead_flows_unproved"), 0)
        for listener in listeners:
            listener.close()
        guest.kill()


class TakenOver(Outage):
    def test_no_connection_is_lost_when_culvert_takes_over(self):
        """Connections are opened and closed all the time while the daemon comes: those that the kernel has begun, also half, it ends."""
        nginx = Nginx(self.lab, under=self.culvert, port=7030)
        errors, done, stop = [], [0], threading.Event()

        def load():
            while not stop.is_set():
                try:
                    with socket.create_connection((self.lab.ip4(), 7030), 20) as connection:
                        connection.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                        if read_body(connection) != SMALL_BYTES:
                            errors.append("other bytes")
                    done[0] += 1
                except (OSError, AssertionError) as error:
                    errors.append(f"{type(error).__name__} {error}")
        for turn in range(5):
            self.assertEqual(self.culvert.stop(), 0)
            until(lambda: self._small(7030), "the kernel to serve", 20)
            stop.clear()
            threads = [threading.Thread(target=load, daemon=True) for _ in range(6)]
            for thread in threads:
                thread.start()
            self.culvert.start()
            until(lambda: self.listens(7030, 4), "Culvert to listen again", 30)
            opened = self.culvert.counters()["tcp_passive_opens"]
            until(lambda: self.culvert.counters()["tcp_passive_opens"] > opened + 500, "the load to go on through Culvert", 30)
            stop.set()
            for thread in threads:
                thread.join()
            self.assertEqual(errors, [], f"turn {turn}, after {done[0]} connections")
        nginx.program.kill()


class NobodyTouchesIt(Outage):
    """Programs that do nothing when it happens: each waits in another call."""

    SERVERS = [("accept", ECHO, 7001), ("poll", ACCEPT_POLL, 7002)]
    UDP = [("recvfrom", UDP_BLOCKING, 7011), ("udp poll", UDP_POLL, 7012), ("udp epoll", UDP_EPOLL, 7013)]

    def start_all(self):
        self.programs = [self.lab.start(name, [PYTHON, "-c", program, port], under=self.culvert)
                         for name, program, port in self.SERVERS + self.UDP]

    def kill_all(self):
        for program in self.programs:
            self.assertTrue(program.running(), f"{program.name} ended: {program.output()}")
            program.kill()
        self.wait_for_no_sockets()

    def wait_until_carried(self):
        for _, _, port in self.SERVERS:
            until(lambda: self.listens(port), f"Culvert to listen on port {port}", 30)
        for _, _, port in self.UDP:
            until(lambda: self.bound(port), f"Culvert to have UDP port {port}", 30)

    def try_all(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            for name, _, port in self.SERVERS + self.UDP:
                if address == self.lab.ip6() and name != "udp poll":
                    continue
                kind = socket.SOCK_DGRAM if "udp" in name or name == "recvfrom" else socket.SOCK_STREAM
                with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as client:
                    client.settimeout(30 if kind == socket.SOCK_STREAM else 1)

                    def answered():
                        try:
                            client.send(b"hello")
                            return client.recv(100) == b"hello"
                        except (TimeoutError, ConnectionRefusedError):  # a datagram in the moment of change
                            return False
                    client.connect((address, port))
                    if kind == socket.SOCK_STREAM:  # nothing is lost, and who asks twice is answered twice
                        self.assertTrue(answered(), f"{name} to answer on {address}")
                    else:
                        until(answered, f"{name} to answer on {address}")

    def test_daemon_killed(self):
        self.start_all()
        self.wait_until_carried()
        for _ in range(3):
            with self.carried(2), self.carried(4, "udp_in"):
                self.try_all()
            self.culvert.program.kill()
            self.try_all()
            self.culvert.start()
            self.wait_until_carried()
        with self.carried(2), self.carried(4, "udp_in"):
            self.try_all()
        self.kill_all()

    def test_daemon_ended_and_started(self):
        """systemctl restart."""
        self.start_all()
        self.wait_until_carried()
        for _ in range(2):
            self.assertEqual(self.culvert.stop(), 0)
            self.culvert.start()
            self.wait_until_carried()
            with self.carried(2), self.carried(4, "udp_in"):
                self.try_all()
        self.kill_all()

    def test_started_while_the_daemon_was_away(self):
        self.assertEqual(self.culvert.stop(), 0)
        self.start_all()
        self.try_all_when_up()
        nginx = Nginx(self.lab, under=self.culvert, port=7020, falls_back=True)
        redis = Redis(self.lab, port=7021, under=None, prefix=self.culvert.run_words())
        self.culvert.start()
        self.wait_until_carried()
        begin = time.monotonic()
        until(lambda: self.listens(7020, 4) and self.listens(7021, 2), "Culvert to take over nginx and redis", 30)
        self.assertLess(time.monotonic() - begin, 10)
        with self.carried(4), self.carried(4, "udp_in"):
            self.try_all()
            self.assertTrue(self._small(7020, 20))
            with RedisClient(self.lab.ip4(), 7021) as client:
                self.assertEqual(client.ask("PING"), "PONG")
        nginx.program.kill()
        redis.program.kill()
        self.kill_all()

    def try_all_when_up(self):
        for _, _, port in self.SERVERS:
            self.lab.wait_for_port(self.lab.ip4(), port)
        self.try_all()


class Families(Outage):
    """Masters that only hold listeners for their workers, before, during and after."""

    def reload(self, nginx):
        old = nginx.workers()
        os.kill(nginx.master(), signal.SIGHUP)
        until(lambda: (new := nginx.workers()) and not set(new) & set(old) and len(new) == len(old), "new workers", 30)

    def workers_listen(self, nginx, port):
        """Each of these workers, on both addresses: listeners of the last ones may be seen for a moment after their end."""
        pids = [line["pid"] for line in self.culvert.sockets()
                if line["path"] == "culvert" and line["state"] == "LISTEN" and line["local"].endswith(f":{port}")]
        return all(pids.count(worker) >= 2 for worker in nginx.workers())

    def test_nginx_reloads_without_a_daemon_and_with_the_next(self):
        nginx = Nginx(self.lab, under=self.culvert, port=7040)
        self.culvert.program.kill()
        self.reload(nginx)
        self.assertTrue(self._small(7040, 20))
        self.culvert.start()
        until(lambda: self.workers_listen(nginx, 7040), "Culvert to listen again", 30)
        with self.carried(20):
            self.assertTrue(all(self._small(7040, 20) for _ in range(20)))
        self.reload(nginx)
        until(lambda: self.workers_listen(nginx, 7040), "the new workers to be Culvert's", 30)
        with self.carried(20):
            self.assertTrue(all(self._small(7040, 20) for _ in range(20)))
        self.assertEqual(nginx.program.stop(signal.SIGQUIT), 0)
        self.wait_for_no_sockets()

    def test_descriptors_and_memory_do_not_grow(self):
        """A program that has seen many daemons holds no more than one that has seen two."""
        redis = Redis(self.lab, under=self.culvert, port=7041)
        held = []
        for _ in range(7):
            self.culvert.program.kill()
            self.culvert.start()
            until(lambda: self.listens(7041, 2), "Culvert to listen again", 30)
            with self.carried(1), RedisClient(self.lab.ip4(), 7041) as client:
                self.assertEqual(client.ask("PING"), "PONG")
            until(lambda: not any(line["state"] == "ESTABLISHED" for line in self.culvert.sockets()), "the client to be gone", 20)
            with open(f"/proc/{redis.program.pid}/maps") as maps:
                segments = sum("memfd:culvert " in line for line in maps)
            held.append((open_descriptors(redis.program.pid), segments))
        self.assertEqual(held[3:], [held[3]] * 4, held)
        redis.program.kill()


class Clients(Outage):
    def test_client_that_connects_again_and_again(self):
        """No connect() fails: the daemon or the kernel makes it."""
        server = self.lab.start("server", [PYTHON, "-c", ECHO_TO_ALL, 7300], host="client")
        until(lambda: "listening" in server.output(), "the server")
        client = self.lab.start("client", [PYTHON, "-c", CLIENT, self.lab.ip4("client")], under=self.culvert)

        def goes_on():
            done = client.output().count("ok")
            until(lambda: client.output().count("ok") >= done + 3, "the client to go on", 30)

        def is_carried():
            made = self.culvert.counters()["tcp_active_opens"]
            until(lambda: self.culvert.counters()["tcp_active_opens"] > made + 3, "the client to go through Culvert", 30)
        for turn in range(4):
            goes_on()
            is_carried()
            if turn % 2 == 0:
                self.culvert.program.kill()
            else:
                self.assertEqual(self.culvert.stop(), 0)
            goes_on()
            self.culvert.start()
        is_carried()
        self.assertNotIn("FAILED", client.output())
        self.assertTrue(client.running())

    def is_reset(self):
        """The kernel closes a killed daemon's sockets a moment after its end: until then it is not known to be gone."""
        try:
            with socket.create_connection((self.lab.ip4(), 7400), 10) as client:
                client.settimeout(2)
                client.recv(1)
        except ConnectionResetError:  # perhaps before connect() has returned
            return True
        except TimeoutError:
            pass
        return False

    def test_strict_programs_get_an_error(self):
        """--strict: neither a connection of the kernel's, nor one that it makes."""
        program = ("import socket, sys\ns = socket.create_server(('', 7400), backlog=10)\n"
                   "while True:\n try: c, a = s.accept(); print('accepted', flush=True)\n except OSError as e: print(e.errno, flush=True)\n"
                   " try: socket.create_connection((sys.argv[1], 9))\n except OSError as e: print('connect', e.errno, flush=True)")
        words = self.culvert.run_words("--strict")
        server = self.lab.start("strict", [*words, PYTHON, "-c", program, self.lab.ip4("client")])
        self.culvert.wait_for_listener(7400)
        with socket.create_connection((self.lab.ip4(), 7400), 10):
            until(lambda: "accepted" in server.output(), "the connection to be accepted", 30)
            self.culvert.program.kill()
            until(self.is_reset, "a client to be reset", 30)
            until(lambda: "\n100\n" in server.output(), "accept() to fail", 30)
        until(lambda: "connect 100" in server.output(), "connect() to fail", 30)  # ENETDOWN
        self.culvert.start()
        until(lambda: self.listens(7400), "Culvert to listen again", 30)
        before = server.output().count("accepted")
        with socket.create_connection((self.lab.ip4(), 7400), 10):
            until(lambda: server.output().count("accepted") > before, "the connection to be accepted", 30)
        server.kill()


if __name__ == "__main__":
    run()
