"""What a forked child does to itself before it becomes the job: only system calls, then exec.

Runs in the keeper's zygote (or in the keeper, where that cannot be used). Imports as little as it can: each fork
copies the memory that imports have filled.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from workers.keeper import processes

# Sandboxed children get this descriptor for the gate.
GATE_FD = 3
SOFT_OPEN_FILES = 1024
HARD_OPEN_FILES = 65536


class Birth(NamedTuple):
    """Everything a child needs to become the job, except its descriptors. Plain values: it travels as marshal."""

    argv: list[str]
    file: str
    env: dict[str, str]
    cwd: str
    join_paths: Sequence[str]
    uid: int | None
    pids_max: int
    gated: bool


def open_null_above_gate() -> int:
    """Open /dev/null so that it and every later descriptor stay above the gate's number, which children overwrite."""
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    while fd <= GATE_FD:
        fd = os.dup(fd)
    return fd


def candidates(file: str, env: dict[str, str]) -> list[str]:
    """Return the paths under which a program may be: itself, or by each directory of the job's own PATH."""
    if "/" in file:
        return [file]
    return [os.path.join(folder, file) for folder in env.get("PATH", os.defpath).split(":")]


def become_job(birth: Birth, fds: Sequence[int], null_fd: int, parent: int) -> NoReturn:
    """Confine this process and exec the program; what fails is written to the failure descriptor.

    `fds` are stdout, stderr, failure, and the gate where there is one. Never returns.
    """
    try:
        _confine(birth, fds, null_fd, parent)
        os.execvpe(birth.file, birth.argv, birth.env)
    except OSError as exc:
        # The words in which CPython's own fork_exec tells.
        os.write(fds[2], b"OSError:%x:" % (exc.errno or 0))
    except BaseException as exc:
        os.write(fds[2], f"{exc!r}"[:1000].encode(errors="replace"))
    finally:
        os._exit(127)


def _confine(birth: Birth, fds: Sequence[int], null_fd: int, parent: int) -> None:
    os.setsid()
    for path in birth.join_paths:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"0")
        os.close(fd)
    os.dup2(null_fd, 0)
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    if birth.gated:
        os.dup2(fds[3], GATE_FD)
    # Python ignores these two; an ignored signal would stay ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = HARD_OPEN_FILES if most == resource.RLIM_INFINITY else min(HARD_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(SOFT_OPEN_FILES, hard), hard))
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
