"""Whatever dies, the other side lives: kill -9 of a program in the middle of a transfer, of a client, of the daemon, no daemon at all."""
import os
import signal
import socket
import subprocess
import unittest

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, sha256
from servers import SMALL_BYTES, Nginx, Redis, RedisClient

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


def read_some(address, path, size, port=80):
    """Asks for a file and stops reading after `size` bytes; the open connection."""
    connection = socket.create_connection((address, port), 20)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    got = 0
    while got < size:
        part = connection.recv(min(65536, size - got))
        if not part:
            raise AssertionError(f"the connection ended after {got} bytes")
        got += len(part)
    return connection


def drain(connection):
    """Reads to the end, which may be a reset; how many bytes came."""
    got = 0
    try:
        while part := connection.recv(1 << 20):
            got += len(part)
    except ConnectionResetError:
        pass
    connection.close()
    return got


@unittest.skipIf(ON_KERNEL, "these stories are about the daemon")
class ProgramKilled(Story):
    def test_server_killed_in_the_middle_of_ten_transfers(self):
        """Every client sees an end, the daemon frees all, and the next server takes the port."""
        for _ in range(3):
            nginx = Nginx(self.lab, under=self.culvert)
            connections = [read_some(self.lab.ip4(), "/big.bin", 200_000) for _ in range(10)]
            nginx.program.kill()
            for connection in connections:
                connection.settimeout(20)
                self.assertLess(drain(connection), 10 << 20)
            self.wait_for_no_sockets()
            self.assertEqual(self.culvert.sockets(), [])
        nginx = Nginx(self.lab, under=self.culvert)
        self.assertEqual(self.lab.call("curl", "-sSf", f"http://{self.lab.ip4()}/small").encode(), SMALL_BYTES)
        nginx.program.kill()

    def test_server_killed_while_its_receive_queue_is_full(self):
        """It never reads: the client's bytes fill the queue; then it dies."""
        program = ("import socket,sys,time\ns=socket.create_server(('',7000));c,_=s.accept()\nprint('accepted',flush=True)\ntime.sleep(1000)")
        server = self.lab.start("deaf", [PYTHON, "-c", program], under=self.culvert)
        self.culvert.wait_for_listener(7000)
        deaf = socket.create_connection((self.lab.ip4(), 7000), 20)
        until(lambda: "accepted" in server.output(), "the server to accept")
        deaf.setblocking(False)
        sent = 0

        def full():
            nonlocal sent
            try:
                while True:
                    sent += deaf.send(b"x" * 65536)
            except BlockingIOError:
                pass
            queues = [line["recv_q"] for line in self.culvert.sockets() if line["state"] == "ESTABLISHED"]
            return queues and max(queues) > 100_000
        until(full, "the receive queue to fill")
        server.kill()
        deaf.setblocking(True)
        deaf.settimeout(20)
        self.assertRaises((ConnectionResetError, BrokenPipeError), self._send_until_error, deaf)
        deaf.close()
        self.wait_for_no_sockets()

    def test_client_program_killed_in_the_middle(self):
        """A program under Culvert that downloads dies; its peer, a kernel nginx, is told."""
        with self.lab.on("client"):
            listener = socket.create_server(("", 7100))
        listener.settimeout(20)
        program = self.lab.start("reader", [PYTHON, "-c", "import socket,sys\ns=socket.create_connection((sys.argv[1],7100))\n"
                                            "while s.recv(65536): pass", self.lab.ip4("client")], under=self.culvert)
        connection, _ = listener.accept()
        connection.settimeout(20)
        for _ in range(100):
            connection.sendall(b"y" * 65536)
        program.kill()
        self.assertRaises((ConnectionResetError, BrokenPipeError), self._send_until_error, connection)
        connection.close()
        listener.close()
        self.wait_for_no_sockets()

    def test_program_killed_at_many_different_moments(self):
        """Redis under load is killed 15 times; the daemon stays up and holds nothing afterwards."""
        for _ in range(15):
            redis = Redis(self.lab, under=self.culvert)
            load = self.lab.start("load", ["redis-benchmark", "-h", self.lab.ip4(), "-t", "set,get", "-n", "10000000", "-c", "20",
                                           "-P", "4", "-d", "500"], host="client")
            opened = self.culvert.counters()["tcp_segments_in"]
            until(lambda: self.culvert.counters()["tcp_segments_in"] > opened + 500, "the load to arrive")
            redis.program.kill()
            self.wait_for_no_sockets()
            load.kill()
        self.assertTrue(self.culvert.program.running())

    def test_one_dying_program_does_not_disturb_another(self):
        nginx = Nginx(self.lab, under=self.culvert)
        redis = Redis(self.lab, under=self.culvert)
        load = self.lab.start("wrk", ["wrk", "-t1", "-c16", "-d4s", f"http://{self.lab.ip4()}/small"], host="client")
        with RedisClient(self.lab.ip4()) as client:
            self.assertEqual(client.ask("PING"), "PONG")
            redis.program.kill()
        self.assertEqual(load.wait(30), 0)
        self.assertNotIn("Socket errors", load.output())
        nginx.program.kill()

    @staticmethod
    def _send_until_error(connection):
        while True:
            connection.sendall(b"z" * 65536)


@unittest.skipIf(ON_KERNEL, "these stories are about the daemon")
class DaemonKilled(Story):
    def test_kernel_takes_over_when_the_daemon_dies(self):
        """kill -9 of culvertd: open connections end, new ones are served by the kernel's socket underneath."""
        nginx = Nginx(self.lab, under=self.culvert)
        connection = read_some(self.lab.ip4(), "/small", 50)
        self.culvert.program.kill()
        connection.settimeout(30)
        connection.close()
        self.lab.wait_for_port(self.lab.ip4(), 80)
        for _ in range(20):
            self.assertEqual(self.lab.call("curl", "-sSf", "-m", "20", f"http://{self.lab.ip4()}/small").encode(), SMALL_BYTES)
        self.assertTrue(nginx.program.running())
        self.assertEqual(nginx.program.stop(signal.SIGQUIT), 0)

    def test_daemon_starts_again_on_the_same_socket_and_interface(self):
        if self.culvert.program.running():
            self.culvert.program.kill()
        self.culvert.start()
        redis = Redis(self.lab, under=self.culvert, port=6400)
        with self.carried(1), RedisClient(self.lab.ip4(), 6400) as client:
            self.assertEqual(client.ask("PING"), "PONG")
        redis.program.kill()


@unittest.skipIf(ON_KERNEL, "these stories are about the daemon")
class NoDaemon(Story):
    def test_program_without_a_daemon_runs_on_kernel_sockets(self):
        self.assertEqual(self.culvert.stop(), 0)
        nginx = Nginx(self.lab, under=self.culvert, falls_back=True)
        body = subprocess.run(["curl", "-sSf", f"http://{self.lab.ip4()}/big.bin"], capture_output=True, timeout=30).stdout
        self.assertEqual(sha256(body), nginx.hashes["big.bin"])
        self.assertIn("runs on kernel sockets", nginx.program.output())
        self.assertEqual(nginx.program.stop(signal.SIGQUIT), 0)


if __name__ == "__main__":
    run()
