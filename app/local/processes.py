"""Processes by number and start time, as /proc shows them: a number alone may by now be somebody else's.

Knows nothing of what the processes are for.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this boot, never mistaken for a later one with the same number."""

    pid: int
    start_ticks: int
    boot_id: str

    @property
    def runs(self) -> bool:
        """Whether this very process is still there and not merely waiting to be reaped."""
        now = find(self.pid)
        return now == self

    def signal(self, number: int, group: bool = False) -> None:
        """Signals it, or the whole group it leads; does nothing once it is gone."""
        if not self.runs:
            return
        try:
            if group and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            # It ended between the look and the signal.
            pass


def find(pid: int) -> Process | None:
    """The process with this number, None when there is none (or only its exit status)."""
    try:
        # The name in parentheses may itself hold spaces and parentheses, so fields are counted behind the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (OSError, UnicodeError):
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[19]), boot_id())


def command_line(pid: int) -> tuple[str, ...]:
    """The words a process was started with; empty when it is gone or hides them."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(os.fsdecode(word) for word in raw.split(b"\0")[:-1])


def working_in(directory: Path) -> list[Process]:
    """All other processes whose working directory is `directory`, such as every part of a database server."""
    inside = os.path.realpath(directory)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            cwd = str((entry / "cwd").readlink())
        except OSError:
            continue
        process = find(int(entry.name)) if cwd == inside else None
        if process is not None:
            found.append(process)
    return found


def wait_gone(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Returns as soon as all are gone, or after `timeout_s` with those that still run."""
    deadline = time.monotonic() + timeout_s
    left = [process for process in processes if process.runs]
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = [process for process in left if process.runs]
    return left


def end(processes: Iterable[Process], first: int, timeout_s: float, group: bool = False) -> None:
    """Signals all with `first`, and with SIGKILL those that still run after `timeout_s`; returns when all are gone."""
    chosen = list(processes)
    for process in chosen:
        process.signal(first, group)
    left = wait_gone(chosen, timeout_s)
    for process in left:
        process.signal(signal.SIGKILL, group)
    wait_gone(left, timeout_s)


@cache
def boot_id() -> str:
    """What tells this boot of the machine from any other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
