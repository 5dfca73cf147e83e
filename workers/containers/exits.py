"""How a container's program ended: exactly, where the kernel tells, else as the engine does (128 + n is a signal).

Also finds the processes of a container on this host. Knows nothing of the engine's socket.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from workers.containers.attempt import Attempt
from workers.keeper.attempt import boottime
from workers.keeper.gate import Folded, exit_from_pidfd
from workers.keeper.processes import children

INIT_WAIT_S = 1.0
_PAUSE_S = 0.001
# The engine's init runs the program, and says so in the program's name when it cannot.
_NOT_RUN = re.compile(rb"\[FATAL tini \(\d+\)\] (exec .* failed: [^\n]*)\s*\Z")
_NEVER_RAN = (126, 127)
# How programs end that the engine stops with itself.
_STOPPED = (137, 143, 255)


def is_of_container(pid: int, container: str) -> bool:
    """Whether a process id is, on this host, a process of the container: the engine may live in another world."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            if container in file.read():
                return True
        # With a namespace of its own the path does not show: its root file system is the container's then.
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
            return container in file.read()
    except OSError:
        return False


def program_below(init_pid: int) -> int:
    """A pidfd of the program that the container's init runs, -1 when it is gone.

    Waits until the init has it: before that, a SIGTERM to the init would be lost.
    """
    until = time.monotonic() + INIT_WAIT_S
    while time.monotonic() < until and os.path.exists(f"/proc/{init_pid}"):
        below = children(init_pid)
        if below:
            try:
                return os.pidfd_open(below[0])
            except OSError:
                return -1
        time.sleep(_PAUSE_S)
    return -1


def read_exit(attempt: Attempt, state: Mapping[str, Any] | None) -> None:
    """Fill in how the attempt ended from the container's last state; None: somebody removed the container."""
    record = attempt.record
    record["ended_boottime"], record["ended_wall"] = _ended(record, state)
    if state is None:
        record["keeper_lost"] = not attempt.kill_sent
        if attempt.kill_sent:
            record["signal"] = 9
        return
    if state.get("Status") == "created":
        # Its keeper died just before it started: nothing of it ran, and the job is given another try.
        record["stop_cause"] = record["stop_cause"] or "keeper_shutdown"
        return
    code = int(state["ExitCode"])
    if attempt.rebooted or _was_stopped(attempt, code, state):
        record["keeper_lost"] = True
        return
    not_run = _NOT_RUN.search(attempt.error_tail) if code in _NEVER_RAN else None
    if not_run is not None:
        record["spawn_error"] = not_run[1].decode(errors="replace")
        return
    status = exit_from_pidfd(attempt.program_pidfd)
    if status is not None and not (attempt.kill_sent and code == 137):
        ended = Folded.plain(status)
    else:
        ended = Folded.by_shell_rule(code << 8 if 0 <= code <= 255 else 255 << 8)
    record["exit_code"], record["signal"] = ended.exit_code, ended.signal
    record["oom"] = bool(state.get("OOMKilled"))


def _was_stopped(attempt: Attempt, code: int, state: Mapping[str, Any]) -> bool:
    """Whether the engine ended it while it was shut down, or died with it: no doing of the job's."""
    ours = attempt.term_sent or attempt.kill_sent or state.get("OOMKilled")
    return attempt.engine_broke and code in _STOPPED and not ours


def _ended(record: Mapping[str, Any], state: Mapping[str, Any] | None) -> tuple[float, float]:
    """When it ended, by the engine's clock as far as that is plausible: on the boot clock and on the wall."""
    now, wall = boottime(), time.time()
    try:
        finished = datetime.fromisoformat(str((state or {})["FinishedAt"])[:19] + "+00:00").timestamp()
    except (KeyError, ValueError):
        return now, wall
    ago = wall - finished
    if not 2.0 < ago < wall - (record["started_wall"] or wall):
        return now, wall
    return now - ago, wall - ago
