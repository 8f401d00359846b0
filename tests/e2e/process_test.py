"""What servers do to themselves: daemon(), closing every descriptor, chroot and setuid, few descriptors, forks among threads, and
other libraries that are preloaded, too."""
import glob
import os
import random
import re
import socket
import subprocess

from story import Story, run
from netns import ON_KERNEL, PYTHON, sha256, until

TRAPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "trapped.py")


def library(pattern):
    found = glob.glob(f"/usr/lib/*/{pattern}") + glob.glob(f"/usr/lib/gcc/*/*/{pattern}")
    return found[0] if found else None


class Traps(Story):
    port = 9300

    def serve(self, trap, *words, **options):
        Traps.port += 1
        program = self.lab.start(f"trapped-{trap}", [PYTHON, TRAPPED, trap, Traps.port, *words], under=self.culvert, **options)
        self.addCleanup(program.kill)
        until(lambda: "serving" in program.output(), f"the server to start: {program.output()}", 60)
        self.culvert.wait_for_listener(Traps.port)
        data = random.Random(3).randbytes(300_000)
        with self.carried(2):
            for address in (self.lab.ip4(), self.lab.ip6()):
                with socket.create_connection((address, Traps.port), timeout=60) as connection:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    heard = b"".join(iter(lambda: connection.recv(1 << 20), b""))
                    self.assertEqual(sha256(heard), sha256(data))
        return program

    def test_daemon(self):
        self.serve("daemon")

    def test_double_fork(self):
        self.serve("double-fork")

    def test_close_loop(self):
        self.serve("close-loop")

    def test_close_range(self):
        self.serve("close-range")

    def test_closefrom(self):
        self.serve("closefrom")

    def test_chroot_and_setuid(self):
        folder = os.path.join(self.lab.directory, "cage")
        os.mkdir(folder)
        self.serve("cage", folder)

    def test_few_descriptors(self):
        program = self.serve("few")
        got = int(re.search(r"got (\d+)", program.output()).group(1))
        self.assertGreaterEqual(got, 64 - 4 - 6, "standard streams and the listener, and what the library has for itself")

    def test_forks_among_threads(self):
        self.serve("threads")

    def preloaded(self, path, **environment):
        if path is None:
            self.skipTest("library is not installed")
        self.serve("plain", env=dict(os.environ, LD_PRELOAD=path, **environment))

    def test_with_jemalloc(self):
        self.preloaded(library("libjemalloc.so.2"))

    def test_with_tcmalloc(self):
        self.preloaded(library("libtcmalloc_minimal.so.4"))

    def test_with_asan(self):
        """A program that was built with AddressSanitizer; its runtime wants to be the first."""
        self.preloaded(library("libasan.so.8"), ASAN_OPTIONS="detect_leaks=0:verify_asan_link_order=0")


if __name__ == "__main__":
    run()
