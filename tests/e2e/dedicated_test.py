"""Addresses that are Culvert's alone, on each kind of device: the kernel answers neither ARP nor ping for them, and a program
that listens on all addresses serves them too. The peer is the kernel's stack.

    packet, af_xdp   10.77.0.50 and fd77:1::50 on veth0 of the server, beside the kernel's own 10.77.0.1
    tap              10.78.0.2 and fd78::2; the other end is the kernel of the daemon's own host
    two engines      the same; a device with one queue is the first engine's, through which the other one sends
    VLANs            10.77.1.50 and fd77:2::50 in VLAN 100 (or 200 of 802.1ad) of veth1, or the tap's in VLAN 100. The kernel of
                     the test machine may lack 8021q: vlan.bpf.c puts the peer's tags on and takes them off
"""
import http.client
import json
import os
import signal
import subprocess

from story import Story, run
from netns import BUILD, PYTHON, Failure, command, sha256, until
from servers import SMALL_BYTES, Nginx

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs", "exchange.py")
RAW_ECHO = os.path.join(os.path.dirname(PROGRAM), "raw_echo.py")


class Dedicated:
    """What is tried on each device; the classes below say which, and where the addresses are."""
    four, six, peer = "10.77.0.50", "fd77:1::50", "client"

    @classmethod
    def prepare(cls):
        cls.bring_up()
        for address in (cls.four, cls.six):  # claimed after probing: RFC 5227 takes up to seven seconds
            until(lambda: cls.answers(address), f"{address} to answer ping")
        cls.nginx = Nginx(cls.lab, under=cls.culvert)
        cls.exchange = cls.lab.start("exchange", [PYTHON, PROGRAM, "serve", 9000], under=cls.culvert)
        cls.lab.wait_for_port(cls.four, 9000, cls.exchange, host=cls.peer, under=cls.culvert)

    @classmethod
    def bring_up(cls):
        """What a person does once the daemon runs."""

    @classmethod
    def answers(cls, address):
        try:
            return "1 received" in cls.lab.call("ping", "-c", 1, "-W", 1, address, host=cls.peer)
        except Exception:  # not yet
            return False

    def test_ping_with_fragments(self):
        for address in (self.four, self.six):
            with self.carried(1, "icmp_out"):
                text = self.lab.call("ping", "-c", 3, "-i", "0.2", "-s", 4000, address, host=self.peer)
            self.assertIn("3 received", text)

    def test_files(self):
        for address in (self.four, self.six):
            with self.carried(1):
                self.assertEqual(self.fetch(address, "/big.bin"), self.nginx.hashes["big.bin"])

    def fetch(self, address, path):
        with self.lab.on(self.peer):
            connection = http.client.HTTPConnection(address, 80, timeout=30)
            connection.request("GET", path)
            body = connection.getresponse().read()
            connection.close()
        return sha256(body)

    def test_both_ways_at_once(self):
        for address in (self.four, self.six):
            with self.carried(1):
                text = self.lab.call(PYTHON, PROGRAM, "ask", address, 9000, 16, host=self.peer, timeout=120)
            self.assertEqual(text.strip(), "same")

    def test_closed_ports_are_refused(self):
        """Nobody else can: the kernel does not know the address."""
        code = "import socket,sys\ntry: socket.create_connection((sys.argv[1], 4)); print('open')\nexcept OSError as e: print(e.errno)"
        for address in (self.four, self.six):
            self.assertEqual(self.lab.call(PYTHON, "-c", code, address, host=self.peer).strip(), "111")

    def test_a_program_binds_to_it(self):
        """The kernel would say EADDRNOTAVAIL."""
        code = ("import socket,sys\ns=socket.create_server((sys.argv[1], 9100), family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)\n"
                "c,a=s.accept()\nc.sendall(c.recv(100).upper())")
        client = "import socket,sys\nc=socket.create_connection((sys.argv[1], 9100), 10)\nc.sendall(b'hello')\nprint(c.recv(100).decode())"
        for address in (self.four, self.six):
            server = self.lab.start("bound", [PYTHON, "-c", code, address], under=self.culvert)
            self.culvert.wait_for_listener(9100)
            self.assertEqual(self.lab.call(PYTHON, "-c", client, address, host=self.peer).strip(), "HELLO")
            self.assertEqual(server.wait(), 0)

    def test_foreign_addresses_are_still_refused(self):
        code = "import socket\ntry: socket.create_server(('192.0.2.7', 9101)); print('bound')\nexcept OSError as e: print(e.errno)"
        self.assertEqual(self.lab.call(PYTHON, "-c", code, host="server", under=self.culvert).strip(), "99")

    def test_clients_speak_from_it(self):
        code = "import socket,sys\nc=socket.create_connection((sys.argv[1], 9200), 10)\nprint(c.getsockname()[0], c.recv(100).decode())"
        server = ("import socket\ns=socket.create_server(('::', 9200), family=socket.AF_INET6, dualstack_ipv6=True)\n"
                  "for _ in range(3):\n c,a=s.accept()\n c.sendall(a[0].encode())\n c.close()")
        listener = self.lab.start("listener", [PYTHON, "-c", server], host=self.peer)
        there = self.peer_addresses()
        self.lab.wait_for_port(there[0], 9200, listener, host=self.peer)
        for own, address in zip((self.four, self.six), there):
            with self.carried(1, "tcp_active_opens"):
                text = self.lab.call(PYTHON, "-c", code, address, host="server", under=self.culvert).split()
            self.assertEqual(text[0], own)
            self.assertTrue(text[1].endswith(own), text)

    def test_a_raw_socket_pings_from_it(self):
        """Only Culvert can: the kernel does not have the address, and hears nothing of what is sent to it."""
        there = self.peer_addresses()
        with self.carried(2, "raw_in"), self.carried(2, "raw_out"):
            program = self.lab.start("raw", [PYTHON, RAW_ECHO, *there], host="server", under=self.culvert, stdin=subprocess.PIPE)
            until(lambda: len(program.output().splitlines()) == 2, f"two replies: {program.output()}")
        four, six = map(json.loads, program.output().splitlines())
        self.assertEqual(four, {"from": there[0], "length": 20 + 12})
        self.assertEqual(six, {"from": there[1], "length": 12})
        raw = [line for line in self.culvert.sockets() if line["proto"] == "raw"]
        self.assertEqual([line["path"] for line in raw], ["culvert", "culvert"])
        program.stop()

    def test_ping_from_it(self):
        for address in self.peer_addresses():
            with self.carried(3, "raw_in"):
                text = self.lab.call("ping", "-c", 3, "-i", "0.2", "-s", 4000, address, host="server", under=self.culvert)
            self.assertIn("3 received", text)

    def peer_addresses(self):
        return self.lab.ip4("client"), self.lab.ip6("client")


class AfXdp(Dedicated, Story):
    config = '[[interface]]\nname = "veth0"\naddress = ["10.77.0.50/24", "fd77:1::50/64"]\n'

    def test_the_kernel_keeps_its_own(self):
        """Its address on the same interface, and a server of its own on a port that Culvert has on the other."""
        self.assertIn("1 received", self.lab.call("ping", "-c", 1, self.lab.ip4()))


class Packet(AfXdp):
    config = '[[interface]]\nname = "veth0"\ndevice = "packet"\naddress = ["10.77.0.50/24", "fd77:1::50/64"]\n'


class Tap(Dedicated, Story):
    config = '[[interface]]\nname = "culvert0"\ndevice = "tap"\naddress = ["10.78.0.2/24", "fd78::2/64"]\n'
    four, six, peer = "10.78.0.2", "fd78::2", "server"

    @classmethod
    def bring_up(cls):
        for words in (["address", "add", "10.78.0.1/24", "dev", "culvert0"], ["address", "add", "fd78::1/64", "dev", "culvert0", "nodad"],
                      ["link", "set", "culvert0", "up"]):
            command("ip", "-n", cls.lab.server, *words)

    def peer_addresses(self):
        return "10.78.0.1", "fd78::1"


class TwoEngines:
    """Programs of both engines on the same dedicated addresses; the first engine runs the link for both."""

    @classmethod
    def prepare(cls):
        super().prepare()
        cls.engine_of = {line["program"]: line["engine"] for line in cls.culvert.sockets()
                         if line["path"] == "culvert" and line["state"] == "LISTEN"}

    def test_programs_of_both_engines_serve(self):
        self.assertEqual(set(self.engine_of.values()), {0, 1}, "nginx on one, the exchange on the other")
        before = [engine["counters"] for engine in self.culvert.stat()["engines"]]
        for address in (self.four, self.six):
            for _ in range(8):
                self.assertEqual(self.fetch(address, "/small"), sha256(SMALL_BYTES))
                text = self.lab.call(PYTHON, PROGRAM, "ask", address, 9000, 1, host=self.peer, timeout=60)
                self.assertEqual(text.strip(), "same")
        after = [engine["counters"] for engine in self.culvert.stat()["engines"]]
        for old, new in zip(before, after):
            self.assertGreater(new["tcp_passive_opens"], old["tcp_passive_opens"])

    def test_one_engine_speaks_arp_and_nd(self):
        """After the peer has forgotten us and we have forgotten it, all find each other again, and one engine asks and answers."""
        command("ip", "-n", self.lab.client if self.peer == "client" else self.lab.server, "neighbour", "flush", "all")
        for address in (self.four, self.six):
            self.assertEqual(self.lab.call(PYTHON, PROGRAM, "ask", address, 9000, 1, host=self.peer, timeout=60).strip(), "same")
            until(lambda: self.answers(address), f"{address} to answer ping")
        leader, follower = (engine["counters"] for engine in self.culvert.stat()["engines"])
        self.assertGreater(leader["arp_out"], 0)
        self.assertGreater(leader["ndp_out"], 0)
        self.assertEqual((follower["arp_out"], follower["ndp_out"], follower["group_reports_out"]), (0, 0, 0))

    def test_both_engines_were_never_short_of_room(self):
        self.assert_no_refusals("hand_over_full", "hand_over_no_interface", "neighbor_unresolved")


class AfXdpTwoEngines(TwoEngines, AfXdp):
    queues = 2
    config = AfXdp.config + "[engine]\ncount = 2\n"


class PacketTwoEngines(TwoEngines, Packet):
    config = Packet.config + "[engine]\ncount = 2\n"


class TapTwoEngines(TwoEngines, Tap):
    config = Tap.config + "[engine]\ncount = 2\n"


class Vlan(Dedicated):
    """The addresses are in a VLAN; the rest of the link stays with the kernel."""
    number, other, kind = 100, 101, ""
    host, link = "client", "veth1"

    @classmethod
    def bring_up(cls):
        super().bring_up()
        if cls.link == "veth1":  # a tag beside the frame is nothing that XDP sees
            command("ip", "netns", "exec", cls.lab.client, "ethtool", "-K", "veth1", "txvlan", "off", "tx-vlan-stag-hw-insert", "off")
        cls.tag(f"push{cls.number}{cls.kind}")

    @classmethod
    def tag(cls, push):
        def tc(*words):
            command("tc", "-n", getattr(cls.lab, cls.host), *words)
        try:
            tc("qdisc", "del", "dev", cls.link, "clsact")
        except Failure:  # the first time
            pass
        tc("qdisc", "add", "dev", cls.link, "clsact")
        for direction, section in (("egress", push), ("ingress", f"pop{cls.number}{cls.kind}")):
            tc("filter", "add", "dev", cls.link, direction, "bpf", "direct-action", "object-file",
               os.path.join(BUILD, "tests/e2e/vlan.bpf.o"), "section", section)

    def peer_addresses(self):
        return self.lab.ip4("client", 1), self.lab.ip6("client", 1)

    def refused(self):
        """Frames that were seen and were another network's."""
        stat = self.culvert.stat()
        return stat["drops"]["vlan_foreign"] + sum(device["statistics"].get("steer_passed_vlan", 0) for device in stat["devices"])

    def test_no_other_network_reaches_it(self):
        command("ip", "-n", getattr(self.lab, self.host), "neighbour", "flush", "dev", self.link)
        try:
            for push in (f"push{self.other}", "push100" if self.kind else "push200s"):  # another number, another kind of tag
                self.tag(push)
                before = self.refused()
                for address in (self.four, self.six):
                    self.assertFalse(self.answers(address))
                self.assertGreater(self.refused(), before)
        finally:
            self.tag(f"push{self.number}{self.kind}")
        for address in (self.four, self.six):
            until(lambda: self.answers(address), f"{address} to answer again")


class AfXdpVlan(Vlan, Story):
    links = 2
    four, six = "10.77.1.50", "fd77:2::50"
    config = '[[interface]]\nname = "veth1"\nvlan = 100\naddress = ["10.77.1.50/24", "fd77:2::50/64"]\n'

    def test_untagged_frames_are_the_kernels(self):
        """What the client's other link carries is proof enough for that link; here the server's own kernel answers, untagged."""
        command("tc", "-n", self.lab.client, "qdisc", "del", "dev", "veth1", "clsact")
        try:
            self.assertIn("1 received", self.lab.call("ping", "-c", 1, "-W", 5, self.lab.ip4(link=1), host="client"))
            self.assertIn("1 received", self.lab.call("ping", "-c", 1, "-W", 5, self.lab.ip6(link=1), host="client"))
        finally:
            self.tag(f"push{self.number}{self.kind}")


class ServiceVlan(AfXdpVlan):
    number, kind = 200, "s"
    config = AfXdpVlan.config.replace("vlan = 100", 'vlan = 200\nvlan_tag = "802.1ad"')


class PacketVlan(AfXdpVlan):
    config = AfXdpVlan.config.replace("vlan =", 'device = "packet"\nvlan =')


class TapVlan(Vlan, Tap):
    host, link = "server", "culvert0"
    config = Tap.config + "vlan = 100\n"
    peer_addresses = Tap.peer_addresses


class Forwarding(Story):
    """Two TAP interfaces whose other ends lie in two namespaces: what comes in by one for the other goes on."""
    config = ("".join(f'[[interface]]\nname = "culvert{i}"\ndevice = "tap"\naddress = ["10.79.{i}.1/24", "fd79:{i}::1/64"]\n' for i in (0, 1))
              + "[forwarding]\nenabled = true\n")

    @classmethod
    def prepare(cls):
        # Their kernel ends move into the hosts of the lab; the daemon's ends stay with the daemon.
        command("ip", "-n", cls.lab.server, "link", "set", "culvert1", "netns", cls.lab.client)
        for i, host in ((0, cls.lab.server), (1, cls.lab.client)):
            other = 1 - i
            for words in (["address", "add", f"10.79.{i}.2/24", "dev", f"culvert{i}"],
                          ["address", "add", f"fd79:{i}::2/64", "dev", f"culvert{i}", "nodad"], ["link", "set", f"culvert{i}", "up"],
                          ["route", "add", f"10.79.{other}.0/24", "via", f"10.79.{i}.1"],
                          ["-6", "route", "add", f"fd79:{other}::/64", "via", f"fd79:{i}::1"]):
                command("ip", "-n", host, *words)
        for address in ("10.79.1.1", "fd79:1::1"):
            until(lambda: cls.pings(address), f"{address} to answer ping", 20)

    @classmethod
    def pings(cls, address, *options):
        try:
            return "1 received" in cls.lab.call("ping", "-c", 1, "-W", 1, *options, address)
        except Exception:  # not yet
            return False

    def test_streams_and_pings_go_through(self):
        server = self.lab.start("exchange", [PYTHON, PROGRAM, "serve", 9000], host="server")
        for address in ("10.79.0.2", "fd79:0::2"):
            self.lab.wait_for_port(address, 9000, server)
            before = self.culvert.counters()["ip_forwarded"]
            self.assertTrue(self.pings(address))
            text = self.lab.call(PYTHON, PROGRAM, "ask", address, 9000, 1, timeout=60)
            self.assertEqual(text.strip(), "same")
            self.assertGreater(self.culvert.counters()["ip_forwarded"], before)

    def test_a_packet_at_the_end_of_its_life_is_told(self):
        for address in ("10.79.0.2", "fd79:0::2"):
            done = self.lab.start("ping", ["ping", "-c", "1", "-W", "2", "-t", "1", address], host="client")
            done.wait()
            self.assertIn("xceeded", done.output())  # "Time to live exceeded", "Time exceeded: Hop limit"


class SharedPacket(Story):
    """The packet socket in shared mode: the kernel's own addresses, ports as programs take them."""
    config = '[[interface]]\nname = "veth0"\ndevice = "packet"\n'

    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab, under=cls.culvert)
        cls.culvert.wait_for_listener(80)

    def test_files(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            connection = http.client.HTTPConnection(address, 80, timeout=30)
            with self.carried(1):
                connection.request("GET", "/big.bin")
                self.assertEqual(sha256(connection.getresponse().read()), self.nginx.hashes["big.bin"])
            connection.close()

    def test_the_kernel_has_the_rest(self):
        self.assertIn("1 received", self.lab.call("ping", "-c", 1, self.lab.ip4()))


class Filter(Story):
    """Rules in front of Culvert's ports, changed while it runs."""
    allow = '[[interface]]\nname = "veth0"\n'
    deny = allow + '[[filter.rule]]\naction = "deny"\nsource = "10.77.0.2"\nprotocol = "tcp"\nports = "80"\n'
    config = allow

    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab, under=cls.culvert)
        cls.culvert.wait_for_listener(80)

    def reaches(self, address, seconds=20):
        try:
            connection = http.client.HTTPConnection(address, 80, timeout=seconds)
            connection.request("GET", "/")
            connection.getresponse().read()
            connection.close()
            return True
        except TimeoutError:
            return False

    def change(self, config):
        with open(os.path.join(self.culvert.directory, "config.toml"), "w") as file:
            file.write(config)
        os.kill(self.culvert.pid, signal.SIGHUP)

    def rules(self):
        return {name: count for device in self.culvert.stat()["devices"] for name, count in device["statistics"].items()
                if name.startswith("steer_filter_")}

    def test_rules_deny_count_and_change(self):
        self.assertTrue(self.reaches(self.lab.ip4()))
        self.change(self.deny)
        until(lambda: self.rules(), "the rules to come")
        self.assertFalse(self.reaches(self.lab.ip4(), 1))
        self.assertTrue(self.reaches(self.lab.ip6()), "the rule names an IPv4 address")
        rules = self.rules()
        self.assertEqual(len(rules), 2, rules)
        self.assertGreater(next(count for name, count in rules.items() if "deny tcp" in name), 0)
        self.change(self.allow)
        until(lambda: not self.rules(), "the rules to go")
        self.assertTrue(self.reaches(self.lab.ip4()))
        self.change(self.deny)
        until(lambda: self.rules(), "the rules to come")
        self.assertFalse(self.reaches(self.lab.ip4(), 1))


if __name__ == "__main__":
    run()
