"""What a node is handed: jobs that it claimed, and jobs that the scheduler placed on it."""

from __future__ import annotations

from uuid import UUID

from app.domain.gang import GangPlace
from app.domain.job import Assignment
from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from app.storage import places
from app.storage.database import Row, Tx


def deliver(tx: Tx, node_id: str, limit: int, lease_s: float) -> list[Assignment]:
    """Hands the locked node up to `limit` of what was placed on it and it was not told of; their leases begin anew.

    What is to be stopped already is not handed over: the next renewal names it as one to hand back.
    """
    if limit < 1:
        return []
    return [_placed(row) for row in places.deliver(tx, node_id, limit, lease_s)]


def _placed(row: Row) -> Assignment:
    shape = Resources(row.cpus_milli, row.memory_bytes, row.gpus, row.gpu_memory_bytes, row.gpu_model, row.gpu_shared)
    gang = None if row.leader_id is None else GangPlace(row.members, row.member, row.leader_id)
    return assignment(row, shape, row.token, tuple(row.gpu_uuids), row, row.may_be_preempted, gang, row.gpu_bytes or 0)


def assignment(
    row: Row,
    shape: Resources,
    token: UUID,
    gpu_uuids: tuple[str, ...],
    terms: Row,
    preemptible: bool,
    gang: GangPlace | None = None,
    gpu_memory_bytes: int = 0,
) -> Assignment:
    """What the node holds from now on: of `row` the job with its spec, of `terms` its log day and its lease's end."""
    return Assignment(
        job_id=row.id,
        attempt_id=row.attempt_id,
        attempt=row.attempt,
        token=token,
        type=row.type,
        tenant_id=row.tenant_id,
        priority_class=PriorityClass(row[3]),
        log_day=terms.log_day,
        resources=shape,
        hard_limits=row.hard_limits,
        gpu_uuids=gpu_uuids,
        runner=row.runner,
        binary_url=row.binary_url,
        binary_sha256=row.binary_sha256,
        image=row.image,
        script=row.script,
        command=tuple(row.command),
        arguments=tuple(row.arguments),
        environment=row.environment,
        time_limit_s=row.time_limit_s,
        grace_s=row.grace_s,
        expires_at=terms.expires_at,
        config=row.config,
        gpu_memory_bytes=gpu_memory_bytes,
        preemptible=preemptible,
        gang=gang,
    )
