"""Listeners that come from somebody else: systemd's socket activation, and nginx's binary upgrade under load."""
import concurrent.futures
import http.client
import os
import signal
import threading

from story import Story, run
from netns import ON_KERNEL, PYTHON, Failure, until
from servers import SMALL_BYTES, Nginx

ACTIVATED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "activated.py")


def fetch(address, port=80):
    connection = http.client.HTTPConnection(address, port, timeout=30)
    try:
        connection.request("GET", "/small", headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class SocketActivation(Story):
    """The listener is made by a program that knows nothing of Culvert; the server finds it as descriptor 3."""

    def serve(self, how, port):
        words = [PYTHON, ACTIVATED, str(port), *self.culvert.run_words(), PYTHON, ACTIVATED, "serve", how]
        program = self.lab.start(f"activated-{how}", words)
        self.addCleanup(program.stop)
        until(lambda: "serving" in program.output(), f"the server to start: {program.output()}")
        # Its first call shows that it serves; from then on the port is Culvert's.
        if how == "accept":
            self.assertEqual(fetch(self.lab.ip4(), port)[0], 200)
        self.culvert.wait_for_listener(port)
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried(5):
                for _ in range(5):
                    self.assertEqual(fetch(address, port), (200, b"  1"), "and its options came along")

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
                self.assertEqual(fetch(self.lab.ip4(), 8105), (200, b"  1"))


class BinaryUpgrade(Story):
    """SIGUSR2, SIGWINCH, SIGQUIT: a new nginx takes the listeners over while clients connect; nobody is refused."""

    def listening(self):
        """Processes that have a listener in Culvert."""
        return {line["pid"] for line in self.culvert.sockets() if line["state"] == "LISTEN" and line["path"] == "culvert"}

    def test_upgrade_under_load(self):
        nginx = Nginx(self.lab, under=self.culvert, daemonize=True)
        old = nginx.master()
        stop = threading.Event()

        def client(_):
            served = 0
            while not stop.is_set():
                if fetch(self.lab.ip4()) != (200, SMALL_BYTES):
                    raise Failure("wrong reply during the upgrade")
                served += 1
            return served

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, number) for number in range(4)]
            try:
                os.kill(old, signal.SIGUSR2)
                new = until(lambda: nginx.master() not in (0, old) and nginx.master(), "the new master to write its pid", 20)
                until(lambda: len(nginx.workers()) == 2, "the new master's workers", 20)
                # They serve once they wait for connections; then nobody needs the old one.
                until(lambda: ON_KERNEL or set(nginx.workers()) <= self.listening(), "the new workers to listen", 20)
                os.kill(old, signal.SIGQUIT)
                until(lambda: not os.path.exists(f"/proc/{old}"), "the old nginx to end", 30)
            finally:
                stop.set()
            self.assertGreater(sum(future.result(60) for future in clients), 20)
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
