"""After a keeper died: end what is left of its jobs, and write the records it could not write.

The guard has normally killed everything already; this covers the case that both were killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, NamedTuple

from workers.keeper import processes
from workers.keeper.attempt import (
    BLANK_RECORD,
    Attempt,
    boottime,
)
from workers.keeper.files import remove_files
from workers.keeper.notes import Notes, read_notes
from workers.keeper.spec import Spec
from workers.keeper.uid_range import RANGE

PATIENCE_S = 10.0
PAUSE_S = 0.01


class Leftover(NamedTuple):
    """What a dead keeper noted about one attempt before it started it."""

    directory: str
    token: str
    uid: int | None
    pid: int
    ticks: int | None
    cgroup: list[str]
    same_boot: bool
    identity: dict[str, Any]
    started_boottime: float | None
    started_wall: float | None


def recover(directory: str, uid_base: int | None = None) -> list[Attempt]:
    """Return the ended attempts of earlier keepers, each with its record.

    Whoever has no record is killed as far as anything of it is alive, and recorded as `keeper_lost`.
    """
    root = os.path.join(directory, "attempts")
    boot = processes.boot_id()
    lost, ended = [], []
    for name in sorted(os.listdir(root)):
        folder = os.path.join(root, name)
        notes = _own_notes(folder, name)
        record = notes.get("record")
        if record is None:
            lost.append(_leftover(folder, name, boot, notes))
        else:
            ended.append(_ended_attempt(folder, record))
    survivors = _kill_leftovers([_ours(leftover, uid_base) for leftover in lost if leftover.same_boot])
    for leftover in lost:
        record = _lost_record(leftover, survivors)
        Notes(leftover.directory).add_record(record)
        ended.append(_ended_attempt(leftover.directory, record))
    return ended


def _own_notes(folder: str, name: str) -> dict[str, Any]:
    """Return the notes if they are of this attempt.

    Their file is used again: after a crash of the host some file systems may show what an earlier job left there.
    """
    notes = read_notes(folder)
    told_by = (notes.get("state", {}).get("identity", {}), notes.get("record") or {})
    return notes if all(one.get("attempt_id", name) == name for one in told_by) else {}


def _leftover(folder: str, name: str, boot: str, notes: dict[str, Any]) -> Leftover:
    state: dict[str, Any] = notes.get("state", {})
    return Leftover(
        directory=folder,
        token=state.get("token", ""),
        uid=state.get("uid"),
        pid=notes.get("pid", 0),
        ticks=notes.get("ticks"),
        cgroup=state.get("cgroup", []),
        same_boot=state.get("boot_id") == boot,
        identity=state.get("identity", {"attempt_id": name, "job_id": "", "attempt": 0, "member": 0}),
        started_boottime=state.get("started_boottime"),
        started_wall=state.get("started_wall"),
    )


def _ended_attempt(folder: str, record: dict[str, Any]) -> Attempt:
    spec = Spec(
        attempt_id=os.path.basename(folder), argv=[], env={}, deadline=0.0, job_id=str(record.get("job_id", "")),
        attempt=int(record.get("attempt", 0)), member=int(record.get("member", 0)),
    )  # fmt: skip
    with contextlib.suppress(OSError):
        remove_files(folder)
    attempt = Attempt(spec, folder, None)
    attempt.record = {key: record.get(key, value) for key, value in BLANK_RECORD.items()}
    return attempt


def _lost_record(leftover: Leftover, survivors: dict[str, int]) -> dict[str, Any]:
    spool_bytes = 0
    with contextlib.suppress(OSError):
        spool_bytes = os.stat(os.path.join(leftover.directory, "spool")).st_size
    return {
        **leftover.identity,
        **BLANK_RECORD,
        "keeper_lost": True,
        "started_boottime": leftover.started_boottime,
        "started_wall": leftover.started_wall,
        "ended_boottime": boottime(),
        "ended_wall": time.time(),
        "spool_bytes": spool_bytes,
        "survivors": survivors.get(leftover.directory, 0),
    }


def _ours(leftover: Leftover, uid_base: int | None) -> Leftover:
    """Without its user where that user is another keeper's by now: those processes are not ours to kill."""
    held = uid_base is not None and leftover.uid is not None and uid_base <= leftover.uid < uid_base + RANGE
    return leftover if held else leftover._replace(uid=None)


def _kill_leftovers(lost: list[Leftover]) -> dict[str, int]:
    """Kill until nothing is found or patience ends; return how many were still there, by directory."""
    give_up_at = boottime() + PATIENCE_S
    while True:
        found = _find(lost)
        if not found or boottime() > give_up_at:
            break
        for pids in found.values():
            processes.kill_trees(pids)
        time.sleep(PAUSE_S)
    for leftover in lost:
        for folder in leftover.cgroup:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    return {folder: len(pids) for folder, pids in found.items()}


def _find(lost: list[Leftover]) -> dict[str, list[int]]:
    if not lost:
        return {}
    found: dict[str, list[int]] = {}
    by_token = {leftover.token: leftover for leftover in lost if leftover.token}
    by_uid = {leftover.uid: leftover for leftover in lost if leftover.uid is not None}
    # A process id alone proves nothing; with its start time it does, and then also for its session.
    sessions = {
        leftover.pid: leftover
        for leftover in lost
        if leftover.pid and leftover.ticks is not None and processes.start_ticks(leftover.pid) == leftover.ticks
    }
    for pid in processes.all_pids():
        if pid == os.getpid() or processes.is_zombie(pid):
            continue
        owner = by_uid.get(processes.owner_uid(pid) or -1) or sessions.get(processes.session_of(pid) or 0)
        owner = owner or by_token.get(processes.marker_of(pid) or "")
        if owner is not None:
            found.setdefault(owner.directory, []).append(pid)
    for leftover in lost:
        for folder in leftover.cgroup:
            for pid in _cgroup_pids(folder):
                if not processes.is_zombie(pid) and pid not in found.get(leftover.directory, []):
                    found.setdefault(leftover.directory, []).append(pid)
    return found


def _cgroup_pids(folder: str) -> list[int]:
    try:
        with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except (OSError, ValueError):
        return []
