"""An unmodified memcached - several threads, libevent - serves kernel clients through Culvert, over TCP and UDP."""
import socket
import struct
import threading

from story import Story, run
from servers import pseudo_random


class Client:
    """The text protocol of memcached."""

    def __init__(self, address):
        self.socket = socket.create_connection((address, 11211), 20)
        self.file = self.socket.makefile("rb")

    def set(self, key, value):
        self.socket.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key, len(value), value))
        return self.file.readline()

    def get(self, key):
        self.socket.sendall(b"get %s\r\n" % key)
        line = self.file.readline()
        if line == b"END\r\n":
            return None
        value = self.file.read(int(line.split()[3]) + 2)[:-2]
        assert self.file.readline() == b"END\r\n"
        return value

    def close(self):
        self.file.close()
        self.socket.close()


class MemcachedStory(Story):
    @classmethod
    def prepare(cls):
        cls.memcached = cls.lab.start("memcached", ["memcached", "-u", "nobody", "-t", "4", "-p", "11211", "-U", "11211"],
                                      under=cls.culvert)
        cls.lab.wait_for_port(cls.lab.ip4(), 11211, cls.memcached, under=cls.culvert, addresses=2)

    def test_values_come_back(self):
        client = Client(self.lab.ip4())
        with self.carried(1):
            second = Client(self.lab.ip6())
            for size in (0, 1, 1448, 5000, 100_000, 900_000):
                value = pseudo_random(size, size)
                self.assertEqual(client.set(b"key%d" % size, value), b"STORED\r\n")
                self.assertEqual(second.get(b"key%d" % size), value)
            self.assertIsNone(second.get(b"absent"))
            second.close()
        client.close()

    def test_forty_clients_on_four_threads(self):
        failures = []

        def work(number):
            try:
                client = Client(self.lab.ip4())
                for step in range(200):
                    value = b"%d:%d" % (number, step) * 50
                    if client.set(b"k%d" % number, value) != b"STORED\r\n" or client.get(b"k%d" % number) != value:
                        failures.append((number, step))
                client.close()
            except Exception as error:
                failures.append((number, error))

        with self.carried(40):
            threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(failures, [])

    def test_udp_request(self):
        client = Client(self.lab.ip4())
        client.set(b"datagram", b"by udp")
        client.close()
        with self.carried(1, "udp_in"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(10)
            udp.connect((self.lab.ip4(), 11211))
            udp.send(struct.pack("!HHHH", 4711, 0, 1, 0) + b"get datagram\r\n")
            answer = udp.recv(2000)
        self.assertEqual(answer[:8], struct.pack("!HHHH", 4711, 0, 1, 0))
        self.assertEqual(answer[8:], b"VALUE datagram 0 6\r\nby udp\r\nEND\r\n")


if __name__ == "__main__":
    run()
