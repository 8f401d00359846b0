"""kill -9 at every step of connect, accept, transfer, fork and close: of the program, a thousand times, and of the daemon.

The points stand in the source (CULVERT_FAULT_POINT, shm/base/fault_point.h), so a new one is tried without being listed here.
Beside the dying a steady client talks to a steady server through the same daemon, all the time, and must notice nothing; in the
end the daemon has what it had in the beginning: sockets, programs, ports, descriptors.
"""
import glob
import os
import re
import socket
import subprocess
import threading
import unittest

from story import ON_KERNEL, Story, run, until
from netns import BUILD, CULVERTD, PYTHON, ROOT, Failure

KILLS = int(os.environ.get("CULVERT_KILLS", "1000"))
PEER = os.path.join(BUILD, "bin/fault_peer")
LIBRARY = os.path.join(BUILD, "lib/libculvert_faults.so")
STEADY, DYING, OUTSIDE = 7600, 7601, 7602


def points(folder):
    found = []
    for path in sorted(glob.glob(os.path.join(ROOT, folder, "**/*.cc"), recursive=True)):
        with open(path) as file:
            found += re.findall(r"CULVERT_FAULT_POINT\((\w+)\)", file.read())
    return found


class Steady(threading.Thread):
    """Asks a server in one connection again and again; remembers what went wrong, and how long the slowest answer took."""

    def __init__(self, address, port):
        super().__init__(daemon=True)
        self.connection = socket.create_connection((address, port), 20)
        self.connection.settimeout(20)
        self.stopping = False
        self.error = None
        self.answers = 0
        self.start()

    def run(self):
        try:
            while not self.stopping:
                question = os.urandom(700)
                self.connection.sendall(question)
                answer = b""
                while len(answer) < len(question):
                    part = self.connection.recv(1000)
                    if not part:
                        raise AssertionError("the steady connection has ended")
                    answer += part
                if answer != question:
                    raise AssertionError("other bytes came back")
                self.answers += 1
        except Exception as error:  # told by the main thread
            self.error = error

    def stop(self):
        self.stopping = True
        self.join(30)
        self.connection.close()
        if self.error is not None:
            raise self.error


@unittest.skipIf(ON_KERNEL, "these stories are about the daemon")
class ProgramKilled(Story):
    """The daemon is the one that users run; the program's library has the fault points."""

    @classmethod
    def prepare(cls):
        cls.steady = cls.lab.start("steady", [PEER, "serve", STEADY], under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), STEADY, cls.steady, under=cls.culvert)
        cls.outside = cls.lab.start("outside", [PEER, "serve", OUTSIDE], host="client")
        cls.lab.wait_for_port(cls.lab.ip4("client"), OUTSIDE, cls.outside)

    def spawn(self, *words, point=None, skip=0):
        """A process of its own in the server's network, without ip and culvert run before it: they would take most of the time."""
        environment = dict(os.environ, LD_PRELOAD=LIBRARY, CULVERT_SOCKET=self.culvert.socket)
        if point is not None:
            environment.update(CULVERT_FAULT=point, CULVERT_FAULT_SKIP=str(skip))
        with self.lab.on("server"):
            process = subprocess.Popen([PEER, *map(str, words)], env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def state(self):
        """What must be as before."""
        stat = self.culvert.stat()
        return {"sockets": stat["sockets"], "tenants": stat["tenants"], "ports": stat["control"]["ports_taken"],
                "processes": stat["control"]["processes"], "descriptors": len(os.listdir(f"/proc/{self.culvert.pid}/fd"))}

    def settles(self, before, what):
        def settled():
            now = self.state()
            return all(now[key] <= before[key] for key in before)
        try:
            until(settled, what, 30)
        except Failure:
            self.fail(f"{what}: before {before}, now {self.state()}, sockets {self.culvert.sockets()}")

    def talk(self):
        """A client of the program that dies."""
        try:
            with socket.create_connection((self.lab.ip4(), DYING), 5) as connection:
                connection.settimeout(5)
                connection.sendall(b"z" * 5000)
                connection.shutdown(socket.SHUT_WR)
                got = 0
                while part := connection.recv(65536):
                    got += len(part)
                return got == 5000
        except OSError:
            return False

    def clients(self, wanted):
        """One client for each (point, skip), all at once; which of them have been killed."""
        processes = [self.spawn("client", self.lab.ip4("client"), OUTSIDE, point=point, skip=skip) for point, skip in wanted]
        return [process.wait(30) == -9 for process in processes]

    def servers(self, how, wanted):
        return [self.one_server(how, point, skip) for point, skip in wanted]

    def one_server(self, how, point, skip):
        """True: it, or a child of it, has been killed."""
        process = self.spawn(how, DYING, point=point, skip=skip)
        try:
            def listens():
                return process.poll() is not None or any(
                    line["local"].endswith(f":{DYING}") and line["state"] == "LISTEN" for line in self.culvert.sockets())
            until(listens, "the server to listen or to die", 30)
            for _ in range(3):
                if process.poll() is None and not self.talk():
                    # It is dying, or its child was: the kernel's word comes a moment later.
                    if how == "fork":
                        return True
                    return process.wait(30) == -9
            return process.poll() == -9
        finally:
            try:
                os.killpg(process.pid, 9)
            except ProcessLookupError:
                pass
            process.wait()

    def test_a_thousand_times(self):
        found = points("preload")
        self.assertGreater(len(found), 20)
        self.assertEqual(len(found), len(set(found)), "names are used once")
        ways = {"client": self.clients, "serve": lambda wanted: self.servers("serve", wanted), "fork": lambda wanted: self.servers("fork", wanted)}
        before = self.state()
        steady = Steady(self.lab.ip4(), STEADY)
        until(lambda: steady.answers > 10, "the steady client to talk", 20)
        begun = self.state()
        killed = dict.fromkeys(found, 0)
        passes = {(way, point): 0 for way in ways for point in found}  # how many passes to let go by the next time
        rounds = ["serve", "fork"] + ["client"] * 12  # clients are quick
        while sum(killed.values()) < KILLS and passes:
            for way in rounds:
                wanted = [(point, passes[way, point]) for point in found if (way, point) in passes]
                for (point, skip), dead in zip(wanted, ways[way](wanted)):
                    if dead:
                        killed[point] += 1
                        passes[way, point] = (skip + 1) % 12
                    elif skip == 0:
                        del passes[way, point]  # this way does not come by there
                    else:
                        passes[way, point] = 0
                self.assertIsNone(steady.error)
                self.settles(begun, f"after {sum(killed.values())} kills")
                if sum(killed.values()) >= KILLS:
                    break
        self.assertEqual([point for point in found if killed[point] == 0], [], "points that nobody comes by")
        self.assertGreaterEqual(sum(killed.values()), KILLS)
        steady.stop()
        self.settles(before, "in the end")
        self.assertTrue(self.steady.running() and self.culvert.program.running())
        print(f"{sum(killed.values())} kills at {len(found)} points; {steady.answers} answers beside them")


@unittest.skipIf(ON_KERNEL, "these stories are about the daemon")
class DaemonKilledAtPoints(Story):
    """The program is what users run; the daemon has the fault points. It dies at each of them, and everybody goes on."""

    def start_with(self, point, skip):
        os.environ.update(CULVERT_FAULT=point, CULVERT_FAULT_SKIP=str(skip))
        try:
            self.culvert.start()
        except Failure:
            self.assertFalse(self.culvert.program.running())  # so quickly had a program attached
        finally:
            del os.environ["CULVERT_FAULT"], os.environ["CULVERT_FAULT_SKIP"]

    def test_every_point(self):
        found = points("daemon")
        self.assertGreater(len(found), 10)
        self.culvert.stop()
        index = self.culvert._words.index(CULVERTD)
        self.culvert._words[index] = os.path.join(BUILD, "bin/culvertd_faults")
        server = self.lab.start("server", [PYTHON, "-c", ECHO, DYING], under=self.culvert)
        self.lab.wait_for_port(self.lab.ip4(), DYING)
        outside = self.lab.start("outside", [PEER, "serve", OUTSIDE], host="client")
        self.lab.wait_for_port(self.lab.ip4("client"), OUTSIDE, outside)
        killed = dict.fromkeys(found, 0)
        for point in found:
            for skip in (0, 3):
                self.start_with(point, skip)
                process = self.culvert.program.process
                until(lambda: process.poll() is not None or self.culvert_listens(), f"the server to come back for {point}", 20)
                for _ in range(60):  # both directions, until it is dead
                    if process.poll() is not None:
                        break
                    self.talk(DYING)
                    try:
                        self.lab.call(PEER, "client", self.lab.ip4("client"), OUTSIDE, host="server", under=self.culvert)
                    except Failure:
                        pass  # the daemon died under it
                if process.poll() is None:
                    self.culvert.stop()
                else:
                    self.assertEqual(process.returncode, -9)
                    killed[point] += 1
                until(lambda: self.talk(DYING), f"the kernel to serve after {point}", 10)
                self.assertTrue(server.running())
        self.assertEqual([point for point in found if killed[point] == 0], [], "points that nobody comes by")
        self.start_with("none", 0)
        self.culvert.wait_for_listener(DYING)
        with self.carried(1):
            self.assertTrue(self.talk(DYING))
        server.kill()
        self.wait_for_no_sockets()
        print(f"{sum(killed.values())} deaths of the daemon at {len(found)} points")

    def culvert_listens(self):
        """Until then connections are the kernel's, and come by no point."""
        try:
            return any(line["path"] == "culvert" and line["state"] == "LISTEN" for line in self.culvert.sockets())
        except Failure:
            return False  # it died while we asked

    def talk(self, port):
        try:
            with socket.create_connection((self.lab.ip4(), port), 3) as connection:
                connection.settimeout(3)
                connection.sendall(b"word")
                return connection.recv(10) == b"word"
        except OSError:
            return False


ECHO = """
import socket, sys
s = socket.create_server(('', int(sys.argv[1])), backlog=100)
while True:
    c, a = s.accept()
    try:
        while d := c.recv(65536): c.sendall(d)
    except OSError: pass
    c.close()
"""

if __name__ == "__main__":
    run()
