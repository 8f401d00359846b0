"""Fast Open from both sides.

    fast_open.py server PORT          answers each connection with what it said, in capitals, and whether it said it in its SYN
    fast_open.py client ADDRESS PORT  one connection by MSG_FASTOPEN, one by TCP_FASTOPEN_CONNECT; prints the answers
"""
import socket
import struct
import sys

TCP_FASTOPEN_CONNECT = 30
TCPI_OPT_SYN_DATA = 32


def syn_data(peer):
    options = struct.unpack_from("B", peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 5)[0]
    return "with SYN" if options & TCPI_OPT_SYN_DATA else "after SYN"


def server(port):
    with socket.socket(socket.AF_INET6) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        listening.bind(("::", port))
        listening.listen(16)
        while True:
            peer, _ = listening.accept()
            with peer:
                text = peer.recv(1000)
                peer.sendall(text.upper() + b" " + syn_data(peer).encode())


def client(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as peer:
        peer.sendto(b"message", socket.MSG_FASTOPEN, (address, port))
        print(peer.recv(1000).decode(), "/", syn_data(peer))
    with socket.socket(family) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        peer.connect((address, port))
        peer.sendall(b"connect")
        print(peer.recv(1000).decode(), "/", syn_data(peer))


if sys.argv[1] == "server":
    server(int(sys.argv[2]))
else:
    client(sys.argv[2], int(sys.argv[3]))
