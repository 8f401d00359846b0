"""Started as systemd starts a service with a socket unit: binds, listens, and executes the words of its command line with the listener
as descriptor 3. The words are an HTTP server of one line, given as: activated.py PORT LAUNCHER... -- python3 activated.py serve HOW

activated.py supervise PORT HOW COUNT WORDS...   starts COUNT programs that share the listener, and never accepts itself
activated.py serve HOW                           answers each request; blocking: accepts as it finds the listener"""
import os
import select
import socket
import subprocess
import sys


def serve(how):
    listener = socket.socket(fileno=3)
    if how != "blocking":
        listener.setblocking(how == "accept")
    wait = {"blocking": lambda: None, "accept": lambda: None, "select": lambda: select.select([listener], [], []),
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


def supervise(listener, how, count, words):
    for _ in range(count):
        if how == "fork":
            if os.fork() == 0:
                os.execvp(words[0], words)
        elif how == "vfork":
            subprocess.Popen(words, close_fds=False)
        elif how == "spawn":
            os.posix_spawn(words[0], words, os.environ)
        elif how == "system":
            os.system(" ".join(words) + " &")
    print("started", listener.getblocking(), flush=True)
    sys.stdin.read()
    print("accepts", flush=True)  # and it waits for connections after all
    serve("accept")


def main():
    if sys.argv[1] == "serve":
        return serve(sys.argv[2])
    supervises = sys.argv[1] == "supervise"
    if supervises:
        del sys.argv[1]
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.bind(("::", int(sys.argv[1])))
    listener.listen(64)
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)
    if supervises:
        return supervise(listener, sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    words = sys.argv[2:]
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
