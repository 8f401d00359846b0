"""How the tests and benchmarks start the stock servers of Debian: configuration, command line, waiting until they serve."""
import concurrent.futures
import http.client
import os
import random
import shutil
import socket
import threading

from netns import Failure, command, sha256, until

NGINX_CONFIG = """
user www-data;
worker_processes {workers};
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
daemon {daemon};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    sendfile on;
    keepalive_timeout 120s;
    keepalive_requests 100000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {port};
        listen [::]:{port};
        root {directory}/www;
        location = /small {{ return 200 "{small}"; }}
    }}
    {more}
}}
"""
SMALL = "culvert carries the stream under the road\\n"
SMALL_BYTES = b"culvert carries the stream under the road\n"


def pseudo_random(size, seed):
    """The same bytes every time; they do not compress and do not repeat."""
    return random.Random(seed).randbytes(size)


def fetch(address, path="/small", port=80, headers=None, method="GET", body=None):
    """(status, body) of one request over a connection of its own."""
    connection = http.client.HTTPConnection(address, port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Clients:
    """`with Clients(4, address) as clients:` - threads that fetch /small (or `path`) until the block ends; a wrong or failed reply fails it.

    `clients.served` is then how many replies were right.
    """

    def __init__(self, count, address, port=80, path="/small"):
        self.count, self.address, self.port, self.path = count, address, port, path
        self.stop = threading.Event()

    def one(self):
        served = 0
        while not self.stop.is_set():
            if fetch(self.address, self.path, self.port, headers={"Connection": "close"}) != (200, SMALL_BYTES):
                raise Failure("wrong reply under load")
            served += 1
        return served

    def __enter__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(self.count)
        self.futures = [self.pool.submit(self.one) for _ in range(self.count)]
        return self

    def __exit__(self, kind, *_):
        self.stop.set()
        self.pool.shutdown()
        if kind is None:
            self.served = sum(future.result() for future in self.futures)


class Certificate:
    """A key and a certificate that signs itself, for the hosts' addresses."""

    def __init__(self, lab):
        self.key, self.file, self.both = lab.path("key.pem"), lab.path("certificate.pem"), lab.path("both.pem")
        names = ",".join(f"IP:{address}" for address in (lab.ip4(), lab.ip6(), lab.ip4("client"), lab.ip6("client")))
        command("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=culvert",
                "-addext", f"subjectAltName={names}", "-keyout", self.key, "-out", self.file)
        with open(self.both, "w") as both:  # as haproxy wants it
            for part in (self.file, self.key):
                with open(part) as file:
                    both.write(file.read())


class Nginx:
    """A stock nginx: master and workers, files small.bin (1 kB), page.bin (16 KiB) and big.bin (10 MB) below its root.

    Returns when it serves: through Culvert, if it is started `under` a daemon and does not fall back to the kernel as it should.
    `more` is put into the http block of its configuration.
    """

    def __init__(self, lab, under=None, port=80, workers=2, connections=8192, address=None, daemonize=False, prefix=(),
                 falls_back=False, host="server", more=""):
        self.lab = lab
        self.port = port
        self.directory = lab.path(f"nginx-{len(lab.programs)}")
        www = os.path.join(self.directory, "www")
        os.makedirs(www)
        self.files = {"small.bin": pseudo_random(1000, 1), "page.bin": pseudo_random(16 << 10, 3), "big.bin": pseudo_random(10 << 20, 2)}
        for name, data in self.files.items():
            with open(os.path.join(www, name), "wb") as file:
                file.write(data)
        self.hashes = {name: sha256(data) for name, data in self.files.items()}
        self.config = os.path.join(self.directory, "nginx.conf")
        with open(self.config, "w") as file:
            file.write(NGINX_CONFIG.format(directory=self.directory, workers=workers, connections=connections, port=port,
                                           small=SMALL, daemon="on" if daemonize else "off", more=more))
        self.words = [shutil.which("nginx") or "/usr/sbin/nginx", "-e", f"{self.directory}/error.log", "-c", self.config]
        self.program = lab.start("nginx", self.words, under=under, prefix=prefix, host=host)
        if daemonize:
            code = self.program.wait(20)
            if code != 0:
                raise Failure(f"nginx: exit code {code}\n{self.program.output()}")
        lab.wait_for_port(address or lab.ip4(host), port, None if daemonize else self.program, under=None if falls_back else under, addresses=2)

    def master(self):
        """The number of the master process."""
        def read():
            try:
                with open(f"{self.directory}/nginx.pid") as file:
                    return int(file.read())
            except (OSError, ValueError):
                return 0
        return until(read, "nginx to write its pid file")

    def workers(self):
        with open(f"/proc/{self.master()}/task/{self.master()}/children") as file:
            return sorted(map(int, file.read().split()))

    def errors(self):
        """What nginx itself found wrong, from its log."""
        with open(f"{self.directory}/error.log") as file:
            return [line.strip() for line in file
                    if any(f"[{level}]" in line for level in ("warn", "error", "crit", "alert", "emerg"))]


class Redis:
    """A stock redis-server without a configuration file; its dumps go to its own directory."""

    def __init__(self, lab, under=None, port=6379, bind="* -::*", arguments=(), prefix=(), address=None):
        self.lab = lab
        self.port = port
        self.directory = lab.path(f"redis-{len(lab.programs)}")
        os.makedirs(self.directory)
        words = ["redis-server", "--port", port, "--bind", *bind.split(), "--protected-mode", "no", "--dir", self.directory,
                 "--save", "", "--daemonize", "no", *arguments]
        self.program = lab.start("redis", words, under=under, prefix=prefix)
        lab.wait_for_port(address or lab.ip4(), port, self.program, under=under, addresses=len(bind.split()))


class RedisClient:
    """The little of the Redis protocol (RESP2) that the tests speak, on a plain kernel socket."""

    def __init__(self, address, port=6379, timeout=20):
        self.socket = socket.create_connection((address, port), timeout)
        self.file = self.socket.makefile("rb")

    def send(self, *words):
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))

    def receive(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise Failure(f"redis closed the connection ({line!r})")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"-":
            raise Failure(f"redis: {rest.decode()}")
        if kind == b"$":
            if int(rest) < 0:
                return None
            data = self.file.read(int(rest) + 2)
            return data[:-2]
        if kind == b"*":
            return [self.receive() for _ in range(int(rest))]
        raise Failure(f"redis: no reply starts with {line!r}")

    def ask(self, *words):
        self.send(*words)
        return self.receive()

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
