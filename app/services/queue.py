"""Queue positions: how many jobs would start before a job, if nodes took one after another and all of them fitted.

The order is that of `choose`: inside a class the tenant that uses least for its weight, inside a tenant the greater
priority, then the older job. Jobs of other classes do not count, nor what a node cannot hold, nor what ends meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from app.domain.errors import NotFound
from app.domain.policy import cost
from app.domain.resources import Resources
from app.domain.states import JobState
from app.storage import queue as stored
from app.storage.database import Database, Row, Tx

EXACT_TO = 10_000
"""Positions inside a tenant are counted so far and no farther."""


@dataclass(frozen=True)
class Position:
    """Where a job waits. `position`: 1 is next, 0 is not waiting (it runs, has ended, or may not start yet).

    `in_tenant` is its place among its own tenant's jobs of its class, `of` the number of all jobs pending in that
    class. When not `exact` there are more than EXACT_TO before it, and both places are the least they can be.
    """

    position: int
    exact: bool = True
    in_tenant: int = 0
    of: int = 0


@dataclass(frozen=True)
class Rival:
    """A tenant that waits in the same class: its weighted use now, its weight, its oldest job, how many wait."""

    share: float
    weight: float
    head: int
    waiting: int


def position(db: Database, tenant_id: UUID, job_id: UUID) -> Position:
    """Where a job waits now. Costs the same whatever the backlog. Raises NotFound, also for another tenant's job."""
    with db.transaction("read") as tx:
        at = stored.place(tx, job_id)
        if at is None or at.tenant_id != tenant_id:
            raise NotFound("Job not found", job_id=str(job_id))
        return position_in(tx, at)


def position_in(tx: Tx, at: Row) -> Position:
    """`position` of a row of `storage.queue.place`, inside the caller's transaction."""
    if at.state != JobState.PENDING or not at.ready:
        return Position(0)
    before = stored.before_in_tenant(tx, at, EXACT_TO)
    rivals = {row.tenant_id: _rival(row) for row in stored.waiting_tenants(tx, at._mapping["class"])}
    # A tenant that may start nothing now (its quota is used up) is no rival; its own jobs are told their order still.
    mine = rivals.pop(at.tenant_id, Rival(0.0, 1.0, at.queue_seq, before + 1))
    each = cost(Resources(at.cpus_milli, at.memory_bytes, at.gpus))
    others = turns_before(before, mine, each, rivals.values())
    of = max(mine.waiting, before + 1) + sum(rival.waiting for rival in rivals.values())
    return Position(1 + before + others, before < EXACT_TO, 1 + before, of)


def turns_before(nth: int, mine: Rival, each: float, rivals: Iterable[Rival]) -> int:
    """How many jobs of the rivals start before `mine` starts one more after `nth` others of its own.

    All jobs are taken to cost `each`. A tenant has its turn while its share is the least; equal shares go by the age of
    their tenants' oldest jobs, as they do inside one claim.
    """
    share = mine.share + nth * each / mine.weight
    turns = 0
    for rival in rivals:
        due = (share - rival.share) * rival.weight / each
        whole = round(due)
        # Shares are sums of fractions: what is this close to a tie is one, and in a tie the older goes first.
        tie = math.isclose(due, whole, rel_tol=1e-9, abs_tol=1e-6)
        number = whole + (rival.head < mine.head) if tie else math.ceil(due)
        turns += min(max(0, number), rival.waiting)
    return turns


def _rival(row: Row) -> Rival:
    used = Resources(int(row.used_cpus), int(row.used_memory), int(row.used_gpus))
    return Rival(cost(used) / row.weight if row.used_jobs else 0.0, row.weight, row.head, int(row.waiting))
