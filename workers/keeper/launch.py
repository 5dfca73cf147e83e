"""The moment of birth: fork, confine and exec one job process.

Two ways. Plain jobs (no group, no gate) go through CPython's own C code, which needs no page of the keeper's heap
(vfork) or hardly any (fork, for another user): 2 to 3 times as fast. The others run a few lines of Python between
fork and exec, which is safe because the keeper has a single thread.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from workers.keeper import processes

# Sandboxed children get this descriptor for the gate; the keeper keeps its own numbers above it.
GATE_FD = 3
LOWEST_OWN_FD = 10
SOFT_OPEN_FILES = 1024
HARD_OPEN_FILES = 65536


class Birth(NamedTuple):
    """Everything a child needs to become the job."""

    argv: list[str]
    file: str
    env: dict[str, str]
    cwd: str
    stdout_fd: int
    stderr_fd: int
    gate_fd: int | None
    join_paths: Sequence[str]
    uid: int | None
    pids_max: int


class Launcher:
    """Forks job processes; what went wrong in one before its exec is told through a pipe of its own."""

    def __init__(self) -> None:
        """Set what every child inherits, and find out which way of forking this Python offers."""
        self._null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        # Nothing of the keeper may sit on the gate's number: the child would overwrite it before using it.
        while self._null_fd < LOWEST_OWN_FD:
            self._null_fd = os.dup(self._null_fd)
        self._own_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        hard = min(HARD_OPEN_FILES, self._own_files[1]) if self._own_files[1] > 0 else HARD_OPEN_FILES
        self._job_files = (min(SOFT_OPEN_FILES, hard), self._own_files[1])
        self._job_files_hard = (self._job_files[0], hard)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        processes.forbid_new_privileges()
        self._quick = _find_quick_fork()

    def fork(self, birth: Birth) -> tuple[int, int]:
        """Start the child, not waiting for its exec; return its process id and the pipe for `failure`."""
        failure_read, failure_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if self._quick is not None and birth.gate_fd is None and not birth.join_paths:
                pid = self._fork_quickly(birth, failure_read, failure_write)
            else:
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    self._become_job(birth, parent, failure_write)
        except BaseException:
            os.close(failure_read)
            raise
        finally:
            os.close(failure_write)
        return pid, failure_read

    def _fork_quickly(self, birth: Birth, failure_read: int, failure_write: int) -> int:
        assert self._quick is not None
        fork_exec, last = self._quick
        env = [os.fsencode(f"{name}={value}") for name, value in birth.env.items()]
        user: tuple[Any, ...] = (None, None, None) if birth.uid is None else (birth.uid, [], birth.uid)
        # The child has the limits that its parent has at the fork; root may set its own back afterwards, and
        # everyone the soft one.
        resource.setrlimit(resource.RLIMIT_NOFILE, self._job_files)
        if birth.uid is not None:
            resource.setrlimit(resource.RLIMIT_NPROC, (birth.pids_max, birth.pids_max))
        try:
            pid: int = fork_exec(
                birth.argv, tuple(os.fsencode(path) for path in candidates(birth.file, birth.env)), False, (),
                birth.cwd, env, self._null_fd, -1, -1, birth.stdout_fd, -1, birth.stderr_fd, failure_read,
                failure_write, True, True, -1, *user, 0o022, None, *last,
            )  # fmt: skip
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._own_files)
        return pid

    def _become_job(self, birth: Birth, parent: int, failure_fd: int) -> NoReturn:
        try:
            self._confine(birth, parent)
            os.execvpe(birth.file, birth.argv, birth.env)
        except BaseException as exc:
            os.write(failure_fd, json.dumps(_explain(birth.file, exc)[:1000]).encode())
        finally:
            os._exit(127)

    def _confine(self, birth: Birth, parent: int) -> None:
        os.setsid()
        for path in birth.join_paths:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, b"0")
            os.close(fd)
        os.dup2(self._null_fd, 0)
        os.dup2(birth.stdout_fd, 1)
        os.dup2(birth.stderr_fd, 2)
        if birth.gate_fd is not None:
            os.dup2(birth.gate_fd, GATE_FD)
        # Python ignores these two; an ignored signal would stay ignored across exec.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._job_files_hard)
        os.umask(0o022)
        os.chdir(birth.cwd)
        if birth.uid is not None:
            # The limit counts per user, and this user is this slot's alone.
            resource.setrlimit(resource.RLIMIT_NPROC, (birth.pids_max, birth.pids_max))
            processes.drop_bounding_set()
            os.setgroups([])
            os.setresgid(birth.uid, birth.uid, birth.uid)
            os.setresuid(birth.uid, birth.uid, birth.uid)
        processes.die_with_parent(parent)


def failure(fd: int, file: str) -> str | None:
    """Return why a child never reached its exec, None when it did. To be asked after its end; closes `fd`."""
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        data = b""
    finally:
        os.close(fd)
    if not data:
        return None
    if data.startswith(b'"'):
        return str(json.loads(data))
    # CPython's C code writes "OSError:<errno in hex>:<where>".
    parts = data.split(b":")
    try:
        number = int(parts[1], 16)
    except (IndexError, ValueError):
        return f"{file}: {data.decode(errors='replace')}"
    return _explain(file, OSError(number, os.strerror(number)))


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
                ["x"], (b"/nonexistent/x",), False, (), "/", [], -1, -1, -1, -1, -1, -1, read_fd, write_fd, True, True,
                -1, None, None, None, 0o022, None, *last,
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


def _explain(file: str, exc: BaseException) -> str:
    if not isinstance(exc, OSError):
        return f"{file}: {exc!r}"
    if exc.errno == errno.ENOENT and os.path.exists(file):
        return f"{file}: its interpreter does not exist: {interpreter_of(file) or 'the one its ELF header names'}"
    if exc.errno == errno.ENOEXEC:
        return f"{file}: not a program for this machine and not a script that begins with #!"
    if exc.errno == errno.EACCES:
        return f"{file}: permission denied (is it executable, and may the job's user reach it?)"
    return f"{file}: {exc.strerror}"


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
