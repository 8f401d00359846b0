"""Connections that leave their program: by exec as inetd does it, and over SCM_RIGHTS, to programs with Culvert and without."""
import os
import random
import signal
import socket
import struct
import threading
import time

from story import Story, run
from netns import ON_KERNEL, PYTHON, sha256, until

PASSING = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "passing.py")
CAT = ["/bin/busybox", "cat"]  # static: Culvert cannot be loaded into it
MEGABYTES = 4 << 20


def exchange(connection, size, seed=1):
    """Sends, hears all of it back, and sees the end."""
    data = random.Random(seed).randbytes(size)
    sender = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))
    sender.start()
    heard = bytearray()
    while part := connection.recv(1 << 20):
        heard += part
    sender.join()
    return len(heard) == size and sha256(heard) == sha256(data)


def hear(connection, size):
    """So many bytes, or all until the end."""
    heard = b""
    while len(heard) < size and (part := connection.recv(size - len(heard))):
        heard += part
    return heard


class PassOn(Story):
    port = 9000

    def connect(self, port, address=None):
        connection = socket.create_connection((address or self.lab.ip4(), port), timeout=60)
        self.addCleanup(connection.close)
        return connection

    def serve(self, how, *words, ready="serving", **options):
        PassOn.port += 1
        server = self.lab.start(f"passing-{how}", [PYTHON, PASSING, PassOn.port, how, *words], under=self.culvert, **options)
        self.addCleanup(server.kill)
        until(lambda: ready in server.output(), f"the server to start: {server.output()}", 30)
        if how != "send-listener":
            self.culvert.wait_for_listener(PassOn.port)
        return server

    def receiver(self, what="receive", attached=False, environment=None):
        path = os.path.join(self.lab.directory, f"channel-{PassOn.port}")
        words = [PYTHON, PASSING, what, path]
        program = self.lab.start(f"{what}-{PassOn.port}", words, under=self.culvert if attached else None,
                                 env=dict(os.environ, **(environment or {})))
        self.addCleanup(program.kill)
        until(lambda: os.path.exists(path), f"the receiver: {program.output()}", 30)
        return program, path

    def passed_on(self):
        return [line for line in self.culvert.sockets() if line["why"].startswith("passed on")]

    def wait_for_none(self):
        if not ON_KERNEL:
            until(lambda: not self.passed_on(), f"the stand-ins to end: {self.passed_on()}", 30)

    def check_exchange(self, server_port=None):
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried():
                self.assertTrue(exchange(self.connect(server_port or PassOn.port, address), 1000))
                self.assertTrue(exchange(self.connect(server_port or PassOn.port, address), MEGABYTES))
        self.wait_for_none()

    # --- exec ---------------------------------------------------------------------------------------------------------

    def test_fork_and_exec(self):
        self.serve("fork", *CAT)
        self.check_exchange()

    def test_vfork_and_exec(self):
        self.serve("vfork", *CAT)
        self.check_exchange()

    def test_posix_spawn(self):
        self.serve("spawn", *CAT)
        self.check_exchange()

    def test_system(self):
        self.serve("system", *CAT)
        self.check_exchange()

    def test_exec_of_a_program_with_culvert(self):
        """/bin/cat is loaded with the library, too."""
        self.serve("fork", "/bin/cat")
        self.check_exchange()

    def test_exec_in_place(self):
        server = self.serve("exec", *CAT)
        self.assertTrue(exchange(self.connect(PassOn.port), MEGABYTES))
        self.assertEqual(server.wait(), 0)
        self.wait_for_none()

    def test_exec_that_fails(self):
        self.serve("missing")
        self.check_exchange()

    def launch(self, name, words, mark=None):
        """A server of somebody else's on the next port."""
        PassOn.port += 1
        words = [str(word).replace("PORT", str(PassOn.port)) for word in words]
        program = self.lab.start(name, words, under=self.culvert)
        self.addCleanup(program.kill)
        self.culvert.wait_for_listener(PassOn.port)
        if ON_KERNEL:
            self.lab.wait_for_port(self.lab.ip4(), PassOn.port, program)
        return program

    def test_socat(self):
        self.launch("socat", ["/usr/bin/socat", "TCP6-LISTEN:PORT,fork,reuseaddr,ipv6only=0", "EXEC:/bin/busybox cat,nofork"])
        self.check_exchange()

    def test_systemd_socket_activation_of_each_connection(self):
        """The listener is shown to Culvert by the first poll; each connection is descriptor 3 of a program of its own."""
        self.launch("activate", ["/usr/bin/systemd-socket-activate", "--accept", "--inetd", "-l", "PORT", *CAT])
        self.check_exchange()

    def test_shell(self):
        """The shell's own connection, for a command that it starts: cat <&5."""
        with socket.create_server((self.lab.ip4("client"), 0)) as listener:
            port = listener.getsockname()[1]
            told = os.path.join(self.lab.directory, "shell")
            program = self.lab.start("shell", ["/bin/bash", "-c",
                                               f"exec 5<>/dev/tcp/{self.lab.ip4('client')}/{port}; echo question >&5; "
                                               f"/bin/busybox cat <&5 >{told}; echo more >&5"], under=self.culvert)
            self.addCleanup(program.kill)
            listener.settimeout(60)
            connection, _ = listener.accept()
            with connection:
                self.assertEqual(hear(connection, 9), b"question\n")
                data = random.Random(5).randbytes(500_000)
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                self.assertEqual(hear(connection, 100), b"more\n")
            self.assertEqual(program.wait(), 0)
            with open(told, "rb") as heard:
                self.assertEqual(sha256(heard.read()), sha256(data))
        self.wait_for_none()

    def test_connection_that_is_being_made(self):
        """The child finds it made."""
        for family, address in ((socket.AF_INET, self.lab.ip4("client")), (socket.AF_INET6, self.lab.ip6("client"))):
            with socket.create_server((address, 0), family=family) as listener:
                listener.settimeout(60)
                with self.carried(1, "tcp_active_opens"):
                    program = self.lab.start("connecting", [PYTHON, PASSING, listener.getsockname()[1], "connect", address, *CAT],
                                             under=self.culvert)
                    self.addCleanup(program.kill)
                    connection, _ = listener.accept()
                    with connection:
                        self.assertTrue(exchange(connection, 300_000))
                    self.assertEqual(program.wait(), 0, program.output())
        self.wait_for_none()

    def test_names_are_true(self):
        """What a program without Culvert is told of its socket."""
        self.serve("fork", "/usr/bin/env", "-u", "LD_PRELOAD", PYTHON, "-c",
                   "import socket; s = socket.socket(fileno=0); print(s.getpeername()[:2], s.getsockname()[:2], s.type.name, flush=True)")
        connection = self.connect(PassOn.port)
        heard = connection.makefile().readline()
        mapped = "::ffff:"
        self.assertEqual(heard, f"{(mapped + self.lab.ip4('client'), connection.getsockname()[1])} "
                                f"{(mapped + self.lab.ip4(), PassOn.port)} SOCK_STREAM\n")

    def test_both_ends_keep_it(self):
        """The server keeps its copy while the child works, and has the last word."""
        self.serve("keep", *CAT)
        connection = self.connect(PassOn.port)
        connection.sendall(b"hello")
        self.assertEqual(hear(connection, 5), b"hello")
        connection.shutdown(socket.SHUT_WR)
        self.assertEqual(hear(connection, 100), b"BYE")
        self.wait_for_none()

    def test_bytes_that_came_before_go_first(self):
        """They lie unread in the program when it passes the connection on."""
        self.serve("fork", "/bin/sh", "-c", "sleep 0; exec /bin/busybox cat")
        for _ in range(5):
            connection = self.connect(PassOn.port)
            self.assertTrue(exchange(connection, 300_000))
        self.wait_for_none()

    def test_many_others_stay(self):
        """A child that would find a hundred connections gets the one that is its standard input; the others stay fast."""
        server = self.serve("many", *CAT)
        idle = [self.connect(PassOn.port) for _ in range(100)]
        until(lambda: "idle" in server.output(), "the server to take the idle ones", 30)
        self.assertTrue(exchange(self.connect(PassOn.port), 10_000))
        if not ON_KERNEL:
            self.assertLessEqual(len(self.passed_on()), 1)
        for connection in idle:
            connection.close()
        self.wait_for_none()

    def test_reset_reaches_the_child_and_the_peer(self):
        self.serve("fork", PYTHON, "-c",
                   "import os\ntry:\n  while os.read(0, 100): pass\nexcept ConnectionResetError: print('reset', file=open(os.environ['TOLD'], 'w'))",
                   env=dict(os.environ, TOLD=os.path.join(self.lab.directory, "told")))
        connection = self.connect(PassOn.port)
        connection.sendall(b"x")
        until(lambda: ON_KERNEL or self.passed_on(), "the connection to be passed on", 30)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        until(lambda: os.path.exists(os.path.join(self.lab.directory, "told")), "the child to hear of the reset", 30)
        self.wait_for_none()

    def test_killed_child(self):
        """It leaves bytes unread: the peer gets a reset, as from the kernel."""
        server = self.serve("fork", "/bin/busybox", "sleep", "1000")
        connection = self.connect(PassOn.port)
        connection.sendall(b"never read")
        def children():
            return [int(pid) for pid in open(f"/proc/{server.pid}/task/{server.pid}/children").read().split()]
        child = until(lambda: [pid for pid in children() if "sleep" in open(f"/proc/{pid}/cmdline").read()], "the child", 30)[0]
        if not ON_KERNEL:
            until(self.passed_on, "the connection to be passed on", 30)
        os.kill(child, signal.SIGKILL)
        with self.assertRaises(ConnectionResetError):
            connection.recv(1)
        self.wait_for_none()

    # --- SCM_RIGHTS -----------------------------------------------------------------------------------------------------

    def test_message_to_a_stranger(self):
        receiver, path = self.receiver()
        self.serve("send", path)
        self.check_exchange()
        self.assertIn(f"'::ffff:{self.lab.ip4('client')}'", receiver.output())

    def test_message_to_a_program_with_culvert(self):
        _, path = self.receiver(attached=True)
        self.serve("send", path)
        self.check_exchange()

    def test_both_write(self):
        _, path = self.receiver(environment={"SHARED": "1"})
        self.serve("share", path)
        connection = self.connect(PassOn.port)
        self.assertEqual(hear(connection, 2), b"on")
        connection.sendall(b"abc")
        self.assertEqual(hear(connection, 100), b"etwo")

    def test_killed_sender(self):
        _, path = self.receiver()
        server = self.serve("send", path)
        connection = self.connect(PassOn.port)
        connection.sendall(b"ping")
        self.assertEqual(hear(connection, 4), b"ping")
        server.kill()
        self.assertTrue(exchange(connection, MEGABYTES), "the receiver goes on")

    def test_listener_to_a_program_with_culvert(self):
        _, path = self.receiver("receive-listener", attached=True)
        self.serve("send-listener", path, ready="passed")
        port = PassOn.port
        self.culvert.wait_for_listener(port)
        self.check_exchange(port)

    def test_listener_to_a_stranger(self):
        """It serves through the kernel."""
        receiver, path = self.receiver("receive-listener")
        server = self.serve("send-listener", path, ready="passed")
        until(lambda: "serving" in receiver.output(), "the receiver to serve", 30)
        server.kill()
        until(lambda: ON_KERNEL or not any(line["local"].endswith(f":{PassOn.port}") and line["path"] == "culvert"
                                           for line in self.culvert.sockets()), "Culvert to let the port go", 30)
        self.assertTrue(exchange(self.connect(PassOn.port), MEGABYTES))


UDP_PASSING = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "udp_passing.py")
WITHOUT_CULVERT = ["/usr/bin/env", "-u", "LD_PRELOAD", PYTHON, UDP_PASSING]


class Datagrams(Story):
    """UDP sockets that are passed on: what had come before lies there for the next program, and what comes meanwhile is not lost."""
    port = 9500

    def serve(self, how, *words):
        Datagrams.port += 1
        server = self.lab.start(f"udp-passing-{how}", [PYTHON, UDP_PASSING, Datagrams.port, how, *words], under=self.culvert)
        self.addCleanup(server.kill)
        until(lambda: "bound" in server.output(), f"the server to start: {server.output()}", 30)
        return server

    def clients(self):
        for family, address in ((socket.AF_INET, self.lab.ip4()), (socket.AF_INET6, self.lab.ip6())):
            client = socket.socket(family, socket.SOCK_DGRAM)
            self.addCleanup(client.close)
            client.connect((address, Datagrams.port))
            client.settimeout(0.2)
            yield client

    def send_unread(self):
        """Sixteen datagrams, short, empty and long (fragments would be the kernel's), which reach Culvert; what a reader must say of them, in the order of each client."""
        told = []
        with self.carried(16, "udp_in"):
            for client in self.clients():
                host, port = client.getsockname()[:2]
                host = f"::ffff:{host}" if client.family == socket.AF_INET else host
                lines = []
                for number in range(8):
                    data = b"" if number == 7 else f"{number}".encode().ljust(40, b".") + bytes(number * 190)
                    client.send(data)
                    lines.append(f"{data[:40].decode()} {len(data)} {host} {port}")
                told.append(lines)
            until(lambda: ON_KERNEL or self.culvert.counters()["udp_in"] >= self.before + 16, "the datagrams to arrive", 30)
        return told

    def setUp(self):
        if not ON_KERNEL:
            self.before = self.culvert.counters()["udp_in"]

    def check_told(self, reader, told):
        until(lambda: len([line for line in reader.output().splitlines() if "." in line or ":" in line]) >= sum(map(len, told)),
              f"the next program to read all: {reader.output()}", 30)
        lines = reader.output().splitlines()
        for expected in told:
            self.assertEqual([line for line in lines if line in expected], expected)

    def hand_over(self, how, *words):
        server = self.serve(how, *words)
        told = self.send_unread()
        os.kill(server.pid, signal.SIGUSR1)
        return server, told

    def test_exec(self):
        self.check_told(*self.hand_over("exec", *WITHOUT_CULVERT, "read", "16"))

    def test_exec_with_culvert(self):
        self.check_told(*self.hand_over("exec", PYTHON, UDP_PASSING, "read", "16"))

    def check_mine_again(self, server):
        """The child has gone: the server's socket goes through Culvert again."""
        until(lambda: "mine again" in server.output(), f"the child to end: {server.output()}", 30)
        for client in self.clients():
            def answered():
                try:
                    client.send(b"again")
                    return client.recv(100) == b"again"
                except TimeoutError:
                    return False
            until(answered, "an answer", 30)
            with self.carried(1, "udp_in"):
                until(answered, "an answer", 30)

    def test_fork_and_exec(self):
        server, told = self.hand_over("fork", *WITHOUT_CULVERT, "read", "16")
        self.check_told(server, told)
        self.check_mine_again(server)

    def test_posix_spawn(self):
        server, told = self.hand_over("spawn", *WITHOUT_CULVERT, "read", "16")
        self.check_told(server, told)
        self.check_mine_again(server)

    def test_message_to_a_stranger(self):
        path = os.path.join(self.lab.directory, "udp-channel")
        receiver = self.lab.start("udp-receiver", [PYTHON, UDP_PASSING, "receive", path, "1000"])
        self.addCleanup(receiver.kill)
        until(lambda: os.path.exists(path), "the receiver", 30)
        server, told = self.hand_over("send", path)
        self.check_told(receiver, told)
        server.kill()
        for client in self.clients():
            client.send(b"later")
        until(lambda: receiver.output().count("later") == 2, f"what comes later: {receiver.output()}", 30)

    def test_what_comes_meanwhile(self):
        """A steady stream: each datagram is read by the server's successor."""
        server = self.serve("exec", *WITHOUT_CULVERT, "read", "600")
        client = next(self.clients())
        for number in range(600):
            client.send(f"number {number}".encode())
            if number == 100:
                os.kill(server.pid, signal.SIGUSR1)
            time.sleep(0.002)  # what is measured: the sender's pace
        until(lambda: server.output().count("number") == 600, "all to be read", 30)


class KilledDaemon(PassOn):
    """The stranger's socket ends with a reset, not as if the peer had closed."""

    def test_killed_daemon(self):
        if ON_KERNEL:
            self.skipTest("no daemon to kill")
        told = os.path.join(self.lab.directory, "told")
        self.serve("fork", "/usr/bin/env", "-u", "LD_PRELOAD", PYTHON, "-c",
                   "import os\ntry:\n  n = os.read(0, 1)\n  print('end' if not os.read(0, 1) else n, file=open(os.environ['TOLD'], 'w'))\n"
                   "except ConnectionResetError: print('reset', file=open(os.environ['TOLD'], 'w'))",
                   env=dict(os.environ, TOLD=told))
        connection = self.connect(PassOn.port)
        connection.sendall(b"x")
        until(self.passed_on, "the connection to be passed on", 30)
        os.kill(self.culvert.pid, signal.SIGKILL)
        until(lambda: os.path.exists(told) and open(told).read(), "the child to hear of it", 30)
        self.assertEqual(open(told).read().strip(), "reset")


for name in [name for name in dir(PassOn) if name.startswith("test_")]:
    setattr(KilledDaemon, name, None)

if __name__ == "__main__":
    run()
