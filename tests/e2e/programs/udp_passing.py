"""A UDP server that does not serve its port itself: udp_passing.py PORT HOW [WORDS...]

On SIGUSR1, before which it reads nothing, it gives its socket on:
exec          becomes WORDS, with the socket as standard input
fork          a child becomes WORDS, with the socket as standard input; when that has ended the server itself echoes what comes
spawn         the same, by posix_spawn
send PATH     by SCM_RIGHTS to whoever listens at PATH; the server keeps its copy, and looks at it no more

receive PATH  (instead of a port) the other end of send
read COUNT    what WORDS may be: tells COUNT datagrams of the socket that is standard input, one a line, and ends
"""
import array
import os
import signal
import socket
import sys


def tell(served, count):
    for _ in range(count):
        data, source = served.recvfrom(70000)
        print(data[:40].decode(), len(data), *source[:2], flush=True)


def receive(path, count):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        channel, _ = listener.accept()
        _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    tell(socket.socket(fileno=array.array("i", ancillary[0][2])[0]), count)
    signal.pause()


def child(served, how, words):
    if how == "spawn":
        return os.posix_spawn(words[0], words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, served.fileno(), 0)])
    pid = os.fork()
    if pid == 0:
        os.dup2(served.fileno(), 0)
        os.execv(words[0], words)
    return pid


def main():
    if sys.argv[1] == "read":
        return tell(socket.socket(fileno=0), int(sys.argv[2]))
    if sys.argv[1] == "receive":
        return receive(sys.argv[2], int(sys.argv[3]))
    how, words = sys.argv[2], sys.argv[3:]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    served = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    served.bind(("::", int(sys.argv[1])))
    print("bound", flush=True)
    signal.sigwait([signal.SIGUSR1])
    if how == "send":
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(words[0])
        channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [served.fileno()]))])
        return signal.pause()
    if how == "exec":
        os.dup2(served.fileno(), 0)
        os.execv(words[0], words)
    os.waitpid(child(served, how, words), 0)
    print("mine again", flush=True)
    while True:
        data, source = served.recvfrom(70000)
        served.sendto(data, source)


if __name__ == "__main__":
    main()
