"""What operators see of nodes and say about them: drain, resume, labels, GPUs out and in.

What an operator says is kept in columns of its own: an agent that registers again undoes none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.errors import Invalid, NotFound, StateConflict
from app.domain.states import JobState, StopCause
from app.storage import nodes as stored
from app.storage.database import Database, Row, Tx

EXTERNAL_SHOWN_S = 180.0
JOBS_SHOWN = 1000
STOPPED_AT_A_TIME = 10_000
MAX_LABELS = 64


@dataclass(frozen=True)
class Amount:
    """Of one resource: what there is, and what no allocation holds."""

    total: int
    free: int


@dataclass(frozen=True)
class GpuState:
    """One GPU: who holds it, whether it may be given away and why not, and what it does as last told by its agent.

    `sharing`: jobs may share it. `slice_bytes` is what slices of it hold together; None when nobody shares it now.
    """

    uuid: str
    index: int
    model: str
    memory_bytes: int
    healthy: bool
    reason: str
    out_by: str | None
    out_at: str | None
    sharing: bool
    job_ids: Sequence[UUID]
    slice_bytes: int | None
    readings: Mapping[str, Any]

    @property
    def state(self) -> str:
        """out (no claim gets it), held (by one job), shared (slices of it are held), or free.

        One that is out can still have its jobs.
        """
        if not self.healthy:
            return "out"
        return "free" if not self.job_ids else "held" if self.slice_bytes is None else "shared"

    @property
    def job_id(self) -> UUID | None:
        """The job that has it to itself."""
        return self.job_ids[0] if self.job_ids and self.slice_bytes is None else None


@dataclass(frozen=True)
class DrainState:
    """Who ordered a drain, why, since when, and until when jobs may run (None: to their own end)."""

    reason: str
    by: str
    since: datetime | None
    deadline: datetime | None


@dataclass(frozen=True)
class RunningJob:
    """A job that a node holds, and its share."""

    id: UUID
    type: str
    state: JobState
    stop_cause: StopCause | None
    tenant: str
    since: datetime
    cpus_milli: int
    memory_bytes: int
    gpu_uuids: Sequence[str]


@dataclass(frozen=True)
class NodeDetail:
    """A node as operators see it. CPUs in thousandths. `labels` are the agent's with the operators' laid over them."""

    name: str
    kind: str
    cluster: str
    state: str
    ip: str | None
    version: str
    runners: Sequence[str]
    labels: Mapping[str, str]
    operator_labels: Mapping[str, str]
    registered_at: datetime
    last_seen_at: datetime
    silent_s: float
    slots: Amount
    cpus_milli: Amount
    memory_bytes: Amount
    gpus: Sequence[GpuState]
    jobs: int
    drain: DrainState | None
    running: Sequence[RunningJob] = field(default=())


def list_nodes(db: Database, state: str | None = None, labels: Mapping[str, str] | None = None) -> list[NodeDetail]:
    """All nodes by cluster and name, of one state and with all of `labels` if given; executors outside while heard."""
    with db.transaction("read") as tx:
        nodes = [_detail(row) for row in stored.shown(tx, None, EXTERNAL_SHOWN_S)]
    wanted = (labels or {}).items()
    return [node for node in nodes if state in {None, node.state} and wanted <= node.labels.items()]


def get_node(db: Database, name: str) -> NodeDetail:
    """One node with the jobs it holds. Raises NotFound."""
    with db.transaction("read") as tx:
        return _get(tx, name)


def drain(db: Database, name: str, reason: str | None, by: str, deadline_s: float | None = None) -> NodeDetail:
    """The node takes nothing more. What runs goes on, up to `deadline_s` from now; then it is stopped, uncharged.

    Holds until `resume`, through restarts of agent and host. Ordered again, it has the new deadline, and the new
    reason unless that is None. The node is to be woken after this. Raises NotFound.
    """
    with db.transaction("drain") as tx:
        if not stored.drain(tx, name, reason, by, deadline_s):
            raise _unknown(name)
    # In a transaction of its own: jobs are locked here, and a claim that waited for the node's row may hold some.
    stop_overdue(db, name)
    return get_node(db, name)


def resume(db: Database, name: str, lease_s: float) -> NodeDetail:
    """The node takes jobs again; on one that does not drain, changes nothing. What was stopped stays so.

    Raises NotFound.
    """
    with db.transaction("drain") as tx:
        if not stored.resume(tx, name, lease_s):
            raise _unknown(name)
        return _get(tx, name)


def stop_overdue(db: Database, name: str) -> bool:
    """Stops what runs on the node past the deadline of its drain; whether there was anything."""
    with db.transaction("stop") as tx:
        return bool(stored.stop_overdue(tx, name, int(StopCause.DRAIN), STOPPED_AT_A_TIME))


def forget(db: Database, name: str, lease_s: float) -> None:
    """Removes a node that is gone, with all that operators said of it; one that comes back registers as a new one.

    Raises NotFound, and StateConflict while it holds jobs or was heard within a lease.
    """
    with db.transaction("drain") as tx:
        row = stored.lock_host(tx, name)
        if row is None:
            raise _unknown(name)
        if row.silent_s < lease_s:
            raise StateConflict(
                f"Node {name!r} was heard {row.silent_s:.0f} s ago. Stop its worker first, and wait until it has been "
                f"silent for {lease_s:.0f} s.",
                node=name,
            )
        if not stored.forget(tx, [name]):
            raise StateConflict(f"Node {name!r} still holds jobs; they are handed on when their leases end.", node=name)


def label(db: Database, name: str, changes: Mapping[str, str | None]) -> NodeDetail:
    """Sets the operators' labels that `changes` names, and removes those given None: the agent's own show again.

    Raises NotFound, and Invalid when there would be more than MAX_LABELS.
    """
    put = {key: value for key, value in changes.items() if value is not None}
    with db.transaction("drain") as tx:
        row = stored.set_labels(tx, name, put, [key for key in changes if key not in put])
        if row is None:
            raise _unknown(name)
        if len(row.operator_labels) > MAX_LABELS:
            raise Invalid(f"A node has at most {MAX_LABELS} labels from operators, not {len(row.operator_labels)}.")
        return _get(tx, name)


def take_gpu_out(db: Database, name: str, gpu: str, reason: str, by: str) -> NodeDetail:
    """No claim gets this GPU (UUID or index) until `put_gpu_in`; a job that has it goes on. Raises NotFound."""
    with db.transaction("drain") as tx:
        stored.take_gpu_out(tx, name, _uuid_of(tx, name, gpu), reason, by)
        return _get(tx, name)


def put_gpu_in(db: Database, name: str, gpu: str) -> NodeDetail:
    """Claims get this GPU again; one that its own agent took out comes back when it is well. Raises NotFound."""
    with db.transaction("drain") as tx:
        stored.put_gpu_in(tx, name, _uuid_of(tx, name, gpu))
        return _get(tx, name)


def share_gpu(db: Database, name: str, gpu: str, sharing: bool | None) -> NodeDetail:
    """Whether jobs may share this GPU (UUID or index) by memory; None: as its agent's setting says. Raises NotFound.

    Who has it or a slice of it goes on.
    """
    with db.transaction("drain") as tx:
        stored.share_gpu(tx, name, _uuid_of(tx, name, gpu), sharing)
        return _get(tx, name)


def _uuid_of(tx: Tx, name: str, gpu: str) -> str:
    row = stored.lock_node(tx, name)
    if row is None:
        raise _unknown(name)
    for one in row.gpus:
        if gpu in {one["uuid"], str(one.get("index", 0))}:
            return str(one["uuid"])
    if gpu in row.gpus_out:
        return gpu
    have = ", ".join(f"{one.get('index', 0)} {one['uuid']}" for one in row.gpus) or "none"
    raise NotFound(f"Node {name!r} has no GPU {gpu!r}; it has: {have}", node=name, gpu=gpu)


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no node {name!r}.", node=name)


def _get(tx: Tx, name: str) -> NodeDetail:
    rows = stored.shown(tx, name, EXTERNAL_SHOWN_S)
    if not rows:
        raise _unknown(name)
    return _detail(rows[0], [_running(row) for row in stored.jobs_on(tx, name, JOBS_SHOWN)])


def _detail(row: Row, running: Sequence[RunningJob] = ()) -> NodeDetail:
    drained = row.state == "draining"
    return NodeDetail(
        name=row.id,
        kind=row.kind,
        cluster=row.cluster,
        state=row.state,
        ip=row.ip,
        version=row.version,
        runners=tuple(row.capabilities),
        labels={**row.labels, **row.operator_labels},
        operator_labels=row.operator_labels,
        registered_at=row.registered_at,
        last_seen_at=row.last_seen_at,
        silent_s=max(0.0, row.silent_s),
        slots=_amount(row.slots, row.used_jobs),
        cpus_milli=_amount(row.cpus_milli, row.used_cpus),
        memory_bytes=_amount(row.memory_bytes, row.used_memory),
        gpus=[_gpu(row, gpu) for gpu in row.gpus],
        jobs=row.used_jobs,
        drain=DrainState(row.drain_reason or "", row.drain_by or "", row.drain_at, row.drain_deadline)
        if drained
        else None,
        running=running,
    )


def _amount(total: int, used: int) -> Amount:
    return Amount(total, max(0, total - used))


def _gpu(row: Row, gpu: Mapping[str, Any]) -> GpuState:
    out = row.gpus_out.get(gpu["uuid"])
    held = row.held.get(gpu["uuid"], {})
    return GpuState(
        uuid=gpu["uuid"],
        index=gpu.get("index", 0),
        model=gpu["model"],
        memory_bytes=gpu["memory_bytes"],
        healthy=gpu.get("healthy", True) and out is None,
        reason=gpu.get("reason", "") if out is None else out["reason"],
        out_by=None if out is None else out["by"],
        out_at=None if out is None else out["at"],
        sharing=row.gpu_sharing.get(gpu["uuid"], gpu.get("sharing", False)),
        job_ids=tuple(UUID(one) for one in held.get("jobs", ())),
        slice_bytes=held.get("bytes"),
        readings=gpu,
    )


def _running(row: Row) -> RunningJob:
    return RunningJob(
        id=row.id,
        type=row.type,
        state=JobState(row.state),
        stop_cause=None if row.stop_cause is None else StopCause(row.stop_cause),
        tenant=row.tenant,
        since=row.claimed_at,
        cpus_milli=row.cpus_milli,
        memory_bytes=row.memory_bytes,
        gpu_uuids=tuple(row.gpu_uuids or ()),
    )
