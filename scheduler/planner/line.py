"""The order in which waiting jobs are served: the starved, then class by class as claims go."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple
from uuid import UUID

from app.domain.policy import TenantView, cost
from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from scheduler.planner.quotas import Quotas
from scheduler.planner.snapshot import PREEMPTING, Rules, Snapshot, Waiting
from scheduler.planner.victims import outranks

_LAST = (math.inf, 0, UUID(int=0))
_seq, _priority = attrgetter("queue_seq"), attrgetter("priority")


class Turn(NamedTuple):
    """A job whose turn it is, and the class that it counts as.

    `kept`: it has a reservation; `preempts`: of what others were told to give back for it; `starved`: it waited so
    long that it goes before all others.
    """

    job: Waiting
    counts_as: PriorityClass
    kept: bool = False
    starved: bool = False
    preempts: bool = False


class Line:
    """The jobs of a snapshot in order. Whoever walks it charges what a job gets, so that equal tenants alternate.

    First jobs that waited `starvation_s`, oldest first, as many as `aged_share` allows, without those that could not
    start on empty nodes (`fits`) or under their quota, unless that is kept for them. Then those for whom others make
    room: nobody else may have what these give back, or they gave it back in vain. Then each class: those with a
    reservation in the order in which they got it, for a reservation is kept until its job starts, but after those of
    a higher tier that could preempt them when they ran; then, as `choose` has it, the tenant that uses least for its
    weight, inside it the greater priority, then the older.
    """

    def __init__(
        self, snapshot: Snapshot, now: float, rules: Rules, quotas: Quotas, fits: Callable[[Waiting], bool]
    ) -> None:
        self._snapshot, self._now, self._rules, self._quotas, self._fits = snapshot, now, rules, quotas, fits
        self._tenants = snapshot.tenants
        self._charged = False
        self._shares = {tenant: view.share for tenant, view in snapshot.tenants.items()}
        self._made = {held.job_id: held.made_at for held in snapshot.reserved}
        self._preempts = {held.job_id for held in snapshot.reserved if held.why == PREEMPTING}

    def charge(self, job: Waiting) -> None:
        """Counts what the job gets as used by its tenant, for the order of the rest."""
        weight = self._tenants.get(job.tenant_id, TenantView()).weight
        gets = job.members * cost(job.shape) / weight
        self._shares[job.tenant_id] = self._shares.get(job.tenant_id, 0.0) + gets
        self._charged = True

    def __iter__(self) -> Iterator[Turn]:
        starved = self._starved()
        for job in starved:
            yield Turn(job, PriorityClass.FOREGROUND, job.job_id in self._made, starved=True)
        first = {job.job_id for job in starved}
        preempting = self._preempts - first
        for job in self._in_turn(job for job in self._snapshot.waiting if job.job_id in preempting):
            yield Turn(job, job.priority_class, kept=True, preempts=True)
        first |= preempting
        kept: dict[PriorityClass, list[Waiting]] = {cls: [] for cls in PriorityClass}
        rest: dict[PriorityClass, list[Waiting]] = {cls: [] for cls in PriorityClass}
        for job in self._snapshot.waiting:
            if not first or job.job_id not in first:
                (kept if self._made and job.job_id in self._made else rest)[job.priority_class].append(job)
        for cls in PriorityClass:
            strong = self._strong(kept[cls], rest[cls])
            for job in self._in_turn(kept[cls]):
                yield from (Turn(one, cls) for one in self._fairly([one for one in strong if outranks(one, job)]))
                strong = [one for one in strong if not outranks(one, job)]
                yield Turn(job, cls, kept=True)
            for job in self._fairly(rest[cls]):
                yield Turn(job, cls)

    def _strong(self, kept: list[Waiting], rest: list[Waiting]) -> list[Waiting]:
        """Takes out of `rest` who may preempt a job of a lower tier than one that has a reservation has."""
        if not kept:
            return []
        strong = [job for job in rest if any(outranks(job, one) for one in kept)]
        if strong:
            ids = {job.job_id for job in strong}
            rest[:] = [job for job in rest if job.job_id not in ids]
        return strong

    def _in_turn(self, jobs: Iterable[Waiting]) -> list[Waiting]:
        """Jobs with a reservation in the order in which they got it."""
        return sorted(jobs, key=lambda job: (self._made[job.job_id], job.queue_seq))

    def _fairly(self, jobs: list[Waiting]) -> Iterator[Waiting]:
        queues: dict[UUID, list[Waiting]] = {}
        # Sorted twice, for both go by one attribute: far faster than once by a tuple, and this is every waiting job.
        for job in sorted(sorted(jobs, key=_seq, reverse=True), key=_priority):
            queues.setdefault(job.tenant_id, []).append(job)
        shares = self._shares
        heap = [(shares.get(tenant, 0.0), queue[-1].queue_seq, tenant) for tenant, queue in queues.items()]
        heapq.heapify(heap)
        while heap:
            share, _head, tenant = heap[0]
            queue, other = queues[tenant], min(heap[1:3], default=_LAST)
            while queue:
                job = queue.pop()
                yield job
                # Only what somebody got moves tenants in the order; most jobs of a backlog get nothing.
                if self._charged or (queue and (share, queue[-1].queue_seq, tenant) > other):
                    self._charged = False
                    break
            if queue:
                heapq.heapreplace(heap, (shares.get(tenant, 0.0), queue[-1].queue_seq, tenant))
            else:
                heapq.heappop(heap)

    def _starved(self) -> list[Waiting]:
        """Who goes before all others: the oldest, and nobody passes one for whom the part is used up."""
        rules = self._rules
        if not rules.starvation_s:
            return []
        before = self._now - rules.starvation_s
        old = [job for job in self._snapshot.waiting if job.waiting_since <= before]
        if not old:
            return []
        used = sum(cost(run.shape) for run in self._snapshot.running if run.waited_s >= rules.starvation_s)
        may_use = rules.aged_share * self._size()
        first: list[Waiting] = []
        for job in sorted(old, key=attrgetter("waiting_since", "queue_seq")):
            if not (self._quotas.could_have_room(job) and self._fits(job)):
                continue
            if not self._quotas.have_room(job):
                # Its quota is gathered for it. Until it has room it takes nothing that others could have.
                first.append(job)
                continue
            used_then = used + job.members * cost(job.shape)
            if used and used_then > may_use:
                break
            used = used_then
            first.append(job)
        return first

    def _size(self) -> float:
        nodes = self._snapshot.nodes
        cpus, memory = sum(node.cpus_milli for node in nodes), sum(node.memory_bytes for node in nodes)
        return cost(Resources(cpus, memory, sum(len(node.gpus) for node in nodes)))
