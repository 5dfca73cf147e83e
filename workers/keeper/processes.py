"""Reading /proc and signalling process trees: who is whose child, who carries which marker, when it started.

Knows nothing of attempts or sockets; every function tolerates processes that end meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable, Iterator

MARKER = "CFAB_ATTEMPT_TOKEN"

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PF_FORKNOEXEC = 0x40
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def become_subreaper() -> None:
    """Have orphaned descendants re-parented to this process instead of init."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"PR_SET_CHILD_SUBREAPER: {os.strerror(code)}")


def die_with_parent(parent_pid: int) -> None:
    """Get SIGKILL when the parent's thread ends; end at once if it has ended already.

    A change of user clears the setting, so it comes after every setuid.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(127)


def forbid_new_privileges() -> None:
    """Set no_new_privs: no set-user-ID program can raise this process or its children."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_bounding_set() -> None:
    """Empty the capability bounding set; the first number the kernel does not know ends the walk."""
    for capability in range(64):
        if _prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            return


def _read(path: str) -> bytes:
    # Plain descriptors: a file object costs five more system calls, and the keeper reads /proc for every job.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    data = b""
    try:
        while piece := os.read(fd, 65536):
            data += piece
    except OSError:
        pass
    finally:
        os.close(fd)
    return data


def boot_id() -> str:
    """Return the id of this boot; process ids mean nothing across two of them."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def start_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot, or None when it has ended."""
    stat = _read(f"/proc/{pid}/stat")
    try:
        return int(stat[stat.rindex(b")") + 2 :].split()[19])
    except (ValueError, IndexError):
        return None


def children(pid: int) -> list[int]:
    """Return the direct children of every thread of `pid`, zombies included."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            found.extend(int(child) for child in _read(f"/proc/{pid}/task/{tid}/children").split())
    return found


def own_children() -> list[int]:
    """Return the direct children of this single-threaded process in one read."""
    pid = os.getpid()
    return [int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()]


def descendants(pid: int) -> list[int]:
    """Return every process below `pid`, parents before children."""
    found, queue = [], [pid]
    while queue:
        below = children(queue.pop())
        found.extend(below)
        queue.extend(below)
    return found


def marker_of(pid: int) -> str | None:
    """Return the attempt token in a process's environment, None when it is absent or unreadable."""
    prefix = MARKER.encode() + b"="
    for entry in _read(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return None


def owner_uid(pid: int) -> int | None:
    """Return the user a process runs as, None when it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def session_of(pid: int) -> int | None:
    """Return a process's session id, None when it has ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def is_zombie(pid: int) -> bool:
    """Tell whether a process has ended (reaped or not)."""
    stat = _read(f"/proc/{pid}/stat")
    return not stat or stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] in (b"Z", b"X")


def has_execed(pid: int) -> bool:
    """Tell whether a child runs a program of its own already: its PF_FORKNOEXEC flag is clear (or it has ended)."""
    stat = _read(f"/proc/{pid}/stat")
    try:
        return not int(stat[stat.rindex(b")") + 2 :].split()[6]) & _PF_FORKNOEXEC
    except (ValueError, IndexError):
        return True


def all_pids() -> Iterator[int]:
    """Yield every process id of this pid namespace."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def send(pid: int, number: int) -> None:
    """Signal one process; one that has ended is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def send_group(pgid: int, number: int) -> None:
    """Signal a process group; one without members is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)


def kill_trees(roots: Iterable[int]) -> None:
    """SIGKILL the given processes and everything below them.

    They are stopped first, top down, so that a parent cannot start another child behind the walk.
    """
    for root in roots:
        send(root, signal.SIGSTOP)
        tree = [root]
        for pid in tree:
            for child in children(pid):
                send(child, signal.SIGSTOP)
                tree.append(child)
        for pid in reversed(tree):
            send(pid, signal.SIGKILL)
