"""Small fabrics for the planner: strategies for consistent snapshots, and builders where a test says what matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from app.domain.policy import Room, TenantView
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, Gpu, Resources
from app.domain.tenant import Tier
from scheduler.planner import NodeView, Reserved, Rules, Running, Snapshot, Waiting, plan

NOW = 100_000.0
BIG, SMALL = 80 * 10**9, 40 * 10**9
TENANTS = tuple(UUID(int=100 + n) for n in range(3))
RULES = Rules(max_reservations=4)


def node(
    name: str = "n1",
    gpus: int = 4,
    size: int = BIG,
    slots: int = 16,
    cpus: int = 32,
    sick: int | None = None,
    **more: Any,
) -> NodeView:
    cards = tuple(Gpu(f"{name}-{i}", "A100", size, i, healthy=i != sick) for i in range(gpus))
    return NodeView(name, slots, cpus * 1000, 128 * GIB, cards, **more)


def shape(gpus: int = 1, cpus: int = 1, size: int = 0) -> Resources:
    return Resources(cpus * 1000, GIB, gpus, size)


def waiting(
    number: int, gpus: int = 1, members: int = 1, cls: PriorityClass = PriorityClass.BACKGROUND, **more: Any
) -> Waiting:
    filled: dict[str, Any] = {
        "key_id": number, "tenant_id": TENANTS[0], "priority": cls.default_priority, "tier": Tier.MEDIUM,
        "shape": shape(gpus), "queue_seq": number, "waiting_since": NOW - 10, "limit_s": 600.0, **more,
    }  # fmt: skip
    return Waiting(job_id=UUID(int=number), members=members, priority_class=cls, **filled)


def running(number: int, on: str, gpu_uuids: tuple[str, ...] = (), **more: Any) -> Running:
    filled: dict[str, Any] = {
        "job_id": UUID(int=10_000 + number), "attempt_id": UUID(int=20_000 + number), "tenant_id": TENANTS[1],
        "priority_class": PriorityClass.BEST_EFFORT, "priority": 100, "tier": Tier.LOW, "node_id": on,
        "shape": shape(len(gpu_uuids)), "gpu_uuids": gpu_uuids, "started_at": NOW - 500, "limit_s": 900.0, **more,
    }  # fmt: skip
    return Running(**filled)


def fabric(*parts: NodeView | Running | Waiting | Reserved, **more: Any) -> Snapshot:
    def of(kind: type) -> Any:
        return tuple(part for part in parts if isinstance(part, kind))

    return Snapshot(of(NodeView), of(Running), of(Waiting), of(Reserved), **more)


@st.composite
def snapshots(draw: st.DrawFn, preempt: bool = True, most_nodes: int = 4, most_waiting: int = 7) -> Snapshot:
    """A fabric in which what runs fits, with quotas, gangs, several classes and tiers, and a plan's reservations.

    Some GPUs were taken out; what held them runs on.
    """
    nodes = tuple(
        node(
            f"n{i}", draw(st.sampled_from([0, 2, 4])), draw(st.sampled_from([SMALL, BIG])),
            draw(st.integers(2, 8)), draw(st.sampled_from([4, 8])), draw(st.sampled_from([None, None, None, 0, 1])),
            cluster=draw(st.sampled_from(["a", "b"])),
        )
        for i in range(draw(st.integers(1, most_nodes)))
    )  # fmt: skip
    live = tuple(_draw_running(draw, nodes))
    jobs = tuple(draw(_waiting(number, preempt)) for number in range(1, draw(st.integers(0, most_waiting)) + 1))
    # What is left, and the whole of it.
    rooms = [
        (None, Room()), (Room(), Room()), (Room(), Room()), (Room(gpus=3), Room(gpus=5)), (Room(jobs=2), Room(jobs=4)),
        (Room(jobs=1), Room(jobs=2)),
    ]  # fmt: skip
    tenants = {
        tenant: TenantView(draw(st.floats(0, 50)), draw(st.sampled_from([1.0, 2.0])), *draw(st.sampled_from(rooms)))
        for tenant in TENANTS
    }
    snapshot = Snapshot(nodes, live, jobs, (), tenants)
    if draw(st.booleans()):
        # What an earlier cycle held, when the jobs stood elsewhere in line and some ran longer ago.
        before = plan(replace(snapshot, waiting=tuple(draw(st.permutations(jobs)))), NOW - 5, RULES)
        snapshot = replace(snapshot, reserved=before.reservations)
    return snapshot


def _draw_running(draw: st.DrawFn, nodes: tuple[NodeView, ...]) -> list[Running]:
    live: list[Running] = []
    for at in nodes:
        free, cpus, slots = list(at.gpus), at.cpus_milli, at.slots
        for _ in range(draw(st.integers(0, 4))):
            need = draw(st.sampled_from([shape(0), shape(1), shape(1, 2), shape(2, 2), shape(4)]))
            if need.gpus > len(free) or need.cpus_milli > cpus or slots < 1:
                continue
            mine, free = free[: need.gpus], free[need.gpus :]
            cpus, slots = cpus - need.cpus_milli, slots - 1
            number = len(live) + 1
            cls = draw(st.sampled_from(PriorityClass))
            started = draw(st.sampled_from([None, NOW - 10, NOW - 100, NOW - 1000]))
            leader = live[-1] if live and draw(st.integers(0, 3)) == 0 else None
            if leader is not None and leader.leader is None:
                live[-1] = leader = replace(leader, leader=leader.attempt_id)
            run = running(
                number, at.id, tuple(gpu.uuid for gpu in mine), shape=need, started_at=started,
                tenant_id=draw(st.sampled_from(TENANTS)), priority_class=cls, priority=cls.default_priority,
                tier=draw(st.sampled_from(Tier)), limit_s=draw(st.sampled_from([None, 200.0, 2000.0])),
                checkpoint_at=draw(st.sampled_from([None, NOW - 50])), preemptible=draw(st.booleans()),
                stopping=draw(st.integers(0, 5)) == 0, waited_s=draw(st.sampled_from([10.0, 10.0, 10.0, 5000.0])),
            )  # fmt: skip
            if leader is not None:
                run = replace(
                    run, job_id=leader.job_id, leader=leader.leader, tenant_id=leader.tenant_id, tier=leader.tier,
                    priority_class=leader.priority_class, priority=leader.priority, preemptible=leader.preemptible,
                    stopping=leader.stopping, started_at=leader.started_at, waited_s=leader.waited_s,
                )  # fmt: skip
            live.append(run)
    return live


@st.composite
def _waiting(draw: st.DrawFn, number: int, preempt: bool) -> Waiting:
    cls, tenant = draw(st.sampled_from(PriorityClass)), draw(st.integers(0, 2))
    shapes = [shape(0), shape(0, 4), shape(1), shape(2, 2), shape(4), shape(1, 1, BIG)]
    need, members = draw(st.sampled_from(shapes)), draw(st.sampled_from([1, 1, 1, 2, 3]))
    can_preempt = preempt and draw(st.booleans())
    # Jobs of one key are alike in all but age and limit.
    key = ((tenant * 3 + cls) * 10 + shapes.index(need)) * 10 + members + 5 * can_preempt
    return waiting(
        number, cls=cls, shape=need, key_id=key, members=members, tenant_id=TENANTS[tenant], can_preempt=can_preempt,
        tier=list(Tier)[key % 4], limit_s=draw(st.sampled_from([None, 30.0, 600.0])),
        waiting_since=NOW - draw(st.sampled_from([1, 40, 5000])), max_per_node=draw(st.sampled_from([None, None, 1])),
        avoid=draw(st.sampled_from([frozenset(), frozenset({"n0"})])),
    )  # fmt: skip
