"""Submitting, the same way in every contract: durable first, then the bell, then the answer in the contract's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from flask import Response

from app.api.answers import json_answer
from app.api.auth import principal
from app.api.hub import hub
from app.api.idempotency import REPLAYED
from app.domain.array import ArrayAsked
from app.domain.errors import Refused, Unavailable
from app.domain.job import JobRequest, Submitted
from app.services.arrays import ArrayView
from app.services.idempotency import IdempotencyKey, earlier_answer
from app.services.submit import submit, submit_array

Render = Callable[[list[Submitted]], tuple[int, Any]]
"""Status and body of the answer. Called inside the transaction when there is a key, so it must not ask the database."""


def answer_submit(
    tenant_id: UUID,
    requests: Sequence[JobRequest],
    key: IdempotencyKey | None,
    render: Render,
    places: bool = False,
) -> Response:
    """Submits all of `requests` or none; a repeat under the same key gets the first answer. Raises as `submit` does.

    With `places` each job knows its place in its queue, which costs a look at the queue.
    """
    shared = hub()
    before = _admit(tenant_id, requests, key)
    if before is not None:
        return json_answer(before[1], before[0], {REPLAYED: "true"})
    done = submit(shared.db, shared.settings, tenant_id, requests, key, render, places, principal().subject)
    if done.replay is not None:
        status, body = done.replay
        return json_answer(body, status, {REPLAYED: "true"})
    shared.ring(job.priority_class for job in done.jobs)
    shared.hint(job.id for job in done.jobs)
    status, body = render(done.jobs)
    return json_answer(body, status)


def answer_array(
    tenant_id: UUID,
    request: JobRequest,
    asked: ArrayAsked,
    key: IdempotencyKey | None,
    render: Callable[[ArrayView], tuple[int, Any]],
) -> Response:
    """Submits one array; otherwise as `answer_submit`. Raises as `submit_array` does."""
    shared = hub()
    before = _admit(tenant_id, [request], key)
    if before is not None:
        return json_answer(before[1], before[0], {REPLAYED: "true"})
    done = submit_array(shared.db, shared.settings, tenant_id, request, asked, key, render)
    if done.array is None:
        assert done.replay is not None
        status, body = done.replay
        return json_answer(body, status, {REPLAYED: "true"})
    shared.ring([done.array.priority_class])
    status, body = render(done.array)
    return json_answer(body, status)


def _admit(tenant_id: UUID, requests: Sequence[JobRequest], key: IdempotencyKey | None) -> tuple[int, Any] | None:
    """Refuses images that the tenant may not have run; the earlier answer, where the key had one before that."""
    shared = hub()
    try:
        images = sorted({one.image for one in requests if one.image is not None})
        if images:
            shared.images.admit_all(shared.db, tenant_id, images)
    except (Refused, Unavailable):
        # What was accepted once is answered as it was, whatever has become of its image or its registry.
        before = None if key is None else earlier_answer(shared.db, key)
        if before is None:
            raise
        return before
    return None
