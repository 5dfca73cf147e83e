"""Tracked jobs: they run elsewhere, and whoever runs them tells of them here. Nothing of the fabric acts on them."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from app.domain.errors import FieldProblem, Invalid, NotFound, StateConflict
from app.domain.identity import uuid7
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.services.observed import ObservedJob, Usage, UsageSample, tracked_view
from app.services.views import JobDetail, JobView, SpecView
from app.storage import tracked
from app.storage.database import Database, Row, Tx

MAX_ID = 255
_LIKE_FABRIC = re.compile(r"(?:[A-Za-z]{1,16}[-_])?[0-9a-fA-F]{32}")


@dataclass(frozen=True)
class NewTracked:
    """A job as its reporter calls it: an id of its own, whose it is, and where it runs (at least one node)."""

    client_id: str
    owner: str
    nodes: tuple[str, ...]


def id_problem(client_id: str) -> str | None:
    """Why a reporter may not call a job so, or None. Ids stand in paths; one of the fabric's form would hide a job."""
    if not 1 <= len(client_id) <= MAX_ID:
        return f"must have 1 to {MAX_ID} characters, not {len(client_id)}"
    if not client_id.isprintable() or "/" in client_id:
        return f"must have printable characters only, without slashes: {ascii(client_id)[:60]}"
    if not client_id.strip(". "):
        return f"must not be dots and spaces alone, for a path would lose them: {client_id!r}"
    if _LIKE_FABRIC.fullmatch(client_id) or _reads_as_uuid(client_id):
        return f"must not look like an id of the fabric: {client_id!r}"
    return None


def _reads_as_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def create(db: Database, tenant_id: UUID, asked: NewTracked) -> ObservedJob:
    """Notes a job that runs from now on. Raises Invalid for its id, StateConflict when the tenant has that id."""
    problem = id_problem(asked.client_id)
    if problem is not None:
        raise Invalid(problems=[FieldProblem("id", problem)])
    values = {
        "id": uuid7(time.time_ns() // 1_000_000, 0, secrets.randbits(62)),
        "tenant_id": tenant_id,
        "client_id": asked.client_id,
        "owner": asked.owner,
        "nodes": list(asked.nodes),
    }
    with db.transaction("track") as tx:
        row = tracked.insert(tx, values)
    if row is None:
        raise StateConflict(f"There is a job {asked.client_id!r} already; delete it first or use another id.")
    return tracked_view(row)


def change(
    db: Database,
    tenant_id: UUID,
    key: UUID | str,
    state: JobState | None,
    usage: Mapping[str, float],
    same: Mapping[str, Any],
) -> ObservedJob:
    """Sets what is given; any state may follow any. `usage` has cpu_percent, memory_mib, gpu_percent, or some of them.

    `same` repeats fields that nobody can change. Raises NotFound, and Invalid when one of them would change.
    """
    with db.transaction("track") as tx:
        row = _locked(tx, tenant_id, key)
        refuse_changes(tracked_view(row), same)
        return tracked_view(tracked.change(tx, row.id, {**usage, "state": None if state is None else int(state)}))


def record(db: Database, tenant_id: UUID, key: UUID | str, usage: Usage) -> UsageSample:
    """Adds a sample of now, which is also the job's usage from then on. Raises NotFound."""
    with db.transaction("track") as tx:
        row = _locked(tx, tenant_id, key)
        tracked.change(tx, row.id, asdict(usage))
        at = tracked.insert_sample(tx, row.id, usage.cpu_percent, usage.memory_mib, usage.gpu_percent)
    return UsageSample(at, usage)


def remove(db: Database, tenant_id: UUID, key: UUID | str) -> bool:
    """Forgets a job and its samples, so that its id is free again; whether there was one."""
    with db.transaction("track") as tx:
        return tracked.delete(tx, tenant_id, key)


def detail(tx: Tx, tenant_id: UUID, job_id: UUID) -> JobDetail | None:
    """A tracked job as the other contracts show one that they may only look at; None when there is none of this id.

    It has no program, no attempt, no output and no place in a queue.
    """
    row = tracked.find(tx, tenant_id, job_id)
    return None if row is None else JobDetail(_as_job(row), _NO_SPEC, ())


def owner_of(tx: Tx, job_id: UUID) -> UUID | None:
    """The tenant of a tracked job; None when there is none of this id."""
    found = tracked.by_ids(tx, [job_id])
    return found[0].tenant_id if found else None


def _as_job(row: Row) -> JobView:
    return JobView(
        id=row.id,
        tenant_id=row.tenant_id,
        type="tracked",
        state=JobState(row.state),
        ready=False,
        reason=None,
        message="",
        stop_cause=None,
        stop_by=None,
        stop_reason=None,
        contract="tracked",
        priority_class=PriorityClass.BACKGROUND,
        executor_id=row.nodes[0],
        attempt=0,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.ended_at,
        exit_code=None,
        signal=None,
        not_before=None,
        external_id=row.client_id,
    )


_NO_SPEC = SpecView(
    runner="tracked",
    binary_url=None,
    binary_sha256=None,
    image=None,
    script=None,
    command=(),
    arguments=(),
    environment={},
    resources=None,
    time_limit_s=None,
    grace_s=0.0,
    max_retries=0,
    asked={},
    effective_class=PriorityClass.BACKGROUND,
    effective_priority=PriorityClass.BACKGROUND.default_priority,
)


def refuse_changes(job: ObservedJob, same: Mapping[str, Any]) -> None:
    """Raises Invalid for every field of `same` that differs from the job's; times are compared by the second."""
    now = {
        "id": job.shown_id,
        "user": job.user,
        "nodes": list(job.nodes),
        "start_time": None if job.start_time is None else job.start_time.replace(microsecond=0),
    }
    problems = [
        FieldProblem(name, "cannot be changed; leave it out, or repeat it as it is")
        for name, value in same.items()
        if value != now[name]
    ]
    if problems:
        raise Invalid(problems=problems)


def _locked(tx: Tx, tenant_id: UUID, key: UUID | str) -> Row:
    row = tracked.find(tx, tenant_id, key, lock=True)
    if row is None:
        raise NotFound("Job not found", job_id=str(key))
    return row
