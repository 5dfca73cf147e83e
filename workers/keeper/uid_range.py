"""Users of jobs, by the thousand: a keeper holds a range of its own, so that no two keepers share a job's user.

Killing by user is what ends a job's last process; with a shared user it would end a stranger's. Standard library only.
"""

from __future__ import annotations

import fcntl
import os

RANGE = 1000
RANGES = 64
FOLDER = "/run/cfab-uids"


class NoRangeLeft(RuntimeError):
    """Every range from the base on is held by another keeper of this host."""


def take_range(base: int, directory: str) -> tuple[int, int]:
    """Return the first uid of a free range and the locked descriptor that holds it while this process lives.

    The range that `directory` had before comes first, so that leftovers of a dead keeper are still ours to kill.
    Raises NoRangeLeft.
    """
    os.makedirs(FOLDER, 0o700, exist_ok=True)
    noted = os.path.join(directory, "uid_base")
    candidates = [base + RANGE * number for number in range(RANGES)]
    before = _read(noted)
    if before in candidates:
        candidates.insert(0, before)
    for first in candidates:
        lock = os.open(os.path.join(FOLDER, str(first // RANGE)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        with open(noted, "w", encoding="ascii") as file:
            file.write(str(first))
        return first, lock
    raise NoRangeLeft(f"all {RANGES} ranges of {RANGE} users from {base} on are held by other workers of this host")


def _read(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return -1
