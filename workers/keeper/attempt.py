"""One attempt as the keeper holds it: its process, its clocks, its end, and its folder on disk.

Knows nothing of sockets or of the event loop.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from workers.keeper.files import FILES, remove_files
from workers.keeper.folders import SPOOL, WORK
from workers.keeper.notes import Notes
from workers.keeper.output import Output
from workers.keeper.spec import Spec
from workers.sandbox.cgroups import Cgroup

RUNNING = "running"
ENDING = "ending"
ENDED = "ended"

# A record has exactly these keys, whoever writes it.
BLANK_RECORD: dict[str, Any] = {
    "exit_code": None,
    "signal": None,
    "oom": False,
    "limit_hit": None,
    "stop_cause": None,
    "lease_lost": False,
    "keeper_lost": False,
    "started_boottime": None,
    "ended_boottime": None,
    "started_wall": None,
    "ended_wall": None,
    "peak_memory_bytes": None,
    "cpu_seconds": None,
    "spool_bytes": 0,
    "truncated_bytes": 0,
    "survivors": 0,
    "spawn_error": None,
}


def nothing() -> None:
    """Say that nothing failed."""


def boottime() -> float:
    """Return seconds since boot, suspended time included: the clock of leases and limits."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Attempt:
    """A started (or finished and not yet forgotten) attempt."""

    __slots__ = (
        "cgroup",
        "deadline",
        "directory",
        "ending_since",
        "failure",
        "gate",
        "job_pid",
        "job_pidfd",
        "kill_sent",
        "notes",
        "orphan_cpu_seconds",
        "orphan_peak_bytes",
        "output",
        "pid",
        "record",
        "spec",
        "state",
        "term_sent",
        "token",
        "uid",
        "wait_status",
    )  # fmt: skip

    def __init__(self, spec: Spec, directory: str, uid: int | None) -> None:
        """Describe the attempt; nothing is made on disk yet."""
        self.spec = spec
        self.directory = directory
        self.uid = uid
        self.token = os.urandom(12).hex()
        self.output = Output(f"{directory}/{SPOOL}", spec.log_cap_bytes)
        self.notes = Notes(directory)
        self.deadline = spec.deadline
        self.state = RUNNING
        self.record = dict(BLANK_RECORD)
        self.cgroup: Cgroup | None = None
        self.pid = 0
        self.job_pid = 0
        self.failure: Callable[[], str | None] = nothing
        self.job_pidfd = -1
        self.gate: int | None = None
        self.wait_status: int | None = None
        self.term_sent = False
        self.kill_sent = False
        self.ending_since = 0.0
        self.orphan_cpu_seconds = 0.0
        self.orphan_peak_bytes = 0

    @property
    def work_dir(self) -> str:
        """The job's own directory, its working directory."""
        return f"{self.directory}/{WORK}"

    @property
    def files_dir(self) -> str:
        """Where the files that came with the job are."""
        return f"{self.directory}/{FILES}"

    def begin_notes(self, boot: str) -> None:
        """Write down what finds this attempt's processes again. Raises OSError."""
        self.notes.begin(
            {
                "token": self.token,
                "uid": self.uid,
                "boot_id": boot,
                "cgroup": self.cgroup.directories() if self.cgroup else [],
                "identity": self.identity(),
                "started_boottime": self.record["started_boottime"],
                "started_wall": self.record["started_wall"],
            }
        )

    def identity(self) -> dict[str, Any]:
        """Return the fields that say which job this is."""
        return {
            "attempt_id": self.spec.attempt_id,
            "job_id": self.spec.job_id,
            "attempt": self.spec.attempt,
            "member": self.spec.member,
        }

    def full_record(self) -> dict[str, Any]:
        """Return the exit record with the attempt's identity."""
        return {**self.identity(), **self.record}

    def describe(self) -> dict[str, Any]:
        """Return what `list` tells about it."""
        return {
            **self.identity(),
            "state": RUNNING if self.state != ENDED else ENDED,
            "pid": self.job_pid or self.pid,
            "slot": self.spec.slot,
            "uid": self.uid,
            "cgroup": self.cgroup.name if self.cgroup else None,
            "deadline": self.deadline,
            "started_boottime": self.record["started_boottime"],
            "started_wall": self.record["started_wall"],
            "spool_bytes": self.output.spool_bytes if self.state != ENDED else self.record["spool_bytes"],
            "record": self.full_record() if self.state == ENDED else None,
        }

    def close_gate(self) -> None:
        """Close the keeper's end of the sandbox gate."""
        if self.gate is not None:
            os.close(self.gate)
            self.gate = None

    def close(self) -> None:
        """Release every descriptor, and remove the files that came with the job."""
        self.close_gate()
        self.output.close()
        if self.job_pidfd >= 0:
            os.close(self.job_pidfd)
        self.job_pidfd = -1
        self.failure()
        self.failure = nothing
        if self.spec.files:
            with contextlib.suppress(OSError):
                remove_files(self.directory)
