"""10,000 concurrent keep-alive connections to an unmodified nginx, each used again and again, without one error.

Prints what each of them costs in memory while it is idle (tests/bench/README.md), and holds the daemon to its part."""
import select
import socket

from story import ON_KERNEL, Story, run
from netns import Failure
from servers import SMALL_BYTES, Nginx

CONNECTIONS = 10_000
ROUNDS = 3
AT_ONCE = 256  # requests under way at a time: the point is the number of connections, not the rate
MOST_DAEMON_BYTES = 640  # private memory of the daemon for each: 504 for the connection; send buffers' books are pooled
REQUEST = b"GET /small HTTP/1.1\r\nHost: culvert\r\n\r\n"


def resident(pid):
    """Private and shared (the segment, mapped files) memory of a process in bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = dict(line.split(":", 1) for line in file if line.endswith("kB\n"))
    rss, private = (int(lines[name].split()[0]) * 1024 for name in ("Rss", "Anonymous"))
    return private, rss - private


class ManyConnections(Story):
    config = "[limits]\nmax_sockets = 16384\n"

    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab, under=cls.culvert, connections=16384)

    def test_ten_thousand_connections(self):
        connections = []
        try:
            self._connect(connections, CONNECTIONS // 2)
            self._one_request_on_each(connections)  # and has touched what all of them share
            before = self._memory()
            self._connect(connections, CONNECTIONS)
            for _ in range(ROUNDS):
                self.assertEqual(self._one_request_on_each(connections), CONNECTIONS)
            if not ON_KERNEL:
                self.assertGreaterEqual(self.culvert.counters()["tcp_established"], CONNECTIONS)
                self._assert_memory(before, self._memory())
        finally:
            for connection in connections:
                connection.close()
        self.assertEqual(self.nginx.errors(), [])
        self.assert_no_refusals("tcp_connection_limit", "tcp_syn_queue_full", "tenant_no_block", "tenant_no_socket")

    def _connect(self, connections, number):
        while len(connections) < number:
            connection = socket.create_connection((self.lab.ip4(), 80), 20)
            connection.setblocking(False)
            connections.append(connection)

    def _memory(self):
        if ON_KERNEL:
            return ()
        private, segment = resident(self.culvert.pid)
        return private, segment, sum(resident(worker)[0] for worker in self.nginx.workers())

    def _assert_memory(self, before, after):
        daemon, segment, program = ((b - a) / (CONNECTIONS - CONNECTIONS // 2) for a, b in zip(before, after))
        print(f"memory of an idle connection: daemon {daemon:.0f} bytes, segment {segment:.0f}, program {program:.0f}", flush=True)
        self.assertLess(daemon, MOST_DAEMON_BYTES)

    def _one_request_on_each(self, connections):
        """Sends a request on every connection, AT_ONCE under way, and returns how many right replies came."""
        poller = select.epoll()
        waiting = {}
        served = 0
        todo = iter(connections)

        def send_next():
            connection = next(todo, None)
            if connection is not None:
                connection.send(REQUEST)
                waiting[connection.fileno()] = (connection, bytearray())
                poller.register(connection.fileno(), select.EPOLLIN)

        for _ in range(AT_ONCE):
            send_next()
        while waiting:
            events = poller.poll(20)
            if not events:
                raise Failure(f"{len(waiting)} connections got no reply within 20 s")
            for descriptor, _ in events:
                connection, reply = waiting[descriptor]
                part = connection.recv(65536)
                if not part:
                    raise Failure("nginx closed a keep-alive connection")
                reply += part
                if reply.endswith(SMALL_BYTES):
                    self.assertTrue(reply.startswith(b"HTTP/1.1 200 "))
                    poller.unregister(descriptor)
                    del waiting[descriptor]
                    served += 1
                    send_next()
        poller.close()
        return served


if __name__ == "__main__":
    run()
