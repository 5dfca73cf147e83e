"""Jobs as an observer of hosts sees them: tracked ones and the fabric's own in one list, with nodes and usage."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from app.domain.errors import FieldProblem, Invalid, NotFound, StateConflict
from app.domain.resources import MIB
from app.domain.states import TERMINAL, JobState
from app.services import stop
from app.services.views import JobView, view_of
from app.storage import observed, tracked
from app.storage import tenants as stored_tenants
from app.storage.database import Database, Row, Tx
from app.storage.observed import Wanted

log = logging.getLogger(__name__)

SILENT_S = 86_400.0
"""A tracked job that nobody reported on for so long is not shown as running to Prometheus."""
MAX_SERIES = 10_000
"""So many pairs of a running job and a node are shown to Prometheus at most, the newest ones."""

_ALWAYS = datetime.min.replace(tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Usage:
    """What a job uses: percent of the CPUs it was given, MiB, and the mean percent of its GPUs (None: not known)."""

    cpu_percent: float = 0
    memory_mib: int = 0
    gpu_percent: float | None = None


@dataclass(frozen=True)
class UsageSample:
    """Usage at one time."""

    at: datetime
    usage: Usage


@dataclass(frozen=True)
class ObservedJob:
    """One job of either kind. `fabric` is its view when the fabric runs it, None when it is only tracked."""

    id: UUID
    shown_id: str
    user: str
    nodes: Sequence[str]
    state: JobState
    start_time: datetime | None
    end_time: datetime | None
    runtime_s: float
    usage: Usage
    fabric: JobView | None = None


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list holds; None is any."""

    states: frozenset[JobState] | None = None
    user: str | None = None
    node: str | None = None


@dataclass(frozen=True)
class Running:
    """One running job on one node, for monitoring."""

    job_id: str
    user: str
    node: str
    runtime_s: float
    cpu_percent: float
    memory_bytes: int
    gpu_percent: float | None


@dataclass(frozen=True)
class Overview:
    """Numbers over all tenants for monitoring."""

    running: Sequence[Running]
    by_state: Mapping[JobState, int] = field(default_factory=dict)
    ever_made: int = 0


def get(db: Database, tenant_id: UUID, key: UUID | str) -> ObservedJob:
    """One job, by its id in the fabric (a UUID) or by what its reporter calls it. Raises NotFound."""
    with db.transaction("read") as tx:
        return _find(tx, tenant_id, key)


def list_jobs(
    db: Database, tenant_id: UUID, wanted: JobFilter, limit: int, offset: int
) -> tuple[list[ObservedJob], int]:
    """Both kinds, newest first, with the exact number of all that match."""
    with db.transaction("read") as tx:
        which = _wanted(tx, tenant_id, wanted)
        total = observed.total(tx, which)
        # Nothing to find may be the longest search.
        places = observed.page(tx, which, limit, offset) if offset < total else []
        views = [fabric_view(row) for row in observed.by_ids(tx, [p.id for p in places if not p.tracked])]
        views += [tracked_view(row) for row in tracked.by_ids(tx, [p.id for p in places if p.tracked])]
        return sorted(views, key=lambda view: view.id, reverse=True), total


def cancel(db: Database, tenant_id: UUID, job_id: UUID, by: str) -> tuple[ObservedJob, list[str]]:
    """Stops a job of the fabric; the job as it is then, and the nodes to wake.

    One that is being cancelled or is cancelled stays so. Raises NotFound, and Invalid when it has ended otherwise.
    """
    get(db, tenant_id, job_id)
    nodes: list[str] = []
    try:
        _, nodes = stop.request_stop(db, tenant_id, job_id, by=by)
    except StateConflict as exc:
        if exc.context.get("status") != JobState.CANCELLED.word:
            raise Invalid(problems=[FieldProblem("state", f"cannot become cancelled: {exc.message}")]) from exc
    return get(db, tenant_id, job_id), nodes


def hide(db: Database, tenant_id: UUID, job_id: UUID, by: str) -> list[str]:
    """Takes a job of the fabric out of this view, and stops it if it has not ended; the nodes to wake.

    It stays where all other views find it. Raises NotFound.
    """
    get(db, tenant_id, job_id)
    nodes: list[str] = []
    try:
        _, nodes = stop.request_stop(db, tenant_id, job_id, by=by)
    except StateConflict:
        pass  # It has ended by itself.
    with db.transaction("hide") as tx:
        if not observed.hide(tx, tenant_id, job_id):
            raise _not_found(job_id)
    return nodes


def samples(
    db: Database, tenant_id: UUID, key: UUID | str, start: datetime | None, before: datetime | None, limit: int
) -> tuple[str, list[UsageSample], int]:
    """The job's shown id; its samples in ascending order; how many match. Raises NotFound.

    With `start` the first `limit` of them from then on, without it the latest; all before `before`.
    """
    first, end, latest = start or _ALWAYS, before or _NEVER, start is None
    with db.transaction("read") as tx:
        job = _find(tx, tenant_id, key)
        if job.fabric is None:
            rows, total = tracked.samples(tx, job.id, first, end, limit, latest)
            found = [UsageSample(r.at, Usage(r.cpu_percent, r.memory_mib, r.gpu_percent)) for r in rows]
        else:
            rows, total = observed.samples(tx, job.id, first, end, limit, latest)
            cpus_milli = observed.cpus_milli(tx, job.id)
            found = [UsageSample(r.at, _measured(r, cpus_milli * r.members)) for r in rows]
    return job.shown_id, found, total


def overview(db: Database) -> Overview:
    """What monitoring shows, over all tenants. No two of the running ones have job_id, user and node in common."""
    with db.transaction("read") as tx:
        fabric = observed.running(tx, MAX_SERIES + 1)
        reported = observed.reporting(tx, SILENT_S, MAX_SERIES + 1)
        counts = {JobState(state): n for state, n in observed.state_counts(tx).items()}
        ever_made = observed.ever_made(tx)
    rows = sorted([*fabric, *reported], key=lambda row: row.id, reverse=True)
    if len(rows) > MAX_SERIES:
        log.warning("more than %d pairs of a running job and a node: only the newest are shown", MAX_SERIES)
    return Overview(_distinct(rows[:MAX_SERIES]), counts, ever_made)


def tracked_view(row: Row | None) -> ObservedJob:
    """The view of a tracked job's row."""
    assert row is not None
    return ObservedJob(
        id=row.id,
        shown_id=row.client_id,
        user=row.owner,
        nodes=tuple(row.nodes),
        state=JobState(row.state),
        start_time=row.started_at,
        end_time=row.ended_at,
        runtime_s=max(0.0, row.runtime_s),
        usage=Usage(row.cpu_percent, row.memory_mib, row.gpu_percent),
    )


def fabric_view(row: Row) -> ObservedJob:
    """The view of a job of the fabric; its user is its tenant, for that is who owns it."""
    return ObservedJob(
        id=row.id,
        shown_id=str(row.id),
        user=row.owner,
        nodes=tuple(row.nodes),
        state=JobState(row.state),
        start_time=row.started_at,
        end_time=row.finished_at if JobState(row.state) in TERMINAL else None,
        runtime_s=max(0.0, row.runtime_s or 0.0),
        usage=_measured(row, row.cpus_milli * (row.members or 1)),
        fabric=view_of(row),
    )


def _measured(row: Row, cpus_milli: int) -> Usage:
    """Usage from absolute values. A job may use more CPUs than it was given where it has no hard limit: that is 100."""
    share = 0.0 if not cpus_milli else 100_000 * (row.cpu_cores or 0.0) / cpus_milli
    return Usage(
        cpu_percent=round(min(100.0, max(0.0, share)), 2),
        memory_mib=(row.memory_bytes or 0) // MIB,
        gpu_percent=None if row.gpu_percent is None else round(float(row.gpu_percent), 2),
    )


def _find(tx: Tx, tenant_id: UUID, key: UUID | str) -> ObservedJob:
    row = tracked.find(tx, tenant_id, key)
    if row is not None:
        return tracked_view(row)
    row = observed.find(tx, tenant_id, key) if isinstance(key, UUID) else None
    if row is None:
        raise _not_found(key)
    return fabric_view(row)


def _not_found(key: UUID | str) -> NotFound:
    return NotFound("Job not found", job_id=str(key))


def _wanted(tx: Tx, tenant_id: UUID, wanted: JobFilter) -> Wanted:
    fabric = True
    if wanted.user is not None:
        tenant = stored_tenants.by_id(tx, tenant_id)
        fabric = tenant is not None and tenant.name == wanted.user
    states = None if wanted.states is None else [int(state) for state in wanted.states]
    return Wanted(tenant_id, states, wanted.user, wanted.node, fabric)


def _distinct(rows: Sequence[Row]) -> list[Running]:
    """Oldest first. Tenants name jobs independently: the later of two of one name goes by its id in the fabric."""
    seen: set[tuple[str, str, str]] = set()
    shown: list[Running] = []
    for row in reversed(rows):
        name = row.job_id if (row.job_id, row.owner, row.node_id) not in seen else str(row.id)
        seen.add((name, row.owner, row.node_id))
        shown.append(_running(row, name))
    return shown


def _running(row: Row, name: str) -> Running:
    values = row._mapping
    if "cpus_milli" in values:
        usage, memory = _measured(row, row.cpus_milli), row.memory_bytes or 0
    else:
        usage = Usage(row.cpu_percent, row.memory_mib, row.gpu_percent)
        memory = row.memory_mib * MIB
    return Running(name, row.owner, row.node_id, max(0.0, row.runtime_s), usage.cpu_percent, memory, usage.gpu_percent)
