"""What every story of tests/e2e has in common: a Lab, a daemon in its server, and the proof that Culvert carried it.

A story is a file with one class derived from Story and ends with `run()`. It is run with nothing but python3:

    python3 tests/e2e/nginx_test.py              all of it
    python3 tests/e2e/nginx_test.py Nginx.test_keepalive
    CULVERT_E2E=kernel python3 tests/e2e/...     the same on kernel sockets, to check the test itself
"""
import os
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))

import netns  # noqa: E402
from netns import ON_KERNEL, Lab, until  # noqa: E402


class Story(unittest.TestCase):
    """One Lab for the whole class; set `mtu`, `links`, `queues`, `config`, `daemon_host` in the class and start programs in `prepare`."""
    mtu = 1500
    links = 1
    queues = 1
    config = ""
    daemon_host = "server"

    @classmethod
    def setUpClass(cls):
        cls.lab = Lab(cls.mtu, cls.links, cls.queues).open()
        cls.addClassCleanup(cls.lab.close)
        cls.culvert = cls.lab.daemon(cls.daemon_host, config=cls.config)
        cls.prepare()

    @classmethod
    def prepare(cls):
        """Starts what all tests of the story use."""

    def carried(self, connections=1, name="tcp_passive_opens"):
        """`with self.carried(3):` - the block must have opened at least so many connections through Culvert."""
        return _Carried(self, connections, name)

    def assert_no_refusals(self, *names):
        """None of these drop reasons was counted."""
        if ON_KERNEL:
            return
        drops = self.culvert.stat()["drops"]
        for name in names:
            self.assertEqual(drops[name], 0, f"drop reason {name}")

    def wait_for_no_sockets(self, seconds=30, daemon=None):
        """Waits until the daemon holds no socket and no tenant any more."""
        if ON_KERNEL:
            return
        daemon = daemon or self.culvert

        def empty():
            stat = daemon.stat()
            return stat["sockets"] == 0 and stat["tenants"] == 0
        until(empty, f"the daemon to let go of all sockets: {daemon.sockets()}", seconds)


class _Carried:
    def __init__(self, story, connections, name):
        self.story, self.connections, self.name = story, connections, name

    def __enter__(self):
        if not ON_KERNEL:
            self.before = self.story.culvert.counters()[self.name]
        return self

    def __exit__(self, kind, *_):
        if kind is None and not ON_KERNEL:
            grown = self.story.culvert.counters()[self.name] - self.before
            self.story.assertGreaterEqual(grown, self.connections, f"counter {self.name}: the traffic did not go through Culvert")


class _Timed(unittest.TextTestResult):
    def startTest(self, test):
        self._started = time.monotonic()
        super().startTest(test)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self._show_daemon(test)

    def addError(self, test, error):
        super().addError(test, error)
        self._show_daemon(test)

    def _show_daemon(self, test):
        """What the daemon knows at this moment: the next test may change it."""
        daemon = getattr(test, "culvert", None)
        if daemon is None or ON_KERNEL:
            return
        for what in ("ss", "stat"):
            shown = subprocess.run([netns.CULVERT, what, "--socket", daemon.socket], capture_output=True, text=True)
            self.stream.writeln(f"--- culvert {what}\n{shown.stdout}{shown.stderr}".rstrip())
        self.stream.writeln(f"--- log of culvertd\n{netns.tail(daemon.log)}")

    def addSuccess(self, test):
        super(unittest.TextTestResult, self).addSuccess(test)
        self.stream.writeln(f"ok ({time.monotonic() - self._started:.1f} s)")


def run():
    """Runs the story; exit code 0 only if at least one test ran and none failed."""
    program = unittest.main(module="__main__", verbosity=2, exit=False,
                            testRunner=unittest.TextTestRunner(resultclass=_Timed, verbosity=2, stream=sys.stderr))
    result = program.result
    if not result.wasSuccessful():
        raise SystemExit(1)
    if result.testsRun == 0:
        print("no test ran", file=sys.stderr)
        raise SystemExit(1)
    raise SystemExit(netns.SKIPPED if len(result.skipped) == result.testsRun else 0)
