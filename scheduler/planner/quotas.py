"""What tenants may still hold within a plan, and whose quota is kept for a job that its own tenant would pass for ever.

A full quota lets in whatever is small enough as it comes free: a job that needs more of it at a time, or is of a lower
class than others of its tenant, would never find room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from uuid import UUID

from app.domain.policy import Room
from app.domain.tenant import charge_of
from scheduler.planner import why
from scheduler.planner.outcome import Note, QuotaHold
from scheduler.planner.snapshot import Rules, Running, Snapshot, Waiting

_by_age = attrgetter("waiting_since", "queue_seq")
_UNLIMITED = Room()


class Quotas:
    """The room of each tenant, charged with what its jobs get.

    Of each tenant the oldest job that waited `starvation_s` and could start under the whole quota (and on the empty
    fabric: `fits`) has its needs kept: others of the tenant have what that leaves. None is kept for a job that claims
    give the next room that anything of its tenant could use.
    """

    def __init__(self, snapshot: Snapshot, now: float, rules: Rules, fits: Callable[[Waiting], bool]) -> None:
        self._tenants = snapshot.tenants
        self._rooms = {tenant: view.room for tenant, view in snapshot.tenants.items()}
        self._kept = _kept(snapshot, now - rules.starvation_s, fits) if rules.starvation_s else {}
        self.holds = tuple(
            QuotaHold(tenant, job.job_id, charge_of(job.shape, job.members)) for tenant, job in self._kept.items()
        )
        self._waits = dict(self._kept)
        # What others of the tenant have: worked out once, for every waiting job asks.
        self._beside = dict(self._rooms)
        for tenant in self._kept:
            self._weigh(tenant)

    def is_kept_for(self, job: Waiting) -> bool:
        """Whether the quota of its tenant is kept for this job."""
        kept = self._kept.get(job.tenant_id)
        return kept is not None and kept.job_id == job.job_id

    def have_room(self, job: Waiting) -> bool:
        """Whether the job may start now under its tenant's quota, beside what is kept for another."""
        room = self._room(job)
        return room is not None and room.holds(job.shape, job.members)

    def could_have_room(self, job: Waiting) -> bool:
        """Whether it may start now, or its tenant's quota is kept for it until it may."""
        return self.is_kept_for(job) or self.have_room(job)

    def bar(self, job: Waiting) -> Note | None:
        """What of its tenant's quota keeps the job from starting now."""
        if self.have_room(job):
            return None
        whole, waits = self._rooms.get(job.tenant_id, _UNLIMITED), self._waits.get(job.tenant_id)
        if whole is None:
            return Note("undecided")
        if waits is None:
            return why.quota(whole, job)
        return why.quota_kept(whole, job) if self.is_kept_for(job) else why.quota_behind(whole, waits, job)

    def charge(self, job: Waiting) -> None:
        """The job gets what it needs; what was kept for it is that, and is not counted a second time."""
        room = self._rooms.get(job.tenant_id)
        if room is not None and room != _UNLIMITED:
            self._rooms[job.tenant_id] = room.less(job.shape, job.members)
        if self.is_kept_for(job):
            self._waits.pop(job.tenant_id, None)
        self._weigh(job.tenant_id)

    def _room(self, job: Waiting) -> Room | None:
        waits = self._waits.get(job.tenant_id) if self._waits else None
        own = waits is not None and waits.job_id == job.job_id
        return (self._rooms if own else self._beside).get(job.tenant_id, _UNLIMITED)

    def _weigh(self, tenant: UUID) -> None:
        room, waits = self._rooms.get(tenant, _UNLIMITED), self._waits.get(tenant)
        self._beside[tenant] = room if room is None or waits is None else room.less(waits.shape, waits.members)


def _kept(snapshot: Snapshot, before: float, fits: Callable[[Waiting], bool]) -> dict[UUID, Waiting]:
    """For whom the quota of each tenant is kept, in the order of their ages."""
    bounded = {tenant for tenant, view in snapshot.tenants.items() if view.room not in (None, _UNLIMITED)}
    old = (job for job in snapshot.waiting if job.waiting_since <= before and job.tenant_id in bounded)
    oldest: dict[UUID, Waiting] = {}
    for job in sorted(old, key=_by_age) if bounded else ():
        view = snapshot.tenants[job.tenant_id]
        if job.tenant_id not in oldest and view.quota.holds(job.shape, job.members) and fits(job):
            oldest[job.tenant_id] = job
    passed = set(_passed(snapshot, oldest)) if oldest else set()
    return {tenant: job for tenant, job in oldest.items() if job.members > 1 or tenant in passed}


def _passed(snapshot: Snapshot, oldest: dict[UUID, Waiting]) -> Iterator[UUID]:
    """The tenants of whose jobs some might take the room that their oldest (`oldest`) waits for.

    A job that waits before it might, and one of another shape. So might what is like something that runs: it came at
    once and may come again, and its room would be gone before anybody saw it wait.
    """
    for job in snapshot.waiting:
        first = oldest.get(job.tenant_id)
        if first is not None and first is not job:
            same = (job.shape, job.runner) == (first.shape, first.runner)
            if not same or (*_rank(job), job.queue_seq) < (*_rank(first), first.queue_seq):
                yield job.tenant_id
    for run in snapshot.running:
        first = oldest.get(run.tenant_id)
        if first is not None and (run.shape != first.shape or _rank(run) < _rank(first)):
            yield run.tenant_id


def _rank(job: Waiting | Running) -> tuple[int, int]:
    """Claims of a tenant go by this."""
    return job.priority_class, -job.priority
