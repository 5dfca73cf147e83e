"""Place: the scheduler starts a job on nodes that it chose, all members in one transaction or none."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from app.domain.policy import Room
from app.domain.priority import PriorityClass
from app.domain.reservation import against, beside, held_of
from app.domain.resources import Free, Gpu, Resources
from app.services.claim import room_of
from app.services.packing import free_of
from app.storage import claims, places
from app.storage.claims import Hold
from app.storage.database import Database, Row, Tx

WAIT_FOR_TENANT_S = 0.5
"""A placement waits so long for claims that decide its tenant's quota. A claim takes milliseconds, but a busy tenant
always has one under way: who only tried would be refused cycle after cycle."""


@dataclass(frozen=True)
class Spot:
    """Where one member is to run: a node, and the GPUs it gets there."""

    node_id: str
    gpu_uuids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placed:
    """What became of a placement: the nodes that have something to fetch, or (none) why it could not be."""

    nodes: frozenset[str] = frozenset()
    refusal: str = ""


def place(
    db: Database,
    job_id: UUID,
    spots: Sequence[Spot],
    counts_as: PriorityClass,
    lease_s: float,
    planned_with: frozenset[UUID] = frozenset(),
) -> Placed:
    """Starts a waiting job with member i on `spots[i]`, if everything that was planned is still so.

    Node, GPUs, reservations of others (those that `counts_as` must leave alone), quota and the job itself are read
    again under their locks; all members get their place or none does. Each node finds its members at its next claim;
    what no node fetched in time goes back when its lease ends. Raises Unavailable: then it may have happened.

    `planned_with`: jobs whose reservations belong to the same plan and may stand behind this job: they do not bar it.
    """
    with db.transaction("place") as tx:
        return place_in(tx, job_id, spots, counts_as, lease_s, planned_with)


def place_in(
    tx: Tx,
    job_id: UUID,
    spots: Sequence[Spot],
    counts_as: PriorityClass,
    lease_s: float,
    planned_with: frozenset[UUID] = frozenset(),
) -> Placed:
    """`place` inside the caller's transaction, which must hold no lock on jobs or tenants."""
    nodes = {name: claims.lock_node(tx, name) for name in sorted({spot.node_id for spot in spots})}
    away = [name for name, node in nodes.items() if node is None or node.state != "ready" or node.kind != "agent"]
    if away:
        return Placed(refusal=f"node {away[0]} takes no jobs now")
    tenant = places.tenant_of(tx, job_id)
    if tenant is None:
        return Placed(refusal="the job is gone")
    room = _room(tx, tenant, job_id)
    if isinstance(room, str):
        return Placed(refusal=room)
    job = places.lock_waiting(tx, job_id)
    if job is None or job.members != len(spots):
        return Placed(refusal="the job does not wait any more")
    shape = Resources(job.cpus_milli, job.memory_bytes, job.gpus, job.gpu_memory_bytes, job.gpu_model, job.gpu_shared)
    if not room.holds(shape, len(spots)):
        return Placed(refusal="its tenant's quota has no room for it any more")
    seats = _Seats(tx, job, shape, counts_as, planned_with)
    for spot in spots:
        refusal = seats.take(nodes[spot.node_id], spot)
        if refusal:
            return Placed(refusal=refusal)
    seats.write(tenant, lease_s)
    return Placed(nodes=frozenset(nodes))


def _room(tx: Tx, tenant: UUID, job_id: UUID) -> Room | str:
    """What the tenant may still hold for the job, under its lock where it is finite; or why that cannot be said now."""
    if places.has_quota(tx, tenant) and not claims.wait_for_tenant(tx, tenant, WAIT_FOR_TENANT_S):
        return "its tenant's quota is being decided elsewhere"
    use = claims.tenant_usage(tx, [tenant], job_id).get(tenant)
    if use is None or not use.active:
        return "its tenant is inactive"
    return room_of(use)


class _Seats:
    """The members of one job as they take their seats, on nodes whose room shrinks with each."""

    def __init__(
        self, tx: Tx, job: Row, shape: Resources, counts_as: PriorityClass, planned_with: frozenset[UUID]
    ) -> None:
        self._planned_with = planned_with
        self._tx, self._job, self._shape = tx, job, shape
        self._class = counts_as
        self._ends_in_s = None if job.time_limit_s is None else job.time_limit_s + job.grace_s
        self._free: dict[str, Free] = {}
        self._members: list[tuple[Row, tuple[Gpu, ...]]] = []

    def take(self, node: Row, spot: Spot) -> str:
        """Seats the next member; why not, or nothing."""
        if self._job.runner not in node.capabilities:
            return f"node {node.id} has no runner {self._job.runner}"
        free = self._free.get(node.id)
        if free is None:
            held = [one for one in held_of(node.reserved) if one.job_id not in self._planned_with]
            others = against(held, self._class, self._job.id, self._ends_in_s)
            free = beside(free_of(node), others)
        given = tuple(gpu for gpu in free.gpus if gpu.uuid in spot.gpu_uuids and gpu.suits(self._shape))
        if len(given) != self._shape.gpus or len(spot.gpu_uuids) != self._shape.gpus:
            return f"GPUs on node {node.id} are not free any more"
        if not free.fits(self._shape):
            return f"node {node.id} has no room any more"
        self._free[node.id] = free.less(self._shape, given)
        self._members.append((node, given))
        return ""

    def write(self, tenant: UUID, lease_s: float) -> None:
        """Writes all members: attempts, allocations, GPUs, undelivered leases, usage; the job is starting then."""
        number = self._job.attempt + 1
        holds = [
            Hold(
                attempt_id=uuid4(),
                job_id=self._job.id,
                number=number,
                token=UUID(bytes=secrets.token_bytes(16)),
                tenant_id=tenant,
                cpus_milli=self._shape.cpus_milli,
                memory_bytes=self._shape.memory_bytes,
                gpus=self._shape.gpus,
                gpu_memory_bytes=self._shape.gpu_memory_bytes,
                gpus_given=given,
                gpu_shared=self._shape.gpu_shared,
            )
            for _node, given in self._members
        ]
        rows = [
            {**hold.columns(), "member": member, "node_id": node.id, "node_ip": node.ip}
            for member, (hold, (node, _given)) in enumerate(zip(holds, self._members, strict=True))
        ]
        places.write_members(self._tx, self._job.id, rows, lease_s)
        for name in {node.id for node, _given in self._members}:
            there = [hold for hold, (node, _given) in zip(holds, self._members, strict=True) if node.id == name]
            if any(hold.gpu_uuids for hold in there):
                claims.pin(self._tx, name, there)
