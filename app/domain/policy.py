"""Decisions: which job a node takes next, what quota leaves, who pays a retry, what an end means.

`choose` is the one rule of order; worker claims, dry runs, explanations and simulations share it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from app.domain.priority import PriorityClass
from app.domain.resources import Free, Gpu, Resources
from app.domain.states import JobState, Outcome, Reason, StopCause

POISON_NODES = 5
"""A job that was running when this many distinct nodes were lost fails instead of running again."""

WAITS_AGAIN = frozenset({StopCause.REQUEUE, StopCause.DRAIN, StopCause.PREEMPT})
"""A job that is stopped for one of these waits again, at no charge."""
MAX_BACKOFF = timedelta(hours=1)
NODE_FAULT_DELAY = timedelta(seconds=2)
MAX_NODE_FAULT_DELAY = timedelta(minutes=5)


@dataclass(frozen=True)
class KeySummary:
    """A scheduling key with pending jobs: who, which class and priority, which shape, and its oldest job.

    `waiting` is how many jobs wait behind it where that is known; None means enough for any claim.
    """

    id: int
    tenant_id: UUID
    priority_class: PriorityClass
    priority: int
    shape: Resources
    head_seq: int
    low_water: int = 0
    waiting: int | None = None


@dataclass(frozen=True)
class Room:
    """What a tenant may still hold; None is unlimited."""

    jobs: int | None = None
    cpus_milli: int | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_memory_bytes: int | None = None

    def holds(self, need: Resources, count: int = 1) -> bool:
        """Whether `count` more allocations of `need` stay within the quota."""
        asks = (
            (self.jobs, 1),
            (self.cpus_milli, need.cpus_milli),
            (self.memory_bytes, need.memory_bytes),
            (self.gpus, need.gpus),
            (self.gpu_memory_bytes, need.gpus * need.gpu_memory_bytes),
        )
        # A tenant over one limit (it was lowered) may still use what that limit does not count.
        return all(room is None or ask == 0 or room >= count * ask for room, ask in asks)

    def less(self, need: Resources, count: int = 1) -> Room:
        """The room left after `count` allocations of `need`."""

        def minus(room: int | None, ask: int) -> int | None:
            return None if room is None else room - count * ask

        return Room(
            minus(self.jobs, 1),
            minus(self.cpus_milli, need.cpus_milli),
            minus(self.memory_bytes, need.memory_bytes),
            minus(self.gpus, need.gpus),
            minus(self.gpu_memory_bytes, need.gpus * need.gpu_memory_bytes),
        )


@dataclass(frozen=True)
class TenantView:
    """A tenant as `choose` sees it: its weighted use of the fabric, and its room (None: could not be locked).

    The use is what it holds now, and the decayed mean of what it held before: who used more lately goes after others.
    `quota` is the room it has when it holds nothing; `choose` does not ask for that.
    """

    share: float = 0.0
    weight: float = 1.0
    room: Room | None = field(default_factory=Room)
    quota: Room = field(default_factory=Room)


@dataclass(frozen=True)
class Take:
    """Take up to `count` jobs of key `key_id`, oldest first; the GPUs of each in turn are in `pins`."""

    key_id: int
    count: int
    shape: Resources
    pins: tuple[tuple[Gpu, ...], ...] = ()


def choose(
    keys: Sequence[KeySummary],
    tenants: Mapping[UUID, TenantView],
    free: Free,
    limit: int,
    upto: float = math.inf,
) -> list[Take]:
    """Which keys a node with `free` takes from now, in order, at most `limit` jobs in all.

    Order: class; inside a class the tenant that uses least for its weight (every job chosen counts at once, so equal
    tenants alternate); inside a tenant the greater priority, then the older head. A key that does not fit, or whose
    tenant has no room, is passed over and never blocks another. The sum of all takes fits `free` and every room, and no
    GPU is in the pins of two.

    In the last class only tenants that use at most `upto` for their weight get anything: others, whose keys are not
    among these, go before the rest.
    """
    plan = _Plan(tenants, free, limit)
    classes = sorted({key.priority_class for key in keys})
    for cls in classes:
        queues: dict[UUID, list[KeySummary]] = {}
        for key in sorted((k for k in keys if k.priority_class == cls), key=lambda k: (-k.priority, k.head_seq)):
            queues.setdefault(key.tenant_id, []).append(key)
        bound = upto if cls == classes[-1] else math.inf
        turns = [(plan.shares.get(tenant, 0.0), queue[0].head_seq, tenant) for tenant, queue in queues.items()]
        heapq.heapify(turns)
        while turns and plan.limit > 0 and turns[0][0] <= bound:
            tenant = turns[0][2]
            queue = queues[tenant]
            # A lone tenant takes a run of jobs at once; several take turns, so that each turn is weighed anew.
            if not plan.take(queue[0], plan.limit if len(turns) == 1 and bound == math.inf else 1):
                queue.pop(0)
            if queue:
                heapq.heapreplace(turns, (plan.shares.get(tenant, 0.0), queue[0].head_seq, tenant))
            else:
                heapq.heappop(turns)
    return [Take(key.id, len(pins), key.shape, tuple(pins)) for key, pins in plan.taken.values()]


class _Plan:
    """What is taken so far and what that leaves: of the node, of each tenant's room, of each tenant's fair share."""

    def __init__(self, tenants: Mapping[UUID, TenantView], free: Free, limit: int) -> None:
        self.free = free
        self.limit = limit
        self.taken: dict[int, tuple[KeySummary, list[tuple[Gpu, ...]]]] = {}
        self.shares = {tenant: view.share for tenant, view in tenants.items()}
        self._rooms = {tenant: view.room for tenant, view in tenants.items()}
        self._weights = {tenant: view.weight for tenant, view in tenants.items()}

    def take(self, key: KeySummary, most: int) -> int:
        """Takes up to `most` jobs of a key; how many fitted."""
        _key, pins = self.taken.get(key.id, (key, []))
        left = most if key.waiting is None else min(most, key.waiting - len(pins))
        room, run = self._rooms.get(key.tenant_id, Room()), 0
        while run < left and room is not None and self.free.fits(key.shape) and room.holds(key.shape):
            self.free, given = self.free.take(key.shape)
            room = room.less(key.shape)
            pins.append(given)
            run += 1
        if run:
            self.taken[key.id] = (key, pins)
            self.limit -= run
            self._rooms[key.tenant_id] = room
            share = run * cost(key.shape) / self._weights.get(key.tenant_id, 1.0)
            self.shares[key.tenant_id] = self.shares.get(key.tenant_id, 0.0) + share
        return run


def cost(share: Resources) -> float:
    """How much a share weighs against another: a GPU counts as 8 CPUs, 4 GiB of memory as one CPU (dominant share)."""
    return max(share.cpus_milli / 1000, share.memory_bytes / (4 * 2**30), share.gpus * 8.0, 0.001)


def decayed(average: float, live: float, passed_s: float, half_life_s: float) -> float:
    """The mean of what a tenant held, in which what is `half_life_s` old counts half as much as what is held now.

    `average` is the mean `passed_s` ago; `live` is the cost of what it has held since.
    """
    return live + (average - live) * math.exp2(-max(0.0, passed_s) / half_life_s)


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, as its node tells it (or as the reaper concludes)."""

    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False
    limit_hit: str | None = None
    stopped: bool = False
    refused: bool = False
    node_fault: bool = False
    lost: bool = False
    started: bool = True
    accepted_as: JobState | None = None


@dataclass(frozen=True)
class Verdict:
    """What an ended attempt means: its outcome, the job's next state, and when the job may run again."""

    outcome: Outcome
    state: JobState
    reason: Reason | None = None
    delay: timedelta = timedelta(0)
    spends_retry: bool = False
    lost_node: bool = False


def judge(
    ending: Ending,
    cause: StopCause | None,
    failures: int,
    max_retries: int,
    lost_nodes: int = 0,
    backoff_s: float = 1.0,
    multiplier: float = 2.0,
    uncharged: int = 0,
) -> Verdict:
    """The verdict on an attempt that ended while its job had `failures` failures and stop `cause` (or none).

    `uncharged` is how many attempts before it ended without being a failure of the job.

    A cancel always ends in cancelled. Under every other cause an exit before the signal keeps its own outcome, and one
    after it is the cause's, whatever its code: a program that saves its work and exits 0 when told to stop is not done.
    Lost nodes, drains, preemptions, requeues and a node's own faults cost the user nothing; only failures of the job
    spend retries, with exponential backoff. Losing POISON_NODES distinct nodes while running fails the job.
    """
    if cause == StopCause.CANCEL:
        return Verdict(Outcome.CANCELLED, JobState.CANCELLED)
    if ending.lost:
        return _lost(ending, lost_nodes)
    if ending.node_fault:
        return node_fault_verdict(uncharged)
    if ending.refused:
        return Verdict(Outcome.REFUSED, JobState.FAILED)
    if ending.accepted_as is not None:
        if ending.accepted_as == JobState.COMPLETED:
            return Verdict(Outcome.COMPLETED, JobState.COMPLETED)
        # Who only tells that a job has failed cannot say whether that was because it had to stop.
        if cause in WAITS_AGAIN:
            return _stopped(cause)
        return failed_verdict(Outcome.FAILED, failures, max_retries, backoff_s, multiplier)
    if ending.limit_hit == "time" or (ending.stopped and cause == StopCause.TIME_LIMIT):
        return failed_verdict(Outcome.TIMED_OUT, failures, max_retries, backoff_s, multiplier)
    if ending.stopped:
        return _stopped(cause, uncharged)
    if ending.exit_code == 0 and not ending.oom and ending.limit_hit is None:
        return Verdict(Outcome.COMPLETED, JobState.COMPLETED)
    outcome = Outcome.OUT_OF_MEMORY if ending.oom else Outcome.FAILED
    return failed_verdict(outcome, failures, max_retries, backoff_s, multiplier)


def _stopped(cause: StopCause | None, uncharged: int = 0) -> Verdict:
    if cause == StopCause.PREEMPT:
        return Verdict(Outcome.PREEMPTED, JobState.PENDING, Reason.PREEMPTED)
    if cause == StopCause.DRAIN:
        return Verdict(Outcome.DRAINED, JobState.PENDING, Reason.DRAINED)
    if cause == StopCause.REQUEUE:
        return Verdict(Outcome.REQUEUED, JobState.PENDING, Reason.REQUEUED)
    # Nobody asked for this stop: the node ended it for reasons of its own, and the user must not pay.
    return node_fault_verdict(uncharged)


def node_fault_verdict(uncharged: int = 0) -> Verdict:
    """The verdict on a node's own trouble: the job waits, soon tried again at first, then ever more rarely.

    What looks like it may never end (an image's registry that is misspelt or gone), and each try holds the GPUs of
    somebody who could run.
    """
    delay = min(MAX_NODE_FAULT_DELAY, NODE_FAULT_DELAY * 2 ** min(max(uncharged, 0), 10))
    return Verdict(Outcome.NODE_FAULT, JobState.PENDING, Reason.NODE_FAULT, delay)


def _lost(ending: Ending, lost_nodes: int) -> Verdict:
    if ending.started and lost_nodes + 1 >= POISON_NODES:
        return Verdict(Outcome.LOST, JobState.FAILED, lost_node=True)
    return Verdict(Outcome.LOST, JobState.PENDING, Reason.LOST, lost_node=ending.started)


def failed_verdict(outcome: Outcome, failures: int, max_retries: int, backoff_s: float, multiplier: float) -> Verdict:
    """The verdict on a failure of the job's own: it spends a retry while there is one left."""
    if failures >= max_retries:
        return Verdict(outcome, JobState.FAILED)
    delay = timedelta(seconds=_backoff(failures, backoff_s, multiplier))
    return Verdict(outcome, JobState.PENDING, Reason.BACKOFF, delay, spends_retry=True)


def _backoff(failures: int, backoff_s: float, multiplier: float) -> float:
    """backoff_s × multiplier^failures, at most MAX_BACKOFF."""
    longest = MAX_BACKOFF.total_seconds()
    try:
        return min(longest, backoff_s * multiplier**failures)
    except OverflowError:
        return longest if backoff_s else 0.0


def brake(expired: int, live: int) -> bool:
    """Whether a reaper pass must wait: more than a fifth of all leases, and at least five, would expire at once.

    That many at a time point to a fault of ours (the network, the database, a clock), not of the nodes.
    """
    return expired >= 5 and expired > live * 0.2
