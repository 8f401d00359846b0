"""A blocking client: sends MEGABYTES of reproducible bytes to an echo server and checks what comes back, in both halves at once.

Usage: client.py ADDRESS PORT MEGABYTES; prints "same" and the two addresses of the connection.
"""
import random
import socket
import sys
import threading

address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) << 20
data = random.Random(3).randbytes(size)
with socket.create_connection((address, port), 20) as connection:
    own, peer = connection.getsockname()[0], connection.getpeername()[0]

    def send():
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    received = bytearray()
    while part := connection.recv(1 << 20):
        received += part
    sender.join()
    print("same" if received == data else f"different: {len(received)} of {size} bytes", own, peer)
sys.exit(received != data)
