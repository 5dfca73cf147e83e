"""Claim: a node takes what fits it, in the order of the one rule, in one short transaction."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.errors import StaleIncarnation
from app.domain.job import Assignment
from app.domain.policy import KeySummary, Room, Take, TenantView, choose, cost
from app.domain.priority import PriorityClass
from app.domain.resources import Free, Gpu, Resources
from app.storage import claims
from app.storage.claims import Hold
from app.storage.database import Database, Row, Tx
from app.storage.keys import candidates

PER_TENANT = 8
"""Keys of one class and tenant looked at in one round; more rounds follow when these were taken by others."""
ROUNDS = 3


@dataclass(frozen=True)
class Claimer:
    """Who claims: a node under its incarnation; what it can run; `external` executors start at once."""

    node_id: str
    incarnation: UUID | None
    runners: Sequence[str] = ("process",)
    lease_s: float = 60.0
    external: bool = False
    shy: bool = False


def claim(db: Database, claimer: Claimer, limit: int) -> list[Assignment]:
    """Assigns up to `limit` jobs to the node; each is starting (running, for external executors) when this returns.

    Never over-commits the node, a GPU or a quota, whatever runs beside it: the node's row is locked, usage is read
    after that lock, and a tenant with a finite quota is decided under its own lock or passed over for now. Raises
    StaleIncarnation, and Unavailable: then the claim may have happened, and the next renewal says what is held.
    """
    with db.transaction("claim") as tx:
        return claim_in(tx, claimer, limit)


def claim_in(tx: Tx, claimer: Claimer, limit: int) -> list[Assignment]:
    """`claim` inside the caller's transaction."""
    node = claims.lock_node(tx, claimer.node_id)
    if node is None or (claimer.incarnation is not None and node.incarnation != claimer.incarnation):
        raise StaleIncarnation(node=claimer.node_id)
    if node.state != "ready":
        return []
    free = _free(tx, node)
    taken: list[tuple[Row, Resources]] = []
    low_waters: dict[int, int] = {}
    given: dict[UUID, tuple[Gpu, ...]] = {}
    views: dict[UUID, TenantView] = {}
    drained: set[int] = set()
    for _round in range(ROUNDS):
        if limit <= len(taken) or free.slots < 1:
            break
        takes = _choose(tx, claimer, free, limit - len(taken), low_waters, views, drained)
        if not takes:
            break
        shapes = {take.key_id: take.shape for take in takes}
        shy = claimer.node_id if claimer.shy else None
        rows = claims.take_jobs(tx, takes, low_waters, claimer.node_id, shy)
        for row in rows:
            free, given[row.attempt_id] = free.take(shapes[row.key_id])
            _charge(views, row.tenant_id, shapes[row.key_id])
        taken += [(row, shapes[row.key_id]) for row in rows]
        # A key that gave less than was asked has no more that others do not hold: the next round passes it over.
        got = Counter(row.key_id for row in rows)
        short = {take.key_id for take in takes if got[take.key_id] < take.count}
        if not short:
            break
        drained |= short
    if not taken:
        return []
    holds = [_hold(row, shape, given[row.attempt_id]) for row, shape in taken]
    terms = claims.write_holds(tx, node, holds, claimer.lease_s, claimer.external)
    return [_assignment(row, hold, shape, terms) for (row, shape), hold in zip(taken, holds, strict=True)]


def _free(tx: Tx, node: Row) -> Free:
    load = claims.node_load(tx, node.id)
    gpus = claims.gpus_of(node)
    held = set(load.gpus) | (claims.held_gpus(tx, [g.uuid for g in gpus]) if gpus else set())
    return Free(
        slots=node.slots - load.jobs,
        cpus_milli=node.cpus_milli - load.cpus_milli,
        memory_bytes=node.memory_bytes - load.memory_bytes,
        gpus=tuple(gpu for gpu in gpus if gpu.uuid not in held),
    )


def _choose(
    tx: Tx,
    claimer: Claimer,
    free: Free,
    limit: int,
    low_waters: dict[int, int],
    views: dict[UUID, TenantView],
    drained: set[int],
) -> list[Take]:
    found = candidates(tx, free, claimer.runners, claimer.external, PER_TENANT)
    keys: list[KeySummary] = [key for key, _row in found if key.id not in drained]
    low_waters.update({key.id: key.low_water for key in keys})
    new = {key.tenant_id: row for key, row in found if key.tenant_id not in views}
    views.update(_tenant_views(tx, new))
    return choose(keys, views, free, limit)


def _tenant_views(tx: Tx, tenants: dict[UUID, Row]) -> dict[UUID, TenantView]:
    """Each tenant's share and room. Finite quotas are read under the tenant's lock; without it there is no room."""
    finite = {tenant for tenant, row in tenants.items() if _quota(row) != Room()}
    if len(tenants) <= 1 and not finite:
        return {tenant: TenantView(0.0, row.weight) for tenant, row in tenants.items()}
    locked = {tenant for tenant in sorted(finite) if claims.try_lock_tenant(tx, tenant)}
    used = claims.tenant_usage(tx, list(tenants))
    views = {}
    for tenant, row in tenants.items():
        use = used.get(tenant)
        room: Room | None = _quota(row)
        if tenant in finite:
            room = _room(_quota(row), use) if tenant in locked else None
        views[tenant] = TenantView(_share(use) / row.weight, row.weight, room)
    return views


def _quota(row: Row) -> Room:
    return Room(
        row.quota_jobs,
        row.quota_cpus_milli,
        row.quota_memory_bytes,
        row.quota_gpus,
        row.quota_gpu_memory_bytes,
    )


def _room(quota: Room, use: Row | None) -> Room:
    if use is None:
        return quota

    def left(limit: int | None, used: Any) -> int | None:
        return None if limit is None else limit - int(used)

    return Room(
        left(quota.jobs, use.jobs), left(quota.cpus_milli, use.cpus_milli), left(quota.memory_bytes, use.memory_bytes),
        left(quota.gpus, use.gpus), left(quota.gpu_memory_bytes, use.gpu_memory_bytes),
    )  # fmt: skip


def _share(use: Row | None) -> float:
    if use is None or use.jobs == 0:
        return 0.0
    return cost(Resources(int(use.cpus_milli), int(use.memory_bytes), int(use.gpus)))


def _charge(views: dict[UUID, TenantView], tenant: UUID, shape: Resources) -> None:
    view = views[tenant]
    room = None if view.room is None else view.room.less(shape)
    views[tenant] = TenantView(view.share + cost(shape) / view.weight, view.weight, room)


def _hold(row: Row, shape: Resources, gpus: tuple[Gpu, ...]) -> Hold:
    return Hold(
        attempt_id=row.attempt_id,
        job_id=row.id,
        number=row.attempt,
        token=UUID(bytes=secrets.token_bytes(16)),
        tenant_id=row.tenant_id,
        cpus_milli=shape.cpus_milli,
        memory_bytes=shape.memory_bytes,
        gpus=shape.gpus,
        gpu_memory_bytes=shape.gpu_memory_bytes,
        gpu_uuids=tuple(gpu.uuid for gpu in gpus),
    )


def _assignment(row: Row, hold: Hold, shape: Resources, terms: Row) -> Assignment:
    expires: datetime = terms.expires_at
    return Assignment(
        job_id=row.id,
        attempt_id=row.attempt_id,
        attempt=row.attempt,
        token=hold.token,
        type=row.type,
        tenant_id=row.tenant_id,
        priority_class=PriorityClass(row[3]),
        log_day=terms.log_day,
        resources=shape,
        hard_limits=row.hard_limits,
        gpu_uuids=hold.gpu_uuids,
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
        expires_at=expires,
    )
