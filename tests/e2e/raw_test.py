"""Raw and ping sockets of programs under Culvert, on the addresses that it shares with the kernel: as without it."""
import json
import os
import subprocess

from story import ON_KERNEL, Story, run, until
from netns import PYTHON

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")
SHARED = "raw or ping, and no address is Culvert's alone"


class Raw(Story):
    def test_ping_works_as_before(self):
        for address in (self.lab.ip4("client"), self.lab.ip6("client")):
            for size in ("56", "4000"):  # whole and in fragments
                said = self.lab.call("ping", "-c", "3", "-i", "0.2", "-s", size, address, host="server",
                                     under=self.culvert)
                self.assertIn(" 0% packet loss", said)
        self.wait_for_no_sockets()

    def test_ping_sockets_of_the_unprivileged(self):
        """SOCK_DGRAM: the kernel decides by ping_group_range, for the daemon as well."""
        def allow(groups):
            self.lab.call("sysctl", "-qw", f"net.ipv4.ping_group_range={groups}", host="server")
        unprivileged = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
        program = ("import socket,sys\n"
                   "s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP);s.settimeout(10)\n"
                   "s.sendto(bytes.fromhex('0800000000000001')+b'hello',(sys.argv[1],0));print(s.recv(100)[8:].decode())")
        for groups, answer in (("65534 65534", "hello"), ("1 0", "PermissionError")):
            allow(groups)
            words = (*self.lab.enter_words("server"), *self.culvert.run_words(), *unprivileged, PYTHON, "-c", program,
                     self.lab.ip4("client"))
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
            self.assertIn(answer, done.stdout + done.stderr)

    def test_raw_sockets_are_the_kernels_and_culvert_ss_says_why(self):
        addresses = (self.lab.ip4("client"), self.lab.ip6("client"))
        program = self.lab.start("raw", [PYTHON, f"{PROGRAMS}/raw_echo.py", *addresses], under=self.culvert,
                                 stdin=subprocess.PIPE)
        until(lambda: len(program.output().splitlines()) == 2, "two replies")
        four, six = map(json.loads, program.output().splitlines())
        self.assertEqual(four, {"from": addresses[0], "length": 20 + 12})
        self.assertEqual(six, {"from": addresses[1], "length": 12})
        if not ON_KERNEL:
            lines = [line for line in self.culvert.sockets() if line["path"] == "kernel"]
            self.assertEqual([line["why"] for line in lines], [SHARED, SHARED])
            self.assertEqual(self.culvert.counters()["raw_out"], 0)
            self.assert_no_refusals("tenant_no_grant", "raw_queue_full")
        program.stop()
        self.wait_for_no_sockets()


if __name__ == "__main__":
    run()
