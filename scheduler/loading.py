"""From rows to the planner's snapshot: one read-only transaction, one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from app.domain.tenant import Tier
from app.services.claim import first_view
from app.storage import claims, planning
from app.storage.database import Database, Row
from scheduler.planner import NodeView, Reserved, Running, Snapshot, Waiting


@dataclass(frozen=True)
class Loaded:
    """A snapshot, the moment it was taken (seconds since 1970), and the tenants' rows."""

    snapshot: Snapshot
    now: float
    tenants: Sequence[Row]


def load(db: Database, silent_s: float) -> Loaded:
    """Reads all that a plan needs. Nodes that were silent for `silent_s` are left out."""
    with db.transaction("snapshot") as tx:
        now = planning.begin_snapshot(tx)
        tenants = planning.tenants(tx)
        snapshot = Snapshot(
            nodes=tuple(_node(row) for row in planning.nodes(tx, silent_s)),
            running=tuple(_running(row) for row in planning.running(tx)),
            waiting=tuple(_waiting(row) for row in planning.heads(tx)),
            reserved=tuple(_reserved(row) for row in planning.reserved(tx)),
            tenants={row.id: first_view(row) for row in tenants},
        )
    return Loaded(snapshot, now, tenants)


def _node(row: Row) -> NodeView:
    return NodeView(
        id=row.id,
        slots=row.slots,
        cpus_milli=row.cpus_milli,
        memory_bytes=row.memory_bytes,
        gpus=claims.gpus_of(row),
        runners=frozenset(row.capabilities),
        cluster=row.cluster,
        labels={**row.labels, **row.operator_labels},
    )


def _running(row: Row) -> Running:
    return Running(
        job_id=row.job_id,
        attempt_id=row.attempt_id,
        tenant_id=row.tenant_id,
        priority_class=PriorityClass(row[4]),
        priority=row.priority,
        tier=Tier(row.tier),
        node_id=row.node_id,
        shape=_shape(row),
        gpu_uuids=tuple(row.gpu_uuids),
        started_at=row.started_at,
        limit_s=row.time_limit_s,
        grace_s=row.grace_s,
        checkpoint_at=row.checkpoint_at,
        preemptible=row.may_be_preempted,
        stopping=row.stopping,
        leader=row.leader_id,
        waited_s=row.waited_s,
    )


def _waiting(row: Row) -> Waiting:
    return Waiting(
        job_id=row.job_id,
        key_id=row.key_id,
        tenant_id=row.tenant_id,
        priority_class=PriorityClass(row[3]),
        priority=row.priority,
        tier=Tier(row.tier),
        shape=_shape(row),
        members=row.members,
        runner=row.runner,
        queue_seq=row.queue_seq,
        waiting_since=row.waiting_since,
        limit_s=row.time_limit_s,
        grace_s=row.grace_s,
        can_preempt=row.can_preempt_others,
        avoid=frozenset(row.avoid),
    )


def _reserved(row: Row) -> Reserved:
    return Reserved(
        job_id=row.job_id,
        member=row.member,
        node_id=row.node_id,
        priority_class=PriorityClass(row[3]),
        slots=row.slots,
        cpus_milli=row.cpus_milli,
        memory_bytes=row.memory_bytes,
        gpu_uuids=tuple(row.gpu_uuids),
        starts_at=row.starts_at,
        made_at=row.made_at,
        why=row.why,
    )


def _shape(row: Row) -> Resources:
    return Resources(row.cpus_milli, row.memory_bytes, row.gpus, row.gpu_memory_bytes, row.gpu_model, row.gpu_shared)
