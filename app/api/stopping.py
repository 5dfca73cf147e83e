"""Stopping a job, the same way in every contract: the row first, then a message to its node, then the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from flask import Response

from app.api.auth import principal
from app.api.hub import hub
from app.api.idempotency import answered
from app.services.idempotency import IdempotencyKey, answer_once
from app.services.stop import request_stop_in
from app.services.views import JobView


def answer_stop(
    job_id: UUID,
    render: Callable[[JobView], Any],
    reason: str | None = None,
    key: IdempotencyKey | None = None,
    tenant_id: UUID | None = None,
) -> Response:
    """Stops a job of the caller's tenant, or of `tenant_id`, running or not; it ends in cancelled.

    Raises NotFound, and StateConflict when it has ended.
    """
    shared, caller = hub(), principal()
    answer = answer_once(
        shared.db,
        "stop",
        key,
        lambda tx: request_stop_in(tx, tenant_id or caller.tenant_id, job_id, caller.subject, reason),
        lambda done: (200, render(done[0])),
    )
    if answer.fresh is not None:
        for node in answer.fresh[1]:
            shared.ringer.wake_node(node)
        shared.hint([job_id])
    return answered(answer)
