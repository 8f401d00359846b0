"""Two streams at once over each connection: what is sent follows from a seed, so that the other end can check every byte.

    exchange.py serve PORT [CONGESTION]              serves for ever; CONGESTION: TCP_CONGESTION of its connections
    exchange.py ask ADDRESS PORT MEGABYTES           sends so much and receives as much; prints "same" or what went wrong
"""
import hashlib
import socket
import sys
import threading

BLOCK = 1 << 18


def stream(seed, size):
    """`size` bytes in blocks; no two blocks alike, so that a block in the wrong place is noticed."""
    first = hashlib.shake_128(seed).digest(BLOCK)
    for number in range((size + BLOCK - 1) // BLOCK):
        block = number.to_bytes(8, "big") + first[8:]
        yield block[:size - number * BLOCK]


def send_all(connection, seed, size):
    for block in stream(seed, size):
        connection.sendall(block)


def receive_all(connection, size):
    """The hash of the next `size` bytes."""
    digest = hashlib.sha256()
    buffer = bytearray(BLOCK)
    while size > 0:
        count = connection.recv_into(buffer, min(size, BLOCK))
        if count == 0:
            raise EOFError(f"{size} bytes are missing")
        digest.update(memoryview(buffer)[:count])
        size -= count
    return digest.digest()


def expected(seed, size):
    digest = hashlib.sha256()
    for block in stream(seed, size):
        digest.update(block)
    return digest.digest()


def exchange(connection, mine, theirs, size):
    """Both directions at once; True if what came is what the other end was to send."""
    sender = threading.Thread(target=send_all, args=(connection, mine, size))
    sender.start()
    got = receive_all(connection, size)
    sender.join()
    return got == expected(theirs, size)


def serve_one(connection):
    with connection:
        size = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
        same = exchange(connection, b"server", b"client", size)
        connection.sendall(b"same" if same else b"diff")


def serve(port, congestion):
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        if congestion:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        threading.Thread(target=serve_one, args=(connection,), daemon=True).start()


def ask(address, port, megabytes):
    size = megabytes << 20
    with socket.create_connection((address, port), timeout=120) as connection:
        connection.sendall(size.to_bytes(8, "big"))
        same = exchange(connection, b"client", b"server", size)
        verdict = connection.recv(4, socket.MSG_WAITALL)
    print("same" if same and verdict == b"same" else f"received {'right' if same else 'wrong'}, sent: {verdict}")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
    else:
        ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
