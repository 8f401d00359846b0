"""Datagrams with everything beside their bytes: unmodified programs under Culvert, the kernel as their peer."""
import json
import os
import socket
import unittest

from story import ON_KERNEL, Story, run, until
from netns import PYTHON, Failure

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")
UDP_SEGMENT = 103
GROUP = "239.77.0.1"


class Controls(Story):
    """A server that tells what came with each datagram, and clients of it."""
    @classmethod
    def prepare(cls):
        cls.controls = cls.lab.start("controls", [PYTHON, f"{PROGRAMS}/udp_controls.py", "8003"], under=cls.culvert)

    def families(self, host="server"):
        return (socket.AF_INET, self.lab.ip4(host)), (socket.AF_INET6, self.lab.ip6(host))

    def client(self, family, address, port=8003):
        client = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(client.close)
        client.connect((address, port))
        client.settimeout(0.2)

        def answered():  # until the server has bound its port
            try:
                client.send(b"ready?")
                return client.recv(1000)
            except OSError:
                return None
        until(answered, "the server to answer")
        client.settimeout(10)
        return client


class Datagrams(Controls):
    def test_control_messages_tell_the_truth(self):
        for family, address in self.families():
            v4 = family == socket.AF_INET
            client = self.client(family, address)
            if v4:
                client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
                client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x28)
            else:
                client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 33)
                client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x28)
            with self.carried(1, "udp_in"):
                client.send(b"12345")
                said = json.loads(client.recv(2000))  # it is connected: the answer's source is the address it asked
            self.assertEqual(said["length"], 5)
            self.assertEqual(said["ttl"], 33)
            self.assertEqual(said["tos"], 0x28)
            self.assertEqual(said["address"], f"::ffff:{address}" if v4 else address)
            self.assertNotIn("gro", said)
            self.assertLess(abs(said["age"]), 5)

    def test_bursts_come_as_one_and_nothing_is_lost(self):
        for family, address in self.families():
            client = self.client(family, address)
            client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            with self.carried(10, "udp_in"):
                client.send(bytes(9500))
                total, answers = 0, []
                while total < 9500:
                    said = json.loads(client.recv(2000))
                    total += said["length"]
                    answers.append(said)
                    self.assertEqual(said.get("gro", 1000), 1000)
            self.assertEqual(total, 9500, answers)

    def test_one_send_is_many_datagrams(self):
        for family, address in self.families("client"):
            with socket.socket(family, socket.SOCK_DGRAM) as receiver:
                receiver.bind((address, 0))
                receiver.settimeout(10)
                with self.carried(6, "udp_out"):
                    self.lab.call(PYTHON, f"{PROGRAMS}/udp_sender.py", "segments", address,
                                  str(receiver.getsockname()[1]), host="server", under=self.culvert)
                parts = [receiver.recv(2000) for _ in range(6)]
                self.assertEqual([len(part) for part in parts], [1000] * 5 + [500])
                self.assertEqual(b"".join(parts), bytes(range(250)) * 22)

    def test_the_error_queue_says_who_refused_what(self):
        for family, address in self.families("client"):
            said = json.loads(self.lab.call(PYTHON, f"{PROGRAMS}/udp_sender.py", "refused", address, "9", host="server",
                                            under=self.culvert))
            v4 = family == socket.AF_INET
            self.assertEqual(said["data"], "is anybody there?")
            self.assertEqual(said["to"], [address, 9])
            self.assertEqual(said["errno"], "ECONNREFUSED")
            self.assertEqual((said["origin"], said["type"], said["code"]), (2, 3, 3) if v4 else (3, 1, 4))
            self.assertEqual(said["flags"] & 0x2000, 0x2000)

    def test_what_may_not_be_cut_is_refused(self):
        for _, address in self.families("client"):
            text = self.lab.call(PYTHON, f"{PROGRAMS}/udp_sender.py", "uncut", address, "9", host="server", under=self.culvert)
            self.assertEqual(text.split(), ["1500", "EMSGSIZE"])

    def test_groups_both_ways(self):
        """On an address that is shared with the kernel, groups are the kernel's: programs do not notice."""
        for receiver, sender in (("server", "client"), ("client", "server")):
            member = self.lab.start("member", [PYTHON, f"{PROGRAMS}/udp_member.py", GROUP, "8010", self.lab.ip4(receiver)],
                                    host=receiver, under=self.culvert if receiver == "server" else None)
            until(lambda: "joined" in member.output(), "the member to join")
            self.lab.call(PYTHON, f"{PROGRAMS}/udp_sender.py", "group", GROUP, "8010", self.lab.ip4(sender), host=sender,
                          under=self.culvert if sender == "server" else None)
            until(lambda: "to all who hear" in member.output(), "the datagram to be heard")

    def test_a_name_server(self):
        server = self.lab.start("dnsmasq", ["/usr/sbin/dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts",
                                            "--conf-file=/dev/null", "--pid-file=", "--user=root", "--port=5353",
                                            "--address=/culvert.test/192.0.2.7", "--address=/culvert.test/2001:db8::7"],
                                under=self.culvert)
        for address in (self.lab.ip4(), self.lab.ip6()):
            def asked(kind):
                try:
                    return self.lab.call("dig", "+short", "+tries=1", "+time=2", "-p", "5353", f"@{address}",
                                         "name.culvert.test", kind)
                except Failure:  # not up yet
                    return ""
            until(lambda: "192.0.2.7" in asked("A"), f"dnsmasq to answer: {server.output()}", 20)
            with self.carried(10, "udp_in"):
                for _ in range(10):
                    self.assertEqual(asked("AAAA").strip(), "2001:db8::7")


@unittest.skipIf(ON_KERNEL, "about the daemon")
class GenericXdp(Controls):
    """There the program sees what the kernel has joined, or has not cut yet."""
    config = '[[interface]]\nname = "veth0"\nmode = "generic"\n'

    def merged(self):
        return self.culvert.stat()["devices"][0]["statistics"]["steer_passed_merged"]

    def test_datagrams_stay_apart(self):
        for family, address in self.families():
            client = self.client(family, address)
            passed = self.merged()
            client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            client.send(bytes(9500))
            total = 0
            while total < 9500:
                said = json.loads(client.recv(2000))
                self.assertEqual(said.get("gro", 1000), 1000)
                self.assertTrue(said["length"] <= 1000 or "gro" in said, said)
                total += said["length"]
            self.assertEqual(total, 9500)
            self.assertGreater(self.merged(), passed)
            client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
            with self.carried(1, "udp_in"):
                client.send(b"12345")
                self.assertEqual(json.loads(client.recv(2000))["length"], 5)


if __name__ == "__main__":
    run()
