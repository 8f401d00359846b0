"""A link that the daemon itself makes bad (interface.faults) and writes down (interface.capture): programs get every byte, and the
file holds what passed."""
import os
import struct
import tempfile

from story import Story, run
from netns import ON_KERNEL, PYTHON, until

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


def packets(path):
    """(seconds since 1970, frame) of each packet in a capture file with nanoseconds; a last one that is not whole yet is left out."""
    with open(path, "rb") as file:
        raw = file.read()
    assert struct.unpack_from("=I", raw) == (0xa1b23c4d,), raw[:4]
    at, found = 24, []
    while at + 16 <= len(raw):
        seconds, nanoseconds, length, _ = struct.unpack_from("=4I", raw, at)
        if at + 16 + length > len(raw):
            break
        found.append((seconds + nanoseconds / 1e9, raw[at + 16:at + 16 + length]))
        at += 16 + length
    return found


class BadLink:
    """The classes below name the device."""
    device = "af_xdp"

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.capture = f"{folder.name}/link.pcap"
        cls.config = (f'[[interface]]\nname = "veth0"\ndevice = "{cls.device}"\ncapture = "{cls.capture}"\n'
                      'faults = { loss = 0.02, duplicate = 0.01, reorder = 0.05, delay_min_us = 200, delay_max_us = 400, seed = 5 }\n')
        super().setUpClass()

    @classmethod
    def prepare(cls):
        cls.echo = cls.lab.start("echo", [PYTHON, f"{PROGRAMS}/asyncio_echo.py", "8001"], under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 8001, cls.echo, under=cls.culvert, addresses=2)

    def statistics(self):
        return self.culvert.stat()["devices"][0]["statistics"]

    def test_every_byte_arrives_and_is_written_down(self):
        for address in (self.lab.ip4(), self.lab.ip6()):
            with self.carried(1):
                text = self.lab.call(PYTHON, f"{PROGRAMS}/client.py", address, "8001", "4")
            self.assertTrue(text.startswith("same"), text)
        if ON_KERNEL:
            return
        numbers = self.statistics()
        for direction in ("rx", "tx"):
            for fault in ("lost", "duplicated", "reordered"):
                self.assertGreater(numbers[f"fault_{direction}_{fault}"], 0, (direction, fault))
        until(lambda: len(packets(self.capture)) >= numbers["pcap_packets"], "all packets in the file", 15)
        written = packets(self.capture)
        types = {frame[12:14] for _, frame in written}
        self.assertLessEqual({b"\x08\x00", b"\x86\xdd"}, types)
        times = [time for time, _ in written]
        self.assertEqual(times, sorted(times))
        self.assertLess(abs(os.stat(self.capture).st_mtime - times[-1]), 60, "the file's times are the wall's")


class AfXdp(BadLink, Story):
    pass


class Packet(BadLink, Story):
    """Super-packets of the kernel's go through it, too."""
    device = "packet"


if __name__ == "__main__":
    run()
