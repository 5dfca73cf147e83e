"""What running processes use now: from their control groups, or from /proc where there are none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from workers.keeper.processes import all_pids, owner_uid
from workers.runners.base import Sample
from workers.sandbox.cgroups import Cgroup, CgroupLayer

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Running:
    """Where to find one attempt's processes."""

    attempt_id: str
    pid: int
    uid: int | None
    cgroup: str | None


@dataclass(slots=True)
class _Process:
    parent: int
    session: int
    memory_bytes: int
    cpu_seconds: float


def measure(running: Sequence[Running], layer: CgroupLayer | None) -> list[Sample]:
    """Return a sample of each attempt; those that ended meanwhile are left out."""
    samples = []
    walked = []
    for attempt in running:
        grouped = _from_group(attempt.attempt_id, layer.open(attempt.cgroup)) if attempt.cgroup and layer else None
        if grouped is not None:
            samples.append(grouped)
        else:
            walked.append(attempt)
    table = _read_table() if walked else {}
    below = _by_parent(table)
    for attempt in walked:
        pids = _processes_of(attempt, table, below)
        if pids:
            memory_bytes = sum(table[pid].memory_bytes for pid in pids)
            cpu_seconds = sum(table[pid].cpu_seconds for pid in pids)
            samples.append(Sample(attempt.attempt_id, memory_bytes, cpu_seconds, len(pids), pids=frozenset(pids)))
    return samples


def processes_of(running: Sequence[Running]) -> dict[str, frozenset[int]]:
    """The processes of each attempt: its first one and all below it."""
    table = _read_table() if running else {}
    below = _by_parent(table)
    return {one.attempt_id: frozenset(_processes_of(one, table, below)) for one in running}


def _from_group(attempt_id: str, group: Cgroup) -> Sample | None:
    """What the group's counters say; None where the host does not count both, or the group is gone."""
    usage = group.usage()
    if usage.memory_bytes is None or usage.cpu_seconds is None:
        return None
    # Files that a job has read stay charged to it until somebody needs the room; nobody would call that its use.
    memory_bytes = max(0, usage.memory_bytes - group.cache_bytes())
    pids = frozenset(group.pids())
    return Sample(attempt_id, memory_bytes, usage.cpu_seconds, len(pids), pids=pids)


def _processes_of(attempt: Running, table: dict[int, _Process], below: dict[int, list[int]]) -> set[int]:
    """Return the process, all below it, and what left the tree but kept its session or its slot's user."""
    if attempt.pid not in table:
        return set()
    found, queue = set(), [attempt.pid]
    queue += [pid for pid, process in table.items() if process.session == attempt.pid]
    if attempt.uid is not None:
        queue += [pid for pid in table if owner_uid(pid) == attempt.uid]
    while queue:
        pid = queue.pop()
        if pid not in found:
            found.add(pid)
            queue += below.get(pid, [])
    return found


def _by_parent(table: dict[int, _Process]) -> dict[int, list[int]]:
    below: dict[int, list[int]] = {}
    for pid, process in table.items():
        below.setdefault(process.parent, []).append(pid)
    return below


def _read_table() -> dict[int, _Process]:
    table = {}
    for pid in all_pids():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue
        # Fields from the third on (proc(5)); the second is the name, which may hold anything.
        words = stat[stat.rindex(b")") + 2 :].split()
        ticks = sum(int(words[index]) for index in (11, 12, 13, 14))
        table[pid] = _Process(int(words[1]), int(words[3]), int(words[21]) * _PAGE_BYTES, ticks / _TICKS_PER_S)
    return table
