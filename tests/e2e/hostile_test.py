"""A malicious program beside honest ones, under the daemon that users run: it scribbles over its whole segment while it serves.

The same in-process, under ASan and for every structure of the segment, is tests/unit/tenant/hostile_tenant_test.cc.
"""
import os
import subprocess
import unittest

from story import ON_KERNEL, Story, run, until
from netns import BUILD
from fault_points_test import PEER, Steady

HOSTILE = os.path.join(BUILD, "bin/hostile_program")


@unittest.skipIf(ON_KERNEL, "this story is about the daemon")
class Hostile(Story):
    config = "[limits]\nmax_sockets = 4096\ntx_blocks = 2048\nrx_blocks = 2048\n"

    def test_honest_programs_notice_nothing(self):
        server = self.lab.start("honest", [PEER, "serve", 7650], under=self.culvert)
        self.lab.wait_for_port(self.lab.ip4(), 7650, server, under=self.culvert)
        until(lambda: len(self.culvert.sockets()) == 2, "the first look at it to be over", 20)  # the listener and its kernel half
        steady = Steady(self.lab.ip4(), 7650)
        until(lambda: steady.answers > 10, "the honest client to talk", 20)
        ports = self.culvert.stat()["control"]["ports_taken"]
        for seed in range(3):
            with self.lab.on("server"):
                hostile = subprocess.Popen([HOSTILE, self.culvert.socket, "7700", str(seed), "60"], stdin=subprocess.DEVNULL)
            self.addCleanup(hostile.kill)
            answers, worked = steady.answers, 0
            while hostile.poll() is None:
                self.assertIsNone(steady.error)
                # Admin questions are answered, too.
                worked = max(worked, sum(value for name, value in self.culvert.stat()["drops"].items() if name.startswith("tenant_bad")))
            # It may fall over its own nonsense; that is its affair.
            self.assertGreater(worked, 0, "it was really hostile")
            self.assertGreater(steady.answers, answers + 50)
            until(lambda: self.culvert.stat()["tenants"] == 1, "the hostile program to be gone", 60)
            until(lambda: self.culvert.stat()["control"]["ports_taken"] == ports, "its ports to be free", 60)
        steady.stop()
        self.assertTrue(server.running() and self.culvert.program.running())


if __name__ == "__main__":
    run()
