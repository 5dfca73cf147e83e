"""Hosts as network namespaces of this machine: one address each, on one switch that lies in a namespace too.

Nothing of the machine's own network is touched, and no packet can leave. What a killed run left is removed by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.engine import missing

PLACE = Path("/tmp")
PREFIX = "cfab-hosts-"
NAMESPACES = Path("/run/netns")
SWITCH = "switch"
SUBNET = "10.77.0"
COMMAND_S = 20.0
END_S = 20.0
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def require_namespaces() -> None:
    """Skips the test, or fails it in CI, where network namespaces cannot be made."""
    if os.geteuid() != 0:
        missing("hosts as network namespaces need root")
    lacking = [name for name in ("ip", "bridge", "nsenter") if shutil.which(name) is None]
    if lacking:
        missing(f"not installed: {', '.join(lacking)} (Debian: iproute2 util-linux)")


class Network:
    """Named hosts that reach each other by a switch; `root` is a folder for all that runs on them.

    Removed by `close`. A run that was killed leaves namespaces, processes and folder; the next one finds by the lock in
    the folder, which only a living run holds, that they are nobody's, and removes them.
    """

    def __init__(self, *hosts: str) -> None:
        require_namespaces()
        sweep()
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
        self.root.chmod(0o711)
        self._lock = _take(self.root)
        self._deaf: set[str] = set()
        self._addresses = {host: f"{SUBNET}.{number}" for number, host in enumerate(hosts, 1)}
        try:
            self._build()
        except BaseException as exc:
            self.close()
            if isinstance(exc, Refused):
                missing(f"network namespaces cannot be made here: {exc}")
            raise

    def _build(self) -> None:
        switch = self.namespace(SWITCH)
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for host, address in self._addresses.items():
            name = self.namespace(host)
            ip("netns", "add", name)
            ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", name, "link", "set", link, "up")
            ip("-n", switch, "link", "set", host, "master", "br0", "up")

    def namespace(self, host: str) -> str:
        """The name of a host's network namespace."""
        return f"{self.root.name}-{host}"

    def address(self, host: str) -> str:
        """A host's address."""
        return self._addresses[host]

    def words(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on a host, as the process that is started itself."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(host)}", "--", *argv]

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """The calling thread is on a host: its sockets, and all processes and threads that it starts meanwhile."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(NAMESPACES / self.namespace(host), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
            yield
        finally:
            _enter(home)
            os.close(there)
            os.close(home)

    def cut(self, host: str) -> None:
        """No packet passes to or from a host any more, and nobody is told: its own link stays up."""
        self._port(host, "0")

    def deafen(self, host: str) -> None:
        """A host's packets still arrive everywhere, but nothing arrives at the host."""
        if shutil.which("iptables") is None:
            missing("not installed: iptables")
        _run(*self.words(host, ["iptables", "--append", "INPUT", "--in-interface", "eth0", "--jump", "DROP"]))
        self._deaf.add(host)

    def heal(self, host: str) -> None:
        """Packets pass again."""
        self._port(host, "3")
        if host in self._deaf:
            _run(*self.words(host, ["iptables", "--flush", "INPUT"]))
            self._deaf.remove(host)

    def _port(self, host: str, state: str) -> None:
        _run("ip", "netns", "exec", self.namespace(SWITCH), "bridge", "link", "set", "dev", host, "state", state)

    def close(self, keep: bool = False) -> None:
        """Ends whatever still runs on the hosts and removes them, with the folder unless it is to be kept."""
        _remove(self.root, keep)
        os.close(self._lock)


class Refused(RuntimeError):
    """A command about the network failed."""


def ip(*words: str) -> str:
    """Runs `ip`; what it printed. Raises Refused."""
    return _run("ip", *words)


def sweep() -> None:
    """Removes what runs that were killed have left."""
    for folder in PLACE.glob(f"{PREFIX}*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = _take(folder)
            try:
                _remove(folder, keep=False)
            finally:
                os.close(lock)


def _take(folder: Path) -> int:
    """The folder's lock, held until the descriptor is closed or this process ends. Raises BlockingIOError."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    return lock


def _remove(folder: Path, keep: bool) -> None:
    for path in sorted(NAMESPACES.glob(f"{folder.name}-*")):
        _end_all(partial(_running_in, path.name))
        ip("netns", "delete", path.name)
    # Containers are in namespaces of their own; with their engine gone only their root says whose they are.
    _end_all(lambda: _rooted_in(folder))
    for mount in reversed(_mounts_below(folder)):
        _run("umount", "--lazy", mount)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


def _running_in(namespace: str) -> list[int]:
    return [int(pid) for pid in ip("netns", "pids", namespace).split()]


def _rooted_in(folder: Path) -> list[int]:
    """Processes whose root file system is made of files in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mounts = (process / "mountinfo").read_text(encoding="ascii", errors="replace").splitlines()
            if any(line.split()[4] == "/" and f"{folder}/" in line for line in mounts):
                found.append(int(process.name))
    return found


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="ascii", errors="replace").splitlines()
    return [place for place in (line.split()[1] for line in lines) if place.startswith(f"{folder}/")]


def _end_all(left: Callable[[], list[int]]) -> None:
    """Kills the processes that are left, again until none comes after: a guard starts its keeper anew."""
    give_up_at = time.monotonic() + END_S
    while pids := left():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"processes {pids} do not end")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if done.returncode != 0:
        raise Refused(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
