"""The moment of birth: one job process, by the cheapest way that this machine knows, and why one never ran.

A child that only borrows memory is the cheapest; where that is not known a zygote forks, and where there can be no
zygote either, the keeper itself.
"""

from __future__ import annotations

import array
import contextlib
import errno
import marshal
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from workers.keeper import processes, zygote
from workers.keeper.child import Birth, become_job, candidates, open_null_above_gate
from workers.keeper.spawn import Spawner

ZYGOTE_TIMEOUT_S = 10.0
# The descriptor under which the zygote finds its socket.
ZYGOTE_FD = 4


class Born(NamedTuple):
    """A child: its process id, and a function that says once, after its end, why it never ran (None if it did)."""

    pid: int
    failure: Callable[[], str | None]


class Launcher:
    """Gives birth to job processes."""

    def __init__(self, way: str = "auto") -> None:
        """Set what every child inherits, and find out which way there is; `way` spawn, zygote or fork insists."""
        self._null_fd = open_null_above_gate()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        processes.forbid_new_privileges()
        self._spawner: Spawner | None = None
        self._zygote: socket.socket | None = None
        self.zygote_pids: set[int] = set()
        if way in ("auto", "spawn"):
            try:
                self._spawner = Spawner(self._null_fd, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            except OSError:
                if way == "spawn":
                    raise
        self._asks_zygote = self._spawner is None and way != "fork" and zygote.can_be_used()
        if self._asks_zygote:
            self._start_zygote()

    def fork(self, birth: Birth, fds: Sequence[int]) -> Born:
        """Start the child; it may be before its exec still.

        `fds` are its stdout and stderr, and the gate where there is one; the caller closes them. Raises OSError.
        """
        if self._spawner is not None:
            pid, outcome = self._spawner.fork(birth, fds)
            return Born(pid, lambda: _explain(birth.file, outcome.number) if outcome.number else None)
        failure_read, failure_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        ordered = [*fds[:2], failure_write, *fds[2:]]
        try:
            if self._asks_zygote:
                pid = self._ask_zygote(birth, ordered)
            else:
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    become_job(birth, ordered, self._null_fd, parent)
        except BaseException:
            os.close(failure_read)
            raise
        finally:
            os.close(failure_write)
        return Born(pid, partial(_told_by, failure_read, birth.file))

    def reaped(self, pid: int) -> None:
        """Note that a zygote ended; the next request starts another."""
        if pid in self.zygote_pids:
            self.zygote_pids.discard(pid)
            self._close_zygote()

    def _start_zygote(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-I", "-S", zygote.__file__, str(ZYGOTE_FD), str(os.getpid())]
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), ZYGOTE_FD)]
            pid = os.posix_spawn(sys.executable, argv, {}, file_actions=actions, setsigmask=())
        ours.settimeout(ZYGOTE_TIMEOUT_S)
        self.zygote_pids.add(pid)
        self._zygote = ours
        return ours

    def _close_zygote(self) -> None:
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    def _ask_zygote(self, birth: Birth, fds: Sequence[int]) -> int:
        payload = marshal.dumps([list(value) if isinstance(value, tuple) else value for value in birth])
        sock = self._zygote or self._start_zygote()
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sock.sendmsg([zygote.HEADER.pack(len(payload))], rights)
            sock.sendall(payload)
            reply = sock.recv(zygote.REPLY.size, socket.MSG_WAITALL)
            if len(reply) != zygote.REPLY.size:
                raise ConnectionResetError(errno.ECONNRESET, "the zygote ended")
        except OSError:
            # Its answer may come later and must not be taken for the next one's.
            for pid in self.zygote_pids:
                processes.send(pid, 9)
            self._close_zygote()
            raise
        (pid,) = zygote.REPLY.unpack(reply)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return int(pid)


def _told_by(fd: int, file: str) -> str | None:
    """Read a child's own words from its pipe, and close that."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        data = os.read(fd, 65536)
    os.close(fd)
    if not data:
        return None
    # CPython's C code writes "OSError:<errno in hex>:<where>", and `become_job` does the same.
    try:
        number = int(data.split(b":")[1], 16)
    except (IndexError, ValueError):
        return f"{file}: {data.decode(errors='replace')}"
    return _explain(file, number)


def _explain(file: str, number: int) -> str:
    if number == errno.ENOENT and os.path.exists(file):
        return f"{file}: its interpreter does not exist: {interpreter_of(file) or 'the one its ELF header names'}"
    if number == errno.ENOEXEC:
        return f"{file}: not a program for this machine and not a script that begins with #!"
    if number == errno.EACCES:
        return f"{file}: permission denied (is it executable, and may the job's user reach it?)"
    return f"{file}: {os.strerror(number)}"


def interpreter_of(file: str) -> str | None:
    """Return the interpreter a script names in its first line; None when it is no script or unreadable."""
    try:
        with open(file, "rb") as script:
            line = script.readline(256)
    except OSError:
        return None
    words = line[2:].split() if line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else None


def missing_program(argv0: str, executable: str | None, env: dict[str, str]) -> str | None:
    """Say why the program cannot be found, None when it can.

    For sandboxed jobs, whose exec happens out of the keeper's sight: their system paths are the host's.
    """
    file = executable or argv0
    if "/" not in file:
        if any(os.access(path, os.X_OK) for path in candidates(file, env)):
            return None
        return f"{file}: not found in PATH {env.get('PATH', os.defpath)!r}"
    if not os.path.isabs(file):
        return None
    if not os.path.exists(file):
        return f"{file}: No such file or directory"
    if not os.path.isfile(file) or not os.stat(file).st_mode & 0o111:
        return f"{file}: permission denied (it is not an executable file)"
    interpreter = interpreter_of(file)
    if interpreter is not None and not os.path.exists(interpreter):
        return f"{file}: its interpreter does not exist: {interpreter}"
    return None
