"""Two hosts on one machine: network namespaces joined by veth pairs, culvertd in one of them, programs in both.

A `Lab` is the pair:

      namespace "server"                         namespace "client"
      culvertd, nginx, redis ...                 curl, wrk, *this process*
      veth0 10.77.0.1 fd77:1::1  ------------->  veth0 10.77.0.2 fd77:1::2
      veth1 10.77.1.1 fd77:2::1  ------------->  veth1 10.77.1.2 fd77:2::2      (only with links=2)

With queues=2 each end has two receive queues; the kernel's hash of a flow chooses one of them.

While a Lab is open, the process that opened it stands in the client's namespace: sockets that it makes, and programs that it
starts without naming a host, are the client's. What the Lab started and made is gone when it closes, whatever happened inside;
what a killed process left behind is swept away by the next Lab (its names carry the process's number).

Waiting is always for a condition with a deadline, never for a time.

With CULVERT_E2E=kernel in the environment no daemon is started and programs run on plain kernel sockets. That is how the tests
themselves are checked: what fails there is the test's fault, not Culvert's.
"""
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("CULVERT_BUILD", "build/release"))
CULVERTD = os.path.join(BUILD, "bin/culvertd")
CULVERT = os.path.join(BUILD, "bin/culvert")
LIBRARY = os.path.join(BUILD, "lib/libculvert.so")
PYTHON = "/usr/bin/python3"  # Debian's own, not a wrapper script of a version manager
ON_KERNEL = os.environ.get("CULVERT_E2E") == "kernel"
SKIPPED = 77  # the exit code that CTest calls skipped
_NAME = re.compile(r"^culvert-(?:server|client)-(\d+)(?:-\d+)?$")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """Something did not work; the text is for a person."""


def command(*words, timeout=60, **options):
    """Runs a command to its end and returns what it printed; raises Failure when it fails."""
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, timeout=timeout, **options)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout.strip()}")
    return done.stdout


def until(condition, what, seconds=30.0):
    """Asks `condition` again and again until it returns something true, and returns that. The time is a bound for what hangs, not an
    expectation: a busy machine may take seconds for anything."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Failure(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.01)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def tail(path, lines=15):
    try:
        with open(path, errors="replace") as file:
            return "".join(file.readlines()[-lines:]).strip()
    except OSError:
        return ""


def _enter_namespace(descriptor):
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _kill_all_in(namespace):
    pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split()
    for pid in map(int, pids):
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _delete_namespace(namespace):
    _kill_all_in(namespace)
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def sweep():
    """Removes namespaces of test processes that are no more (killed by a time limit, say)."""
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for name in (line.split()[0] for line in listing.splitlines() if line):
        match = _NAME.match(name)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            _delete_namespace(name)


class Program:
    """A running program; what it prints goes to a file. Ends with its Lab at the latest."""

    def __init__(self, name, words, log, **options):
        self.name = name
        self.words = [str(word) for word in words]
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(self.words, stdin=options.pop("stdin", subprocess.DEVNULL), stdout=output,
                                            stderr=subprocess.STDOUT, start_new_session=True, **options)
        self.pid = self.process.pid

    def running(self):
        return self.process.poll() is None

    def output(self):
        with open(self.log, errors="replace") as file:
            return file.read()

    def wait(self, seconds=30):
        """Waits for its end; the exit code (negative: the signal that ended it)."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} still runs after {seconds} s\n{tail(self.log)}") from None

    def send(self, number):
        self.process.send_signal(number)

    def stop(self, number=signal.SIGTERM, seconds=30):
        """Asks it to end and returns the exit code; whoever of its family stays is killed."""
        if self.running():
            self.send(number)
        code = self.wait(seconds)
        self._kill_family()
        return code

    def kill(self):
        """kill -9, the whole family."""
        self._kill_family()
        self.process.wait()

    def _kill_family(self):
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


class Daemon:
    """culvertd on one interface of one host, with a control socket of its own."""

    def __init__(self, lab, host, interface, config="", prefix=(), arguments=()):
        self.lab = lab
        self.host = host
        self.directory = tempfile.mkdtemp(prefix="culvertd-", dir=lab.directory)
        os.chmod(self.directory, 0o755)
        self.socket = os.path.join(self.directory, "control.sock")
        self.log = os.path.join(self.directory, "culvertd.log")
        words = list(lab.enter_words(host)) + list(prefix) + [CULVERTD, "--socket", self.socket]
        file = os.path.join(self.directory, "config.toml")
        with open(file, "w") as out:
            out.write(config)
        words += ["--config", file]
        if interface:
            words += ["--interface", interface]
        self._words = words + list(arguments)
        self._starts = 0
        self.program = None
        self.start()

    def start(self):
        """Starts it and returns when it says (sd_notify) that it is ready."""
        notify_path = os.path.join(self.directory, f"notify-{self._starts}")
        self._starts += 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(notify_path)
            notify.settimeout(0.05)
            environment = dict(os.environ, NOTIFY_SOCKET=notify_path)
            self.program = self.lab.adopt(Program("culvertd", self._words, self.log, env=environment))

            def ready():
                if not self.program.running():
                    raise Failure(f"culvertd ended with {self.program.process.returncode}:\n{tail(self.log)}")
                try:
                    return b"READY=1" in notify.recv(4096)
                except TimeoutError:
                    return False
            until(ready, f"culvertd to be ready\n{tail(self.log)}")
        os.unlink(notify_path)

    @property
    def pid(self):
        return self.program.pid

    def stop(self):
        """SIGTERM; the exit code."""
        return self.program.stop()

    def ask(self, what):
        text = command(CULVERT, what, "--socket", self.socket, "--json")
        return json.loads(text)

    def stat(self):
        return self.ask("stat")

    def counters(self):
        return self.stat()["counters"]

    def sockets(self):
        return self.ask("ss")["sockets"]

    def listeners(self, port):
        """The local addresses at which Culvert listens on the port, each as often as there are listeners: 0.0.0.0 and [::] count twice."""
        return [line["local"] for line in self.sockets() if line["path"] == "culvert" and line["state"] == "LISTEN" and
                line["local"].endswith(f":{port}")]

    def wait_for_listener(self, port, seconds=30, addresses=1):
        """Returns when Culvert has taken the port over, on so many addresses: a connection that comes between the program's listen() and
        that moment is the kernel's, and stays so."""
        until(lambda: len(set(self.listeners(port))) >= addresses, f"Culvert to listen on port {port} of {addresses} addresses", seconds)

    def run_words(self, *options):
        """The words that put a program under this daemon."""
        return [CULVERT, "run", "--socket", self.socket, *options, "--"]


class KernelDaemon:
    """Stands where a Daemon would with CULVERT_E2E=kernel: programs run on kernel sockets, nothing is counted."""
    pid = None
    socket = "/nonexistent"

    def stop(self):
        return 0

    def start(self):
        pass

    def wait_for_listener(self, _port, _seconds=30, addresses=1):
        pass

    def run_words(self, *_options):
        return []


class Lab:
    """The two hosts. Use it in a `with`, or call open() and close()."""

    def __init__(self, mtu=1500, links=1, queues=1):
        self.mtu = mtu
        self.links = links
        self.queues = queues  # receive and transmit queues at each end of each link
        self.programs = []
        self.directory = None
        self._home = None

    # Life ------------------------------------------------------------------------------------------------------------

    _count = 0

    def open(self):
        if os.geteuid() != 0:
            print("skipped: network namespaces need root", file=sys.stderr)
            raise SystemExit(SKIPPED)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that close() runs
        sweep()
        suffix = f"{os.getpid()}-{Lab._count}"
        Lab._count += 1
        self.server = f"culvert-server-{suffix}"
        self.client = f"culvert-client-{suffix}"
        self.directory = tempfile.mkdtemp(prefix="culvert-lab-")
        os.chmod(self.directory, 0o755)  # nginx's workers are www-data
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            self._make_hosts()
        except BaseException:
            self.close()
            raise
        return self

    def _make_hosts(self):
        for name in (self.server, self.client):
            command("ip", "netns", "add", name)
            command("ip", "-n", name, "link", "set", "lo", "up")
        for link in range(self.links):
            self.make_link(link)
        with open(f"/run/netns/{self.client}") as file:
            _enter_namespace(file.fileno())
        for link in range(self.links):
            self.ping(f"10.77.{link}.1")

    def make_link(self, link=0):
        """One veth pair with its addresses; also to make it once more after `ip link del`."""
        device = f"veth{link}"
        queues = ("numtxqueues", self.queues, "numrxqueues", self.queues)
        command("ip", "-n", self.server, "link", "add", device, "mtu", self.mtu, *queues, "type", "veth",
                "peer", "name", device, "mtu", self.mtu, *queues, "netns", self.client)
        for name, host in ((self.server, 1), (self.client, 2)):
            command("ip", "-n", name, "address", "add", f"10.77.{link}.{host}/24", "dev", device)
            command("ip", "-n", name, "address", "add", f"fd77:{link + 1}::{host}/64", "dev", device, "nodad")
            command("ip", "-n", name, "link", "set", device, "up")

    def close(self):
        """Ends every program and removes the hosts."""
        if self._home is None:
            return
        for program in reversed(self.programs):
            program.kill()
        _enter_namespace(self._home)
        os.close(self._home)
        self._home = None
        for name in (self.server, self.client):
            _delete_namespace(name)
        if os.environ.get("CULVERT_KEEP"):
            print(f"kept {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self.open()

    def __exit__(self, *_):
        self.close()

    # Hosts and addresses -----------------------------------------------------------------------------------------------

    def ip4(self, host="server", link=0):
        return f"10.77.{link}.{1 if host == 'server' else 2}"

    def ip6(self, host="server", link=0):
        return f"fd77:{link + 1}::{1 if host == 'server' else 2}"

    def enter_words(self, host):
        return ["ip", "netns", "exec", self.server if host == "server" else self.client]

    def on(self, host):
        """`with lab.on("server"):` - this thread's new sockets belong to that host."""
        return _Visit(self, host)

    def ping(self, address):
        command("ping", "-c", 1, "-W", 20, address)

    # Programs ---------------------------------------------------------------------------------------------------------

    def adopt(self, program):
        self.programs.append(program)
        return program

    def path(self, name):
        return os.path.join(self.directory, name)

    def daemon(self, host="server", link=0, **options):
        if ON_KERNEL:
            return KernelDaemon()
        named = "[[interface]]" in options.get("config", "")  # by the configuration itself
        return Daemon(self, host, None if named else f"veth{link}", **options)

    def start(self, name, words, host="server", under=None, prefix=(), **options):
        """Starts a program on a host; `under` a daemon: with `culvert run`."""
        run = under.run_words() if under else []
        log = self.path(f"{name}-{len(self.programs)}.log")
        return self.adopt(Program(name, [*self.enter_words(host), *prefix, *run, *words], log, **options))

    def call(self, *words, host="client", under=None, timeout=60, prefix=(), **options):
        """Runs a program on a host to its end; what it printed. Raises Failure if it fails."""
        run = under.run_words() if under else []
        return command(*self.enter_words(host), *prefix, *run, *words, timeout=timeout, **options)

    def wait_for_port(self, address, port, program=None, seconds=30, host="client", under=None, addresses=1):
        """Returns when somebody accepts connections there; `under` a daemon: when these go through it, on so many addresses (two for a
        program that has a listener for each family)."""
        def accepts():
            if program is not None and not program.running():
                raise Failure(f"{program.name} ended with {program.process.returncode}:\n{tail(program.log)}")
            try:
                with self.on(host), socket.create_connection((address, port), 1):
                    return True
            except OSError:
                return False
        if under is not None:
            under.wait_for_listener(port, addresses=addresses)
        until(accepts, f"a server on {address} port {port}" + (f"\n{tail(program.log)}" if program else ""), seconds)


class _Visit:
    def __init__(self, lab, host):
        self._name = lab.server if host == "server" else lab.client

    def __enter__(self):
        self._back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        with open(f"/run/netns/{self._name}") as file:
            _enter_namespace(file.fileno())

    def __exit__(self, *_):
        _enter_namespace(self._back)
        os.close(self._back)
