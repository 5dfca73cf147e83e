"""Why a job waits: reads what claims read, without a lock, and lets the domain say what follows.

What is told is true of the moment it was read; claims go on meanwhile. Its cost grows with nodes and live keys, never
with the backlog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from app.domain.errors import NotFound
from app.domain.explain import (
    Ask,
    Cause,
    Code,
    Fit,
    NodeNow,
    TenantNow,
    Turn,
    nearest,
    node_causes,
    turn_of,
)
from app.domain.gang_explain import gang_causes
from app.domain.policy import KeySummary
from app.domain.priority import PriorityClass
from app.domain.quota_explain import quota_causes
from app.domain.resources import Free, Resources
from app.domain.states import JobState, StopCause
from app.domain.tenant import Quota, Usage
from app.domain.whereabouts import JobNow, job_cause
from app.services.arrays import turn_cause
from app.services.kept import Kept, kept_causes
from app.services.outlook import looked_at
from app.services.parents import waiting_cause
from app.services.queue import Position, position_in
from app.services.views import JobView, view_of
from app.storage import claims, elsewhere, events, quota_holds
from app.storage import explain as stored
from app.storage.database import Database, Row, Tx
from app.storage.queue import place as queue_row
from config.settings import Settings

NODES_SHOWN = 20
EVENTS_SHOWN = 200
TURNS = 3
"""Nodes with room whose next claim is worked out; a job that none of them would take is behind others."""
COUNTED = 10_000
"""Jobs before this one are counted up to here."""
MOST_TAKEN = 1024
EXTERNAL_S = 180.0


@dataclass(frozen=True)
class Change:
    """One change of a job's state or reason."""

    at: datetime
    state: JobState
    ready: bool
    reason: str | None
    stop_cause: StopCause | None
    attempt: int
    node_id: str | None


@dataclass(frozen=True)
class Explanation:
    """What holds a job up, the weightiest first, and what was looked at to find out.

    `nodes` are the most useful of `nodes_seen`; both are empty for a job that waits for something of its own.
    `ahead` counts the jobs of the same shape that go before this one, up to COUNTED; `place` is that in its class.
    """

    job: JobView
    causes: Sequence[Cause]
    ask: Ask
    tenant: TenantNow
    nodes: Sequence[tuple[NodeNow, Fit]] = ()
    nodes_seen: int = 0
    ahead: int | None = None
    place: Position | None = None
    history: Sequence[Change] = ()


def explain(db: Database, settings: Settings, tenant_id: UUID, job_id: UUID) -> Explanation:
    """Why the job waits, or where it is. Raises NotFound, also for another tenant's."""
    with db.transaction("explain") as tx:
        row = stored.job_now(tx, job_id)
        if row is None or row.tenant_id != tenant_id:
            raise NotFound("Job not found", job_id=str(job_id))
        return _explain(tx, settings, row)


def _explain(tx: Tx, settings: Settings, row: Row) -> Explanation:
    key = stored.key_now(tx, row.key_id)
    ask = Ask(shape_of(key), key.runner, key.external_ok)
    tenant = tenant_of(tx, row.tenant_id)
    told = Explanation(view_of(row), (), ask, tenant, history=history(tx, row))
    own = job_cause(_job_now(row), row.now)
    if own is not None:
        return replace(told, causes=(_named(tx, row, own),))
    held = stored.held_before(tx, row.id) if row.attempt else set()
    kept = Kept(stored.reserved(tx), PriorityClass(key._mapping["class"]), row.id)
    away = elsewhere.nodes_kept_from(tx, row.id) if row.attempt else set()
    seen = stored.nodes_now(tx, ask.need.gpus > 0, EXTERNAL_S)
    bare = [_node(n, held, settings.lease_s) for n in seen if n.id not in away]
    nodes = [kept.beside(node) for node in bare]
    ahead = stored.jobs_before(tx, key.id, key.low_water, row.queue_seq, COUNTED)
    order = nearest(nodes, ask)
    ready = [node for node, fit in order if fit == Fit.FITS][:TURNS]
    if ready and not ask.need.gpus:
        # A job that needs no GPU may stand behind one that does, so these nodes count with theirs.
        names = [node.id for node in ready]
        found = stored.nodes_now(tx, True, EXTERNAL_S, names)
        whole = {n.id: kept.beside(_node(n, held, settings.lease_s)) for n in found}
        ready = [whole[name] for name in names if name in whole]
    blocked = quota_causes(tenant, ask.need, key.members, row.id)
    if key.members > 1:
        return _explain_gang(tx, told, row, key, order, blocked)
    turns = [] if blocked else [_turn(tx, node, _summary(key, row), ahead) for node in ready]
    causes = list(blocked) + kept_causes(stored.planned(tx, row.id), bare, nodes, ask)
    if not (blocked and ready):
        causes += node_causes(order, ask, turns, ahead)
    at = queue_row(tx, row.id)
    place = None if at is None else position_in(tx, at)
    shown = order[:NODES_SHOWN]
    return replace(told, causes=causes, nodes=shown, nodes_seen=len(nodes), ahead=ahead, place=place)


def _named(tx: Tx, row: Row, own: Cause) -> Cause:
    """The cause that lies in the job itself, with the jobs that it waits for."""
    if own.code == Code.DEPENDENCY:
        return waiting_cause(tx, row.id)
    return turn_cause(tx, row.array_id) if own.code == Code.ARRAY else own


def _explain_gang(
    tx: Tx, told: Explanation, row: Row, key: Row, order: list[tuple[NodeNow, Fit]], blocked: list[Cause]
) -> Explanation:
    """A gang is for no claim: the planner places it as a whole."""
    note = stored.planners_note(tx, row.id)
    room = gang_causes(order, told.ask, key.members, note)
    causes = [*blocked, *(node_causes(order, told.ask, [], 0) if room is None else room)]
    if blocked:
        causes = [cause for cause in causes if cause.code != Code.STARTS_NOW]
    at = queue_row(tx, row.id)
    place = None if at is None else position_in(tx, at)
    return replace(told, causes=causes, nodes=order[:NODES_SHOWN], nodes_seen=len(order), place=place)


def quota_wait(tx: Tx, job: JobView, shape: Resources, members: int = 1) -> JobView:
    """The job with reason and message of its tenant's quota, where that is what a ready job waits for.

    Such waits are derived when they are read: writing one down for each job of a tenant would cost as many writes.
    """
    if job.state != JobState.PENDING or not job.ready:
        return job
    causes = quota_causes(tenant_of(tx, job.tenant_id), shape, members, job.id)
    if not causes or causes[0].code == Code.RESERVED:
        return job
    return replace(job, reason="quota", message=causes[0].message)


def history(tx: Tx, row: Row) -> list[Change]:
    """The latest changes of a job's state and reason, oldest first; of old jobs, those that are still kept."""
    # A day of slack: an event may carry the date on which its transaction began.
    since = row.created_at.date() - timedelta(days=1)
    return [
        Change(
            at=e.at,
            state=JobState(e.state),
            ready=e.ready,
            reason=e.reason,
            stop_cause=None if e.stop_cause is None else StopCause(e.stop_cause),
            attempt=e.attempt,
            node_id=e.node_id,
        )
        for e in reversed(events.job_last(tx, row.id, since, EVENTS_SHOWN))
    ]


def tenant_of(tx: Tx, tenant_id: UUID) -> TenantNow:
    """A tenant as the domain sees it, with what is kept of its quota."""
    row = stored.tenant_now(tx, tenant_id)
    assert row is not None, "a job's tenant is never removed"
    quota = Quota(
        row.quota_jobs, row.quota_cpus_milli, row.quota_memory_bytes, row.quota_gpus, row.quota_gpu_memory_bytes
    )
    used = Usage(row.used_jobs, row.used_cpus, row.used_memory, row.used_gpus, row.used_gpu_memory)
    hold = None if quota == Quota() else quota_holds.of_tenant(tx, tenant_id)
    if hold is None:
        return TenantNow(row.name, quota, used, row.active)
    kept = Usage(hold.jobs, hold.cpus_milli, hold.memory_bytes, hold.gpus, hold.gpu_memory_bytes)
    return TenantNow(row.name, quota, used, row.active, kept, hold.job_id)


def _turn(tx: Tx, node: NodeNow, key: KeySummary, position: int) -> Turn:
    """What the node's next claim would take."""
    limit = 1 if node.external else min(node.free.slots, MOST_TAKEN)
    claim = replace(node, free=replace(node.free, slots=limit))
    keys, tenants = looked_at(tx, claim, key)
    turn = turn_of(claim, keys.get(key.id, key), position, list(keys.values()), tenants)
    return replace(turn, node=node)


def _summary(key: Row, row: Row) -> KeySummary:
    return KeySummary(
        id=key.id,
        tenant_id=key.tenant_id,
        priority_class=PriorityClass(key._mapping["class"]),
        priority=key.priority,
        shape=shape_of(key),
        head_seq=row.queue_seq,
        low_water=key.low_water,
    )


def shape_of(key: Row) -> Resources:
    """What each job of a scheduling key holds while it runs."""
    return Resources(key.cpus_milli, key.memory_bytes, key.gpus, key.gpu_memory_bytes, key.gpu_model, key.gpu_shared)


def _node(row: Row, held: set[str], lease_s: float) -> NodeNow:
    gpus = claims.gpus_of(row)
    external = row.kind == "external"
    total = Free(row.slots, row.cpus_milli, row.memory_bytes, gpus)
    free = Free(
        slots=row.slots - int(row.used_jobs),
        cpus_milli=row.cpus_milli - int(row.used_cpus),
        memory_bytes=row.memory_bytes - int(row.used_memory),
        gpus=gpus,
    ).without(row.held or {})
    # The reaper marks silent nodes; where it is late itself, silence tells as much.
    silent = row.state == "ready" and row.silent_s > lease_s and not external
    return NodeNow(
        id=row.id,
        total=total,
        free=free,
        runners=frozenset(row.capabilities),
        state="offline" if silent else row.state,
        external=external,
        excluded=external and row.id in held,
        silent_s=row.silent_s,
    )


def _job_now(row: Row) -> JobNow:
    state = JobState(row.state)
    ended = state > JobState.STOPPING
    return JobNow(
        state=state,
        ready=row.ready,
        reason=row.reason,
        message=row.message,
        attempt=row.attempt,
        node_id=row.node_id,
        stop_cause=None if row.stop_cause is None else StopCause(row.stop_cause),
        stop_by=row.stop_by,
        stop_reason=row.stop_reason,
        started_at=row.attempt_started_at,
        claimed_at=row.claimed_at,
        finished_at=row.finished_at,
        not_before=row.not_before,
        failures=row.failures,
        max_retries=row.max_retries,
        last_outcome=row.last_outcome,
        exit_code=row.exit_code if ended else row.last_exit_code,
        signal=row.signal if ended else row.last_signal,
    )


def explain_in(tx: Tx, settings: Settings, job_id: UUID) -> Explanation:
    """`explain` inside the caller's transaction, also for a job that it has made itself."""
    return _explain(tx, settings, stored.job_now(tx, job_id))


def judged_nodes(tx: Tx, settings: Settings, ask: Ask) -> list[tuple[NodeNow, Fit]]:
    """What each node is to a job that asks this and was on none yet, the most useful first."""
    rows = stored.nodes_now(tx, ask.need.gpus > 0, EXTERNAL_S)
    return nearest([_node(row, set(), settings.lease_s) for row in rows], ask)


def node_now(row: Row, held: set[str], lease_s: float) -> NodeNow:
    """A row of `storage.explain.nodes_now` as the domain sees it; `held` are nodes that have held the job."""
    return _node(row, held, lease_s)
