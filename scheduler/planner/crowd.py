"""Who may hold a reservation: how many jobs, and which plain ones need one to ever start."""

from __future__ import annotations

from collections.abc import Iterable

from app.domain.resources import Resources
from scheduler.planner.snapshot import Rules, Snapshot, Waiting

LEAST_PREEMPTORS, MOST_PREEMPTORS, MOST_LOOKS = 4, 32, 4000
"""Jobs for which others make room at a time, and nodes looked at for all of them in a cycle.

What they wait for is gone within a grace, so they take no place from those who wait for a job's whole limit; but each
costs a look at every node.
"""


class Crowd:
    """The jobs that have a reservation in this plan.

    A plain job no larger than any other that waits or runs needs none: the end of one like it makes room, and claims go
    in order. Larger ones would see that room taken piece by piece. At most half of all reservations are for plain jobs,
    one a key, so that gangs, which have no other way to start, always find a place.
    """

    def __init__(self, snapshot: Snapshot, rules: Rules) -> None:
        self._rules = rules
        self._jobs = self._plain = self._preemptors = 0
        looks = MOST_LOOKS // max(1, len(snapshot.nodes))
        self._most_preemptors = max(LEAST_PREEMPTORS, min(MOST_PREEMPTORS, looks))
        self._keys: set[int] = set()
        plain = {job.key_id: job for job in snapshot.waiting if job.members == 1}.values()
        known = {(job.priority_class, _amounts(job.shape)) for job in plain}
        # What runs came at once and may come again: its room would be gone before anybody saw it wait.
        known.update((run.priority_class, _amounts(run.shape)) for run in snapshot.running if run.leader is None)
        self._least = [_least(amounts for of, amounts in known if of >= cls) for cls in range(3)]

    def has_place(self) -> bool:
        """Whether one more job may have a reservation."""
        return self._jobs < self._rules.max_reservations

    def may_preempt(self, job: Waiting) -> bool:
        """Whether others may make room for one more job, and for this one."""
        return job.can_preempt and self._preemptors < self._most_preemptors

    def deserves(self, job: Waiting, now: float, kept: bool) -> bool:
        """Whether the job gets one: a gang does at once; a plain one if it must gather room and has waited for it."""
        if job.members > 1 or kept:
            return True
        if self._plain >= max(1, self._rules.max_reservations // 2) or job.key_id in self._keys:
            return False
        return now - job.waiting_since >= self._rules.reserve_after_s and self._must_gather(job)

    def add(self, job: Waiting, preempts: bool) -> None:
        """The job has one; `preempts`: of what others were told to give back."""
        if preempts:
            self._preemptors += 1
            return
        self._jobs += 1
        if job.members == 1:
            self._plain += 1
            self._keys.add(job.key_id)

    def _must_gather(self, job: Waiting) -> bool:
        pairs = zip(_amounts(job.shape), self._least[job.priority_class], strict=True)
        return any(mine > least for mine, least in pairs)


def _amounts(shape: Resources) -> tuple[int, int, int]:
    return shape.gpus, shape.cpus_milli, shape.memory_bytes


def _least(known: Iterable[tuple[int, int, int]]) -> tuple[int, ...]:
    """The least of each amount that any of these asks for."""
    return tuple(min(column) for column in zip(*known, strict=True)) or (0, 0, 0)
