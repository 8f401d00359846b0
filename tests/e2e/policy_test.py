"""Policies: which sockets of real programs go through Culvert, by rule, by profile, by the daemon's configuration; `culvert ss`
says why, and the daemon's counters prove which way the traffic went."""
import json
import os
import shutil
import socket
import subprocess
import unittest

from story import ON_KERNEL, Story, run, until
from netns import CULVERT, PYTHON, ROOT
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

    def wait_for_listener(self, port):
        self.daemon.wait_for_listener(port)


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
        self.lab.wait_for_port(self.lab.ip4(), 8001, program, under=self.culvert)
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


if __name__ == "__main__":
    run()
