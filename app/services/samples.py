"""Samples of what jobs use: stored by the nodes' agents, read by job, and the latest of all that run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from app.domain.errors import NotFound
from app.domain.resources import Resources
from app.domain.states import JobState
from app.services.explain import shape_of
from app.storage import explain as keys
from app.storage import jobs
from app.storage import samples as stored
from app.storage.database import Database, Row, Tx

log = logging.getLogger(__name__)

RECENT = 30
"""Samples of each job that `latest` gives, for a sparkline."""


@dataclass(frozen=True)
class Measured:
    """What one allocation used `age_s` ago: CPU cores since the sample before, and bytes; None is unknown.

    Ages, not times: the clock of the database counts, whatever that of the node says.
    """

    attempt_id: UUID
    age_s: float = 0.0
    member: int = 0
    cpu_cores: float | None = None
    memory_bytes: int | None = None
    gpu_percent: float | None = None
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True)
class Sample:
    """What one member of an attempt used at a time; None is unknown."""

    at: datetime
    attempt: int
    member: int
    cpu_cores: float | None
    memory_bytes: int | None
    gpu_percent: float | None
    gpu_memory_bytes: int | None


@dataclass(frozen=True)
class SamplePage:
    """Samples in the order of their times, how many there are in all, and what the job holds while it runs."""

    samples: Sequence[Sample]
    total: int
    share: Resources


@dataclass(frozen=True)
class JobUsage:
    """One allocation of an active job: what it holds, whether that is enforced, and its last samples, oldest first."""

    job_id: UUID
    type: str
    state: JobState
    node_id: str
    attempt: int
    member: int
    started_at: datetime | None
    share: Resources
    hard_limits: bool
    recent: Sequence[Sample]


def store(db: Database, samples: Sequence[Measured]) -> None:
    """Stores samples of one node in one statement. They are a picture, not a record: who cannot store drops them."""
    if samples:
        with db.transaction("samples") as tx:
            stored.insert(tx, [asdict(one) for one in samples])


def keep_peaks(db: Database, attempt_ids: Sequence[UUID]) -> None:
    """Keeps the greatest samples of attempts that were lost in their records, since their node told no peaks.

    After their end, each in a transaction of its own: an attempt of weeks has many samples, and nobody is to wait for
    them. What fails is logged, for it costs a figure and no job.
    """
    for attempt_id in attempt_ids:
        try:
            with db.transaction("samples") as tx:
                stored.keep_peaks(tx, attempt_id)
        except Exception as exc:
            log.warning("the peaks of lost attempt %s are not kept: %s", attempt_id, exc)


def of_job(
    db: Database,
    tenant_id: UUID,
    job_id: UUID,
    start: datetime | None = None,
    end: datetime | None = None,
    limit: int = 1000,
    attempt: int | None = None,
) -> SamplePage:
    """Samples of a job from `start` to `end`, both included, in whole seconds as times are shown.

    Ascending. With `start` the first `limit` of them, without it the latest; `total` counts all that match. Raises
    NotFound for a job that is not the tenant's, and for an attempt that does not exist.
    """
    with db.transaction("read") as tx:
        job = keys.job_now(tx, job_id)
        if job is None or job.tenant_id != tenant_id:
            raise NotFound("Job not found", job_id=str(job_id))
        share = shape_of(keys.key_now(tx, job.key_id))
        tried = [row for row in stored.attempts(tx, job_id) if attempt in {None, row.number}]
        if not tried:
            if attempt is not None:
                raise NotFound(f"The job has no attempt {attempt}.", job_id=str(job_id))
            return SamplePage((), 0, share)
        return _page(tx, tried, start, end, limit, share)


def _page(
    tx: Tx, tried: Sequence[Row], start: datetime | None, end: datetime | None, limit: int, share: Resources
) -> SamplePage:
    places = {row.id: (row.number, row.member) for row in tried}
    window = stored.Window(
        list(places),
        min(row.first_day for row in tried),
        max(row.last_day for row in tried),
        None if start is None else start.replace(microsecond=0),
        None if end is None else end.replace(microsecond=0),
    )
    rows = window.read(tx, limit, latest=start is None)
    total = len(rows) if len(rows) < limit else window.count(tx)
    samples = [
        Sample(
            r.at, *places[r.attempt_id], r.cpu_cores, r.memory_bytes, r.gpu_percent, r.gpu_memory_bytes
        )
        for r in rows
    ]  # fmt: skip
    return SamplePage(samples, total, share)


def latest(db: Database, tenant_id: UUID, job_id: UUID | None = None, limit: int = 20) -> list[JobUsage]:
    """What the tenant's active jobs (or one) use now, the newest first, each with its last RECENT samples.

    Raises NotFound for a `job_id` that is not the tenant's; a job that does not run has no entry.
    """
    with db.transaction("read") as tx:
        if job_id is not None:
            row = jobs.job_view(tx, job_id)
            if row is None or row.tenant_id != tenant_id:
                raise NotFound("Job not found", job_id=str(job_id))
        return [_usage(row) for row in stored.of_active_jobs(tx, tenant_id, job_id, limit, RECENT)]


def _usage(row: Row) -> JobUsage:
    columns = zip(
        row.ats or (), row.cpus or (), row.memories or (), row.gpu_percents or (), row.gpu_memories or (), strict=True
    )
    return JobUsage(
        job_id=row.id,
        type=row.type,
        state=JobState(row.state),
        node_id=row.node_id,
        attempt=row.attempt,
        member=row.member,
        started_at=row.started_at,
        share=Resources(row.cpus_milli, row.memory_bytes, row.gpus, row.gpu_memory_bytes),
        hard_limits=row.hard_limits,
        recent=tuple(Sample(at, row.attempt, row.member, *rest) for at, *rest in columns),
    )
