"""A server that does not serve its connections itself: passing.py PORT HOW [WORDS...]

fork, vfork, spawn   WORDS get the connection as standard input and output, as from inetd: by fork and exec, by subprocess (vfork),
                     by posix_spawn. The server closes its copy
system               as fork, but a shell that system() starts runs WORDS, while the connection is the server's own standard output
keep                 as fork, and the server keeps its copy; it says BYE through it when the child has ended
exec                 takes one connection and becomes WORDS itself
missing              tries to become a program that is not there, then serves the connection itself (echo)
many                 as fork, and the child finds a hundred idle connections besides
send PATH            each connection goes by SCM_RIGHTS to whoever listens at PATH; the server closes its copy
share PATH           as send, but the server keeps its copy, and both write: the server "one", the receiver "two", the server FIN

connect ADDRESS      connects to PORT there without waiting, and WORDS get the connection at once, as fork

receive PATH         the other end of send: echoes each connection that comes, in a thread
receive-listener PATH  gets a listener and serves it
send-listener PATH   listens on PORT and passes the listener on instead of serving it
"""
import array
import os
import select
import socket
import subprocess
import sys
import threading


def listener_at(port):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(128)
    print("serving", flush=True)
    return listener


def send_descriptor(channel, fd):
    channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def receive_descriptor(channel):
    data, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    if not data:
        return None
    return array.array("i", ancillary[0][2])[0]


def echo(connection):
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def receive(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("serving", flush=True)
        channel, _ = listener.accept()
        while (fd := receive_descriptor(channel)) is not None:
            connection = socket.socket(fileno=fd)
            print("peer", connection.getpeername()[:2], "own", connection.getsockname()[:2], flush=True)
            if os.environ.get("SHARED"):
                connection.recv(3)  # the server has said "one" by now
                connection.sendall(b"two")
                channel.sendall(b"k")
                connection.close()
            else:
                threading.Thread(target=echo, args=(connection,)).start()


def receive_listener(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("waiting", flush=True)
        channel, _ = listener.accept()
        served = socket.socket(fileno=receive_descriptor(channel))
        served.setblocking(True)
        print("serving", flush=True)
        while True:
            select.select([served], [], [])
            connection, _ = served.accept()
            connection.setblocking(True)
            threading.Thread(target=echo, args=(connection,)).start()


def child_of_fork(connection, words):
    pid = os.fork()
    if pid == 0:
        os.dup2(connection.fileno(), 0)
        os.dup2(connection.fileno(), 1)
        os.execv(words[0], words)
    return pid


def main():
    if sys.argv[1] == "receive":
        return receive(sys.argv[2])
    if sys.argv[1] == "receive-listener":
        return receive_listener(sys.argv[2])
    port, how, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if how == "connect":
        connection = socket.socket(socket.AF_INET6 if ":" in words[0] else socket.AF_INET)
        connection.setblocking(False)
        print("connect", connection.connect_ex((words[0], port)), flush=True)
        os.set_blocking(connection.fileno(), True)
        os.waitpid(child_of_fork(connection, words[1:]), 0)
        return None
    listener = listener_at(port)
    channel = None
    if how in ("send", "share", "send-listener"):
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(words[0])
    if how == "send-listener":
        send_descriptor(channel, listener.fileno())
        listener.close()
        print("passed", flush=True)
        return sys.stdin.read()
    nothing = os.open(os.devnull, os.O_RDWR)
    idle = []
    if how == "many":
        for _ in range(100):
            idle.append(listener.accept()[0])
            idle[-1].set_inheritable(True)
        print("idle", flush=True)
    while True:
        connection, _ = listener.accept()
        if how in ("fork", "many"):
            child_of_fork(connection, words)
        elif how == "keep":
            os.waitpid(child_of_fork(connection, words), 0)
            connection.sendall(b"BYE")
        elif how == "vfork":
            subprocess.Popen(words, stdin=connection, stdout=connection)
        elif how == "spawn":
            os.posix_spawn(words[0], words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, connection.fileno(), 0),
                                                                       (os.POSIX_SPAWN_DUP2, connection.fileno(), 1)])
        elif how == "system":
            os.dup2(connection.fileno(), 0)
            os.dup2(connection.fileno(), 1)
            os.system(" ".join(words))
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)
        elif how == "exec":
            os.dup2(connection.fileno(), 0)
            os.dup2(connection.fileno(), 1)
            os.execv(words[0], words)
        elif how == "missing":
            connection.set_inheritable(True)
            for exec_function in (os.execv, os.execvp):
                try:
                    exec_function("/nonexistent/program", ["program"])
                except FileNotFoundError:
                    pass
            echo(connection)
        elif how == "send":
            send_descriptor(channel, connection.fileno())
        elif how == "share":
            send_descriptor(channel, connection.fileno())
            connection.sendall(b"one")
            channel.recv(1)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        connection.close()


if __name__ == "__main__":
    main()
