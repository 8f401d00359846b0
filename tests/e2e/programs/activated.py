"""Started as systemd starts a service with a socket unit: binds, listens, and executes the words of its command line with the listener
as descriptor 3. The words are an HTTP server of one line, given as: activated.py PORT LAUNCHER... -- python3 activated.py serve HOW"""
import os
import select
import socket
import sys


def serve(how):
    listener = socket.socket(fileno=3)
    listener.setblocking(how == "accept")
    wait = {"accept": lambda: None, "select": lambda: select.select([listener], [], []),
            "poll": lambda: poller.poll(), "epoll": lambda: poller.poll()}[how]
    if how in ("poll", "epoll"):
        poller = select.poll() if how == "poll" else select.epoll()
        poller.register(listener, select.POLLIN)
    print("serving", flush=True)
    while True:
        wait()
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        connection.setblocking(True)
        # With a deadline: a client that connects and says nothing (who only looks whether we serve) is no client.
        connection.settimeout(5)
        try:
            if connection.recv(4096):
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n" + b"%3d" % connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        except OSError:
            pass
        connection.close()


def main():
    if sys.argv[1] == "serve":
        return serve(sys.argv[2])
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.bind(("::", int(sys.argv[1])))
    listener.listen(64)
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)
    words = sys.argv[2:]
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
