"""Culvert as people install it: a booted systemd starts culvertd from the unit file, sandboxed as that says, and Debian's own nginx
and redis-server units with the drop-in of packaging/README.md. systemd is the first process of namespaces of its own (programs/boot.sh).
"""
import glob
import os
import re
import shutil
import socket
import subprocess
import unittest

from story import Story, run
from netns import BUILD, ON_KERNEL, ROOT, Failure, Lab, command, until
from servers import fetch

BOOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "boot.sh")
NGINX = """user www-data;
worker_processes 2;
pid /run/nginx.pid;
events {}
http { server { listen 80; listen [::]:80; root /etc/www; } }
"""


class ControlGroup:
    """A group for the booted systemd, in each hierarchy where one may be made without a controller."""

    def __init__(self, name):
        found = [path for path in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
                 if os.path.exists(f"{path}/cgroup.procs")]
        self.paths = [f"{path}/{name}" for path in found]
        for path in self.paths:
            os.makedirs(path, exist_ok=True)

    def enter(self):
        for path in self.paths:
            with open(f"{path}/cgroup.procs", "w") as file:
                file.write("0")

    def remove(self):
        def gone():
            for path in self.paths:
                for folder, _, _ in os.walk(path, topdown=False):
                    try:
                        os.rmdir(folder)
                    except OSError:
                        return False
            return True
        until(gone, f"{self.paths} to be empty")


@unittest.skipIf(ON_KERNEL, "is about culvertd's own service")
@unittest.skipUnless(os.path.exists("/lib/systemd/systemd"), "no systemd")
class Service(Story):
    @classmethod
    def setUpClass(cls):
        cls.lab = Lab().open()
        cls.addClassCleanup(cls.lab.close)
        group = ControlGroup(f"culvert-{os.getpid()}")
        cls.addClassCleanup(group.remove)
        cls.install(cls.lab.path("machine"))
        words = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--cgroup", BOOT, cls.lab.path("machine")]
        cls.log = cls.lab.path("boot.log")
        with open(cls.log, "w") as log:
            machine = subprocess.Popen([*cls.lab.enter_words("server"), *words], preexec_fn=group.enter, stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log)
        cls.addClassCleanup(cls.halt, machine)

        def first_process():
            if machine.poll() is not None:
                with open(cls.log) as log:
                    raise Failure(f"systemd did not boot:\n{log.read()}")
            with open(f"/proc/{machine.pid}/task/{machine.pid}/children") as children:
                pids = children.read().split()
            return int(pids[0]) if pids and os.path.basename(os.readlink(f"/proc/{pids[0]}/exe")) == "systemd" else None
        cls.pid = until(first_process, "systemd to begin", 30)
        until(lambda: cls.ask("systemctl", "is-system-running") in ("running", "degraded"), "the machine to have booted", 60)

    @staticmethod
    def halt(machine):
        machine.kill()  # --kill-child takes the first process along, and that all others
        machine.wait()

    @staticmethod
    def install(directory):
        """What an administrator does by packaging/README.md."""
        command("cmake", "--install", BUILD, "--prefix", "/usr", env={**os.environ, "DESTDIR": directory})
        with open(os.path.join(ROOT, "packaging/README.md")) as file:
            drop_in = re.search(r"```ini\n(.*?)```", file.read(), re.DOTALL)[1]
        with open("/etc/redis/redis.conf") as file:
            redis = file.read() + "\nbind 0.0.0.0 ::\nprotected-mode no\nsave ''\n"
        for path, text in (("culvert/config.toml", '[[interface]]\nname = "veth0"\n'), ("nginx/nginx.conf", NGINX),
                           ("www/page.html", "a page"), ("redis/redis.conf", redis),
                           ("systemd/system/nginx.service.d/culvert.conf", drop_in),
                           ("systemd/system/redis-server.service.d/culvert.conf", drop_in)):
            os.makedirs(os.path.dirname(f"{directory}/etc/{path}"), exist_ok=True)
            with open(f"{directory}/etc/{path}", "w") as file:
                file.write(text)
        for path in glob.glob(f"{directory}/etc/**", recursive=True):
            os.chmod(path, 0o755 if os.path.isdir(path) else 0o644)
        os.chmod(directory, 0o755)

    @classmethod
    def inside(cls, *words):
        """The command line that runs a program on the booted machine."""
        return ["nsenter", "--target", str(cls.pid), "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--", *words]

    @classmethod
    def ask(cls, *words):
        return subprocess.run(cls.inside(*words), capture_output=True, text=True).stdout.strip()

    def show(self, unit, what):
        return self.ask("systemctl", "show", unit, "--property", what, "--value")

    def accepted(self):
        """Connections that culvertd has accepted; 0 also where there is no daemon."""
        found = re.search(r"tcp_passive_opens +(\d+)", self.ask("culvert", "stat"))
        return int(found[1]) if found else 0

    def serves(self):
        self.assertEqual(fetch(self.lab.ip4(), "/page.html")[1], b"a page")
        self.assertEqual(fetch(self.lab.ip6(), "/page.html")[1], b"a page")
        with socket.create_connection((self.lab.ip4(), 6379), 10) as redis:
            redis.sendall(b"PING\r\n")
            self.assertEqual(redis.recv(100), b"+PONG\r\n")

    def through_culvert(self):
        before = self.accepted()
        self.serves()
        return self.accepted() - before >= 3

    def has_ended(self, pid):
        return not os.path.exists(f"/proc/{self.pid}/root/proc/{pid}")

    def test_booted_with_culvert(self):
        for unit in ("culvertd", "nginx", "redis-server"):
            self.assertEqual(self.show(unit, "ActiveState"), "active", self.ask("systemctl", "status", unit))
        self.assertTrue(self.through_culvert(), self.ask("culvert", "ss"))

    def test_killed_reloaded_and_stopped(self):
        until(self.through_culvert, "Culvert to serve")
        daemon = self.show("culvertd", "MainPID")
        self.ask("systemctl", "kill", "--signal=KILL", "--kill-who=main", "culvertd")
        until(lambda: self.has_ended(daemon), "culvertd to be dead")  # who connects to one that dies is reset
        self.serves()
        until(lambda: self.show("culvertd", "NRestarts") == "1" and self.show("culvertd", "ActiveState") == "active", "systemd to restart it")
        until(self.through_culvert, "the services to be Culvert's again")
        self.ask("systemctl", "reload", "culvertd")
        until(lambda: self.show("culvertd", "ActiveState") == "active", "culvertd to have read its configuration again")
        self.ask("systemctl", "stop", "culvertd")
        self.assertEqual(self.show("culvertd", "Result"), "success")
        self.serves()
        self.ask("systemctl", "start", "culvertd")
        until(self.through_culvert, "the services to be Culvert's again")
        for unit in ("nginx", "redis-server"):
            self.assertEqual(self.show(unit, "NRestarts"), "0")

    def test_a_reload_of_nginx_stays_with_culvert(self):
        until(self.through_culvert, "Culvert to serve")
        self.ask("systemctl", "reload", "nginx")
        self.assertEqual(self.show("nginx", "ActiveState"), "active")
        until(self.through_culvert, "the new workers to serve")

    def test_a_connection_leaves_its_program(self):
        """The daemon's helper makes a network namespace, under the unit's restrictions."""
        until(self.through_culvert, "Culvert to serve")
        port = 8001
        server = subprocess.Popen(self.inside("culvert", "run", "--", "socat", f"TCP-LISTEN:{port},reuseaddr,fork", "EXEC:/bin/cat,nofork"))
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        until(lambda: f":{port} " in self.ask("culvert", "ss"), "socat to listen")
        with socket.create_connection((self.lab.ip4(), port), 10) as connection:
            connection.sendall(b"there and back")
            self.assertEqual(connection.recv(100), b"there and back")
        self.assertRegex(self.ask("culvert", "stat"), r"stand_ins +1 ")


if __name__ == "__main__":
    run()
