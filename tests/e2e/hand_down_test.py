"""Listeners that come from somebody else: systemd's socket activation, and nginx's binary upgrade under load."""
import os
import signal
import subprocess

from story import Story, run
from netns import ON_KERNEL, PYTHON, until
from servers import SMALL_BYTES, Clients, Nginx, fetch

ACTIVATED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "activated.py")


class SocketActivation(Story):
    """The listener is made by a program that knows nothing of Culvert; the server finds it as descriptor 3."""

    def serve(self, how, port):
        words = [PYTHON, ACTIVATED, str(port), *self.culvert.run_words(), PYTHON, ACTIVATED, "serve", how]
        program = self.lab.start(f"activated-{how}", words)
        self.addCleanup(program.stop)
        until(lambda: "serving" in program.output(), f"the server to start: {program.output()}")
        # Its first call shows that it serves; from then on the port is Culvert's.
        if how == "accept":
            self.assertEqual(fetch(self.lab.ip4(), port=port)[0], 200)
        self.culvert.wait_for_listener(port)
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried(5):
                for _ in range(5):
                    self.assertEqual(fetch(address, port=port), (200, b"  1"), "and its options came along")

    def test_accept(self):
        self.serve("accept", 8101)

    def test_select(self):
        self.serve("select", 8102)

    def test_poll(self):
        self.serve("poll", 8103)

    def test_epoll(self):
        self.serve("epoll", 8104)

    def test_a_child_that_never_accepts_gets_no_connection(self):
        """A shell that inherits the listener holds it for ever; the server alone is Culvert's."""
        words = [PYTHON, ACTIVATED, "8105", *self.culvert.run_words(), "/bin/sh", "-c",
                 f"sleep 1000 & exec {PYTHON} {ACTIVATED} serve epoll"]
        program = self.lab.start("activated-shell", words)
        self.addCleanup(program.stop)
        until(lambda: "serving" in program.output(), f"the server to start: {program.output()}")
        self.culvert.wait_for_listener(8105)
        if not ON_KERNEL:
            listening = [line for line in self.culvert.sockets() if line["state"] == "LISTEN" and line["path"] == "culvert" and
                         line["local"].endswith(":8105")]
            self.assertEqual(len(listening), 1, listening)
        with self.carried(20):
            for _ in range(20):
                self.assertEqual(fetch(self.lab.ip4(), port=8105), (200, b"  1"))


class Supervised(Story):
    """A program that makes a listener and starts those that serve it: circus, einhorn, start_server. It never accepts itself, so nobody
    may end up in a queue of its own."""
    port = 8200

    def listeners(self, port):
        return sum(line["path"] == "culvert" and line["state"] == "LISTEN" and line["local"].endswith(f":{port}")
                   for line in self.culvert.sockets())

    def supervise(self, how, count, *words, carried):
        Supervised.port += 1
        port = Supervised.port
        program = self.lab.start(f"supervised-{port}", [PYTHON, ACTIVATED, "supervise", port, how, count, *words], under=self.culvert,
                                 stdin=subprocess.PIPE)
        self.addCleanup(program.kill)
        until(lambda: program.output().count("serving") == count and "started" in program.output(), f"the servers: {program.output()}", 30)
        if carried and not ON_KERNEL:
            until(lambda: self.listeners(port) == count, f"each server to listen in Culvert: {self.culvert.sockets()}", 30)
        self.assertIn("started True", program.output(), "it is a blocking listener to its own program")
        with self.carried(20 if carried else 0):
            for _ in range(20):
                for address in (self.lab.ip4(), self.lab.ip6()):
                    self.assertEqual(fetch(address, port=port), (200, b"  1"))
        return program, port

    def test_fork(self):
        self.supervise("fork", 1, PYTHON, ACTIVATED, "serve", "blocking", carried=True)

    def test_vfork(self):
        self.supervise("vfork", 1, PYTHON, ACTIVATED, "serve", "blocking", carried=True)

    def test_posix_spawn(self):
        self.supervise("spawn", 1, PYTHON, ACTIVATED, "serve", "epoll", carried=True)

    def test_system(self):
        self.supervise("system", 1, PYTHON, ACTIVATED, "serve", "blocking", carried=True)

    def test_several_that_block(self):
        """The second finds a file that the first has made non-blocking for Culvert; both accept as on the kernel."""
        self.supervise("vfork", 3, PYTHON, ACTIVATED, "serve", "blocking", carried=True)

    def test_stranger(self):
        """Programs that Culvert is not loaded into."""
        self.supervise("fork", 1, "/usr/bin/env", "-u", "LD_PRELOAD", PYTHON, ACTIVATED, "serve", "blocking", carried=False)

    def test_strangers(self):
        self.supervise("spawn", 2, "/usr/bin/env", "-u", "LD_PRELOAD", PYTHON, ACTIVATED, "serve", "blocking", carried=False)

    def test_the_supervisor_serves_in_the_end(self):
        """It waits for connections after all: then its listener is Culvert's again."""
        program, port = self.supervise("fork", 1, "/usr/bin/env", "-u", "LD_PRELOAD", PYTHON, ACTIVATED, "serve", "blocking", carried=False)
        program.process.stdin.close()
        until(lambda: "accepts" in program.output(), "the supervisor to serve", 30)
        self.culvert.wait_for_listener(port)
        with self.carried(20):
            for _ in range(20):
                self.assertEqual(fetch(self.lab.ip4(), port=port), (200, b"  1"))


class BinaryUpgrade(Story):
    """SIGUSR2, SIGWINCH, SIGQUIT: a new nginx takes the listeners over while clients connect; nobody is refused."""

    def listening(self):
        """Processes that have a listener in Culvert."""
        return {line["pid"] for line in self.culvert.sockets() if line["state"] == "LISTEN" and line["path"] == "culvert"}

    def test_upgrade_under_load(self):
        nginx = Nginx(self.lab, under=self.culvert, daemonize=True)
        old = nginx.master()
        with Clients(4, self.lab.ip4()) as clients:
            os.kill(old, signal.SIGUSR2)
            new = until(lambda: nginx.master() not in (0, old) and nginx.master(), "the new master to write its pid", 20)
            until(lambda: len(nginx.workers()) == 2, "the new master's workers", 20)
            # They serve once they wait for connections; then nobody needs the old one.
            until(lambda: ON_KERNEL or set(nginx.workers()) <= self.listening(), "the new workers to listen", 20)
            os.kill(old, signal.SIGQUIT)
            until(lambda: not os.path.exists(f"/proc/{old}"), "the old nginx to end", 30)
        self.assertGreater(clients.served, 20)
        self.addCleanup(lambda: os.path.exists(f"/proc/{new}") and os.kill(new, signal.SIGTERM))
        with self.carried(20):
            for _ in range(20):
                self.assertEqual(fetch(self.lab.ip4()), (200, SMALL_BYTES))
        self.assertEqual(nginx.errors(), [])
        os.kill(new, signal.SIGQUIT)
        until(lambda: not os.path.exists(f"/proc/{new}"), "the new nginx to end", 30)
        self.wait_for_no_sockets()


if __name__ == "__main__":
    run()
