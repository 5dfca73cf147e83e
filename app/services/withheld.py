"""Jobs that are held from their submit on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

from app.domain.hold import message_of
from app.domain.job import JobRequest, Submitted
from app.domain.states import Reason
from app.storage import holds
from app.storage.database import Tx


def hold_new(tx: Tx, requests: Sequence[JobRequest], jobs: Sequence[Submitted], by: str) -> list[Submitted]:
    """Holds those of the new jobs that asked for it, in the transaction that made them; `by` is their submitter."""
    asked = [request.hold for request in requests]
    if not any(asked):
        return list(jobs)
    holds.insert(tx, list(compress((job.id for job in jobs), asked)), by, False, "", message_of(by, False, ""))
    return [replace(job, reason=Reason.HOLD) if hold else job for job, hold in zip(jobs, asked, strict=True)]
