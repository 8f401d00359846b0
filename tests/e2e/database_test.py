"""Databases under Culvert: PostgreSQL with a process for each connection, Redis as primary and replica and as a cluster."""
import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading

from story import Story, run, until
from netns import Failure, Program, command, sha256
from servers import Redis, RedisClient, pseudo_random

POSTGRES = "/usr/lib/postgresql/15/bin"


class Postgres(Story):
    """The postmaster accepts and forks; the child serves the connection, the parent closes it. Parallel workers, a WAL sender."""

    @classmethod
    def prepare(cls):
        cls.data = cls.lab.path("postgres")
        os.makedirs(cls.data)
        shutil.chown(cls.data, "postgres", "postgres")
        cls.as_postgres = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        command(*cls.as_postgres, f"{POSTGRES}/initdb", "-D", cls.data, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C",
                cwd=cls.data, timeout=120)
        with open(f"{cls.data}/pg_hba.conf", "a") as file:
            file.write("host all all 10.77.0.0/16 trust\nhost all all fd77::/16 trust\n"
                       "host replication all 10.77.0.0/16 trust\n")
        settings = {"listen_addresses": "*", "port": "5432", "unix_socket_directories": cls.data, "fsync": "off",
                    "max_connections": "60", "tcp_keepalives_idle": "30", "tcp_keepalives_interval": "5",
                    "tcp_keepalives_count": "3", "tcp_user_timeout": "30000", "max_wal_size": "4GB"}
        words = [f"{POSTGRES}/postgres", "-D", cls.data, *(f"--{name}={value}" for name, value in settings.items())]
        cls.postmaster = cls.lab.start("postgres", [*cls.as_postgres, *words], under=cls.culvert, cwd=cls.data)
        cls.lab.wait_for_port(cls.lab.ip4(), 5432, cls.postmaster, under=cls.culvert)
        until(lambda: subprocess.run([f"{POSTGRES}/pg_isready", "-q", "-h", cls.lab.ip4()]).returncode == 0, "postgres to be ready", 60)

    def psql(self, *commands, address=None, stdin=None, environment=None):
        words = [word for text in commands for word in ("-c", text)]
        done = subprocess.run([f"{POSTGRES}/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", address or self.lab.ip4(),
                               "-U", "postgres", *words], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=120, env=dict(os.environ, **(environment or {})))
        if done.returncode != 0:
            raise Failure(done.stderr.decode())
        return done.stdout

    def test_every_connection_has_a_process(self):
        with self.carried(20):
            pids = {self.psql("select pg_backend_pid()", address=address) for address in (self.lab.ip4(), self.lab.ip6())
                    for _ in range(10)}
        self.assertEqual(len(pids), 20)

    def test_addresses_and_keepalives_are_the_connections(self):
        """PostgreSQL asks its socket for the peer's name and sets and reads back the socket options."""
        for own, other in ((self.lab.ip4(), self.lab.ip4("client")), (self.lab.ip6(), self.lab.ip6("client"))):
            answer = self.psql("select host(inet_client_addr()), host(inet_server_addr()), inet_server_port()", "show tcp_keepalives_idle",
                               "show tcp_keepalives_interval", "show tcp_keepalives_count", "show tcp_user_timeout", address=own)
            self.assertEqual(answer.decode().split(), [f"{other}|{own}|5432", "30", "5", "3", "30000"])

    def test_copy_in_and_out(self):
        """20 MB of text each way."""
        rows = b"".join(b"%d\t%s\n" % (number, hashlib.sha256(b"%d" % number).hexdigest().encode() * 4) for number in range(75000))
        with self.carried(2):
            self.psql("create table copied (number int, text text)")
            self.psql("copy copied from stdin", stdin=rows)
            self.assertEqual(sha256(self.psql("copy copied to stdout")), sha256(rows))
            self.assertEqual(self.psql("select count(*) from copied", address=self.lab.ip6()), b"75000\n")

    def test_pgbench(self):
        self.lab.call(f"{POSTGRES}/pgbench", "-i", "-q", "-s", "2", "-h", self.lab.ip4(), "-U", "postgres", "postgres", timeout=120)
        with self.carried(60):
            text = self.lab.call(f"{POSTGRES}/pgbench", "-n", "-C", "-c", "4", "-j", "2", "-t", "20", "-h", self.lab.ip4(), "-U", "postgres",
                                 "postgres", timeout=120)
            self.assertIn("number of failed transactions: 0 ", text)
        with self.carried(20):
            text = self.lab.call(f"{POSTGRES}/pgbench", "-n", "-S", "-M", "prepared", "-c", "20", "-j", "2", "-T", "3", "-h", self.lab.ip6(),
                                 "-U", "postgres", "postgres", timeout=120)
        self.assertIn("number of failed transactions: 0 ", text)
        total, = self.psql("select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)").split()
        self.assertEqual(total, b"t")

    def test_cancel_request(self):
        """A second connection asks for the end of what the first one does: its process gets a signal while it waits."""
        client = subprocess.Popen([f"{POSTGRES}/psql", "-X", "-h", self.lab.ip4(), "-U", "postgres", "-c", "select pg_sleep(1000)"],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            until(lambda: self.psql("select 1 from pg_stat_activity where query like '%pg_sleep(1000)%' and pid <> pg_backend_pid()"),
                  "the statement to run")
            with self.carried(1):
                client.send_signal(signal.SIGINT)
                output, _ = client.communicate(timeout=30)
        finally:
            client.kill()
        self.assertIn(b"canceling statement due to user request", output)

    def test_listen_and_notify(self):
        listener = subprocess.Popen([f"{POSTGRES}/psql", "-X", "-h", self.lab.ip4(), "-U", "postgres"], stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            listener.stdin.write(b"listen news;\nselect 'li' || 'stens';\n")
            listener.stdin.flush()
            while b"listens" not in listener.stdout.readline():
                self.assertIsNone(listener.poll())
            for number in range(50):
                self.psql(f"notify news, 'message {number}'")
            output, _ = listener.communicate(b"select 1;\n", timeout=30)
        finally:
            listener.kill()
        heard = re.findall(rb'"news" with payload "message (\d+)"', output)
        self.assertEqual([int(number) for number in heard], list(range(50)))

    def test_a_terminated_backend_ends_its_connection(self):
        client = subprocess.Popen([f"{POSTGRES}/psql", "-X", "-h", self.lab.ip4(), "-U", "postgres", "-c", "select pg_sleep(2000)"],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        find = "select pid from pg_stat_activity where query like '%pg_sleep(2000)%' and pid <> pg_backend_pid()"
        pid = until(lambda: self.psql(find), "the statement to run")
        self.psql(f"select pg_terminate_backend({int(pid)})")
        output, _ = client.communicate(timeout=30)
        self.assertIn(b"terminating connection due to administrator command", output)

    def test_a_killed_backend_restarts_the_server(self):
        """kill -9 of one backend: the postmaster ends all others, recovers, and serves again on the same listeners."""
        clients = [subprocess.Popen([f"{POSTGRES}/psql", "-X", "-h", self.lab.ip4(), "-U", "postgres", "-c", "select pg_sleep(3000)"],
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(3)]
        find = "select pid from pg_stat_activity where query like '%pg_sleep(3000)%' and pid <> pg_backend_pid()"
        pids = until(lambda: (lambda found: found if len(found) == 3 else None)(self.psql(find).split()), "the statements to run")
        os.kill(int(pids[0]), signal.SIGKILL)
        outputs = [client.communicate(timeout=60)[0] for client in clients]
        self.assertTrue(all(b"connection" in output for output in outputs), outputs)
        until(lambda: subprocess.run([f"{POSTGRES}/pg_isready", "-q", "-h", self.lab.ip4()]).returncode == 0, "postgres to recover", 60)
        with self.carried(3):
            for _ in range(3):
                self.assertEqual(self.psql("select 42"), b"42\n")

    def test_a_base_backup_streams_the_wal_too(self):
        """pg_basebackup: two connections that live long and carry the whole cluster; the copy is verified by its manifest."""
        target = self.lab.path("backup")
        with self.carried(2):
            self.lab.call(f"{POSTGRES}/pg_basebackup", "-h", self.lab.ip4(), "-U", "postgres", "-D", target, "-X", "stream", "-c", "fast",
                          timeout=120)
        self.assertIn("successfully verified", self.lab.call(f"{POSTGRES}/pg_verifybackup", target, timeout=120))


class RedisFamily(Story):
    """Several servers that talk to each other: replication, and the bus of a cluster."""

    def redis(self, port, *arguments):
        server = Redis(self.lab, under=self.culvert, port=port, arguments=arguments)
        self.addCleanup(server.program.kill)
        return server

    def ask(self, port, *words):
        with RedisClient(self.lab.ip4(), port) as client:
            return client.ask(*words)

    def test_replica_follows_its_primary(self):
        """A full copy made by a forked child (over the socket itself, without a file), then the stream."""
        self.redis(6401, "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
        values = {f"key:{number}": pseudo_random(200_000, number) for number in range(60)}
        with RedisClient(self.lab.ip4(), 6401) as client:
            for key, value in values.items():
                client.ask("SET", key, value)
        with self.carried(1, "tcp_active_opens"):
            self.redis(6402, "--replicaof", self.lab.ip4(), "6401", "--repl-diskless-load", "swapdb")
            until(lambda: b"master_link_status:up" in self.ask(6402, "INFO", "replication"), "the replica to have its copy", 30)
        self.lab.call("redis-benchmark", "-h", self.lab.ip4(), "-p", "6401", "-t", "set,incr,lpush", "-n", "20000", "-c", "20", "-q")
        offset = re.search(rb"master_repl_offset:(\d+)", self.ask(6401, "INFO", "replication"))[1]
        with RedisClient(self.lab.ip4(), 6401) as client:
            client.ask("SET", "last", "one")
            self.assertEqual(client.ask("WAIT", 1, 20000), 1)
        self.assertGreater(int(offset), 1 << 20)
        with RedisClient(self.lab.ip6(), 6402) as client:
            for key, value in values.items():
                self.assertEqual(client.ask("GET", key), value)
            self.assertEqual(client.ask("GET", "last"), b"one")
            self.assertEqual(client.ask("GET", "counter:__rand_int__"), b"20000")
        self.assertEqual(self.ask(6401, "DBSIZE"), self.ask(6402, "DBSIZE"))

    def test_log_is_rewritten_under_load(self):
        """BGREWRITEAOF: a forked child writes, the parent goes on serving; then the server starts from that log."""
        server = self.redis(6403, "--appendonly", "yes", "--appendfsync", "no")
        failed = []

        def load():
            try:
                self.lab.call("redis-benchmark", "-h", self.lab.ip4(), "-p", "6403", "-t", "incr", "-n", "60000", "-c", "20", "-q")
            except Failure as error:
                failed.append(error)
        with RedisClient(self.lab.ip4(), 6403) as client:
            thread = threading.Thread(target=load)
            thread.start()
            try:
                for _ in range(3):
                    until(lambda: "started" in str(client.ask("BGREWRITEAOF")), "the rewrite to start", 30)
                    until(lambda: b"aof_rewrite_in_progress:0" in client.ask("INFO", "persistence"), "the rewrite to end", 30)
            finally:
                thread.join()
            self.assertEqual(failed, [])
            self.assertIn(b"aof_last_bgrewrite_status:ok", client.ask("INFO", "persistence"))
            self.assertEqual(client.ask("GET", "counter:__rand_int__"), b"60000")
        server.program.kill()
        self.addCleanup(self.lab.adopt(Program("redis", server.program.words, server.program.log)).kill)
        self.lab.wait_for_port(self.lab.ip4(), 6403, under=self.culvert)
        until(lambda: b"\r\nloading:0" in self.ask(6403, "INFO", "persistence"), "redis to load its log", 30)
        self.assertEqual(self.ask(6403, "GET", "counter:__rand_int__"), b"60000")

    def test_cluster_of_three(self):
        """redis-cli makes it; the servers meet on their bus (port + 10000), clients are sent from one to the other."""
        ports = (6411, 6412, 6413)
        with self.carried(6, "tcp_active_opens"):
            servers = [self.redis(port, "--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf",
                                  "--cluster-node-timeout", "3000") for port in ports]
            self.lab.call("redis-cli", "--cluster", "create", *(f"{self.lab.ip4()}:{port}" for port in ports), "--cluster-yes")
        for port in ports:
            until(lambda: b"cluster_state:ok" in self.ask(port, "CLUSTER", "INFO"), f"the cluster to be well, says {port}", 30)
        with self.carried(30):
            for number in range(30):
                self.lab.call("redis-cli", "-c", "-h", self.lab.ip4(), "-p", ports[number % 3], "set", f"key:{number}", f"value {number}")
        for number in range(30):
            text = self.lab.call("redis-cli", "-c", "-h", self.lab.ip4(), "-p", ports[(number + 1) % 3], "get", f"key:{number}")
            self.assertEqual(text.strip(), f"value {number}")
        servers[2].program.kill()
        until(lambda: b"cluster_state:fail" in self.ask(6411, "CLUSTER", "INFO"), "the others to notice that one is gone", 30)


if __name__ == "__main__":
    run()
