"""The moment of birth: one job process, by the cheapest way that can confine it.

Plain jobs of the keeper's own user go through CPython's C code (vfork, 0.4 ms); all others through the zygote.
"""

from __future__ import annotations

import array
import contextlib
import errno
import importlib
import marshal
import os
import resource
import socket
import sys
from collections.abc import Sequence
from typing import Any

from workers.keeper import processes, zygote
from workers.keeper.child import SOFT_OPEN_FILES, Birth, become_job, open_null_above_gate

ZYGOTE_TIMEOUT_S = 10.0
# The descriptor under which the zygote finds its socket.
ZYGOTE_FD = 4


class Launcher:
    """Forks job processes; what went wrong in one before its exec is told through a pipe of its own."""

    def __init__(self) -> None:
        """Set what every child inherits, and find out which ways of forking there are."""
        self._null_fd = open_null_above_gate()
        self._own_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        processes.forbid_new_privileges()
        self._quick = _find_quick_fork()
        self._zygote: socket.socket | None = None
        self.zygote_pids: set[int] = set()
        if zygote.can_be_used():
            self._start_zygote()

    def fork(self, birth: Birth, fds: Sequence[int]) -> tuple[int, int]:
        """Start the child, not waiting for its exec; return its process id and the pipe for `failure`.

        `fds` are its stdout and stderr, and the gate where there is one; the caller closes them. Raises OSError.
        """
        failure_read, failure_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        ordered = [*fds[:2], failure_write, *fds[2:]]
        try:
            if self._quick is not None and birth.uid is None and not birth.gated and not birth.join_paths:
                pid = self._fork_quickly(birth, ordered, failure_read)
            elif zygote.can_be_used():
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
        return pid, failure_read

    def reaped(self, pid: int) -> None:
        """Note that a zygote ended; the next request starts another."""
        if pid in self.zygote_pids:
            self.zygote_pids.discard(pid)
            self._close_zygote()

    def _fork_quickly(self, birth: Birth, fds: Sequence[int], failure_read: int) -> int:
        assert self._quick is not None
        fork_exec, last = self._quick
        env = [os.fsencode(f"{name}={value}") for name, value in birth.env.items()]
        paths = tuple(os.fsencode(path) for path in candidates(birth.file, birth.env))
        # The child has the limits that its parent has at the fork.
        soft = min(SOFT_OPEN_FILES, self._own_files[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, self._own_files[1]))
        try:
            pid: int = fork_exec(
                birth.argv, paths, False, (), birth.cwd, env, self._null_fd, -1, -1, fds[0], -1, fds[1],
                failure_read, fds[2], True, True, -1, None, None, None, 0o022, None, *last,
            )  # fmt: skip
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._own_files)
        return pid

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


def failure(fd: int, file: str) -> str | None:
    """Return why a child never reached its exec, None when it did. To be asked after its end; closes `fd`."""
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


def _find_quick_fork() -> tuple[Any, tuple[Any, ...]] | None:
    """Return CPython's fork_exec and the last arguments this version wants; None when it cannot be used.

    It is the function under subprocess.Popen, but private: so it is tried with a program that does not exist.
    """
    try:
        fork_exec: Any = importlib.import_module("_posixsubprocess").fork_exec
    except (ImportError, AttributeError):
        return None
    for last in ((True,), ()):
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        try:
            pid = fork_exec(
                ["x"], (b"/nonexistent/x",), False, (), "/", [], -1, -1, -1, -1, -1, -1, read_fd, write_fd,
                True, True, -1, None, None, None, 0o022, None, *last,
            )  # fmt: skip
            os.waitpid(pid, 0)
            if os.read(read_fd, 100).startswith(b"OSError:2:"):
                return fork_exec, last
        except TypeError:
            continue
        finally:
            os.close(read_fd)
            os.close(write_fd)
    return None


def candidates(file: str, env: dict[str, str]) -> list[str]:
    """Return the paths under which a program may be: itself, or by each directory of the job's own PATH."""
    if "/" in file:
        return [file]
    return [os.path.join(folder, file) for folder in env.get("PATH", os.defpath).split(":")]


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
