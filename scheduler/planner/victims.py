"""Who may be told to make room for whom, and what that would lose."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from uuid import UUID

from app.domain.tenant import Tier
from scheduler.planner.snapshot import Rules, Running, Snapshot, Waiting

_TIERS = {tier: rank for rank, tier in enumerate(Tier)}
CPUS_OF_A_GPU = 8.0
"""As in the domain's `cost`: so that lost work of jobs without GPUs compares with that of others."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A running job with all its members; `lost_gpu_s` is the work since its start or its last checkpoint."""

    id: UUID
    job_id: UUID
    members: tuple[Running, ...]
    lost_gpu_s: float

    @property
    def nodes(self) -> tuple[str, ...]:
        """Where its members are, each once."""
        return tuple(dict.fromkeys(run.node_id for run in self.members))


class Victims:
    """The running jobs of a snapshot that some waiting job might preempt."""

    def __init__(self, snapshot: Snapshot, now: float, rules: Rules) -> None:
        groups: dict[UUID, list[Running]] = {}
        wanted = any(job.can_preempt for job in snapshot.waiting)
        for run in snapshot.running if wanted else ():
            groups.setdefault(run.leader or run.attempt_id, []).append(run)
        ripe = [
            Victim(id, members[0].job_id, tuple(members), sum(lost_gpu_s(run, now) for run in members))
            for id, members in groups.items()
            if all(_ripe(run, now, rules) for run in members)
        ]
        self._all = sorted(ripe, key=attrgetter("lost_gpu_s", "id"))
        self._told: set[UUID] = set()
        self._known: dict[Hashable, dict[str, list[Victim]]] = {}

    def of(self, job: Waiting) -> Mapping[str, Sequence[Victim]]:
        """By node: whom the job may preempt, cheapest first."""
        rank = (job.can_preempt, job.tier, job.priority_class, job.priority)
        by_node = self._known.get(rank)
        if by_node is None:
            by_node = self._known[rank] = self._find(job)
        return by_node

    def _find(self, job: Waiting) -> dict[str, list[Victim]]:
        by_node: dict[str, list[Victim]] = {}
        for victim in self._all:
            if victim.id in self._told or not may_preempt(job, victim.members[0]):
                continue
            for node in victim.nodes:
                by_node.setdefault(node, []).append(victim)
        return by_node

    def tell(self, victims: Iterable[Victim]) -> None:
        """These go; nobody counts them a second time."""
        told = {victim.id: victim for victim in victims}
        self._told.update(told)
        for by_node in self._known.values():
            for node in {node for victim in told.values() for node in victim.nodes} & by_node.keys():
                by_node[node] = [victim for victim in by_node[node] if victim.id not in told]


def outranks(job: Waiting, other: Waiting) -> bool:
    """Whether the job may preempt and is of a higher tier: what it could take from the other when that ran."""
    return job.can_preempt and _TIERS[job.tier] > _TIERS[other.tier]


def may_preempt(job: Waiting, run: Running) -> bool:
    """Whether policy lets the job take the place of a preemptible run: one below it by tier, then class, then priority.

    Never one of a higher tier or a higher class, so that no two jobs can preempt each other in turn.
    """
    above, below = _TIERS[job.tier], _TIERS[run.tier]
    if not job.can_preempt or below > above or run.priority_class < job.priority_class:
        return False
    return below < above or run.priority_class > job.priority_class or run.priority < job.priority


def lost_gpu_s(run: Running, now: float) -> float:
    """GPU-seconds of work that the end of a run loses now; eight CPUs of a run without GPUs count as one GPU."""
    if run.started_at is None:
        return 0.0
    since = max(run.started_at, run.checkpoint_at or run.started_at)
    return max(0.0, now - since) * (run.shape.gpus or run.shape.cpus_milli / 1000 / CPUS_OF_A_GPU)


def _ripe(run: Running, now: float, rules: Rules) -> bool:
    # What came to its turn by its age would wait as long again, and again: it counted as foreground, and still does.
    if rules.starvation_s and run.waited_s >= rules.starvation_s:
        return False
    ran = run.started_at is not None and now - run.started_at >= rules.min_runtime_s
    return run.preemptible and not run.stopping and ran
