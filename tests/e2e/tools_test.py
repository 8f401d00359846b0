"""Everyday programs under Culvert, as servers and as clients: sshd, iperf3, dnsmasq, unbound, socat, curl, wget."""
import json
import os
import socket
import subprocess

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, Failure, command, sha256
from servers import Certificate, Nginx, fetch, pseudo_random

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")

SSHD = """
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile {directory}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
UseDNS no
MaxStartups 100
"""


class Ssh(Story):
    """sshd forks for each connection and executes itself anew with the connection as descriptor; -r: it only forks."""

    @classmethod
    def prepare(cls):
        lab = cls.lab
        cls.directory = lab.path("ssh")
        os.makedirs(cls.directory, mode=0o700)
        os.makedirs("/run/sshd", exist_ok=True)  # its prison for unprivileged children; Debian's unit makes it
        for name in ("host_key", "key"):
            command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{cls.directory}/{name}")
        with open(f"{cls.directory}/key.pub") as key, open(f"{cls.directory}/authorized_keys", "w") as keys:
            keys.write(key.read())
        cls.data = pseudo_random(20 << 20, 31)
        with open(f"{cls.directory}/file.bin", "wb") as file:
            file.write(cls.data)
        cls.options = ["-F", "/dev/null", "-i", f"{cls.directory}/key", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes",
                       "-o", f"UserKnownHostsFile={cls.directory}/known", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20"]
        for port, words in ((2201, ["-r"]), (2202, [])):
            config = f"{cls.directory}/sshd-{port}.conf"
            with open(config, "w") as file:
                file.write(SSHD.format(port=port, directory=cls.directory))
            program = lab.start("sshd", ["/usr/sbin/sshd", "-D", "-e", *words, "-f", config], under=cls.culvert)
            lab.wait_for_port(lab.ip4(), port, program, under=cls.culvert, addresses=2)

    def copy(self, port):
        for number, address in enumerate((self.lab.ip4(), f"[{self.lab.ip6()}]")):
            there, back = f"{self.directory}/there-{port}-{number}", f"{self.directory}/back-{port}-{number}"
            self.lab.call("scp", *self.options, "-P", port, f"{self.directory}/file.bin", f"root@{address}:{there}", timeout=120)
            self.lab.call("scp", *self.options, "-P", port, f"root@{address}:{there}", back, timeout=120)
            for name in (there, back):
                with open(name, "rb") as file:
                    self.assertEqual(sha256(file.read()), sha256(self.data))

    def commands(self, port):
        for number in range(5):
            text = self.lab.call("ssh", *self.options, "-p", port, f"root@{self.lab.ip4()}", f"echo culvert {number}; cat /proc/sys/kernel/ostype")
            self.assertEqual(text, f"culvert {number}\nLinux\n")
        piped = subprocess.run(["ssh", *self.options, "-p", str(port), f"root@{self.lab.ip4()}", "sha256sum"], input=self.data,
                               capture_output=True, timeout=60)
        self.assertEqual(piped.stdout.split()[:1], [sha256(self.data).encode()], piped.stderr)

    def test_forking_only(self):
        with self.carried(10):
            self.commands(2201)
            self.copy(2201)

    def test_executing_itself(self):
        self.commands(2202)
        self.copy(2202)

    def test_forwarded_ports(self):
        """-L and -R: ssh under Culvert as well as sshd, one inside the other."""
        web = self.lab.start("http.server", [PYTHON, "-m", "http.server", "8301", "--bind", "0.0.0.0", "--directory", self.directory], under=self.culvert)
        self.lab.wait_for_port(self.lab.ip4(), 8301, web, under=self.culvert)
        tunnel = self.lab.start("ssh", ["ssh", *self.options, "-N", "-p", "2201", "-L", f"127.0.0.1:8302:{self.lab.ip4()}:8301",
                                        f"root@{self.lab.ip4()}"], host="client")
        self.addCleanup(tunnel.kill)
        self.lab.wait_for_port("127.0.0.1", 8302, tunnel)
        for _ in range(3):
            status, body = fetch("127.0.0.1", "/file.bin", 8302)
            self.assertEqual((status, sha256(body)), (200, sha256(self.data)))


class SshClient(Story):
    def test_client_through_culvert(self):
        lab = self.lab
        directory = lab.path("ssh")
        os.makedirs(directory, mode=0o700)
        os.makedirs("/run/sshd", exist_ok=True)
        for name in ("host_key", "key"):
            command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{directory}/{name}")
        with open(f"{directory}/key.pub") as key, open(f"{directory}/authorized_keys", "w") as keys:
            keys.write(key.read())
        with open(f"{directory}/sshd.conf", "w") as file:
            file.write(SSHD.format(port=2203, directory=directory))
        data = pseudo_random(20 << 20, 32)
        with open(f"{directory}/file.bin", "wb") as file:
            file.write(data)
        server = lab.start("sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", f"{directory}/sshd.conf"], host="client")
        lab.wait_for_port(lab.ip4("client"), 2203, server)
        options = ["-F", "/dev/null", "-i", f"{directory}/key", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes",
                   "-o", f"UserKnownHostsFile={directory}/known", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20"]
        with self.carried(2, "tcp_active_opens"):
            for number, address in enumerate((lab.ip4("client"), f"[{lab.ip6('client')}]")):
                lab.call("scp", *options, "-P", "2203", f"{directory}/file.bin", f"root@{address}:{directory}/there-{number}", host="server",
                         under=self.culvert, timeout=120)
                with open(f"{directory}/there-{number}", "rb") as file:
                    self.assertEqual(sha256(file.read()), sha256(data))


class Iperf(Story):
    """TCP and UDP, both directions and both at once, iperf3 under Culvert as server and as client."""

    @classmethod
    def prepare(cls):
        cls.server = cls.lab.start("iperf3", ["iperf3", "-s", "-p", "5301"], under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 5301, cls.server, under=cls.culvert)
        cls.far = cls.lab.start("iperf3", ["iperf3", "-s", "-p", "5302"], host="client")
        cls.lab.wait_for_port(cls.lab.ip4("client"), 5302, cls.far)

    def iperf(self, *words, client=False, address=None):
        options = {"host": "server", "under": self.culvert} if client else {}
        address = address or self.lab.ip4("client" if client else "server")
        text = self.lab.call("iperf3", "-c", address, "-p", 5302 if client else 5301, "-t", "1", "-J", *words, timeout=60, **options)
        return json.loads(text)["end"]

    def test_tcp(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            for words in ((), ("-R",), ("--bidir",), ("-P", "4")):
                with self.subTest(words=words, address=address), self.carried(2):
                    end = self.iperf(*words, address=address)
                    self.assertGreater(end["sum_received"]["bytes"], 1 << 20)

    def test_udp(self):
        for words in ((), ("-R",)):
            with self.subTest(words=words), self.carried(1):
                end = self.iperf("-u", "-b", "50M", "-l", "1200", *words)
                self.assertGreater(end["sum"]["packets"], 1000)
                self.assertLess(end["sum"]["lost_percent"], 20)

    def test_client(self):
        for words in ((), ("-R",), ("--bidir",)):
            with self.subTest(words=words), self.carried(2, "tcp_active_opens"):
                self.assertGreater(self.iperf(*words, client=True)["sum_received"]["bytes"], 1 << 20)
        with self.carried(1, "tcp_active_opens"):
            self.assertGreater(self.iperf("-u", "-b", "50M", "-l", "1200", client=True)["sum"]["packets"], 1000)


class NameServers(Story):
    """Many names over UDP and TCP, each answered rightly."""

    def ask(self, port, *words, address=None):
        return self.lab.call("dig", f"@{address or self.lab.ip4()}", "-p", port, "+short", "+tries=3", "+time=10", *words).split()

    def query(self, port):
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried(20, "udp_in"):
                for number in range(20):
                    self.assertEqual(self.ask(port, f"host{number}.culvert.test", address=address), [f"10.1.2.{number}"])
            with self.carried(5):
                for number in range(5):
                    self.assertEqual(self.ask(port, "+tcp", f"host{number}.culvert.test", address=address), [f"10.1.2.{number}"])

    def test_dnsmasq(self):
        """It binds the wildcard and answers from the address that was asked (IP_PKTINFO); forks for TCP."""
        names = [f"--host-record=host{number}.culvert.test,10.1.2.{number}" for number in range(20)]
        program = self.lab.start("dnsmasq", ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--port=5401", "--user=root",
                                             "--conf-file=/dev/null", "--pid-file=", *names], under=self.culvert)
        self.lab.wait_for_port(self.lab.ip4(), 5401, program, under=self.culvert)
        self.query(5401)

    def test_unbound(self):
        """Two threads, each with sockets of its own on one port (SO_REUSEPORT), libevent; then a forwarder before dnsmasq on the other host."""
        names = [f"--host-record=far{number}.culvert.test,10.1.3.{number}" for number in range(10)]
        far = self.lab.start("dnsmasq", ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--port=5402", "--user=root",
                                         "--conf-file=/dev/null", "--pid-file=", *names], host="client")
        self.lab.wait_for_port(self.lab.ip4("client"), 5402, far)
        directory = self.lab.path("unbound")
        os.makedirs(directory)
        local = "".join(f"    local-data: 'host{number}.culvert.test. A 10.1.2.{number}'\n" for number in range(20))
        with open(f"{directory}/unbound.conf", "w") as file:
            file.write(f"server:\n    directory: '{directory}'\n    chroot: ''\n    username: ''\n    pidfile: ''\n    num-threads: 2\n"
                       f"    so-reuseport: yes\n    do-daemonize: no\n    use-syslog: no\n    interface: 0.0.0.0@5403\n    interface: ::0@5403\n"
                       f"    access-control: 0.0.0.0/0 allow\n    access-control: ::0/0 allow\n    module-config: 'iterator'\n{local}"
                       f"    local-zone: 'culvert.test.' transparent\n"
                       f"forward-zone:\n    name: 'culvert.test.'\n    forward-addr: {self.lab.ip4('client')}@5402\nremote-control:\n    control-enable: no\n")
        program = self.lab.start("unbound", ["unbound", "-d", "-p", "-c", f"{directory}/unbound.conf"], under=self.culvert)
        self.lab.wait_for_port(self.lab.ip4(), 5403, program, under=self.culvert)
        self.query(5403)
        for number in range(10):
            self.assertEqual(self.ask(5403, f"far{number}.culvert.test"), [f"10.1.3.{number}"])


class Socat(Story):
    """It forks for each connection; EXEC lets another program serve, over a socket pair or on the connection itself."""

    def start(self, *words):
        program = self.lab.start("socat", ["socat", *words], under=self.culvert)
        self.addCleanup(program.kill)
        return program

    def test_fork_and_exec(self):
        program = self.start("TCP-LISTEN:5501,fork,reuseaddr", "EXEC:cat")
        self.lab.wait_for_port(self.lab.ip4(), 5501, program, under=self.culvert)
        with self.carried(3):
            for _ in range(3):
                text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", self.lab.ip4(), 5501, 2)
                self.assertTrue(text.startswith("same"), text)

    def test_relay(self):
        """socat listens and connects, both through Culvert."""
        far = self.lab.start("asyncio", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "5502"], host="client")
        self.lab.wait_for_port(self.lab.ip4("client"), 5502, far)
        program = self.start("TCP6-LISTEN:5503,fork,reuseaddr,ipv6-v6only=0", f"TCP:{self.lab.ip4('client')}:5502")
        self.lab.wait_for_port(self.lab.ip4(), 5503, program, under=self.culvert)
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried(1), self.carried(1, "tcp_active_opens"):
                text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, 5503, 2)
            self.assertTrue(text.startswith("same"), text)

    def test_udp(self):
        self.start("UDP-LISTEN:5504,fork,reuseaddr", "EXEC:cat")
        self.start("UDP-RECVFROM:5505,fork,reuseaddr", "EXEC:tr a-z A-Z")
        for port, answer in ((5504, b"culvert 1"), (5505, b"CULVERT 1")):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.connect((self.lab.ip4(), port))
                client.settimeout(1)

                def answered():  # a datagram that comes before socat has bound its port is lost
                    try:
                        client.send(b"culvert 1")
                        return client.recv(100)
                    except OSError:
                        return None
                self.assertEqual(until(answered, f"socat to answer on port {port}", 30), answer)


class Fetchers(Story):
    """curl and wget through Culvert from a server of the kernel's: HTTP/1.1, HTTP/2, uploads, many at once."""

    @classmethod
    def prepare(cls):
        cls.certificate = Certificate(cls.lab)
        sink = cls.lab.start("sink", [PYTHON, f"{PROGRAMS}/upload_sink.py", "8090"], host="client")
        cls.lab.wait_for_port(cls.lab.ip4("client"), 8090, sink)
        tls = ("ssl_certificate {0.file}; ssl_certificate_key {0.key}; server {{ listen 443 ssl http2; listen [::]:443 ssl http2; "
               "root /nonexistent; location / {{ proxy_pass http://127.0.0.1; }} }}").format(cls.certificate)
        cls.nginx = Nginx(cls.lab, host="client", more=tls)

    def get(self, *words):
        return self.lab.call(*words, host="server", under=self.culvert, timeout=120)

    def check(self, name, expected="big.bin"):
        with open(name, "rb") as file:
            self.assertEqual(sha256(file.read()), self.nginx.hashes[expected])
        os.unlink(name)

    def test_wget(self):
        for url in (f"http://{self.lab.ip4('client')}/big.bin", f"http://[{self.lab.ip6('client')}]/big.bin",
                    f"https://{self.lab.ip4('client')}/big.bin"):
            with self.carried(1, "tcp_active_opens"):
                self.get("wget", "-q", "--ca-certificate", self.certificate.file, "-O", self.lab.path("wget"), url)
            self.check(self.lab.path("wget"))

    def test_curl(self):
        for url in (f"https://{self.lab.ip4('client')}/big.bin", f"https://[{self.lab.ip6('client')}]/big.bin"):
            for version in ("--http1.1", "--http2"):
                with self.carried(1, "tcp_active_opens"):
                    self.get("curl", "-sSf", version, "--cacert", self.certificate.file, "-o", self.lab.path("curl"), url)
                self.check(self.lab.path("curl"))

    def test_twenty_at_once(self):
        words = [word for number in range(20) for word in ("-o", self.lab.path(f"many-{number}"), f"http://{self.lab.ip4('client')}/big.bin?{number}")]
        with self.carried(20, "tcp_active_opens"):
            self.get("curl", "-sSf", "--no-progress-meter", "-Z", "--parallel-immediate", *words)
        for number in range(20):
            self.check(self.lab.path(f"many-{number}"))

    def test_upload(self):
        data = pseudo_random(10 << 20, 41)
        with open(self.lab.path("upload"), "wb") as file:
            file.write(data)
        for words in (("--data-binary", f"@{self.lab.path('upload')}"), ("-T", self.lab.path("upload")),
                      ("-T", self.lab.path("upload"), "-H", "Transfer-Encoding: chunked")):
            with self.carried(1, "tcp_active_opens"):
                text = self.get("curl", "-sSf", *words, f"http://{self.lab.ip4('client')}:8090/")
            self.assertEqual(text, sha256(data))


if __name__ == "__main__":
    run()
