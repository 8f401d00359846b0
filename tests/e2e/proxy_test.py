"""Proxies under Culvert, client on one side and server on the other: nginx with kept upstream connections and TLS, haproxy."""
import concurrent.futures
import http.client
import os
import signal
import socket
import ssl

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, sha256
from servers import SMALL_BYTES, Certificate, Clients, Nginx, fetch, pseudo_random

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")

PROXY = """
    upstream here {{ server {here}:8080; server [{here6}]:8080; keepalive 16; }}
    upstream there {{ server {there}:8080; server [{there6}]:8080; keepalive 16; }}
    upstream fresh {{ server {here}:8080; server [{here6}]:8080; }}
    upstream sink {{ server {here}:8090; keepalive 4; }}
    client_max_body_size 100m;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_session_cache shared:tls:1m;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    server {{
        listen 81;
        listen [::]:81;
        listen 443 ssl http2;
        listen [::]:443 ssl http2;
        root {root};
        location /here/ {{ proxy_pass http://here/; }}
        location /there/ {{ proxy_pass http://there/; }}
        location /fresh/ {{ proxy_set_header Connection close; proxy_pass http://fresh/; }}
        location /straight/ {{ proxy_buffering off; proxy_pass http://here/; }}
        location /sink {{ proxy_request_buffering off; proxy_pass http://sink/; }}
    }}
"""


class NginxProxy(Story):
    """One nginx in front of another under the same daemon, of one on the other host, and of a server that hashes uploads."""

    @classmethod
    def prepare(cls):
        lab = cls.lab
        cls.certificate = Certificate(lab)
        cls.behind = Nginx(lab, under=cls.culvert, port=8080)
        cls.far = Nginx(lab, port=8080, host="client")
        cls.sink = lab.start("sink", [PYTHON, f"{PROGRAMS}/upload_sink.py", "8090"], under=cls.culvert)
        lab.wait_for_port(lab.ip4(), 8090, cls.sink, under=cls.culvert)
        more = PROXY.format(here=lab.ip4(), here6=lab.ip6(), there=lab.ip4("client"), there6=lab.ip6("client"),
                            certificate=cls.certificate.file, key=cls.certificate.key, root=f"{cls.behind.directory}/www")
        cls.nginx = Nginx(lab, under=cls.culvert, more=more)
        lab.wait_for_port(lab.ip4(), 443, cls.nginx.program, under=cls.culvert)

    def tearDown(self):
        for nginx in (self.nginx, self.behind, self.far):
            self.assertEqual([line for line in nginx.errors() if "buffered to a temporary file" not in line], [])

    def test_upstreams_are_kept_and_the_content_is_right(self):
        before = None if ON_KERNEL else self.culvert.counters()["tcp_active_opens"]
        for place in ("here", "there"):
            with self.carried(80):
                for _ in range(40):
                    self.assertEqual(fetch(self.lab.ip4(), f"/{place}/small", 81), (200, SMALL_BYTES))
                    self.assertEqual(fetch(self.lab.ip6(), f"/{place}/small.bin", 81)[1], self.behind.files["small.bin"])
        if before is not None:  # two workers, four addresses
            self.assertLessEqual(self.culvert.counters()["tcp_active_opens"] - before, 8)

    def test_many_clients_at_once(self):
        with self.carried(64), self.carried(4, "tcp_active_opens"):
            for place in ("here", "there"):
                text = self.lab.call("wrk", "-t1", "-c64", "-d2s", f"http://{self.lab.ip4()}:81/{place}/small")
                self.assertNotIn("Socket errors", text)
                self.assertNotIn("Non-2xx", text)

    def test_big_files_pass_unchanged(self):
        """Through temporary files, and piece by piece."""
        with self.carried(12), concurrent.futures.ThreadPoolExecutor(4) as pool:
            paths = ["/here/big.bin", "/there/big.bin", "/straight/big.bin"] * 4
            hashes = list(pool.map(lambda path: sha256(fetch(self.lab.ip4(), path, 81)[1]), paths))
        self.assertEqual(set(hashes), {self.behind.hashes["big.bin"]})

    def test_uploads_pass_unchanged(self):
        body = pseudo_random(10 << 20, 11)
        with self.carried(4):
            for address in (self.lab.ip4(), self.lab.ip6()):
                for _ in range(2):
                    self.assertEqual(fetch(address, "/sink", 81, method="POST", body=body), (200, sha256(body).encode()))

    def test_https(self):
        context = ssl.create_default_context(cafile=self.certificate.file)
        with self.carried(10):
            for number in range(10):
                address = self.lab.ip6() if number % 2 else self.lab.ip4()
                connection = http.client.HTTPSConnection(address, 443, timeout=30, context=context)
                for path in ("/small.bin", "/here/small.bin"):
                    connection.request("GET", path)
                    self.assertEqual(connection.getresponse().read(), self.behind.files["small.bin"])
                connection.request("GET", "/big.bin")
                self.assertEqual(sha256(connection.getresponse().read()), self.behind.hashes["big.bin"])
                connection.close()

    def test_http2_with_many_streams(self):
        """One TLS connection, forty streams at once."""
        urls = [word for number in range(40) for word in
                ("-o", self.lab.path(f"stream-{number}"), f"https://{self.lab.ip4()}/{'here/' if number % 2 else ''}big.bin?{number}")]
        with self.carried(1):
            text = self.lab.call("curl", "-sSf", "--no-progress-meter", "--http2", "--cacert", self.certificate.file, "-Z", "--parallel-max", "40",
                                 "-w", "%{http_version} ", *urls, timeout=120)
        self.assertEqual(set(text.split()), {"2"})
        for number in range(40):
            with open(self.lab.path(f"stream-{number}"), "rb") as file:
                self.assertEqual(sha256(file.read()), self.behind.hashes["big.bin"])
            os.unlink(self.lab.path(f"stream-{number}"))

    def test_openssl_resumes_its_session(self):
        with self.carried(6):
            text = self.lab.call("openssl", "s_client", "-connect", f"{self.lab.ip4()}:443", "-CAfile", self.certificate.file,
                                 "-verify_return_error", "-tls1_2", "-reconnect")
        self.assertEqual(text.count("Reused, TLSv1.2"), 5, text[-2000:])

    def test_reload_under_load_loses_no_proxied_request(self):
        """In front, and behind. Kept connections would make the latter a race that nginx may lose on any network: a request
        that meets the old worker's goodbye is sent again at most once."""
        for nginx, place in ((self.nginx, "here"), (self.nginx, "there"), (self.behind, "fresh")):
            with Clients(4, self.lab.ip4(), 81, f"/{place}/small") as clients:
                old = nginx.workers()
                os.kill(nginx.master(), signal.SIGHUP)
                until(lambda: len(nginx.workers()) == 2 and not set(old) & set(nginx.workers()),
                      "nginx to have two new workers and no old one", 30)
            self.assertGreater(clients.served, 4)


HAPROXY = """
global
    master-worker
    nbthread 4
    maxconn 4000
    pidfile {directory}/haproxy.pid
    stats socket {directory}/haproxy.sock mode 600 level admin expose-fd listeners
defaults
    timeout connect 20s
    timeout client 60s
    timeout server 60s
    retries 3
    option redispatch
frontend http
    mode http
    bind 0.0.0.0:8000
    bind [::]:8000 v6only
    bind 0.0.0.0:8443 ssl crt {certificate} alpn h2,http/1.1
    use_backend there if {{ path_beg /there/ }}
    default_backend here
backend here
    mode http
    http-reuse always
    http-request replace-path /here/(.*) /\\1
    server four {here}:8080 check inter 500ms
    server six [{here6}]:8080 check inter 500ms
backend there
    mode http
    http-request replace-path /there/(.*) /\\1
    http-request set-header Connection close
    server four {there}:8080
    server six [{there6}]:8080
listen tcp
    mode tcp
    bind 0.0.0.0:8001
    bind [::]:8001 v6only
    balance roundrobin
    server echo {here}:8091
"""


class Haproxy(Story):
    """Four threads, HTTP and TCP mode, TLS, health checks."""

    @classmethod
    def prepare(cls):
        lab = cls.lab
        cls.certificate = Certificate(lab)
        cls.behind = Nginx(lab, under=cls.culvert, port=8080)
        cls.far = Nginx(lab, port=8080, host="client")
        echo = lab.start("echo", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8091"], under=cls.culvert)
        lab.wait_for_port(lab.ip4(), 8091, echo, under=cls.culvert, addresses=2)
        file = lab.path("haproxy.cfg")
        with open(file, "w") as out:
            out.write(HAPROXY.format(directory=lab.directory, certificate=cls.certificate.both, here=lab.ip4(), here6=lab.ip6(),
                                     there=lab.ip4("client"), there6=lab.ip6("client")))
        cls.console = lab.path("master.sock")
        cls.program = lab.start("haproxy", ["haproxy", "-W", "-S", cls.console, "-f", file], under=cls.culvert)
        for port in (8000, 8001, 8443):
            lab.wait_for_port(lab.ip4(), port, cls.program, under=cls.culvert)

    def workers(self):
        with open(f"/proc/{self.program.pid}/task/{self.program.pid}/children") as file:
            return set(map(int, file.read().split()))

    def wait_for_master(self):
        """It executes itself anew twice on a reload, and ignores signals meanwhile; it answers when it is done."""
        def answers():
            try:
                with socket.socket(socket.AF_UNIX) as console:
                    console.settimeout(5)
                    console.connect(self.console)
                    console.sendall(b"show proc\n")
                    return b"worker" in console.recv(4096)
            except OSError:
                return False
        until(answers, "haproxy's master to answer", 30)

    def test_http_content_is_right(self):
        with self.carried(40), self.carried(1, "tcp_active_opens"):
            for address in (self.lab.ip4(), self.lab.ip6()):
                for place in ("here", "there"):
                    for _ in range(10):
                        self.assertEqual(fetch(address, f"/{place}/small", port=8000), (200, SMALL_BYTES))
                    status, body = fetch(address, f"/{place}/big.bin", port=8000)
                    self.assertEqual((status, sha256(body)), (200, self.behind.hashes["big.bin"]))

    def test_tcp_mode_echoes_both_ways_at_once(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried(2):
                text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, "8001", "8")
            self.assertTrue(text.startswith("same"), text)

    def test_https_with_http2(self):
        urls = [word for number in range(8) for word in
                ("-o", self.lab.path(f"stream-{number}"), f"https://{self.lab.ip4()}:8443/here/big.bin?{number}")]
        with self.carried(1):
            text = self.lab.call("curl", "-sSf", "--no-progress-meter", "--http2", "--cacert", self.certificate.file, "-Z", "-w",
                                 "%{http_version} ", *urls, timeout=120)
        self.assertEqual(set(text.split()), {"2"})
        for number in range(8):
            with open(self.lab.path(f"stream-{number}"), "rb") as file:
                self.assertEqual(sha256(file.read()), self.behind.hashes["big.bin"])

    def test_four_threads_under_load(self):
        with self.carried(64):
            for place in ("here", "there"):
                text = self.lab.call("wrk", "-t1", "-c64", "-d2s", f"http://{self.lab.ip4()}:8000/{place}/small")
                self.assertNotIn("Socket errors", text)
                self.assertNotIn("Non-2xx", text)

    def test_reload_under_load_loses_no_request(self):
        """The new worker asks the old one for its listeners (SCM_RIGHTS); clients see nothing of it."""
        with Clients(2, self.lab.ip4(), 8000, "/here/small") as four, Clients(2, self.lab.ip6(), 8000, "/here/small") as six:
            for _ in range(3):
                self.wait_for_master()
                old = self.workers()
                self.program.send(signal.SIGUSR2)
                until(lambda: self.workers() and not old & self.workers(), "haproxy to have a new worker only", 30)
        self.assertGreater(four.served + six.served, 10)
        for port in (8000, 8001, 8443):
            self.culvert.wait_for_listener(port)
        with self.carried(20):
            for _ in range(20):
                self.assertEqual(fetch(self.lab.ip4(), "/here/small", 8000), (200, SMALL_BYTES))


APACHE = """
ServerRoot {directory}
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
LogLevel warn
Mutex file:{directory}
ServerName culvert
User www-data
Group www-data
LoadModule mpm_{mpm}_module /usr/lib/apache2/modules/mod_mpm_{mpm}.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
{limits}
Listen {port}
Listen {tls} https
DocumentRoot {root}
KeepAliveTimeout 60
MaxKeepAliveRequests 0
EnableSendfile On
ProxyPass /sink http://{here}:8090/
<VirtualHost *:{tls}>
    SSLEngine on
    SSLCertificateFile {certificate}
    SSLCertificateKeyFile {key}
</VirtualHost>
"""


class Apache(Story):
    """prefork (a process for each connection, accept serialized) and event (threads, listener and connections in one epoll set)."""

    @classmethod
    def prepare(cls):
        lab = cls.lab
        cls.certificate = Certificate(lab)
        cls.files = {"small": SMALL_BYTES, "big.bin": pseudo_random(10 << 20, 51)}
        root = lab.path("htdocs")
        os.makedirs(root)
        for name, data in cls.files.items():
            with open(f"{root}/{name}", "wb") as file:
                file.write(data)
        sink = lab.start("sink", [PYTHON, f"{PROGRAMS}/upload_sink.py", "8090"], under=cls.culvert)
        lab.wait_for_port(lab.ip4(), 8090, sink, under=cls.culvert)
        cls.apaches = {}
        for mpm, port, limits in (("prefork", 8600, "StartServers 40\nMaxRequestWorkers 60\nMinSpareServers 30\nMaxSpareServers 60"), ("event", 8700, "StartServers 2\nThreadsPerChild 64\nMaxRequestWorkers 128")):
            directory = lab.path(f"apache-{mpm}")
            os.makedirs(directory)
            with open(f"{directory}/apache.conf", "w") as file:
                file.write(APACHE.format(directory=directory, mpm=mpm, port=port, tls=port + 1, limits=limits, root=root, here=lab.ip4(),
                                         certificate=cls.certificate.file, key=cls.certificate.key))
            program = lab.start(f"apache-{mpm}", ["apache2", "-d", directory, "-f", f"{directory}/apache.conf", "-D", "FOREGROUND"],
                                under=cls.culvert)
            for each in (port, port + 1):
                lab.wait_for_port(lab.ip4(), each, program, under=cls.culvert)
            cls.apaches[port] = program

    def test_files(self):
        for port, _ in self.apaches.items():
            with self.carried(20):
                for number in range(20):
                    address = self.lab.ip6() if number % 2 else self.lab.ip4()
                    self.assertEqual(fetch(address, "/small", port), (200, SMALL_BYTES))
            with self.carried(8), concurrent.futures.ThreadPoolExecutor(8) as pool:
                hashes = set(pool.map(lambda _: sha256(fetch(self.lab.ip4(), "/big.bin", port)[1]), range(8)))
            self.assertEqual(hashes, {sha256(self.files["big.bin"])})

    def test_keep_alive_under_load(self):
        for port, _ in self.apaches.items():
            with self.carried(30):
                text = self.lab.call("wrk", "-t1", "-c30", "-d2s", f"http://{self.lab.ip4()}:{port}/small")
            self.assertNotIn("Socket errors", text)
            self.assertNotIn("Non-2xx", text)

    def test_ab_with_a_connection_for_each_request(self):
        for port, _ in self.apaches.items():
            with self.carried(2000):
                text = self.lab.call("ab", "-q", "-n", "2000", "-c", "20", f"http://{self.lab.ip4()}:{port}/small")
            self.assertIn("Failed requests:        0", text)

    def test_https(self):
        for port, _ in self.apaches.items():
            with self.carried(3):
                for number in range(3):
                    out = self.lab.path("https")
                    self.lab.call("curl", "-sSf", "--cacert", self.certificate.file, f"https://{self.lab.ip4()}:{port + 1}/big.bin", "-o", out)
                    with open(out, "rb") as file:
                        self.assertEqual(sha256(file.read()), sha256(self.files["big.bin"]))

    def test_proxied_upload(self):
        body = pseudo_random(5 << 20, 52)
        for port, _ in self.apaches.items():
            with self.carried(2), self.carried(1, "tcp_active_opens"):
                self.assertEqual(fetch(self.lab.ip4(), "/sink", port, method="POST", body=body), (200, sha256(body).encode()))

    def test_graceful_restart_under_load(self):
        for port, program in self.apaches.items():
            def children():
                with open(f"/proc/{program.pid}/task/{program.pid}/children") as file:
                    return set(file.read().split())
            with Clients(3, self.lab.ip4(), port) as clients:
                old = children()
                program.send(signal.SIGUSR1)
                until(lambda: children() and not old & children(), "Apache to replace its children", 60)
            self.assertGreater(clients.served, 0)
            with self.carried(5):
                for _ in range(5):
                    self.assertEqual(fetch(self.lab.ip4(), "/small", port), (200, SMALL_BYTES))


if __name__ == "__main__":
    run()
