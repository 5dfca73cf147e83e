"""The three queues as they are now: how many wait and run, how old the oldest is, and who is next."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from app.domain.priority import PriorityClass
from app.domain.states import ACTIVE, JobState
from app.services.views import JobView, view_of
from app.storage import jobs, nodes
from app.storage import queues as stored
from app.storage.database import Database

LIVE_WITHIN_S = 180.0


@dataclass(frozen=True)
class QueueView:
    """One queue: jobs pending and active, the slots of all live nodes, and the age of the oldest job that waits."""

    priority_class: PriorityClass
    depth: int
    processing: int
    slots: int
    oldest_age_s: float


def queues(db: Database) -> list[QueueView]:
    """All queues, over all tenants. Classes share the nodes: any slot may run a job of any class."""
    depth = dict.fromkeys(PriorityClass, 0)
    processing = dict.fromkeys(PriorityClass, 0)
    with db.transaction("read") as tx:
        for cls, state, number in jobs.counts(tx, None):
            if state == JobState.PENDING:
                depth[PriorityClass(cls)] += number
            elif JobState(state) in ACTIVE:
                processing[PriorityClass(cls)] += number
        slots = sum(row.slots for row in nodes.capacities(tx, LIVE_WITHIN_S) if row.state != "offline")
        ages = {of: stored.oldest_age_s(tx, int(of)) if depth[of] else None for of in PriorityClass}
    return [QueueView(of, depth[of], processing[of], slots, ages[of] or 0.0) for of in PriorityClass]


def next_jobs(db: Database, priority_class: PriorityClass, tenant_id: UUID | None, limit: int = 100) -> list[JobView]:
    """The jobs of a queue that go first: of one tenant (None: of all)."""
    with db.transaction("read") as tx:
        return [view_of(row) for row in stored.next_jobs(tx, int(priority_class), tenant_id, limit)]
