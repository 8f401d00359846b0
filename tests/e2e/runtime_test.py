"""Language runtimes under Culvert: node, Java, Python with threads, processes, uvloop and gunicorn; other libraries preloaded beside us."""
import os
import random
import signal
import socket

from story import ON_KERNEL, Story, run, until
import netns
from netns import PYTHON, sha256
from servers import Clients, fetch, pseudo_random

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


class RuntimeStory(Story):
    """What the servers of all runtimes are asked."""

    def echo(self, port, megabytes=4, address=None):
        text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address or self.lab.ip4(), port, megabytes)
        self.assertTrue(text.startswith("same"), text)

    def echo_many(self, port, count=40, connections=1):
        """Many connections at once, each with its own bytes, in turn."""
        with self.carried(count * connections):
            peers = [socket.create_connection((self.lab.ip6() if number % 2 else self.lab.ip4(), port), 30) for number in range(count)]
            for round_ in range(3):
                sent = [pseudo_random(1 + number * 700, number + round_) for number in range(count)]
                for peer, data in zip(peers, sent):
                    peer.sendall(data)
                for peer, data in zip(peers, sent):
                    got = b""
                    while len(got) < len(data):
                        part = peer.recv(len(data) - len(got))
                        self.assertNotEqual(part, b"", "the server has closed")
                        got += part
                    self.assertEqual(sha256(got), sha256(data))
            for peer in peers:
                peer.shutdown(socket.SHUT_WR)
                self.assertEqual(peer.recv(1), b"")
                peer.close()

    def upload(self, port, path="/upload"):
        body = pseudo_random(10 << 20, port)
        with self.carried(2):
            for address in (self.lab.ip4(), self.lab.ip6()):
                self.assertEqual(fetch(address, path, port, method="POST", body=body), (200, sha256(body).encode()))

    def kernel_http_server(self):
        """One on the other host, with 3 MB in /file.bin; its port."""
        data = pseudo_random(3 << 20, 21)
        folder = self.lab.path("served")
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/file.bin", "wb") as file:
            file.write(data)
        server = self.lab.start("http.server", [PYTHON, "-m", "http.server", "8000", "--bind", "::", "--directory", folder], host="client")
        self.lab.wait_for_port(self.lab.ip4("client"), 8000, server)
        return sha256(data)


class Node(RuntimeStory):
    @classmethod
    def prepare(cls):
        cls.program = cls.lab.start("node", ["node", f"{PROGRAMS}/node_server.js", "serve", "8100", "8101", "8102"], under=cls.culvert)
        for port in (8100, 8101):
            cls.lab.wait_for_port(cls.lab.ip4(), port, cls.program, under=cls.culvert)
        cls.answer = b"".join((b"%d " % number * 1000)[:1000] for number in range(3000))

    def test_streamed_answers(self):
        with self.carried(6):
            for address in (self.lab.ip4(), self.lab.ip6()) * 3:
                status, body = fetch(address, "/", 8100)
                self.assertEqual((status, sha256(body)), (200, sha256(self.answer)))

    def test_upload(self):
        self.upload(8100)

    def test_keep_alive_under_load(self):
        with self.carried(32):
            text = self.lab.call("wrk", "-t1", "-c32", "-d2s", "-s", f"{PROGRAMS}/post.lua", f"http://{self.lab.ip4()}:8100/")
        self.assertNotIn("Socket errors", text)
        self.assertNotIn("Non-2xx", text)

    def test_piped_socket(self):
        self.echo(8101)
        self.echo_many(8101)

    def test_udp(self):
        for family, address in ((socket.AF_INET, self.lab.ip4()), (socket.AF_INET6, self.lab.ip6())):
            with socket.socket(family, socket.SOCK_DGRAM) as client, self.carried(100, "udp_in"):
                client.connect((address, 8102))
                client.settimeout(0.2)

                def answered():  # until it has bound its port
                    try:
                        client.send(b"ready?")
                        return client.recv(100)
                    except OSError:
                        return None
                until(answered, "node to answer")
                client.settimeout(0.5)
                while True:  # answers to what was asked while it did not answer yet
                    try:
                        client.recv(100)
                    except TimeoutError:
                        break
                client.settimeout(30)
                for number in range(100):
                    data = random.Random(number).randbytes(number * 14)
                    client.send(data)
                    self.assertEqual(client.recv(65536), data)

    def test_client_with_an_agent(self):
        expected = self.kernel_http_server()
        with self.carried(4, "tcp_active_opens"):
            text = self.lab.call("node", f"{PROGRAMS}/node_server.js", "fetch", f"http://{self.lab.ip4('client')}:8000/file.bin", "12", expected,
                                 host="server", under=self.culvert)
        self.assertEqual(text.strip(), "same")


class NodeVariants(RuntimeStory):
    def start(self, name, port, *words, **environment):
        program = self.lab.start(name, ["node", f"{PROGRAMS}/node_server.js", "serve", port, port + 1, port + 2, *words], under=self.culvert,
                                 env=dict(os.environ, **environment))
        self.addCleanup(program.kill)
        return program

    def test_io_uring_in_libuv(self):
        """libuv would hand its epoll_ctl calls to an io_uring, which no preloaded library sees; `culvert run` tells it not to."""
        program = self.start("node-uring", 8110, UV_USE_IO_URING="1")
        self.lab.wait_for_port(self.lab.ip4(), 8110, program, under=self.culvert)
        self.lab.wait_for_port(self.lab.ip4(), 8111, program, under=self.culvert)
        self.upload(8110)
        with self.carried(2):
            for address in (self.lab.ip4(), self.lab.ip6()):
                self.echo(8111, 1, address)

    def test_cluster_module(self):
        """The primary accepts and passes the connections to its workers over a socket pair, by SCM_RIGHTS."""
        program = self.start("node-cluster", 8120, "3")
        self.lab.wait_for_port(self.lab.ip4(), 8120, program)
        body = pseudo_random(2 << 20, 2)
        for number in range(9):
            address = self.lab.ip6() if number % 2 else self.lab.ip4()
            self.assertEqual(fetch(address, "/", 8120, method="POST", body=body), (200, sha256(body).encode()))


class Java(RuntimeStory):
    @classmethod
    def prepare(cls):
        cls.classes = cls.lab.path("classes")
        cls.lab.call("javac", "-d", cls.classes, f"{PROGRAMS}/NioServer.java", host="server", timeout=120)
        cls.java = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-cp", cls.classes, "NioServer"]
        cls.program = cls.lab.start("java", [*cls.java, "serve", "8201", "8202", "8203", "8204"], under=cls.culvert)
        for port in (8201, 8202, 8203, 8204):
            until(lambda: ON_KERNEL or cls.culvert.wait_for_listener(port, 60) is None, "Java to start")
            cls.lab.wait_for_port(cls.lab.ip4(), port, cls.program, under=cls.culvert)

    def tearDown(self):
        self.assertNotIn("Exception", self.program.output())

    def test_selector(self):
        self.echo(8201)
        self.echo(8201, address=self.lab.ip6())
        self.echo_many(8201)

    def test_blocking_sockets(self):
        self.echo(8202)
        self.echo_many(8202)

    def test_asynchronous_channels(self):
        self.echo(8203)
        self.echo_many(8203)

    def test_http_server(self):
        self.upload(8204)

    def test_http_client(self):
        expected = self.kernel_http_server()
        with self.carried(2, "tcp_active_opens"):
            text = self.lab.call(*self.java, "fetch", f"http://{self.lab.ip4('client')}:8000/file.bin", "10", expected, host="server",
                                 under=self.culvert, timeout=120)
        self.assertEqual(text.strip(), "same")


class PythonVariants(RuntimeStory):
    def server(self, port, *words, listens=True, **environment):
        program = self.lab.start("python", [PYTHON, *words], under=self.culvert, env=dict(os.environ, **environment))
        self.addCleanup(program.kill)
        self.lab.wait_for_port(self.lab.ip4(), port, program, under=self.culvert if listens else None)
        return program

    def test_threads(self):
        """One thread accepts, one for each connection serves it."""
        self.server(8301, f"{PROGRAMS}/many_ways.py", "threads", "8301")
        self.echo(8301)
        self.echo_many(8301)

    def test_processes_that_accept(self):
        """multiprocessing: four children share the listener of their parent."""
        self.server(8302, f"{PROGRAMS}/many_ways.py", "processes", "8302")
        self.echo(8302)
        self.echo_many(8302)

    def test_a_process_for_each_connection(self):
        """socketserver.ForkingTCPServer: the parent accepts, the child serves, both close."""
        self.server(8303, f"{PROGRAMS}/many_ways.py", "forking", "8303")
        self.echo(8303)
        self.echo_many(8303)

    def test_uvloop(self):
        self.server(8304, f"{PROGRAMS}/many_ways.py", "uvloop", "8304")
        self.echo(8304)
        self.echo(8304, address=self.lab.ip6())
        self.echo_many(8304)

    def gunicorn(self, port, *words):
        program = self.lab.start("gunicorn", [PYTHON, "-m", "gunicorn.app.wsgiapp", "--chdir", PROGRAMS, "--bind", f"[::]:{port}", "--worker-tmp-dir",
                                              "/dev/shm", *words, "upload_wsgi:application"], under=self.culvert)
        self.addCleanup(program.kill)
        self.lab.wait_for_port(self.lab.ip4(), port, program, under=self.culvert)
        self.upload(port)
        return program

    def test_gunicorn_with_processes(self):
        """The master makes the listener, its workers accept; HUP replaces all workers under load."""
        program = self.gunicorn(8305, "--workers", "3")
        with Clients(3, self.lab.ip4(), 8305) as clients:
            def workers():
                with open(f"/proc/{program.pid}/task/{program.pid}/children") as file:
                    return set(map(int, file.read().split()))
            old = workers()
            program.send(signal.SIGHUP)
            until(lambda: len(workers()) == 3 and not old & workers(), "gunicorn to replace its workers", 30)
        self.assertGreater(clients.served, 3)

    def test_gunicorn_with_threads(self):
        self.gunicorn(8306, "--workers", "2", "--threads", "4", "--worker-class", "gthread")

    def test_other_allocators_beside_us(self):
        """jemalloc and tcmalloc preloaded too, before us and after us."""
        for number, allocator in enumerate(("libjemalloc.so.2", "libtcmalloc_minimal.so.4")):
            for order in (0, 1):
                port = 8310 + 2 * number + order
                libraries = [allocator, netns.LIBRARY]
                program = self.lab.start("allocator", ["env", f"LD_PRELOAD={':'.join(libraries[::-1] if order else libraries)}", PYTHON,
                                                       f"{PROGRAMS}/many_ways.py", "threads", port], under=self.culvert)
                self.addCleanup(program.kill)
                self.lab.wait_for_port(self.lab.ip4(), port, program, under=self.culvert)
                with open(f"/proc/{program.pid}/maps") as maps:
                    self.assertIn(allocator.split(".")[0], maps.read())
                self.echo(port)
                self.echo_many(port, 20)


class Sanitizer(RuntimeStory):
    def test_address_sanitizer(self):
        """gcc's runtime ends a program in which it is not the first library: `culvert run` puts it in front of ours."""
        program = self.lab.start("asan", [os.path.join(netns.BUILD, "bin/sanitized_echo"), "8451"], under=self.culvert)
        self.addCleanup(program.kill)
        self.lab.wait_for_port(self.lab.ip4(), 8451, program, under=self.culvert)
        self.echo(8451, 2)
        self.echo_many(8451)
        self.assertNotIn("ERROR", program.output())


class IoUring(RuntimeStory):
    """A program whose accept, receive and send are the kernel's own, by an io_uring: it must be served by the kernel."""

    def test_echo(self):
        server = os.path.join(netns.BUILD, "bin/uring_echo")
        for port, words in ((8401, ("ring-first",)), (8402, ("listen-first",)), (8403, ("raw",))):
            with self.subTest(words):
                program = self.lab.start("uring", [server, port, *words], under=self.culvert)
                self.addCleanup(program.kill)
                until(lambda: "serving" in program.output(), f"the program to serve: {program.output()}")
                for address in (self.lab.ip4(), self.lab.ip6()):
                    self.echo(port, 1, address)
                if not ON_KERNEL:
                    lines = [line for line in self.culvert.sockets() if line["local"].endswith(f":{port}") and line["state"] == "LISTEN"]
                    self.assertEqual({line["path"] for line in lines}, {"kernel"}, lines)
                    self.assertEqual({line["why"] for line in lines}, {"the program uses io_uring"})


if __name__ == "__main__":
    run()
