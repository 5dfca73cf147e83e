"""What the planner sees: nodes, what runs and waits, what is reserved, tenants; and the rules it goes by.

Times are seconds on one clock, that of `now`; CPUs are thousandths, memory is bytes. Nothing here is ever changed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from uuid import UUID

from app.domain.policy import TenantView
from app.domain.priority import PriorityClass
from app.domain.resources import Gpu, Resources
from app.domain.tenant import Tier

_by_size = attrgetter("memory_bytes", "index", "uuid")


@dataclass(frozen=True)
class NodeView:
    """A node that takes jobs, with its whole capacity; what is free follows from what runs there.

    Draining and silent nodes are left out of a snapshot.
    """

    id: str
    slots: int
    cpus_milli: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    runners: frozenset[str] = frozenset({"process"})
    cluster: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def well(self) -> tuple[Gpu, ...]:
        """The GPUs that can be given, the smallest first."""
        return tuple(sorted((gpu for gpu in self.gpus if gpu.healthy), key=_by_size))

    @cached_property
    def uniform(self) -> bool:
        """Whether all its GPUs are of one kind."""
        return len({(gpu.memory_bytes, gpu.model, gpu.sharing) for gpu in self.gpus}) < 2

    @cached_property
    def make(self) -> Hashable:
        """What it has in all: nodes that are equal in this are equal when they are empty."""
        gpus = self.gpus
        one = (
            (gpus[0].memory_bytes, gpus[0].model, gpus[0].sharing) if gpus and self.uniform else self.id if gpus else ""
        )
        return self.slots, self.cpus_milli, self.memory_bytes, self.runners, len(self.well), one


@dataclass(frozen=True, slots=True)
class Running:
    """One live allocation: a plain job's, or one member's of a gang. It holds its share until it is gone.

    `started_at` is when its process started, None before that; `limit_s` counts from there, None is unlimited.
    `preemptible`: its tenant allows it and the job did not opt out. `stopping`: told to end; what it holds is free
    within its grace. `leader` is the attempt id of the gang's first member, None for a plain job. `waited_s` is how
    long the job had waited when it was given its place.
    """

    job_id: UUID
    attempt_id: UUID
    tenant_id: UUID
    priority_class: PriorityClass
    priority: int
    tier: Tier
    node_id: str
    shape: Resources
    gpu_uuids: tuple[str, ...] = ()
    started_at: float | None = None
    limit_s: float | None = None
    grace_s: float = 10.0
    checkpoint_at: float | None = None
    preemptible: bool = False
    stopping: bool = False
    leader: UUID | None = None
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending, ready job near the head of its scheduling key; `shape` is what each of its `members` needs.

    `waiting_since` is when it became ready. `avoid` names nodes on which it failed or was lost: others are tried first.
    `can_preempt`: its tenant may take the place of others. `max_per_node` bounds the members on one node.
    """

    job_id: UUID
    key_id: int
    tenant_id: UUID
    priority_class: PriorityClass
    priority: int
    tier: Tier
    shape: Resources
    members: int = 1
    runner: str = "process"
    queue_seq: int = 0
    waiting_since: float = 0.0
    limit_s: float | None = None
    grace_s: float = 10.0
    can_preempt: bool = False
    max_per_node: int | None = None
    avoid: frozenset[str] = frozenset()


PREEMPTING = "preempting"
"""Why something is reserved that others were told to give back for the job."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """Capacity of a node that is held for one member of a job, free already or not.

    It counts against claims and plans of `priority_class` and lower ones, never against higher ones. `gpu_uuids` are
    the very GPUs. `starts_at` is when the whole job should start if everything that runs uses its limit; None: unknown.
    """

    job_id: UUID
    member: int
    node_id: str
    priority_class: PriorityClass
    slots: int
    cpus_milli: int
    memory_bytes: int
    gpu_uuids: tuple[str, ...] = ()
    starts_at: float | None = None
    made_at: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fabric at one moment, read in one transaction. `waiting` has some jobs from the head of each key.

    `reserved` is what the last plan wanted and what has not expired since.
    """

    nodes: tuple[NodeView, ...] = ()
    running: tuple[Running, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    reserved: tuple[Reserved, ...] = ()
    tenants: Mapping[UUID, TenantView] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """What operators decide about planning.

    reserve_after_s: a plain job that has waited this long and fits no free node gets a reservation; gangs at once.
    starvation_s: a job that has waited this long goes before all others and counts as foreground; 0: never.
    aged_share: at most this part of the fabric is held by such jobs, so that an old backlog of a low class does not
    shut out the classes above it; the oldest may always go, however large.
    max_reservations: jobs with a reservation at a time. min_runtime_s: what ran less is never preempted.
    """

    reserve_after_s: float = 30.0
    starvation_s: float = 3600.0
    aged_share: float = 0.3
    max_reservations: int = 4
    min_runtime_s: float = 60.0
