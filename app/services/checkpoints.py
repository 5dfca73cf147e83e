"""Checkpoints: jobs say when they saved their work, so that who must make room is who loses least."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from app.domain.errors import NotFound, StateConflict
from app.domain.states import JobState
from app.storage import checkpoints, jobs
from app.storage.database import Database


def store(db: Database, ages_s: Mapping[UUID, float]) -> None:
    """Notes how many seconds ago attempts saved their work; those that are over are left out."""
    if ages_s:
        with db.transaction("checkpoint") as tx:
            checkpoints.note(tx, ages_s)


def report(db: Database, tenant_id: UUID, job_id: UUID) -> None:
    """The job has saved its work just now. Raises NotFound, and StateConflict when it does not run."""
    with db.transaction("checkpoint") as tx:
        row = jobs.job_view(tx, job_id)
        if row is None or row.tenant_id != tenant_id:
            raise NotFound("Job not found", job_id=str(job_id))
        attempt = checkpoints.current(tx, job_id)
        if attempt is None or not checkpoints.note(tx, {attempt: 0.0}):
            word = JobState(row.state).word
            raise StateConflict(f"The job is {word}, not running.", job_id=str(job_id), status=word)
