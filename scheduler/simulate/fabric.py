"""The fabric in virtual time: nodes claim by the real `choose` when something ends, the real planner runs in between.

An event is the end of a run, a submission, or a cycle of the planner. Starting and ending take no time.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from app.domain.policy import choose, cost
from app.domain.priority import PriorityClass
from app.domain.resources import Gpu, Resources
from app.domain.tenant import Tier
from scheduler.planner import Plan, Reserved, Rules, Running, Snapshot, plan
from scheduler.simulate.backlog import Backlog, SimJob, waiting_of
from scheduler.simulate.cluster import Cluster, shape_of
from scheduler.simulate.shares import Shares
from scheduler.simulate.sim_node import SimNode, SimNodes
from scheduler.simulate.tally import Tally
from scheduler.simulate.trace import TraceJob

IDLE_S = 60.0
"""How often the planner runs while jobs wait and nothing starts or ends."""


@dataclass(frozen=True)
class Ways:
    """How the simulated fabric is run. `preempt`: foreground jobs may take the place of lower classes."""

    plan_s: float = 30.0
    preempt: bool = False
    checkpoint_s: float = 0.0
    half_life_s: float = 86_400.0
    rules: Rules = Rules()


@dataclass(slots=True)
class Live:
    """A run: its job, where each member sits, when it began and when it will be over."""

    job: SimJob
    seats: list[tuple[SimNode, tuple[Gpu, ...]]]
    began: float
    ends: float
    attempts: list[UUID]
    stopping: bool = False
    over: bool = False


class Fabric:
    """One run of a trace. `run` fills the tally."""

    def __init__(self, jobs: Sequence[TraceJob], cluster: Cluster, ways: Ways, say: Callable[[str], None]) -> None:
        self._jobs, self._ways, self._say = jobs, ways, say
        self._nodes = SimNodes(cluster.views())
        self._views = tuple(node.view for node in self._nodes.all)
        self._tenants = {name: UUID(int=n + 1) for n, name in enumerate(sorted({job.tenant for job in jobs}))}
        self._shares = Shares(self._tenants.values(), ways.half_life_s)
        self._backlog = Backlog()
        self._ends: list[tuple[float, int, Live]] = []
        self._live: dict[UUID, Live] = {}
        self._running: dict[UUID, Running] = {}
        self._waiting: dict[UUID, SimJob] = {}
        self._reserved: dict[UUID, list[Reserved]] = {}
        self._shapes: dict[tuple[int, int], Resources] = {}
        self._deaf: set[tuple[PriorityClass, Resources]] = set()
        self._attempts = 0
        self._now = self._next_plan = 0.0
        self._last_plan = -math.inf
        self.tally = Tally("fabric", jobs, cluster.all_gpus)

    def run(self) -> Tally:
        """Runs until every job is done."""
        at, told = 0, 0
        while at < len(self._jobs) or self._ends or self._backlog.count:
            submit = self._jobs[at].submit_s if at < len(self._jobs) else math.inf
            end = self._ends[0][0] if self._ends else math.inf
            cycle = max(self._next_plan, self._now) if self._backlog.count else math.inf
            self._now = min(submit, end, cycle)
            if end <= self._now:
                self._end(heapq.heappop(self._ends)[2])
            elif submit <= self._now:
                self._submit(at)
                at += 1
            else:
                self._plan()
            if cycle > self._now:
                # Something changed: the next cycle may find something to do. Otherwise one a minute will.
                self._next_plan = min(self._next_plan, self._tick(self._last_plan + self._ways.plan_s))
            if self.tally.done >= told:
                told += max(1, len(self._jobs) // 200)
                self._say(f"fabric: {self.tally.done:,} of {len(self._jobs):,} jobs, day {self._now / 86400:.1f}")
        return self.tally

    def _tick(self, at: float) -> float:
        """The first cycle from then on, not before now."""
        every = self._ways.plan_s
        return -(-max(at, self._now) // every) * every

    def _submit(self, number: int) -> None:
        trace = self._jobs[number]
        size = (trace.gpus, trace.gpu_memory_gb)
        shape = self._shapes.get(size) or self._shapes.setdefault(size, shape_of(*size))
        tenant, cls = self._tenants[trace.tenant], PriorityClass[trace.class_.upper()]
        key = self._backlog.key_of(tenant, cls, shape, trace.gang)
        waiting = waiting_of(trace, number, key, tenant, shape, self._ways.preempt)
        self._wait(SimJob(number, trace, waiting.job_id, tenant, cls, shape, trace.runs_s, waiting))

    def _wait(self, job: SimJob) -> None:
        self._backlog.put(job)
        self._waiting[job.id] = job
        # Its bell rings the tightest node that has room for it.
        if job.trace.gang > 1 or (job.cls, job.shape) in self._deaf:
            return
        for node in self._nodes.tightest_first(job.shape.gpus):
            if node.free_for(job.cls).fits(job.shape):
                self._claim(node)
                return
        self._deaf.add((job.cls, job.shape))

    def _claim(self, node: SimNode) -> None:
        """As a node's agent does: class by class, what the one rule of order gives it."""
        for cls in PriorityClass:
            if not self._backlog.waits(cls):
                continue
            free = node.free_for(cls)
            keys = self._backlog.candidates(cls, free)
            if not keys:
                continue
            tenants = {key.tenant_id: self._shares.view(key.tenant_id, self._now) for key in keys}
            least = min(key.shape.gpus for key in keys)
            for take in choose(keys, tenants, free, len(free.gpus) // least if least else free.slots):
                for pins in take.pins:
                    self._start(self._backlog.pop(take.key_id), [(node, pins)])

    def _start(self, job: SimJob, seats: list[tuple[SimNode, tuple[Gpu, ...]]]) -> None:
        del self._waiting[job.id]
        for held in self._reserved.pop(job.id, ()):
            self._nodes.by_id[held.node_id].held.remove(held)
        self._attempts += len(seats)
        attempts = [UUID(int=self._attempts - i) for i in range(len(seats))]
        live = Live(job, seats, self._now, self._now + job.left_s, attempts)
        leader = attempts[0] if len(seats) > 1 else None
        waited = self._now - job.waiting.waiting_since
        for attempt, (node, gpus) in zip(attempts, seats, strict=True):
            self._nodes.take(node, job.shape, gpus)
            self._running[attempt] = Running(
                job.id, attempt, job.tenant_id, job.cls, job.cls.default_priority, Tier.HIGH, node.view.id, job.shape,
                tuple(gpu.uuid for gpu in gpus), self._now, job.trace.limit_s, preemptible=self._ways.preempt,
                leader=leader, waited_s=waited,
            )  # fmt: skip
        self._live[attempts[0]] = live
        heapq.heappush(self._ends, (live.ends, self._attempts, live))
        self._shares.change(job.tenant_id, len(seats) * cost(job.shape), self._now)
        self.tally.busy(self._now, job.trace.all_gpus)
        self.tally.start(job.number, self._now)

    def _end(self, live: Live) -> None:
        if live.over:
            return
        live.over = True
        job = live.job
        for attempt, (node, gpus) in zip(live.attempts, live.seats, strict=True):
            self._nodes.give_back(node, job.shape, gpus)
            del self._running[attempt]
        del self._live[live.attempts[0]]
        self._shares.change(job.tenant_id, -len(live.seats) * cost(job.shape), self._now)
        self.tally.busy(self._now, -job.trace.all_gpus)
        self._deaf.clear()
        if self._now < live.ends:
            self._again(live)
        else:
            self.tally.finish(job.number, self._now)
        for node in dict.fromkeys(node for node, _gpus in live.seats):
            self._claim(node)

    def _again(self, live: Live) -> None:
        """A job that was preempted waits again, with what its last checkpoint saved."""
        job, ran = live.job, self._now - live.began
        saved = ran // self._ways.checkpoint_s * self._ways.checkpoint_s if self._ways.checkpoint_s else 0.0
        self.tally.preemptions += 1
        self.tally.lost_gpu_s += (ran - saved) * job.trace.all_gpus
        job.left_s -= saved
        job.waiting = replace(job.waiting, waiting_since=self._now)
        self._wait(job)

    def _plan(self) -> None:
        heads = tuple(job.waiting for job in self._backlog.heads(self._waiting[id] for id in self._reserved))
        reserved = tuple(held for parts in self._reserved.values() for held in parts)
        snapshot = Snapshot(self._views, self._live_view(), heads, reserved, self._shares.views(self._now))
        began = time.process_time()
        made = plan(snapshot, self._now, self._ways.rules)
        self.tally.cycle_ms.append((time.process_time() - began) * 1000)
        self._last_plan, self._next_plan = self._now, self._tick(self._now + max(IDLE_S, self._ways.plan_s))
        self._apply(made)

    def _live_view(self) -> tuple[Running, ...]:
        every = self._ways.checkpoint_s
        if not every:
            return tuple(self._running.values())

        def saved(run: Running) -> Running:
            began = run.started_at or 0.0
            return replace(run, checkpoint_at=began + (self._now - began) // every * every)

        return tuple(saved(run) for run in self._running.values())

    def _apply(self, made: Plan) -> None:
        changed = self._hold(made)
        for placement in made.placements:
            job = self._waiting[placement.job_id]
            self._backlog.remove(job)
            nodes = [(self._nodes.by_id[seat.node_id], seat.gpu_uuids) for seat in placement.members]
            self._start(job, [(node, tuple(node.cards[uuid] for uuid in uuids)) for node, uuids in nodes])
        for victim in made.preemptions:
            live = self._live[victim.victim_attempt]
            for attempt in live.attempts:
                self._running[attempt] = replace(self._running[attempt], stopping=True)
            grace = self._running[live.attempts[0]].grace_s
            heapq.heappush(self._ends, (self._now + grace, -live.job.number, live))
        for node in changed:
            self._claim(node)

    def _hold(self, made: Plan) -> Iterable[SimNode]:
        """Puts the new reservations in place of the old ones; the nodes where that may have made room."""
        old = dict.fromkeys(held.node_id for parts in self._reserved.values() for held in parts)
        for node_id in old:
            self._nodes.by_id[node_id].held = []
        self._reserved = {}
        for held in made.reservations:
            self._nodes.by_id[held.node_id].held.append(held)
            self._reserved.setdefault(held.job_id, []).append(held)
        self._deaf.clear()
        return [self._nodes.by_id[node_id] for node_id in old]
