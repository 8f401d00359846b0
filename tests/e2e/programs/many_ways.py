"""An echo server in one of the ways in which Python programs serve many clients.  many_ways.py threads|processes|forking|uvloop PORT"""
import asyncio
import multiprocessing
import socket
import socketserver
import sys
import threading


def listener(port):
    return socket.create_server(("::", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)


def echo(connection):
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def threads(port):
    server = listener(port)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def accept_for_ever(server):
    """Each child is a threaded server of its own."""
    while True:
        connection, _ = server.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def processes(port):
    server = listener(port)
    children = [multiprocessing.Process(target=accept_for_ever, args=(server,)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()


def forking(port):
    class Server(socketserver.ForkingTCPServer):
        address_family = socket.AF_INET6
        request_queue_size = 128
        max_children = 200

        def server_bind(self):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            super().server_bind()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            while data := self.request.recv(65536):
                self.request.sendall(data)

    Server(("::", port), Handler).serve_forever()


def uvloop(port):
    import uvloop as loops

    async def serve(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(serve, None, port)
        await server.serve_forever()

    loops.install()
    asyncio.run(main())


{"threads": threads, "processes": processes, "forking": forking, "uvloop": uvloop}[sys.argv[1]](int(sys.argv[2]))
