"""Does one thing to itself that servers do, and serves echo on PORT afterwards: trapped.py TRAP PORT [FOLDER]

daemon       listens, then daemon(3)
double-fork  listens, then forks twice with setsid() between, closing all but the listener
close-loop, close-range, closefrom   has sockets, closes every number from 3 up, and begins anew
cage         has sockets, then chroot(FOLDER) and setuid(nobody), and begins anew
few          RLIMIT_NOFILE of 64: takes what it gets, hears EMFILE, gives one back
threads      forks from a process whose threads open and close sockets all the time; each child connects to the server
plain        nothing of all this
"""
import ctypes
import errno
import os
import resource
import socket
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)


def listening(port):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(128)
    return listener


def serve(listener):
    print("serving", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)


def attached():
    """Some sockets, so that the library has met the daemon."""
    return [socket.socket() for _ in range(3)]


def forget(sockets):
    for each in sockets:
        each.detach()  # the numbers are closed by other means


def count_until_full():
    held = []
    try:
        while True:
            held.append(socket.socket())
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    return held


def threads(port):
    listener = listening(port)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            one = socket.socket()
            one.bind(("", 0))
            one.listen()
            one.close()
            socket.socket(type=socket.SOCK_DGRAM).close()
    workers = [threading.Thread(target=busy) for _ in range(3)]
    for worker in workers:
        worker.start()
    failed = 0
    for _ in range(60):
        child = os.fork()
        if child == 0:
            try:
                one = socket.socket()
                one.bind(("", 0))
                one.listen()
                os._exit(0)
            except OSError:
                os._exit(1)
        failed += os.waitpid(child, 0)[1] != 0
    stop.set()
    for worker in workers:
        worker.join()
    assert failed == 0, failed
    serve(listener)


def main():
    trap, port = sys.argv[1], int(sys.argv[2])
    if trap == "daemon":
        listener = listening(port)
        assert libc.daemon(1, 1) == 0
        serve(listener)
    elif trap == "double-fork":
        listener = listening(port)
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        os.closerange(3, listener.fileno())
        os.closerange(listener.fileno() + 1, 1 << 20)
        serve(listener)
    elif trap in ("close-loop", "close-range", "closefrom"):
        forget(attached())
        if trap == "close-loop":
            for fd in range(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
                libc.close(fd)
        elif trap == "close-range":
            assert libc.close_range(3, ctypes.c_uint(0xffffffff), 0) == 0
        else:
            libc.closefrom(3)
        serve(listening(port))
    elif trap == "cage":
        sockets = attached()
        "".encode("idna")  # whatever python still has to load
        os.chroot(sys.argv[3])
        os.chdir("/")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        listener = listening(port)
        client = socket.create_connection(("127.0.0.1", port))
        listener.accept()[0].close()
        client.close()
        del sockets
        serve(listener)
    elif trap == "few":
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        listener = listening(port)
        held = count_until_full()
        print(f"got {len(held)}", flush=True)
        held.pop().close()
        again = count_until_full()
        assert len(again) == 1, len(again)
        del held, again
        serve(listener)
    elif trap == "threads":
        threads(port)
    else:
        serve(listening(port))


if __name__ == "__main__":
    main()
