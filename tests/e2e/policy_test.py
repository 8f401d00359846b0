"""Policies: which sockets of real programs go through Culvert, by rule, by profile, by the daemon's configuration; `culvert ss`
says why, and the daemon's counters prove which way the traffic went."""
import json
import os
import shutil
import socket
import subprocess
import unittest

from story import ON_KERNEL, Story, run, until
from netns import CULVERT, PYTHON, sha256
from servers import SMALL_BYTES, Nginx, Redis, RedisClient
from nginx_test import fetch

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


class Under:
    """A daemon with options for `culvert run`: what the servers of tests/support take as `under`."""

    def __init__(self, daemon, *options):
        self.daemon = daemon
        self.options = options

    def run_words(self):
        return self.daemon.run_words(*self.options)

    def wait_for_listener(self, port, seconds=30, addresses=1):
        self.daemon.wait_for_listener(port, seconds, addresses)


@unittest.skipIf(ON_KERNEL, "about the daemon")
class PolicyStory(Story):
    def python(self, code, *options, port=None):
        """Starts a Python program on the server under the daemon; returns when it listens on `port`."""
        program = self.lab.start("python", [PYTHON, "-c", code], under=Under(self.culvert, *options))
        if port:
            self.lab.wait_for_port(self.lab.ip4(), port, program)
        return program

    def call_python(self, code, *arguments, options=()):
        return self.lab.call(PYTHON, "-c", code, *arguments, host="server", under=Under(self.culvert, *options)).split()

    def lines(self, pid, **wanted):
        """What `culvert ss` says of the program's sockets."""
        return [line for line in self.culvert.sockets()
                if line["pid"] == pid and all(line[key] == value for key, value in wanted.items())]

    def counted(self, *names):
        counters = self.culvert.counters()
        return [counters[name] for name in names]

    def refused(self):
        return self.culvert.stat()["drops"]["tenant_policy"]


LISTENERS = """
import socket, threading
def serve(s):
    while True:
        c, _ = s.accept()
        with c: c.sendall(c.recv(100))
sockets = [socket.create_server(('', port), reuse_port=False) for port in {ports}]
for s in sockets[:-1]: threading.Thread(target=serve, args=(s,), daemon=True).start()
serve(sockets[-1])
"""


class OfTheProgram(PolicyStory):
    """culvert run --policy"""

    def echo(self, port, address=None):
        with socket.create_connection((address or self.lab.ip4(), port), 10) as connection:
            connection.sendall(b"through?")
            self.assertEqual(connection.recv(100), b"through?")

    def test_only_the_ports_that_are_named_listen_through_culvert(self):
        program = self.python(LISTENERS.format(ports=[8080, 8081]), "--policy", "tcp listen 8080", port=8081)
        self.culvert.wait_for_listener(8080)
        before = self.counted("tcp_passive_opens")[0]
        for _ in range(5):
            self.echo(8080)
        self.assertEqual(self.counted("tcp_passive_opens")[0], before + 5)
        for _ in range(5):
            self.echo(8081)
        self.assertEqual(self.counted("tcp_passive_opens")[0], before + 5, "8081 is the kernel's")
        listeners = {line["local"]: (line["path"], line["why"]) for line in self.lines(program.pid, state="LISTEN")
                     if not line["why"].startswith("kernel half")}
        self.assertEqual(listeners, {"0.0.0.0:8080": ("culvert", ""), "0.0.0.0:8081": ("kernel", "excluded by the policy")})
        self.assertEqual(self.refused(), 0, "the shim asks for nothing that it knows to be forbidden")

    def test_an_accepted_connection_of_the_kernel_has_its_listeners_reason(self):
        code = ("import socket\n"
                "s = socket.create_server(('', 8090))\n"
                "c, _ = s.accept()\n"
                "c.recv(1)\n")
        program = self.python(code, "--policy", "tcp listen none")
        until(lambda: self.lines(program.pid, state="LISTEN"), "the program to listen")
        with socket.create_connection((self.lab.ip4(), 8090), 10) as connection:
            line = until(lambda: self.lines(program.pid, state="ESTABLISHED"), "the connection to be seen")[0]
            self.assertEqual((line["path"], line["why"]), ("kernel", "excluded by the policy"))
            self.assertEqual(line["remote"], "{}:{}".format(*connection.getsockname()))
        program.wait()

    CONNECT = ("import socket, sys\n"
               "for address in sys.argv[1:]:\n"
               "    with socket.create_connection((address, 8001), 10) as s:\n"
               "        print(s.getpeername()[0])\n"
               "        s.sendall(b'x'); s.shutdown(socket.SHUT_WR)\n"
               "        assert s.recv(10) == b'x'\n")

    def test_connections_by_network(self):
        echo = self.lab.start("echo", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], host="client")
        self.lab.wait_for_port(self.lab.ip4("client"), 8001, echo)
        both = [self.lab.ip4("client"), self.lab.ip6("client")]
        for policy, opens in (("tcp connect 10.77.0.0/24", 1), ("tcp connect fd77:1::/64 port 8001", 1), ("tcp connect 8001", 2),
                              ("tcp connect not 10.0.0.0/8", 1), ("tcp none", 0), ("tcp listen none", 2), ("udp none", 2)):
            with self.subTest(policy):
                before = self.counted("tcp_active_opens")[0]
                self.assertEqual(self.call_python(self.CONNECT, *both, options=("--policy", policy)), both)
                self.assertEqual(self.counted("tcp_active_opens")[0] - before, opens)
        self.assertEqual(self.refused(), 0)
        echo.kill()

    def test_children_inherit_it(self):
        """By fork, and by exec: each of them opens two connections, of which one may go through Culvert."""
        echo = self.lab.start("echo", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], host="client")
        self.lab.wait_for_port(self.lab.ip4("client"), 8001, echo)
        both = [self.lab.ip4("client"), self.lab.ip6("client")]
        outer = ("import os, subprocess, sys\n"
                 f"code = {self.CONNECT!r}\n"
                 "exec(code)\n"
                 "sys.stdout.flush()\n"
                 "if os.fork() == 0:\n"
                 "    exec(code); sys.stdout.flush(); os._exit(0)\n"
                 "assert os.wait()[1] == 0\n"
                 "subprocess.run([sys.executable, '-c', code, *sys.argv[1:]], check=True)\n")
        before = self.counted("tcp_active_opens")[0]
        self.assertEqual(self.call_python(outer, *both, options=("--policy", "tcp connect 10.77.0.0/24")), both * 3)
        self.assertEqual(self.counted("tcp_active_opens")[0] - before, 3)
        echo.kill()

    UDP = ("import socket, sys\n"
           "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
           "s.settimeout(10)\n"
           "if sys.argv[2] != '0': s.bind(('', int(sys.argv[2])))\n"
           "for i in range(10):\n"
           "    s.sendto(b'%d' % i, (sys.argv[1], 8002))\n"
           "    assert s.recv(100) == b'%d' % i\n"
           "print('done')\n")

    def test_datagrams_by_bound_port_or_by_peer(self):
        self.lab.start("udp", [PYTHON, f"{PROGRAMS}/udp_echo.py", "8002"], host="client")

        def answered():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(0.2)
                client.sendto(b"ready?", (self.lab.ip4("client"), 8002))
                try:
                    return client.recv(100)
                except OSError:
                    return None
        until(answered, "the UDP server to answer")
        for policy, port, out in (("all", "0", 10), ("udp none", "0", 0), ("udp connect 10.77.0.0/24 port 8002", "0", 10),
                                  ("udp connect not 8002", "0", 0), ("udp listen 5353", "5353", 10), ("udp listen 5354", "5353", 0),
                                  ("udp listen 5353; udp connect none", "5353", 10), ("udp listen none", "0", 10)):
            with self.subTest(policy + " from " + port):
                before = self.counted("udp_out", "udp_in")
                self.assertEqual(self.call_python(self.UDP, self.lab.ip4("client"), port, options=("--policy", policy)), ["done"])
                after = self.counted("udp_out", "udp_in")
                self.assertEqual([new - old for new, old in zip(after, before)], [out, out])
        self.assertEqual(self.refused(), 0)

    def test_ss_explains_every_socket(self):
        code = ("import socket\n"
                "kept = [socket.create_server(('', 8095)), socket.create_server(('', 8096)), socket.create_server(('127.0.0.1', 8097))]\n"
                "bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); bound.bind(('', 5360))\n"
                "other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); other.bind(('', 5361))\n"
                "idle = socket.socket()\n"
                "kept[0].accept()\n")
        program = self.python(code, "--policy", "tcp listen not 8096; udp listen 5360")
        self.culvert.wait_for_listener(8095)
        expected = {
            ("tcp", "LISTEN", "0.0.0.0:8095", "culvert", ""),
            ("tcp", "LISTEN", "0.0.0.0:8095", "kernel", "kernel half of a Culvert listener"),
            ("tcp", "LISTEN", "0.0.0.0:8096", "kernel", "excluded by the policy"),
            ("tcp", "LISTEN", "127.0.0.1:8097", "kernel", "loopback address"),
            ("udp", "UNCONNECTED", "0.0.0.0:5360", "culvert", ""),
            ("udp", "UNCONNECTED", "0.0.0.0:5360", "kernel", "kernel half of a Culvert datagram socket"),
            ("udp", "UNCONNECTED", "0.0.0.0:5361", "kernel", "excluded by the policy"),
            ("", "", "", "kernel", "not bound or connected yet"),
        }

        def seen():
            return {tuple(line[key] for key in ("proto", "state", "local", "path", "why")) for line in self.lines(program.pid)}
        until(lambda: seen() == expected, f"culvert ss to show them all: {seen()}")
        text = subprocess.run([CULVERT, "ss", "--socket", self.culvert.socket], capture_output=True, text=True, check=True).stdout
        self.assertRegex(text, rf"python3\({program.pid}\) +tcp +LISTEN +0\.0\.0\.0:8096 .* kernel +excluded by the policy\n")
        program.kill()

    def test_a_bad_policy_is_refused_before_the_start(self):
        done = subprocess.run([*self.lab.enter_words("server"), *self.culvert.run_words("--policy", "tcp listen 80 443"), "echo", "hello"],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 125)
        self.assertEqual(done.stdout, "")
        self.assertTrue(done.stderr.startswith("culvert: --policy:1:15: the rule should end here"), done.stderr)

    def test_a_policy_set_by_hand_that_is_not_understood_leaves_all_to_the_kernel(self):
        before = self.counted("tcp_passive_opens")[0]
        library = os.path.join(os.path.dirname(os.path.dirname(CULVERT)), "lib/libculvert.so")
        program = self.lab.start("python", [PYTHON, "-c", LISTENERS.format(ports=[8085])],
                                 env=dict(os.environ, LD_PRELOAD=library, CULVERT_SOCKET=self.culvert.socket, CULVERT_POLICY="tcp lisen 80"))
        self.lab.wait_for_port(self.lab.ip4(), 8085, program)
        self.echo(8085)
        self.assertEqual(self.counted("tcp_passive_opens")[0], before)
        self.assertEqual({line["why"] for line in self.lines(program.pid)}, {"CULVERT_POLICY is not understood"})
        program.kill()


class OfTheDaemon(PolicyStory):
    """[[program]] in the configuration: the shim is told, and what it asks for all the same is refused."""
    config = """
[[program]]
name = "python3"
user = "daemon"
policy = "none"
[[program]]
name = "python3"
policy = "tcp listen 8080; tcp connect 10.77.0.0/24; udp listen 5353; udp connect none"
"""

    def test_the_program_obeys(self):
        program = self.python(LISTENERS.format(ports=[8080, 8081]), port=8081)
        self.culvert.wait_for_listener(8080)
        self.assertEqual([line["why"] for line in self.lines(program.pid, local="0.0.0.0:8081")], ["excluded by the daemon's policy"])
        before = self.counted("tcp_passive_opens")[0]
        for port in (8080, 8081):
            OfTheProgram.echo(self, port)
        self.assertEqual(self.counted("tcp_passive_opens")[0], before + 1)
        self.assertEqual(self.refused(), 0)
        program.kill()

    def test_a_programs_own_policy_only_narrows(self):
        program = self.python(LISTENERS.format(ports=[8082, 8083]), "--policy", "tcp listen 8082", port=8083)
        whys = {line["local"]: line["why"] for line in self.lines(program.pid, state="LISTEN")}
        self.assertEqual(whys, {"0.0.0.0:8082": "excluded by the daemon's policy", "0.0.0.0:8083": "excluded by the policy"})
        program.kill()

    def test_the_first_table_that_fits_is_that_of_the_user(self):
        """As another user: nothing goes through Culvert, although the name's own table would let it."""
        before = self.counted("tcp_passive_opens")[0]
        words = ["setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", "--", *self.culvert.run_words(), PYTHON, "-c",
                 LISTENERS.format(ports=[8080])]
        program = self.lab.start("python", words)
        self.lab.wait_for_port(self.lab.ip4(), 8080, program)
        OfTheProgram.echo(self, 8080)
        self.assertEqual(self.counted("tcp_passive_opens")[0], before)
        self.assertEqual({line["why"] for line in self.lines(program.pid, state="LISTEN")}, {"excluded by the daemon's policy"})
        program.kill()

    def test_other_programs_are_free(self):
        redis = Redis(self.lab, under=self.culvert)
        with self.carried(1), RedisClient(self.lab.ip4()) as client:
            self.assertEqual(client.ask("PING"), "PONG")
        redis.program.kill()

    def test_a_bad_policy_is_found_by_check(self):
        path = self.lab.path("bad.toml")
        with open(path, "w") as file:
            file.write("[[program]]\nname = \"nginx\"\npolicy = \"tcp listen 80; udp nonne\"\n")
        done = subprocess.run([os.path.join(os.path.dirname(CULVERT), "culvertd"), "--check", "--config", path], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{path}:3:30: program.policy: this is not understood", done.stderr)

    def test_a_reload_counts_for_programs_that_come_after_it(self):
        file = os.path.join(self.culvert.directory, "config.toml")
        with open(file, "w") as out:
            out.write('[[program]]\npolicy = "tcp listen 8089"\n')
        self.culvert.program.send(1)  # SIGHUP
        until(lambda: "policies of programs" in open(self.culvert.log).read(), "the daemon to read its configuration")
        program = self.python(LISTENERS.format(ports=[8089]), port=8089)
        self.culvert.wait_for_listener(8089)
        program.kill()
        with open(file, "w") as out:
            out.write(self.config)
        self.culvert.program.send(1)
        until(lambda: open(self.culvert.log).read().count("policies of programs") == 2, "the daemon to read it again")


class Profiles(PolicyStory):
    """The files in packaging/profiles with their programs, as far as they are installed."""

    def under(self, name):
        return Under(self.culvert, "--profile", name)

    def test_nginx(self):
        nginx = Nginx(self.lab, under=self.under("nginx"))
        with self.carried(20):
            for _ in range(20):
                self.assertEqual(fetch(self.lab.ip4(), headers={"Connection": "close"}), (200, SMALL_BYTES))
        self.assertEqual({line["path"] for line in self.culvert.sockets() if line["program"] == "nginx" and line["state"] == "LISTEN"
                          and not line["why"]}, {"culvert"})
        nginx.program.kill()

    def test_redis_with_a_replica(self):
        first = Redis(self.lab, under=self.under("redis"))
        second = Redis(self.lab, under=self.under("redis"), port=6380, arguments=["--replicaof", self.lab.ip4(), "6379"])
        with self.carried(2), RedisClient(self.lab.ip4()) as client, RedisClient(self.lab.ip4(), 6380) as replica:
            self.assertEqual(client.ask("SET", "a", "b"), "OK")
            until(lambda: replica.ask("GET", "a") == b"b", "the replica to have it", 30)
        first.program.kill()
        second.program.kill()

    @unittest.skipUnless(shutil.which("memcached"), "memcached is not installed")
    def test_memcached(self):
        program = self.lab.start("memcached", ["memcached", "-u", "nobody", "-p", "11211", "-U", "11211"], under=self.under("memcached"))
        self.lab.wait_for_port(self.lab.ip4(), 11211, program, under=self.culvert)
        with self.carried(1), socket.create_connection((self.lab.ip4(), 11211), 10) as client:
            client.sendall(b"set k 0 0 5\r\nvalue\r\nget k\r\n")
            answer = client.makefile("rb")
            self.assertEqual([answer.readline() for _ in range(4)], [b"STORED\r\n", b"VALUE k 0 5\r\n", b"value\r\n", b"END\r\n"])
        with self.carried(1, "udp_in"), self.carried(1, "udp_out"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"\0\1\0\0\0\1\0\0get k\r\n", (self.lab.ip4(), 11211))
            self.assertIn(b"value", client.recv(1000))
        program.kill()

    @unittest.skipUnless(shutil.which("haproxy"), "haproxy is not installed")
    def test_haproxy(self):
        config = self.lab.path("haproxy.cfg")
        redis = Redis(self.lab, under=self.under("redis"), port=6399)
        with open(config, "w") as file:
            file.write("defaults\n mode tcp\n timeout connect 10s\n timeout client 30s\n timeout server 30s\n"
                       f"frontend f\n bind :8100\n default_backend b\nbackend b\n server s {self.lab.ip4()}:6399\n")
        program = self.lab.start("haproxy", ["haproxy", "-db", "-f", config], under=self.under("haproxy"))
        self.lab.wait_for_port(self.lab.ip4(), 8100, program, under=self.culvert)
        with self.carried(2), self.carried(1, "tcp_active_opens"), RedisClient(self.lab.ip4(), 8100) as client:
            self.assertEqual(client.ask("PING"), "PONG")
        program.kill()
        redis.program.kill()

    def test_python(self):
        program = self.lab.start("python", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], under=self.under("python"))
        self.lab.wait_for_port(self.lab.ip4(), 8001, program, under=self.culvert, addresses=2)
        with self.carried(1):
            self.assertTrue(self.lab.call(PYTHON, f"{PROGRAMS}/client.py", self.lab.ip4(), "8001", "2").startswith("same"))
        program.kill()

    @unittest.skipUnless(shutil.which("node"), "node is not installed")
    def test_node(self):
        code = "require('http').createServer((q, r) => r.end('hello ' + q.url)).listen(8101)"
        program = self.lab.start("node", [shutil.which("node"), "-e", code], under=self.under("node"))
        self.lab.wait_for_port(self.lab.ip4(), 8101, program, under=self.culvert)
        with self.carried(1):
            self.assertEqual(self.lab.call("curl", "-sSf", "-m", "10", f"http://{self.lab.ip4()}:8101/x"), "hello /x")
        program.kill()


class Strict(PolicyStory):
    """--strict while the daemon is away: what would be Culvert's fails, what a policy leaves to the kernel goes on."""
    TRY = ("import errno, socket\n"
           "def name(call):\n"
           "    try: call(); return 'fine'\n"
           "    except OSError as e: return errno.errorcode[e.errno]\n"
           "def listen(address, port):\n"
           "    with socket.socket() as s: s.bind((address, port)); s.listen()\n"
           "def connect(address, port):\n"
           "    with socket.socket() as s: s.settimeout(5); s.connect((address, port))\n"
           "def send(address):\n"
           "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b'x', (address, 9))\n"
           "with socket.create_server(('127.0.0.1', 0)) as inside:\n"
           "    print(name(lambda: listen('', 8130)), name(lambda: listen('', 8131)), name(lambda: connect('10.77.0.2', 8132)),\n"
           "          name(lambda: connect('127.0.0.1', inside.getsockname()[1])), name(lambda: send('10.77.0.2')))\n")

    def test_absent_at_the_start(self):
        library = os.path.join(os.path.dirname(os.path.dirname(CULVERT)), "lib/libculvert.so")
        for policy, expected in (("", "ENETDOWN ENETDOWN ENETDOWN fine ENETDOWN"), ("tcp listen 8130; udp none", "ENETDOWN fine ENETDOWN fine fine"),
                                 ("tcp connect not 10.0.0.0/8", "ENETDOWN ENETDOWN ECONNREFUSED fine ENETDOWN"),
                                 ("none", "fine fine ECONNREFUSED fine fine")):
            with self.subTest(policy):
                text = self.lab.call(PYTHON, "-c", self.TRY, host="server",
                                     env=dict(os.environ, LD_PRELOAD=library, CULVERT_SOCKET="/nonexistent/sock", CULVERT_STRICT="1", CULVERT_POLICY=policy))
                self.assertEqual(text.strip(), expected)

    def test_killed(self):
        program = self.python(LISTENERS.format(ports=[8133, 8134]), "--strict", "--policy", "tcp listen 8133", port=8134)
        self.culvert.wait_for_listener(8133)
        OfTheProgram.echo(self, 8133)
        self.culvert.program.kill()

        def is_refused():
            """Reset at once, or not let in any more: the kernel tells the program of the daemon's end a moment later."""
            try:
                with socket.create_connection((self.lab.ip4(), 8133), 10) as connection:
                    connection.settimeout(5)
                    connection.sendall(b"through?")
                    return connection.recv(100) == b""
            except (ConnectionResetError, BrokenPipeError):
                return True
        until(is_refused, "Culvert's port to be served by nobody", 30)
        OfTheProgram.echo(self, 8134)  # the kernel's by intention
        program.kill()
        self.culvert.start()


class BothEndsHere(PolicyStory):
    """Programs under one daemon among themselves: on the host's own addresses, and on 127.0.0.1 and ::1 where the policy says so."""
    INSIDE = ("127.0.0.1", "::1")

    @classmethod
    def prepare(cls):
        cls.loopback = Under(cls.culvert, "--policy", "loopback")
        cls.nginx = Nginx(cls.lab, under=cls.culvert)  # who listens on every address need not say it

    def url(self, address, port=80):
        return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

    def test_http_and_redis_load_on_all_addresses(self):
        redis = Redis(self.lab, under=self.culvert)
        for address in (self.lab.ip4(), self.lab.ip6(), *self.INSIDE):
            with self.subTest(address):
                with self.carried(16), self.carried(16, "tcp_active_opens"):
                    text = self.lab.call("wrk", "-t1", "-c16", "-d1s", f"{self.url(address)}/small", host="server", under=self.loopback)
                self.assertNotIn("Socket errors", text)
                self.assertNotIn("Non-2xx", text)
                with self.carried(10), self.carried(10, "tcp_active_opens"):
                    text = self.lab.call("redis-benchmark", "-h", address, "-t", "set,get", "-n", "3000", "-c", "10", "-q", host="server",
                                         under=self.loopback)
                self.assertEqual(text.count("requests per second"), 2, text)
        redis.program.kill()
        self.assertEqual(self.refused(), 0)

    def test_big_files_arrive_unchanged(self):
        for address in self.INSIDE:
            target = self.lab.path("fetched.bin")
            with self.carried(1):
                self.lab.call("curl", "-sSf", "-g", f"{self.url(address)}/big.bin", "-o", target, host="server", under=self.loopback)
            with open(target, "rb") as file:
                self.assertEqual(sha256(file.read()), self.nginx.hashes["big.bin"])

    BOTH = ("import socket, sys, threading\n"
            "address = sys.argv[1]\n"
            "family = socket.AF_INET6 if ':' in address else socket.AF_INET\n"
            "def pair(bound):\n"
            "    with socket.socket(family) as listener:\n"
            "        listener.bind((bound, 0)); listener.listen()\n"
            "        port = listener.getsockname()[1]\n"
            "        with socket.socket(family) as client:\n"
            "            client.connect((address, port))\n"
            "            server, peer = listener.accept()\n"
            "            with server:\n"
            "                assert peer[:2] == client.getsockname()[:2] == server.getpeername()[:2], (peer, client.getsockname())\n"
            "                assert client.getpeername()[:2] == server.getsockname()[:2] == (address, port)\n"
            "                assert peer[0] == address, peer\n"
            "                client.sendall(b'x' * 100000); client.shutdown(socket.SHUT_WR)\n"
            "                data = b''\n"
            "                while part := server.recv(65536): data += part\n"
            "                assert data == b'x' * 100000\n"
            "                server.sendall(b'y'); assert client.recv(10) == b'y'\n"
            "pair(address)\n"
            "pair('::' if ':' in address else '0.0.0.0')\n"
            "for bound in (address, ''):\n"
            "    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as client:\n"
            "        server.bind((bound, 0)); server.settimeout(10); client.settimeout(10)\n"
            "        to = (address, server.getsockname()[1])\n"
            "        client.sendto(b'question', to)\n"
            "        data, peer = server.recvfrom(100)\n"
            "        assert (data, peer[0]) == (b'question', address), peer\n"
            "        server.sendto(b'answer', peer)\n"
            "        data, peer = client.recvfrom(100)\n"
            "        assert (data, peer[:2]) == (b'answer', to), peer\n"
            "        client.connect(to); client.send(b'more')\n"
            "        assert client.getpeername()[:2] == to and server.recv(100) == b'more'\n"
            "print('fine')\n")

    def test_names_and_data_with_and_without_the_policy(self):
        for address in self.INSIDE:
            for options, through in ((("--policy", "loopback"), True), ((), False), (("--policy", "all"), False)):
                with self.subTest(f"{address} {options}"):
                    before = self.counted("tcp_active_opens", "tcp_passive_opens", "udp_out", "udp_in")
                    self.assertEqual(self.call_python(self.BOTH, address, options=options), ["fine"])
                    grown = [new - old for new, old in zip(self.counted("tcp_active_opens", "tcp_passive_opens", "udp_out", "udp_in"), before)]
                    self.assertEqual(grown, [2, 2, 6, 6] if through else [0, 0, 0, 0])

    def test_a_listener_on_loopback_serves_the_kernels_clients_too(self):
        for address in self.INSIDE:
            code = ("import socket, sys\n"
                    "s = socket.create_server((sys.argv[1], 8120), family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n"
                    "while True:\n"
                    "    c, peer = s.accept()\n"
                    "    with c: c.sendall(peer[0].encode())\n")
            server = self.lab.start("server", [PYTHON, "-c", code, address], under=self.loopback)
            self.culvert.wait_for_listener(8120)
            ask = ("import socket, sys\nwith socket.create_connection((sys.argv[1], 8120), 10) as s: print(s.recv(100).decode())\n")
            before = self.counted("tcp_passive_opens")[0]
            with self.lab.on("server"), socket.create_connection((address, 8120), 10) as client:  # this process: kernel sockets
                self.assertEqual(client.recv(100).decode(), address)
            self.assertEqual(self.call_python(ask, address), [address], "under the daemon, but its policy does not say loopback")
            self.assertEqual(self.counted("tcp_passive_opens")[0], before)
            self.assertEqual(self.call_python(ask, address, options=("--policy", "tcp connect loopback")), [address])
            self.assertEqual(self.counted("tcp_passive_opens")[0], before + 1)
            local = f"[{address}]:8120" if ":" in address else f"{address}:8120"
            self.assertEqual({(line["path"], line["why"]) for line in self.lines(server.pid, local=local, state="LISTEN")},
                             {("culvert", ""), ("kernel", "kernel half of a Culvert listener")})
            server.kill()

    def test_a_server_of_the_kernel_is_reached_by_the_kernel(self):
        redis = Redis(self.lab, port=6401)
        ask = ("import socket, sys\n"
               "with socket.create_connection(('127.0.0.1', 6401), 10) as s:\n"
               "    s.sendall(b'PING\\r\\n'); print(s.recv(100).decode())\n")
        before = self.counted("tcp_active_opens")[0]
        self.assertEqual(self.call_python(ask, options=("--policy", "loopback")), ["+PONG"])
        self.assertEqual(self.counted("tcp_active_opens")[0], before)
        redis.program.kill()

    def test_a_program_of_another_namespace_has_another_loopback(self):
        """It may use the daemon (its socket is a file), but 127.0.0.1 of the daemon's host is not its own."""
        ask = ("import socket\n"
               "try: socket.create_connection(('127.0.0.1', 80), 10)\n"
               "except ConnectionRefusedError: print('refused')\n")
        before = self.counted("tcp_active_opens")[0]
        text = self.lab.call(PYTHON, "-c", ask, host="client", under=self.loopback)
        self.assertEqual(text.split(), ["refused"])
        code = "import socket\ns = socket.create_server(('127.0.0.1', 8121))\nprint('listening', flush=True)\ns.accept()\n"
        program = self.lab.start("server", [PYTHON, "-c", code], host="client", under=self.loopback)
        until(lambda: "listening" in program.output(), "the program to listen", 30)
        self.assertEqual([(line["path"], line["why"]) for line in self.lines(program.pid, state="LISTEN")], [])
        self.assertEqual({line["path"] for line in self.lines(program.pid)} - {"kernel"}, set())
        self.assertEqual(self.counted("tcp_active_opens")[0], before)
        program.kill()

    def test_nothing_of_it_is_seen_on_a_wire(self):
        """Martians from the link are dropped and counted, and none of ours leave: the link's counters stand still."""
        with self.carried(16):
            self.lab.call("wrk", "-t1", "-c16", "-d1s", f"{self.url('127.0.0.1')}/small", host="server", under=self.loopback)
        sent = self.counted("tx_frames")[0]
        with self.carried(16):
            self.lab.call("wrk", "-t1", "-c16", "-d1s", f"{self.url('127.0.0.1')}/small", host="server", under=self.loopback)
        self.assertLess(self.counted("tx_frames")[0] - sent, 50)
        before = self.culvert.stat()["drops"]["ip_loopback"]
        self.send_syn("127.0.0.1", self.lab.ip4(), 80)
        until(lambda: self.culvert.stat()["drops"]["ip_loopback"] > before, "the martian to be counted", 30)

    def send_syn(self, source, destination, port):
        """A forged SYN, from AF_PACKET on the client's end of the link."""
        def mac(host):
            link = json.loads(self.lab.call("ip", "-j", "link", "show", "veth0", host=host))[0]
            return bytes.fromhex(link["address"].replace(":", ""))
        addresses = socket.inet_aton(source) + socket.inet_aton(destination)
        tcp = (40000).to_bytes(2, "big") + port.to_bytes(2, "big") + b"\0\0\0\1" + bytes(4) + b"\x50\x02\x10\0" + bytes(4)
        tcp = tcp[:16] + checksum(addresses + b"\0\6\0\x14" + tcp) + tcp[18:]
        ip = b"\x45\0\0\x28\0\0\x40\0\x40\6\0\0" + addresses
        ip = ip[:10] + checksum(ip) + ip[12:]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
            packets.bind(("veth0", 0))
            packets.send(mac("server") + mac("client") + b"\x08\0" + ip + tcp)


class BothEndsOnTwoEngines(BothEndsHere):
    """The same with the programs on different engines: what one says to the other crosses the rings."""
    queues = 2
    config = "[engine]\ncount = 2\n"

    def test_the_rings_were_used(self):
        before = self.counted("handed_over")[0]
        for _ in range(2):  # one of the two clients is on the other engine than nginx
            self.lab.call("curl", "-sSf", f"{self.url('127.0.0.1')}/small", host="server", under=self.loopback)
        self.assertGreater(self.counted("handed_over")[0], before)


def checksum(data):
    total = sum(int.from_bytes(data[i:i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return (~total & 0xffff).to_bytes(2, "big")


if __name__ == "__main__":
    run()
