"""Two engines, two queues, several programs: whatever queue the kernel chooses, a connection's packets reach its engine."""
import concurrent.futures
import os
import random
import signal
import socket
import unittest

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, sha256
from servers import SMALL_BYTES, Nginx, Redis, RedisClient
from nginx_test import fetch

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")
TWO_ENGINES = "[engine]\ncount = 2\n"


class EnginesStory(Story):
    queues = 2
    config = TWO_ENGINES

    def engines(self):
        return self.culvert.stat()["engines"]

    def engine_of(self, program, state="LISTEN"):
        """The engines on which the program's sockets are."""
        return {line["engine"] for line in self.culvert.sockets()
                if line["path"] == "culvert" and line["program"] == program and line["state"] == state}

    def assert_clean(self):
        self.assert_no_refusals("hand_over_no_interface", "tcp_no_listener", "udp_no_socket")
        if ON_KERNEL:
            return
        # An engine that gets no core for a while (a busy machine) loses packets, as any full link; TCP sends them again.
        handed = sum(engine["counters"]["handed_in"] for engine in self.engines())
        self.assertLessEqual(self.culvert.stat()["drops"]["hand_over_full"], 10 + handed // 100)


class Servers(EnginesStory):
    """nginx on one engine, an echo server on the other; the clients' flows are spread over both queues."""

    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab, under=cls.culvert)
        cls.echo = cls.lab.start("echo", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 8001, cls.echo, under=cls.culvert, addresses=2)

    @unittest.skipIf(ON_KERNEL, "about the daemon")
    def test_each_engine_has_a_queue_and_a_program(self):
        devices = self.culvert.stat()["devices"]
        self.assertEqual([(d["engine"], d["name"], "queue " + str(i) in d["description"]) for i, d in enumerate(devices)],
                         [(0, "veth0", True), (1, "veth0", True)])
        of_nginx, of_echo = self.engine_of("nginx"), self.engine_of("python3") or self.engine_of("python3.11")
        self.assertEqual(sorted([*of_nginx, *of_echo]), [0, 1])
        self.assertEqual(sum(engine["tenants"] for engine in self.engines()), 2)

    def test_many_connections_reach_both_programs(self):
        before = None if ON_KERNEL else self.engines()
        with self.carried(200), concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: fetch(self.lab.ip4(), headers={"Connection": "close"}), range(150)))
            self.assertEqual(set(answers), {(200, SMALL_BYTES)})
            for address in (self.lab.ip4(), self.lab.ip6()):
                for _ in range(25):
                    with socket.create_connection((address, 8001), 10) as connection:
                        data = random.randbytes(5000)
                        connection.sendall(data)
                        connection.shutdown(socket.SHUT_WR)
                        self.assertEqual(b"".join(iter(lambda: connection.recv(65536), b"")), data)
        if before is not None:
            after = self.engines()
            for old, new in zip(before, after):
                self.assertGreater(new["counters"]["rx_frames"], old["counters"]["rx_frames"], "both queues were used")
                self.assertGreater(new["counters"]["handed_in"], old["counters"]["handed_in"], "packets were handed over both ways")
                self.assertGreater(new["counters"]["tcp_passive_opens"], old["counters"]["tcp_passive_opens"])
            self.assert_clean()

    def test_big_files_arrive_unchanged(self):
        with self.carried(16), concurrent.futures.ThreadPoolExecutor(8) as pool:
            hashes = list(pool.map(lambda i: sha256(fetch(self.lab.ip4() if i % 2 else self.lab.ip6(), "/big.bin")[1]), range(16)))
        self.assertEqual(set(hashes), {self.nginx.hashes["big.bin"]})

    def test_both_directions_at_once(self):
        with self.carried(4):
            for address in (self.lab.ip4(), self.lab.ip6()):
                for _ in range(2):
                    text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, "8001", "6")
                    self.assertTrue(text.startswith("same"), text)

    def test_wrk_sees_no_error(self):
        with self.carried(32):
            text = self.lab.call("wrk", "-t1", "-c32", "-d3s", f"http://{self.lab.ip4()}/small")
        self.assertNotIn("Socket errors", text)
        self.assertNotIn("Non-2xx", text)

    def test_a_port_that_nobody_has_is_refused_by_the_kernel(self):
        for _ in range(20):
            self.assertRaises(ConnectionRefusedError, socket.create_connection, (self.lab.ip4(), 9), 5)

    def test_programs_of_different_engines_talk_on_their_own_address(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            for _ in range(2):  # one of the two clients is on the other engine than the server
                with self.carried(1, "tcp_passive_opens"), self.carried(1, "tcp_active_opens"):
                    text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, "8001", "4", host="server", under=self.culvert)
                self.assertEqual(text.split(), ["same", address, address])


class Clients(EnginesStory):
    """Programs of both engines connect out; the answers come on whatever queue the kernel's hash says."""

    @classmethod
    def prepare(cls):
        cls.echo = cls.lab.start("echo", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], host="client")
        cls.lab.wait_for_port(cls.lab.ip4("client"), 8001, cls.echo)

    def test_connections_of_both_engines(self):
        with self.carried(8, "tcp_active_opens"), concurrent.futures.ThreadPoolExecutor(4) as pool:
            for address, own in ((self.lab.ip4("client"), self.lab.ip4()), (self.lab.ip6("client"), self.lab.ip6())):
                texts = pool.map(lambda _: self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, "8001", "2", host="server",
                                                         under=self.culvert), range(4))
                for text in texts:
                    self.assertEqual(text.split(), ["same", own, address])
        if not ON_KERNEL:
            for engine in self.engines():
                self.assertGreater(engine["counters"]["tcp_active_opens"], 0, "both engines opened connections")

    def test_many_short_connections_of_one_program(self):
        code = ("import socket,sys\n"
                "for i in range(300):\n"
                "    with socket.create_connection((sys.argv[1], 8001), 10) as s:\n"
                "        s.sendall(b'x' * i + b'.'); s.shutdown(socket.SHUT_WR)\n"
                "        got = b''.join(iter(lambda: s.recv(65536), b''))\n"
                "        assert got == b'x' * i + b'.', (i, got)\n"
                "print('done')")
        # A port that the kernel gives out again within a second, its last connection in TIME-WAIT, goes by the kernel.
        with self.carried(280, "tcp_active_opens"):
            text = self.lab.call(PYTHON, "-c", code, self.lab.ip4("client"), host="server", under=self.culvert)
        self.assertEqual(text.strip(), "done")

    def test_nothing_is_left(self):
        self.wait_for_no_sockets()


class Datagrams(EnginesStory):
    def test_two_servers_on_two_engines_hear_everything(self):
        for port in (8002, 8003):
            self.lab.start("udp", [PYTHON, f"{PROGRAMS}/udp_echo.py", str(port)], under=self.culvert)
        for family, address in ((socket.AF_INET, self.lab.ip4()), (socket.AF_INET6, self.lab.ip6())):
            for port in (8002, 8003):
                with socket.socket(family, socket.SOCK_DGRAM) as first:
                    first.connect((address, port))
                    first.settimeout(0.2)

                    def answered():
                        try:
                            first.send(b"ready?")
                            return first.recv(100)
                        except OSError:
                            return None
                    until(answered, "the UDP server to answer")
                with self.carried(64, "udp_in"):
                    for number in range(64):  # a port of its own each: both queues
                        with socket.socket(family, socket.SOCK_DGRAM) as client:
                            client.connect((address, port))
                            client.settimeout(10)
                            data = random.Random(number).randbytes(number * 20)
                            client.send(data)
                            self.assertEqual(client.recv(65536), data)


@unittest.skipIf(ON_KERNEL, "about the daemon")
class Killed(EnginesStory):
    def test_programs_killed_under_load_leave_nothing(self):
        for _ in range(4):
            nginx = Nginx(self.lab, under=self.culvert)
            redis = Redis(self.lab, under=self.culvert)
            load = self.lab.start("wrk", ["wrk", "-t1", "-c32", "-d60s", f"http://{self.lab.ip4()}/big.bin"], host="client")
            more = self.lab.start("load", ["redis-benchmark", "-h", self.lab.ip4(), "-t", "set,get", "-n", "10000000", "-c", "20",
                                           "-d", "500"], host="client")
            before = [engine["counters"]["tcp_segments_in"] for engine in self.engines()]
            until(lambda: all(new["counters"]["tcp_segments_in"] > old + 500 for new, old in zip(self.engines(), before)),
                  "the load to arrive at both engines")
            nginx.program.kill()
            redis.program.kill()
            self.wait_for_no_sockets()
            load.kill()
            more.kill()
            self.assertEqual([engine["tenants"] for engine in self.engines()], [0, 0])
        until(lambda: self.culvert.stat()["control"]["ports_taken"] == 0, "all ports to be free")

    def test_the_kernel_takes_over_when_the_daemon_dies(self):
        nginx = Nginx(self.lab, under=self.culvert)
        redis = Redis(self.lab, under=self.culvert)
        load = self.lab.start("wrk", ["wrk", "-t1", "-c16", "-d60s", f"http://{self.lab.ip4()}/small"], host="client")
        until(lambda: self.culvert.counters()["tcp_passive_opens"] >= 16, "the load to arrive")
        self.culvert.program.kill()
        self.lab.wait_for_port(self.lab.ip4(), 80)
        for _ in range(20):
            self.assertEqual(self.lab.call("curl", "-sSf", "-m", "20", f"http://{self.lab.ip4()}/small").encode(), SMALL_BYTES)
        with RedisClient(self.lab.ip4()) as client:
            self.assertEqual(client.ask("PING"), "PONG")
        load.kill()
        self.assertTrue(nginx.program.running() and redis.program.running())
        nginx.program.stop(signal.SIGQUIT)
        redis.program.kill()
        self.culvert.start()  # and the interface's queues, its program and the socket are free again
        redis = Redis(self.lab, under=self.culvert, port=6400)
        with self.carried(1), RedisClient(self.lab.ip4(), 6400) as client:
            self.assertEqual(client.ask("PING"), "PONG")
        self.assertEqual(self.culvert.stop(), 0)


class OneQueueOnly(EnginesStory):
    """An engine without a queue of the interface sends through the one that has it."""
    queues = 1

    def test_both_engines_serve(self):
        for port in (8001, 8002):
            echo = self.lab.start("echo", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", str(port)], under=self.culvert)
            self.lab.wait_for_port(self.lab.ip4(), port, echo, under=self.culvert, addresses=2)
        with self.carried(4):
            for port in ("8001", "8002"):
                for address in (self.lab.ip4(), self.lab.ip6()):
                    text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, port, "6")
                    self.assertTrue(text.startswith("same"), text)


class ManyQueuesOneEngine(Story):
    """The usual daemon on a NIC with several queues: it serves them all."""
    queues = 4

    def test_flows_of_all_queues(self):
        nginx = Nginx(self.lab, under=self.culvert)
        with self.carried(60):
            for _ in range(60):
                self.assertEqual(fetch(self.lab.ip4(), headers={"Connection": "close"}), (200, SMALL_BYTES))
        if not ON_KERNEL:
            devices = self.culvert.stat()["devices"]
            self.assertEqual(len(devices), 4)
            used = [d["description"] for d in devices if d["statistics"]["xsk_rx_packets"] > 0]
            self.assertGreaterEqual(len(used), 3, "the kernel's hash spreads sixty flows")
        nginx.program.kill()


if __name__ == "__main__":
    run()
