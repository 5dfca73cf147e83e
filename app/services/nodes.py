"""Nodes: register, renew what they hold, drain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

from app.domain.errors import NotFound, Refused, StaleIncarnation
from app.domain.gang import GangPlace
from app.domain.resources import Gpu
from app.domain.states import StopCause
from app.storage import attempts, leases, logs
from app.storage import nodes as stored
from app.storage.database import Database, Tx

PROTOCOL = 1
ITSELF = "its worker"
"""By whom a node is drained that must not take jobs though nobody has ordered it."""


@dataclass(frozen=True)
class NodeOffer:
    """What a node brings: capacity, GPUs, which runners it has."""

    node_id: str
    slots: int
    cpus_milli: int
    memory_bytes: int
    gpus: Sequence[Gpu] = ()
    runners: Sequence[str] = ("process",)
    ip: str | None = None
    host: str = ""
    cluster: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True)
class Held:
    """One allocation as a node believes to hold it."""

    attempt_id: UUID
    token: UUID


@dataclass(frozen=True)
class Orphan:
    """An allocation that the database gives to the node though it does not hold it."""

    attempt_id: UUID
    token: UUID
    started: bool


@dataclass(frozen=True)
class Drain:
    """An order to empty a node, an operator's or its agent's.

    `over`: its deadline has passed, and what still runs is to be stopped.
    """

    reason: str
    by: str
    deadline: datetime | None
    over: bool

    @property
    def own(self) -> bool:
        """Whether the node's own agent began it."""
        return self.by == ITSELF


@dataclass(frozen=True)
class Renewal:
    """The answer to a renewal: what to kill, what to hand back, what to stop (cause and grace), its drain if any.

    `placed`: the scheduler has placed something here that the next claim brings. `broken`: members of gangs that are
    to end because another member did, each with its grace; those under a stop of their job are in `stops`.
    """

    renewed: frozenset[UUID]
    lost: frozenset[UUID]
    orphans: Sequence[Orphan]
    stops: Mapping[UUID, tuple[StopCause, float]]
    drain: Drain | None = None
    placed: bool = False
    broken: Mapping[UUID, float] = field(default_factory=dict)

    @property
    def draining(self) -> bool:
        """Whether the node takes nothing more."""
        return self.drain is not None


@dataclass(frozen=True)
class Registration:
    """A node's new incarnation, and whether the one before ran on this very host (so that what it lost is known)."""

    incarnation: UUID
    same_host: bool


def register(db: Database, offer: NodeOffer, lease_s: float) -> Registration:
    """Writes the node under a new incarnation. An older agent of this name is refused from then on.

    Raises Refused while a node of this name lives on another host: two hosts with one name would end each other's jobs.
    Also while another node lives that offers one of these GPUs, which would count twice.
    """
    incarnation = uuid4()
    with db.transaction("register") as tx:
        _refuse_shared_gpus(tx, offer, lease_s)
        before = stored.lock_host(tx, offer.node_id)
        same = before is None or before.host in {"", offer.host}
        if before is not None and (before.kind != "agent" or not same) and before.silent_s < lease_s:
            raise Refused(
                f"The name {offer.node_id!r} belongs to another executor that was seen {before.silent_s:.0f} s ago; "
                "set CFAB_NODE_NAME to a name of this host's own.",
                node=offer.node_id,
            )
        stored.register(
            tx,
            {
                "id": offer.node_id,
                "kind": "agent",
                "incarnation": incarnation,
                "host": offer.host,
                "protocol": PROTOCOL,
                "capabilities": list(offer.runners),
                "slots": offer.slots,
                "cpus_milli": offer.cpus_milli,
                "memory_bytes": offer.memory_bytes,
                "gpus": [vars(gpu) for gpu in offer.gpus],
                "ip": offer.ip,
                "cluster": offer.cluster,
                "labels": dict(offer.labels),
                "version": offer.version,
            },
        )
    return Registration(incarnation, same)


def _refuse_shared_gpus(tx: Tx, offer: NodeOffer, lease_s: float) -> None:
    if not offer.gpus:
        return
    other = stored.other_owner(tx, offer.node_id, [gpu.uuid for gpu in offer.gpus], lease_s)
    if other is not None:
        raise Refused(
            f"GPU {other.uuid} belongs to node {other.id!r}, which was seen {other.silent_s:.0f} s ago; "
            "several nodes on one host need GPUs of their own: set CFAB_GPUS.",
            node=offer.node_id,
            gpu=other.uuid,
        )


def renew(
    db: Database,
    node_id: str,
    incarnation: UUID,
    held: Sequence[Held],
    lease_s: float,
    gpus: Sequence[Mapping[str, Any]] | None = None,
) -> Renewal:
    """Extends the leases of `held` by `lease_s` from database time, and says where node and database differ.

    `gpus` replaces what the node's row says about its GPUs; None leaves it. A claim that is under way looks like an
    orphan: the caller must hold none, or wait for a second answer. Raises StaleIncarnation when a newer agent
    has this node's name: then stop, and touch no job.
    """
    with db.transaction("renew") as tx:
        node = stored.see(tx, node_id, incarnation, gpus)
        if node is None:
            raise StaleIncarnation(node=node_id)
        order = sorted(held, key=lambda h: h.attempt_id)
        renewed = leases.renew(tx, node_id, [h.attempt_id for h in order], [h.token for h in order], lease_s)
        rows = leases.held_by(tx, node_id)
    mine = {h.attempt_id for h in held}
    strange = [row for row in rows if row.attempt_id not in mine]
    # What is to be stopped before its node was told of it needs no start to be ended.
    undelivered = {r.attempt_id for r in strange if not r.delivered and r.stop_cause is None and r.broken is None}
    return Renewal(
        renewed=frozenset(renewed),
        lost=frozenset(mine - renewed),
        orphans=[
            Orphan(r.attempt_id, r.token, r.started_at is not None) for r in strange if r.attempt_id not in undelivered
        ],
        stops={
            r.attempt_id: (StopCause(r.stop_cause), r.grace_s)
            for r in rows
            if r.attempt_id in renewed and r.stop_cause is not None
        },
        drain=_drain(node) if node.state == "draining" else None,
        placed=bool(undelivered),
        broken={
            r.attempt_id: r.grace_s
            for r in rows
            if r.attempt_id in renewed and r.broken is not None and r.stop_cause is None
        },
    )


def _drain(node: Any) -> Drain:
    return Drain(node.drain_reason or "", node.drain_by or "", node.drain_deadline, node.drain_over)


def set_draining(db: Database, node_id: str, draining: bool) -> None:
    """A draining node claims nothing more, and what it runs goes on. Raises NotFound."""
    with db.transaction("drain") as tx:
        known = stored.drain(tx, node_id, "", "", None) if draining else stored.resume(tx, node_id, 3600.0)
        if not known:
            raise NotFound(f"There is no node {node_id!r}.", node=node_id)


def hold_back(db: Database, node_id: str, incarnation: UUID, reason: str) -> None:
    """The node's agent drains it, unless it drains already or a newer agent has its name; `take_again` ends that."""
    with db.transaction("drain") as tx:
        if stored.lock_drain(tx, node_id, incarnation) == "":
            stored.drain(tx, node_id, reason, ITSELF, None)


def take_again(db: Database, node_id: str, incarnation: UUID) -> None:
    """Ends a drain that an agent of the node began; one that an operator has ordered since goes on."""
    with db.transaction("drain") as tx:
        if stored.lock_drain(tx, node_id, incarnation) == ITSELF:
            stored.resume(tx, node_id, 3600.0)


def list_leases(db: Database, node_id: str) -> Mapping[UUID, Any]:
    """What the database says a node holds, by attempt id (a fresh agent compares it with its keeper)."""
    with db.transaction("renew") as tx:
        return {row.attempt_id: row for row in leases.held_by(tx, node_id)}


@dataclass(frozen=True)
class AttemptInfo:
    """What a fresh agent needs to know of an attempt it finds running."""

    type: str
    tenant_id: UUID
    runner: str
    log_day: date
    claimed_at: datetime
    stored: int
    gpu_uuids: Sequence[str] = ()
    gang: GangPlace | None = None
    port: int | None = None
    gpu_slice_bytes: int | None = None


def describe_attempts(db: Database, attempt_ids: Sequence[UUID]) -> dict[UUID, AttemptInfo]:
    """Type, tenant and runner of attempts, and up to which position their output is stored."""
    with db.transaction("renew") as tx:
        stored_to = logs.chunk_end(tx, attempt_ids)
        return {
            row.id: AttemptInfo(
                type=row.type,
                tenant_id=row.tenant_id,
                runner=row.runner,
                log_day=row.log_day,
                claimed_at=row.claimed_at,
                stored=stored_to[row.id],
                gpu_uuids=row.gpu_uuids,
                gpu_slice_bytes=row.gpu_slice_bytes,
                gang=None if row.leader_id is None else GangPlace(row.members, row.member, row.leader_id),
                port=row.port,
            )
            for row in attempts.describe(tx, attempt_ids)
        }
