"""Simulated jobs that wait, by scheduling key, as the database has them: what a claim sees, what the planner sees."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from app.domain.policy import KeySummary
from app.domain.priority import PriorityClass
from app.domain.resources import Free, Resources
from app.domain.tenant import Tier
from scheduler.planner import Waiting
from scheduler.simulate.trace import TraceJob

HEADS = 8
"""Jobs of each key that the planner sees."""


@dataclass(slots=True)
class SimJob:
    """A job on its way. `left_s` is how long it still runs: less after a checkpoint, all of it after a restart."""

    number: int
    trace: TraceJob
    id: UUID
    tenant_id: UUID
    cls: PriorityClass
    shape: Resources
    left_s: float
    waiting: Waiting


class KeyQueue:
    """The waiting jobs of one scheduling key, oldest first."""

    __slots__ = ("_summary", "id", "jobs", "members", "shape")

    def __init__(self, id: int, shape: Resources, members: int) -> None:
        self.id, self.shape, self.members = id, shape, members
        self.jobs: deque[SimJob] = deque()
        self._summary: KeySummary | None = None

    def summary(self) -> KeySummary:
        """The key as `choose` sees it."""
        if self._summary is None:
            head = self.jobs[0]
            self._summary = KeySummary(
                self.id, head.tenant_id, head.cls, head.cls.default_priority, self.shape, head.number,
                waiting=len(self.jobs),
            )  # fmt: skip
        return self._summary

    def put(self, job: SimJob) -> None:
        """By age: a job that was preempted stands before those that came after it."""
        at = len(self.jobs)
        while at and self.jobs[at - 1].number > job.number:
            at -= 1
        self.jobs.insert(at, job)
        self._summary = None

    def pop(self) -> SimJob:
        """The oldest job."""
        self._summary = None
        return self.jobs.popleft()

    def remove(self, job: SimJob) -> None:
        """That job, which is near the head."""
        self._summary = None
        self.jobs.remove(job)


class Backlog:
    """All waiting jobs."""

    def __init__(self) -> None:
        self._keys: dict[tuple[UUID, PriorityClass, Resources, int], KeyQueue] = {}
        self._by_id: list[KeyQueue] = []
        self._plain: dict[PriorityClass, dict[int, KeyQueue]] = {cls: {} for cls in PriorityClass}
        self._live: dict[int, KeyQueue] = {}
        self.count = 0

    def key_of(self, tenant_id: UUID, cls: PriorityClass, shape: Resources, members: int) -> int:
        """The id of a scheduling key; the same as long as the simulation runs."""
        known = self._keys.get((tenant_id, cls, shape, members))
        if known is None:
            known = self._keys[tenant_id, cls, shape, members] = KeyQueue(len(self._by_id), shape, members)
            self._by_id.append(known)
        return known.id

    def put(self, job: SimJob) -> None:
        """The job waits."""
        queue = self._by_id[job.waiting.key_id]
        queue.put(job)
        self._live[queue.id] = queue
        if queue.members == 1:
            self._plain[job.cls][queue.id] = queue
        self.count += 1

    def pop(self, key_id: int) -> SimJob:
        """The oldest job of a key no longer waits."""
        queue = self._by_id[key_id]
        job = queue.pop()
        self._gone(queue, job)
        return job

    def remove(self, job: SimJob) -> None:
        """This job no longer waits."""
        queue = self._by_id[job.waiting.key_id]
        queue.remove(job)
        self._gone(queue, job)

    def _gone(self, queue: KeyQueue, job: SimJob) -> None:
        self.count -= 1
        if not queue.jobs:
            del self._live[queue.id]
            self._plain[job.cls].pop(queue.id, None)

    def candidates(self, cls: PriorityClass, free: Free) -> list[KeySummary]:
        """The keys of plain jobs of which one fits, by what a statement can compare."""
        gpus, cpus, memory = len(free.gpus), free.cpus_milli, free.memory_bytes
        return [
            queue.summary()
            for queue in self._plain[cls].values()
            if queue.shape.gpus <= gpus and queue.shape.cpus_milli <= cpus and queue.shape.memory_bytes <= memory
        ]

    def waits(self, cls: PriorityClass) -> bool:
        """Whether a plain job of the class waits."""
        return bool(self._plain[cls])

    def heads(self, also: Iterable[SimJob]) -> Iterator[SimJob]:
        """Some jobs from the head of each key, and `also` those that have a reservation."""
        seen = set()
        for queue in self._live.values():
            for job in islice(queue.jobs, HEADS):
                seen.add(job.number)
                yield job
        yield from (job for job in also if job.number not in seen)


def waiting_of(job: TraceJob, number: int, key_id: int, tenant_id: UUID, shape: Resources, preempts: bool) -> Waiting:
    """The job as the planner sees it."""
    cls = PriorityClass[job.class_.upper()]
    return Waiting(
        UUID(int=number + 1), key_id, tenant_id, cls, cls.default_priority, Tier.HIGH, shape, job.gang,
        queue_seq=number, waiting_since=job.submit_s, limit_s=job.limit_s,
        can_preempt=preempts and cls == PriorityClass.FOREGROUND,
    )  # fmt: skip
