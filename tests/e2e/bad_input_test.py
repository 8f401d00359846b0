"""Bad input from outside: each case gives one clear line, the right exit code, and nothing hangs."""
import os
import shutil
import socket
import stat
import struct
import subprocess
import threading
import unittest

from story import ON_KERNEL, Story, run
from netns import CULVERT, CULVERTD, PYTHON, sha256
from servers import Nginx


class _Stranger:
    """Listens on a control socket's path and treats each first message of a connection with `reply` (true: then closes it)."""

    def __init__(self, path, reply):
        self.path, self.reply = path, reply
        self.peers = []

    def __enter__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(self.path)
        self.socket.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()
        return self.path

    def _serve(self):
        try:
            while True:
                peer, _ = self.socket.accept()
                self.peers.append(peer)
                if peer.recv(1000) and self.reply(peer):
                    peer.close()
        except OSError:
            pass  # the end: closed below

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for peer in self.peers:
            peer.close()


@unittest.skipIf(ON_KERNEL, "these stories are about culvertd and culvert")
class BadInput(Story):
    def daemon_says(self, *arguments, prefix=(), code=1):
        """Runs culvertd where it must fail at once; its one line."""
        done = subprocess.run([*self.lab.enter_words("server"), *prefix, CULVERTD, *arguments], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=20)
        return self._one_line(done, code)

    def culvert_says(self, *arguments, code, prefix=(), lines=1, **options):
        done = subprocess.run([*self.lab.enter_words("server"), *prefix, CULVERT, *arguments], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=20, **options)
        self.standard_output = done.stdout
        return self._one_line(done, code, lines)

    def _one_line(self, done, code, lines=1):
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), lines, done.stderr)
        return done.stderr.strip()

    def configuration(self, text):
        path = self.lab.path("bad.toml")
        with open(path, "w") as file:
            file.write(text)
        return path

    # culvertd -----------------------------------------------------------------------------------------------------------

    def test_no_such_interface(self):
        self.assertIn("nosuch0", self.daemon_says("--interface", "nosuch0", "--socket", self.lab.path("a.sock")))

    def test_interface_already_taken(self):
        text = self.daemon_says("--interface", "veth0", "--socket", self.lab.path("b.sock"))
        self.assertIn("veth0", text)
        self.assertEqual(self.culvert.counters()["tcp_established"], 0)  # the first one lives

    def test_control_socket_already_taken(self):
        text = self.daemon_says("--interface", "lo", "--socket", self.culvert.socket)
        self.assertIn(self.culvert.socket, text)
        self.culvert.stat()

    def test_no_interface_named(self):
        self.assertIn("interface", self.daemon_says("--config", self.configuration(""), "--socket", self.lab.path("c.sock")))

    def test_no_capabilities(self):
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
        open_directory = self.lab.path("open")
        os.makedirs(open_directory, exist_ok=True)
        os.chmod(open_directory, 0o777)
        program = self._reachable_copy(CULVERTD, "culvertd")
        done = subprocess.run([*self.lab.enter_words("server"), *nobody, program, "--interface", "veth0", "--socket",
                               f"{open_directory}/d.sock"], capture_output=True, text=True, timeout=20)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertRegex(done.stderr, "CAP_|root")

    def test_unknown_key(self):
        text = self.daemon_says("--check", "--config", self.configuration("[tcp]\ncongestoin = \"cubic\"\n"))
        self.assertIn("bad.toml:2:1: unknown key 'congestoin'", text)
        self.assertIn("did you mean 'congestion'?", text)

    def test_wrong_type(self):
        text = self.daemon_says("--check", "--config", self.configuration("[engine]\nspin_us = \"much\"\n"))
        self.assertIn("engine.spin_us is a string, must be an integer", text)

    def test_out_of_range(self):
        self.assertIn("out of range", self.daemon_says("--check", "--config", self.configuration("[limits]\nmax_sockets = 1\n")))

    def test_no_toml(self):
        self.assertIn("bad.toml:1", self.daemon_says("--check", "--config", self.configuration("[[[\n")))

    def test_no_such_file(self):
        self.assertIn("/nonexistent.toml", self.daemon_says("--check", "--config", "/nonexistent.toml"))

    def test_unknown_option(self):
        self.assertIn("--wrong", self.daemon_says("--wrong"))

    def test_good_configuration_is_accepted(self):
        example = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../packaging/config.example.toml")
        done = subprocess.run([CULVERTD, "--check", "--config", example], capture_output=True, text=True, timeout=20)
        self.assertEqual(done.returncode, 0, done.stderr)

    # culvert ------------------------------------------------------------------------------------------------------------

    def test_run_without_a_daemon_goes_on_with_kernel_sockets(self):
        text = self.culvert_says("run", "--socket", "/nonexistent/sock", "--", "echo", "hello", code=0)
        self.assertEqual(text, "culvert: no daemon at /nonexistent/sock (No such file or directory); echo runs on kernel sockets")
        self.assertEqual(self.standard_output, "hello\n")

    def test_strict_run_without_a_daemon_refuses(self):
        text = self.culvert_says("run", "--strict", "--socket", "/nonexistent/sock", "--", "echo", "hello", code=125)
        self.assertEqual(text, "culvert: no daemon at /nonexistent/sock (No such file or directory); echo not started (--strict)")
        self.assertEqual(self.standard_output, "")

    def test_stat_without_a_daemon(self):
        self.assertIn("cannot reach culvertd at /nonexistent/sock", self.culvert_says("stat", "--socket", "/nonexistent/sock", code=1))

    def test_program_not_found(self):
        text = self.culvert_says("run", "--socket", self.culvert.socket, "--", "no-such-program", code=127)
        self.assertEqual(text, "culvert: no-such-program: No such file or directory")

    def test_program_that_is_no_program(self):
        self.assertIn("/etc/passwd", self.culvert_says("run", "--socket", self.culvert.socket, "--", "/etc/passwd", code=126))

    def test_nothing_to_run(self):
        self.assertIn("PROGRAM", self.culvert_says("run", "--socket", self.culvert.socket, code=125))

    def test_unknown_subcommand(self):
        self.culvert_says("frobnicate", code=2)

    def test_exit_code_is_the_programs(self):
        self.assertEqual(self.culvert_says("run", "--socket", self.culvert.socket, "--", "sh", "-c", "exit 42", code=42, lines=0), "")

    def test_static_program(self):
        program = self._static_program()
        text = self.culvert_says("run", "--socket", self.culvert.socket, "--", program, code=0)
        self.assertIn("LD_PRELOAD cannot reach", text)
        self.assertIn("static", text)
        self.assertIn("runs on kernel sockets", text)
        text = self.culvert_says("run", "--strict", "--socket", self.culvert.socket, "--", program, code=125)
        self.assertIn("not started (--strict)", text)

    def test_setuid_program(self):
        program = self._reachable_copy(shutil.which("true"), "setuid-true")
        os.chown(program, 65534, 65534)
        os.chmod(program, 0o4755)
        text = self.culvert_says("run", "--socket", self.culvert.socket, "--", program, code=0)
        self.assertIn("LD_PRELOAD cannot reach", text)
        self.assertRegex(text, "set-?u(ser-ID|id)")

    # programs ------------------------------------------------------------------------------------------------------------

    def test_address_in_use_is_the_kernels_answer(self):
        """Two servers on one port: the second fails as on kernel sockets."""
        code = ("import socket\na=socket.create_server(('0.0.0.0',7500))\n"
                "try: socket.create_server(('0.0.0.0',7500))\nexcept OSError as error: print(error.errno)")
        self.assertEqual(self.lab.call(PYTHON, "-c", code, host="server", under=self.culvert).strip(), "98")

    def test_privileged_port_of_an_unprivileged_program(self):
        code = "import socket\ntry: socket.create_server(('0.0.0.0',81))\nexcept PermissionError: print('refused')"
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        words = [*self.culvert.run_words(), PYTHON, "-c", code]
        self.assertEqual(self.lab.call(*nobody, *self._reachable(words), host="server").strip(), "refused")

    # strangers on the control socket ---------------------------------------------------------------------------------------

    def test_library_of_another_version_is_refused_with_both_versions(self):
        """What an older libculvert.so would say to this daemon (shm/attach_protocol.h: Hello)."""
        hello = struct.pack("<IIQII64s32s", 0x43560001, 999, int.from_bytes(b"CULVRT01", "little"), os.getpid(), 0, b"old", b"9.9.9")
        before = self.culvert.stat()["control"]["version_refused"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(10)
            client.connect(self.culvert.socket)
            client.send(hello)
            welcome = client.recv(1000)
        self.assertEqual(struct.unpack_from("<II", welcome), (0x43560002, 1), "Welcome with the status kVersion")
        self.assertIn(b"speaks ABI 999", welcome)
        self.assertEqual(self.culvert.stat()["control"]["version_refused"], before + 1)

    def test_nonsense_on_the_control_socket_harms_nobody(self):
        for message in (b"", b"x", b"\0" * 120, b"{", b"{}", b'{"request": "fire"}', os.urandom(60000)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(10)
                client.connect(self.culvert.socket)
                client.send(message)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 20):
                    pass
        self.culvert.stat()

    def test_daemon_that_talks_nonsense(self):
        """Something else listens on the path: the program runs on kernel sockets, `stat` says what may be wrong."""
        with _Stranger(self.lab.path("stranger.sock"), lambda peer: peer.send(b"nonsense" * 22)) as path:
            self.assertEqual(self._fetch_loopback(path), "hello")
            self.assertIn("is it culvertd", self.culvert_says("stat", "--socket", path, code=1))

    def test_daemon_of_another_version(self):
        """Welcome says kOk but with another ABI: the library does not believe it."""
        welcome = struct.pack("<III", 0x43560002, 0, 999).ljust(1180, b"\0")
        with _Stranger(self.lab.path("newer.sock"), lambda peer: peer.send(welcome)) as path:
            self.assertEqual(self._fetch_loopback(path), "hello")

    def test_daemon_that_does_not_answer(self):
        with _Stranger(self.lab.path("mute.sock"), lambda _: None) as path:
            self.assertEqual(self._fetch_loopback(path), "hello")

    # helpers -------------------------------------------------------------------------------------------------------------

    def _reachable_copy(self, path, name):
        """A copy that everybody may run: the build tree may lie where others may not look."""
        copy = self.lab.path(name)
        if not os.path.exists(copy):
            shutil.copy(path, copy)
            os.chmod(copy, stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        return copy

    def _reachable(self, words):
        from netns import LIBRARY
        library = self._reachable_copy(LIBRARY, "libculvert.so")
        return ["env", f"CULVERT_LIBRARY={library}", self._reachable_copy(words[0], "culvert"), *words[1:]]

    def _fetch_loopback(self, control):
        """What a program under `culvert run` gets over 127.0.0.1 from itself: does its TCP work?"""
        code = ("import socket\ns=socket.create_server(('127.0.0.1',0))\nc=socket.create_connection(s.getsockname())\n"
                "a,_=s.accept();a.sendall(b'hello');print(c.recv(5).decode())")
        done = subprocess.run([*self.lab.enter_words("server"), CULVERT, "run", "--socket", control, "--", PYTHON, "-c", code],
                              capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def _static_program(self):
        source, program = self.lab.path("static.c"), self.lab.path("static")
        with open(source, "w") as file:
            file.write("int main(void) { return 0; }\n")
        self.lab.call("gcc", "-static", "-o", program, source)
        return program


@unittest.skipIf(ON_KERNEL, "these stories are about culvertd and culvert")
class FullTables(Story):
    """A daemon with room for 64 sockets: what does not fit is served by the kernel, and nothing is lost."""
    config = "[limits]\nmax_sockets = 64\n"

    def test_more_connections_than_sockets(self):
        nginx = Nginx(self.lab, under=self.culvert)
        text = self.lab.call("wrk", "-t1", "-c200", "-d3s", f"http://{self.lab.ip4()}/small", timeout=60)
        self.assertIn("requests in", text)
        self.assertNotIn("Non-2xx", text)
        until_free = subprocess.run(["curl", "-sSf", "-m", "20", f"http://{self.lab.ip4()}/big.bin"], capture_output=True, timeout=60)
        self.assertEqual(sha256(until_free.stdout), nginx.hashes["big.bin"])
        self.assertTrue(nginx.program.running())
        self.assertTrue(self.culvert.program.running())


@unittest.skipIf(ON_KERNEL, "these stories are about culvertd and culvert")
class FewTenants(Story):
    """A daemon with room for one program: the second runs on kernel sockets."""
    config = "[limits]\nmax_tenants = 1\n"

    def test_second_program_runs_on_kernel_sockets(self):
        first = Nginx(self.lab, under=self.culvert)
        second = Nginx(self.lab, under=self.culvert, port=8080, falls_back=True)
        with self.carried(1):
            self.lab.call("curl", "-sSf", f"http://{self.lab.ip4()}/small")
        before = self.culvert.counters()["tcp_passive_opens"]
        self.lab.call("curl", "-sSf", f"http://{self.lab.ip4()}:8080/small")
        self.assertEqual(self.culvert.counters()["tcp_passive_opens"], before)
        self.assertTrue(first.program.running() and second.program.running())


if __name__ == "__main__":
    run()
