"""The same socket cases on kernel sockets and through Culvert: whatever a program can see must be the same.

    python3 differential_test.py                                 the test
    python3 differential_test.py --show tcp4/connected/ [...]    both transcripts of the cases whose name contains one of these, and the difference
    python3 differential_test.py --write-options                 writes preload/OPTIONS.md anew
    python3 differential_test.py --differences                   all that differ, exceptions or not
"""
import collections
import difflib
import fnmatch
import os
import subprocess
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))

from story import ON_KERNEL, Story, run  # noqa: E402
import netns  # noqa: E402

CASES = os.path.join(netns.BUILD, "bin/differential_cases")
JOBS = 24
TRIALS = 3  # a case that differs is asked again, alone: what differs once under load is the case's fault


def read_exceptions():
    """[(pattern of names, differs always)] of exceptions.txt."""
    found = []
    with open(os.path.join(HERE, "exceptions.txt")) as file:
        for line in file:
            line = line.rstrip("\n")
            if line.startswith("#") or not line.strip():
                continue
            if line.startswith(" "):
                words = line.split()
                found.append((words[0], words[1:] != ["(sometimes)"]))
    return found


class Bench:
    """Runs the program in the server's namespace, with and without Culvert."""

    def __init__(self, lab, daemon):
        self.lab, self.daemon = lab, daemon
        self.where = [lab.ip4(), lab.ip6(), lab.ip4("client"), lab.ip6("client"), lab.path("peer.sock")]
        # Many cases at once ask for an ICMP error from one host.
        for host in ("client", "server"):
            lab.call("sysctl", "-eqw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0",
                     "net.ipv4.icmp_msgs_per_sec=1000000", "net.ipv4.icmp_msgs_burst=100000", host=host)
        lab.start("peer", [CASES, "peer", *self.where], host="client")
        netns.until(lambda: os.path.exists(lab.path("peer.sock")), "the peer's control socket")

    def transcripts(self, through_culvert, patterns=(), jobs=JOBS):
        """{name: [line, ...]}"""
        words = list(self.lab.enter_words("server"))
        if through_culvert:
            words += self.daemon.run_words()
        done = subprocess.run(words + [CASES, "run", *self.where, str(jobs), *patterns], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", timeout=900)
        if done.returncode != 0:
            raise netns.Failure(f"differential_cases: exit code {done.returncode}\n{done.stderr[-2000:]}")
        found = collections.OrderedDict()
        for line in done.stdout.splitlines():
            if line.startswith("# "):
                lines = found.setdefault(line[2:], [])
            else:
                lines.append(line)
        return found

    def both(self, patterns=(), jobs=JOBS):
        return self.transcripts(False, patterns, jobs), self.transcripts(True, patterns, jobs)


def compared(lines):
    return [line for line in lines if not line.startswith("@")]


def differing(kernel, culvert):
    return [name for name in kernel if compared(kernel[name]) != compared(culvert.get(name, []))]


def difference(kernel, culvert):
    return "\n".join(line for line in difflib.unified_diff(compared(kernel), compared(culvert), "kernel", "culvert", lineterm="", n=1)
                     if not line.startswith(("---", "+++", "@@")))


def steady_differences(bench, kernel, culvert):
    """{name: difference} of what differs again and again, and the names of what does not."""
    first = differing(kernel, culvert)
    left = list(first)
    for trial in range(TRIALS - 1):
        if not left:
            break
        patterns = [f"={name}" for name in left]
        again = bench.both(patterns, jobs=JOBS if trial == 0 else 6)
        for name in left:
            kernel[name], culvert[name] = again[0][name], again[1][name]
        left = differing(*again)  # what has agreed once stays agreed: its transcripts are now the equal ones
    return {name: difference(kernel[name], culvert[name]) for name in left}, [name for name in first if name not in left]


# Each child of 40 cases is a program of its own, and stays one until the last connection that it has left behind has ended.
CONFIG = "[limits]\nmax_tenants = 512\n"


class Differential(Story):
    config = CONFIG

    @classmethod
    def prepare(cls):
        cls.bench = Bench(cls.lab, cls.culvert)

    def test_a_program_cannot_tell(self):
        kernel = self.bench.transcripts(False)
        broken = [name for name, lines in kernel.items() if any(line.startswith("case ") for line in lines)]
        self.assertEqual(broken, [], "cases that do not work on the kernel")
        if ON_KERNEL:
            culvert = self.bench.transcripts(False)
        else:
            with self.carried(100, "tcp_passive_opens"), self.carried(100, "tcp_active_opens"):
                culvert = self.bench.transcripts(True)
            carried = [name for name, lines in culvert.items() if "@path kernel" in lines and "/before_connect" not in name]
            self.assertEqual(carried, [], "cases whose connection went through the kernel")
        found, unsteady = steady_differences(self.bench, kernel, culvert)
        exceptions = [] if ON_KERNEL else read_exceptions()
        used = set()
        unexpected = []
        for name, text in found.items():
            matching = [pattern for pattern, _ in exceptions if fnmatch.fnmatchcase(name, pattern)]
            used.update(matching)
            if not matching:
                unexpected.append(f"# {name}\n{text}")
        print(f"{len(kernel)} cases, {len(found)} differ, {len(unexpected)} of them unexpectedly; unsteady: {unsteady}", file=sys.stderr)
        self.assertFalse(unexpected, f"{len(unexpected)} unexpected differences\n" + "\n".join(unexpected[:40]))
        if not ON_KERNEL:
            self.assertEqual([pattern for pattern, always in exceptions if always and pattern not in used], [],
                             "exceptions that are none any more: take them out")
            with open(OPTIONS) as file:
                self.assertEqual(file.read(), options_table(kernel, culvert), "preload/OPTIONS.md is old: --write-options")


def open_bench():
    lab = netns.Lab().open()
    return lab, Bench(lab, lab.daemon(config=CONFIG))


def show(patterns):
    lab, bench = open_bench()
    try:
        kernel, culvert = bench.both(patterns)
        for name in kernel:
            print(f"# {name}")
            for line in difflib.unified_diff(kernel[name], culvert.get(name, []), "kernel", "culvert", lineterm="", n=1000):
                if not line.startswith(("---", "+++", "@@")):
                    print(line)
            if kernel[name] == culvert.get(name):
                print("\n".join(" " + line for line in kernel[name]))
    finally:
        lab.close()


def list_differences(patterns):
    lab, bench = open_bench()
    try:
        started = time.monotonic()
        kernel = bench.transcripts(False, patterns)
        between = time.monotonic()
        culvert = bench.transcripts(True, patterns)
        print(f"{len(kernel)} cases: {between - started:.1f} s on the kernel, {time.monotonic() - between:.1f} s through Culvert")
        for what, lines in (("kernel", kernel), ("culvert", culvert)):
            took = sorted(((int(line[4:]), name) for name in lines for line in lines[name] if line.startswith("@ms")), reverse=True)
            print(what, "slowest:", took[:12], "all:", sum(time for time, _ in took), "ms")
        for name, lines in kernel.items():
            if any(line.startswith("case ") for line in lines):
                print(f"# {name} does not work on the kernel:", *lines, sep="\n")
        for name, lines in culvert.items():
            if "@path kernel" in lines:
                print(f"# {name}: through the kernel")
        found, unsteady = steady_differences(bench, kernel, culvert)
        groups = collections.defaultdict(list)
        for name, text in found.items():
            groups[text].append(name)
        for text, names in sorted(groups.items(), key=lambda item: -len(item[1])):
            print(f"=== {len(names)}: {' '.join(names[:12])}\n{text}")
        print(f"{len(found)} differ; unsteady: {unsteady}")
    finally:
        lab.close()


OPTIONS = os.path.join(netns.ROOT, "preload/OPTIONS.md")
ROLES = ("fresh", "listening", "before_connect", "connected", "accepted", "udp", "udp_bound")


def verdict(role, kernel, culvert):
    """What a program finds, in a word."""
    if role == "before_connect":
        return "leaves it to the kernel" if "@path kernel" in culvert else "carried"
    calls = [(k, c) for k, c in zip(compared(kernel), compared(culvert)) if k.startswith("set ")]
    works = [(k, c) for k, c in calls if k.endswith("= 0")]
    if compared(kernel) == compared(culvert):
        return "same" if works else "same (refused)"
    if works and all(not c.endswith("= 0") for _, c in works):
        return "refused: " + sorted({c.split()[-1] for _, c in works})[0]
    if [k.split(" = ")[-1] for k, _ in calls] == [c.split(" = ")[-1] for _, c in calls]:
        return "taken; reads otherwise"
    return "differs"


def options_table(kernel, culvert):
    """The text of preload/OPTIONS.md."""
    rows = collections.OrderedDict()
    for name in kernel:
        if name.startswith("option"):
            _, level, option, role = name.split("/")
            rows.setdefault(f"{level} {option}", {})[role] = verdict(role, kernel[name], culvert[name])
    lines = ["# Socket options: the same as the kernel's, or not", "",
             "Made by `tests/differential/differential_test.py --write-options` from what the cases saw; the test fails when it is old.", "",
             "*same*: every length and value gave the kernel's result and was read back as there; *same (refused)*: nothing can be set, as there;",
             "*taken; reads otherwise*: setting succeeds as there, getsockopt says another value; *refused*: the kernel would take it, Culvert does",
             "not, and says so; *differs*: other results for some lengths or values. The reasons: tests/differential/exceptions.txt.",
             "Column *before connect*: an option that is set before the connection is made is carried by Culvert, or leaves it to the kernel.", "",
             "| option | " + " | ".join(role.replace("_", " ") for role in ROLES) + " |", "| --- |" + " --- |" * len(ROLES)]
    for option, roles in sorted(rows.items()):
        lines.append(f"| {option} | " + " | ".join(roles.get(role, "") for role in ROLES) + " |")
    return "\n".join(lines) + "\n"


def write_options():
    lab, bench = open_bench()
    try:
        kernel, culvert = bench.both(["option"])
        steady_differences(bench, kernel, culvert)
        with open(OPTIONS, "w") as file:
            file.write(options_table(kernel, culvert))
    finally:
        lab.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--show"]:
        show(sys.argv[2:])
    elif sys.argv[1:2] == ["--differences"]:
        list_differences(sys.argv[2:])
    elif sys.argv[1:2] == ["--write-options"]:
        write_options()
    else:
        run()
