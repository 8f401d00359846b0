"""10,000 concurrent keep-alive connections to an unmodified nginx, each used again and again, without one error."""
import select
import socket

from story import ON_KERNEL, Story, run
from netns import Failure
from servers import SMALL_BYTES, Nginx

CONNECTIONS = 10_000
ROUNDS = 3
AT_ONCE = 256  # requests under way at a time: the point is the number of connections, not the rate
REQUEST = b"GET /small HTTP/1.1\r\nHost: culvert\r\n\r\n"


class ManyConnections(Story):
    config = "[limits]\nmax_sockets = 16384\n"

    @classmethod
    def prepare(cls):
        cls.nginx = Nginx(cls.lab, under=cls.culvert, connections=16384)

    def test_ten_thousand_connections(self):
        connections = []
        try:
            for _ in range(CONNECTIONS):
                connection = socket.create_connection((self.lab.ip4(), 80), 20)
                connection.setblocking(False)
                connections.append(connection)
            for _ in range(ROUNDS):
                self.assertEqual(self._one_request_on_each(connections), CONNECTIONS)
            if not ON_KERNEL:
                self.assertGreaterEqual(self.culvert.counters()["tcp_established"], CONNECTIONS)
        finally:
            for connection in connections:
                connection.close()
        self.assertEqual(self.nginx.errors(), [])
        self.assert_no_refusals("tcp_connection_limit", "tcp_syn_queue_full", "tenant_no_block", "tenant_no_socket")

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
