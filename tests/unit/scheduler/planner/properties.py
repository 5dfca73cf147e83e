"""What must hold for every plan of every fabric, each as a function of a planner, so that a broken one can be tried."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, combinations
from uuid import UUID

from app.domain.policy import Room
from app.domain.resources import Free
from scheduler.planner import NodeView, Plan, Rules, Running, Snapshot, Waiting
from scheduler.planner.host import UNKNOWN_S
from scheduler.planner.victims import lost_gpu_s
from tests.unit.scheduler.planner.worlds import NOW, RULES

Planner = Callable[[Snapshot, float, Rules], Plan]


def free_of(at: NodeView, live: Iterable[Running]) -> Free:
    here = [run for run in live if run.node_id == at.id]
    held = {uuid for run in here for uuid in run.gpu_uuids}
    return Free(
        at.slots - len(here),
        at.cpus_milli - sum(run.shape.cpus_milli for run in here),
        at.memory_bytes - sum(run.shape.memory_bytes for run in here),
        tuple(gpu for gpu in at.gpus if gpu.uuid not in held),
    )


def never_over_commits(planner: Planner, snapshot: Snapshot) -> None:
    """Placements fit what is free now, seat by seat; reservations fit the node; no GPU is given or held twice.

    Who gets a seat or a reservation gets as many GPUs as it needs, and such as suit it.
    """
    made = planner(snapshot, NOW, RULES)
    jobs = {job.job_id: job for job in snapshot.waiting}
    free = {at.id: free_of(at, snapshot.running) for at in snapshot.nodes}
    for placement in made.placements:
        need = jobs[placement.job_id].shape
        for node_id, uuids in placement.members:
            given = tuple(gpu for gpu in free[node_id].gpus if gpu.uuid in uuids)
            assert len(given) == len(set(uuids)) == len(uuids) == need.gpus, "a GPU that is not free"
            assert all(gpu.suits(need) for gpu in given), "a GPU that does not suit"
            assert free[node_id].fits(need), "more than is free"
            free[node_id] = free[node_id].less(need, given)
    for at in snapshot.nodes:
        held = [held for held in made.reservations if held.node_id == at.id]
        kept = [uuid for one in held for uuid in one.gpu_uuids]
        well = {gpu.uuid: gpu for gpu in at.gpus}
        for one in held:
            need = jobs[one.job_id].shape
            assert len(one.gpu_uuids) == need.gpus, "too few GPUs held"
            assert all(well[uuid].suits(need) for uuid in one.gpu_uuids), "a GPU held that does not suit"
        assert len(kept) == len(set(kept)) and set(kept) <= {gpu.uuid for gpu in at.gpus}, "a GPU held twice"
        assert sum(one.slots for one in held) <= at.slots, "more slots held than there are"
        assert sum(one.cpus_milli for one in held) <= at.cpus_milli, "more CPUs held than there are"
        assert sum(one.memory_bytes for one in held) <= at.memory_bytes, "more memory held than there is"
        # What just started must leave the held GPUs alone, unless it is gone by then or stands before their holder.
        for placement in made.placements:
            job = jobs[placement.job_id]
            end = math.inf if job.limit_s is None else NOW + job.limit_s + job.grace_s
            for one in held:
                if _stands_before(job, placement.why, jobs[one.job_id], one.why, one.made_at < NOW):
                    continue
                for seat in placement.members:
                    cut = set(seat.gpu_uuids) & set(one.gpu_uuids)
                    due = NOW + UNKNOWN_S if one.starts_at is None else one.starts_at
                    assert not cut or end <= due, "a held GPU taken too long"


def _stands_before(placed: Waiting, starts: str, waits: Waiting, why: str, is_kept: bool) -> bool:
    """Whether who starts was in line before who gets room, or may have been: the order of tenants is not known."""
    if "starved" in {starts, why}:
        return starts == "starved" and (why != "starved" or placed.queue_seq < waits.queue_seq)
    if starts == "preempting":
        return True
    if placed.priority_class != waits.priority_class:
        return placed.priority_class < waits.priority_class
    if starts == "reserved" or is_kept:
        return starts == "reserved"
    if placed.tenant_id != waits.tenant_id:
        return True
    return (-placed.priority, placed.queue_seq) < (-waits.priority, waits.queue_seq)


def never_breaks_a_quota(planner: Planner, snapshot: Snapshot) -> None:
    """All that a tenant gets in one plan, placed or held, fits its room; an undecided tenant gets nothing.

    Where its quota is kept for a job, the others fit beside all that this one needs; and it waited too long.
    """
    made = planner(snapshot, NOW, RULES)
    jobs = {job.job_id: job for job in snapshot.waiting}
    gets = [jobs[p.job_id] for p in made.placements] + [jobs[id] for id in {r.job_id for r in made.reservations}]
    for tenant, view in snapshot.tenants.items():
        mine = [job for job in gets if job.tenant_id == tenant]
        assert view.room is not None or not mine, "an undecided tenant"
        _fit(view.room or Room(), mine)
    assert len({hold.tenant_id for hold in made.quota_holds}) == len(made.quota_holds), "kept for two of a tenant"
    for hold in made.quota_holds:
        first, view = jobs[hold.job_id], snapshot.tenants[hold.tenant_id]
        assert NOW - first.waiting_since >= RULES.starvation_s and first.tenant_id == hold.tenant_id
        assert view.quota.holds(first.shape, first.members), "kept for what never fits"
        left = (view.room or Room()).less(first.shape, first.members)
        _fit(left, [job for job in gets if job.tenant_id == hold.tenant_id and job is not first])


def _fit(room: Room, jobs: list[Waiting]) -> None:
    assert room.jobs is None or sum(job.members for job in jobs) <= max(0, room.jobs)
    assert room.gpus is None or sum(job.members * job.shape.gpus for job in jobs) <= max(0, room.gpus)


def never_half_a_gang(planner: Planner, snapshot: Snapshot) -> None:
    """Every job that gets something gets a seat for each member, on nodes that can run it, and has a word if not."""
    made = planner(snapshot, NOW, RULES)
    jobs = {job.job_id: job for job in snapshot.waiting}
    runners = {at.id: at.runners for at in snapshot.nodes}
    groups = {p.job_id: [seat.node_id for seat in p.members] for p in made.placements}
    assert len(groups) == len(made.placements), "a job placed twice"
    members: dict[UUID, list[int]] = {}
    for held in made.reservations:
        assert held.job_id not in {p.job_id for p in made.placements}, "placed and held"
        groups.setdefault(held.job_id, []).append(held.node_id)
        members.setdefault(held.job_id, []).append(held.member)
    for job_id, nodes in groups.items():
        job = jobs[job_id]
        assert len(nodes) == job.members, "half a gang"
        assert all(job.runner in runners[at] for at in nodes)
        assert max(Counter(nodes).values()) <= (job.max_per_node or job.members), "too many on a node"
    assert all(sorted(numbers) == list(range(jobs[id].members)) for id, numbers in members.items())
    notes = set(made.notes)
    assert notes | {p.job_id for p in made.placements} == set(jobs), "a job without a word"
    assert all(note.numbers or note.reason == "undecided" for note in made.notes.values()), "a note without numbers"


def never_a_victim_outside_policy(planner: Planner, snapshot: Snapshot) -> None:
    """Victims allow it, ran long enough, never starved, stand below in tier, class or priority, and go whole, once."""
    made = planner(snapshot, NOW, RULES)
    jobs = {job.job_id: job for job in snapshot.waiting}
    tiers = ["low", "medium", "high", "critical"]
    told = [victim.victim_attempt for victim in made.preemptions]
    assert len(told) == len(set(told)), "told twice"
    for victim in made.preemptions:
        job = jobs[victim.for_job]
        members = [r for r in snapshot.running if victim.victim_attempt in (r.leader or r.attempt_id,)]
        assert members and job.can_preempt and any(r.job_id == job.job_id for r in made.reservations)
        for run in members:
            assert run.preemptible and not run.stopping and run.started_at is not None
            assert NOW - run.started_at >= RULES.min_runtime_s, "preempted too young"
            assert run.waited_s < RULES.starvation_s, "preempted after it starved"
            theirs = (tiers.index(run.tier), -run.priority_class, run.priority)
            ours = (tiers.index(job.tier), -job.priority_class, job.priority)
            assert theirs < ours and run.priority_class >= job.priority_class, "not below"


def preempts_the_least(planner: Planner, snapshot: Snapshot) -> None:
    """For one job that preempts: no set of allowed victims that makes room loses less. Tries every set.

    Those on nodes that the job is to avoid count only where no set on others makes the room.
    """
    job = snapshot.waiting[0]
    made = planner(snapshot, NOW, RULES)
    if not made.preemptions:
        return
    groups: dict[UUID, list[Running]] = {}
    for run in snapshot.running:
        groups.setdefault(run.leader or run.attempt_id, []).append(run)
    tiers = ["low", "medium", "high", "critical"]
    allowed = [
        members for members in groups.values()
        if all(
            run.preemptible and not run.stopping and run.started_at is not None and NOW - run.started_at >= 60
            and run.waited_s < RULES.starvation_s
            and run.priority_class >= job.priority_class
            and (tiers.index(run.tier), -run.priority_class, run.priority)
            < (tiers.index(job.tier), -job.priority_class, job.priority)
            for run in members
        )
    ]  # fmt: skip
    stay = [run for run in snapshot.running if not run.stopping]
    sets = list(chain.from_iterable(combinations(allowed, size) for size in range(len(allowed) + 1)))
    for avoid in (job.avoid, frozenset()):
        costs = [
            sum(lost_gpu_s(run, NOW) for members in some for run in members)
            for some in sets
            if _holds(snapshot, [run for run in stay if not any(run in members for members in some)], job, avoid)
        ]
        if costs:
            break
    ids = {victim.victim_attempt for victim in made.preemptions}
    told = sum(lost_gpu_s(run, NOW) for run in snapshot.running if (run.leader or run.attempt_id) in ids)
    assert costs and told <= min(costs) + 1e-6, f"lost {told}, could lose {min(costs, default=None)}"
    # And nobody of them could have stayed.
    for spared in ids:
        left = [run for run in stay if (run.leader or run.attempt_id) not in ids - {spared}]
        assert not _holds(snapshot, left, job, avoid), "a victim that was not needed"


def _holds(snapshot: Snapshot, live: list[Running], job: Waiting, avoid: frozenset[str]) -> bool:
    found = 0
    for at in snapshot.nodes:
        free, here = free_of(at, live), 0
        while at.id not in avoid and here < (job.max_per_node or job.members) and free.fits(job.shape):
            free, here = free.take(job.shape)[0], here + 1
        found += here
    return found >= job.members


def starts_of(made: Plan) -> dict[UUID, float]:
    """When each job starts by the plan: now, at the time of its reservation, or never that is known."""
    starts = {placement.job_id: NOW for placement in made.placements}
    for held in made.reservations:
        starts[held.job_id] = math.inf if held.starts_at is None else held.starts_at
    starts |= {job_id: NOW for job_id, note in made.notes.items() if note.reason == "claim"}
    return {job_id: starts.get(job_id, math.inf) for job_id in {*starts, *made.notes}}


def a_lower_class_changes_nothing(planner: Planner, snapshot: Snapshot) -> None:
    """Without the jobs of lower classes every job gets the same: the same seats, victims and reservation.

    Without ageing, which lifts jobs above their class, without what others gave back for a job, which is its own, and
    without the choice of plain jobs that gather room, which looks at who else waits.
    """
    rules = replace(RULES, starvation_s=0, reserve_after_s=math.inf)
    snapshot = replace(snapshot, reserved=tuple(held for held in snapshot.reserved if held.why != "preempting"))
    made = planner(snapshot, NOW, rules)
    for most in range(2):
        first = {job.job_id for job in snapshot.waiting if job.priority_class <= most}
        jobs = tuple(job for job in snapshot.waiting if job.job_id in first)
        held = tuple(held for held in snapshot.reserved if held.job_id in first)
        alone = planner(replace(snapshot, waiting=jobs, reserved=held), NOW, rules)
        assert alone.placements == tuple(p for p in made.placements if p.job_id in first), "other seats"
        assert alone.reservations == tuple(r for r in made.reservations if r.job_id in first), "another reservation"
        assert alone.preemptions == tuple(p for p in made.preemptions if p.for_job in first), "other victims"


def a_freed_node_delays_no_higher_job(planner: Planner, snapshot: Snapshot) -> None:
    """With any one run less, the job that stands first starts no later by the plan than it would have.

    Behind the first this cannot hold: what a job in front takes of the new room may be what suited the next one.
    Without the choice of plain jobs that gather room, which looks at who else runs.
    """
    assert len(snapshot.waiting) == 1
    rules = replace(RULES, reserve_after_s=math.inf)
    before = starts_of(planner(snapshot, NOW, rules))
    for gone in snapshot.running:
        left = tuple(r for r in snapshot.running if (r.leader or r.attempt_id) != (gone.leader or gone.attempt_id))
        after = starts_of(planner(replace(snapshot, running=left), NOW, rules))
        assert all(after[job_id] <= before[job_id] for job_id in before), "a freed node made it wait"


def the_order_of_rows_decides_nothing(planner: Planner, snapshot: Snapshot) -> None:
    """However the rows were read, the plan is the same."""
    turned = Snapshot(
        snapshot.nodes[::-1], snapshot.running[::-1], snapshot.waiting[::-1], snapshot.reserved[::-1],
        dict(reversed(list(snapshot.tenants.items()))),
    )  # fmt: skip
    assert planner(snapshot, NOW, RULES) == planner(turned, NOW, RULES)
