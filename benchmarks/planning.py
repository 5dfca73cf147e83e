"""One cycle of the planner on a full fabric: 1,000 nodes of 8 GPUs, 100,000 jobs waiting, seen as the heads of keys.

CPU time, for the planner is one thread, and a machine that does other work besides says nothing by its clock.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from app.domain.policy import TenantView
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, Gpu, Resources
from app.domain.tenant import Tier
from benchmarks.figures import quantile
from scheduler.planner import NodeView, Rules, Running, Snapshot, Waiting, plan

NOW = 1_000_000.0
CARD = 80 * 10**9


@dataclass(frozen=True)
class Extent:
    """How large the fabric is. A snapshot shows `heads` jobs of each scheduling key, and `most_heads` in all."""

    nodes: int = 1000
    gpus: int = 8
    pending: int = 100_000
    tenants: int = 100
    heads: int = 8
    most_heads: int = 8000
    cycles: int = 20

    def quick(self) -> Extent:
        """A smaller one."""
        return replace(self, cycles=5)


def measure(extent: Extent, say: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds of a cycle in several situations."""
    rows = []
    for name, gangs, preempting, free in (
        ("plain jobs wait", 0.0, 0.0, 0),
        ("gangs wait", 0.2, 0.0, 0),
        ("gangs wait, some nodes free", 0.2, 0.0, 50),
        ("some may preempt", 0.1, 0.05, 0),
    ):
        say(f"planning: {name}")
        rows.append(_measure(extent, name, gangs, preempting, free))
    return {"planning": rows}


def _measure(extent: Extent, name: str, gangs: float, preempting: float, free: int) -> dict[str, Any]:
    dice = random.Random(7)
    snapshot = full_fabric(extent, dice, gangs, preempting, free)
    took, now = [], NOW
    for _ in range(extent.cycles):
        began = time.process_time()
        made = plan(snapshot, now, Rules())
        took.append((time.process_time() - began) * 1000)
        snapshot, now = replace(snapshot, reserved=made.reservations), now + 1
    return {
        "scenario": name, "running": len(snapshot.running), "heads": len(snapshot.waiting),
        "p50_ms": round(statistics.median(took), 1), "p99_ms": round(quantile(took, 0.99), 1),
        "placements": len(made.placements), "reservations": len(made.reservations), "victims": len(made.preemptions),
    }  # fmt: skip


def full_fabric(extent: Extent, dice: random.Random, gangs: float, preempting: float, free: int) -> Snapshot:
    """Every node but the `free` last is full of jobs of 1 to 8 GPUs; every key has as many heads as are shown."""
    nodes = [_node(number, extent.gpus) for number in range(extent.nodes)]
    live: list[Running] = []
    for node in nodes[: extent.nodes - free]:
        left = list(node.gpus)
        while left:
            gpus = min(len(left), dice.choice((1, 1, 1, 1, 2, 4, 8)))
            live.append(_running(len(live), node, tuple(gpu.uuid for gpu in left[:gpus]), dice))
            left = left[gpus:]
    tenants = {UUID(int=100 + n): TenantView(dice.uniform(0, 900)) for n in range(extent.tenants)}
    # As many keys as the waiting jobs make of the tenants, classes and shapes; 8 heads of each are seen.
    keys = min(min(extent.pending, extent.most_heads) // extent.heads, extent.tenants * 3 * 8)
    jobs = [
        _waiting(key, head, list(tenants), dice, gangs, preempting)
        for key in range(keys)
        for head in range(extent.heads)
    ]
    return Snapshot(tuple(nodes), tuple(live), tuple(jobs), (), tenants)


def _node(number: int, gpus: int) -> NodeView:
    cards = tuple(Gpu(f"GPU-{number:04}-{i}", "NVIDIA A100-SXM4-80GB", CARD, i) for i in range(gpus))
    # As many CPUs as its GPUs' jobs use, so that what waits has to wait.
    return NodeView(f"node-{number:04}", 64, 8000 * gpus, 64 * GIB * gpus, cards)


def _running(number: int, node: NodeView, uuids: tuple[str, ...], dice: random.Random) -> Running:
    cls = dice.choice(list(PriorityClass))
    return Running(
        UUID(int=10**6 + number), UUID(int=10**7 + number), UUID(int=100 + number % 100), cls, cls.default_priority,
        dice.choice(list(Tier)), node.id, Resources(len(uuids) * 8000, len(uuids) * 64 * GIB, len(uuids)), uuids,
        NOW - dice.uniform(0, 7200), dice.choice((None, 7200.0, 14400.0)), preemptible=dice.random() < 0.7,
    )  # fmt: skip


def _waiting(key: int, head: int, tenants: list[UUID], dice: random.Random, gangs: float, preempting: float) -> Waiting:
    cls = PriorityClass(key % 3)
    shapes = random.Random(key)
    gpus, members = shapes.choice((0, 1, 1, 1, 2, 4, 8)), 1
    if shapes.random() < gangs:
        gpus, members = 8, shapes.choice((2, 4, 8, 16, 32))
    return Waiting(
        UUID(int=key * 100 + head + 1), key, tenants[key % len(tenants)], cls, cls.default_priority,
        Tier.HIGH if cls == 0 else Tier.MEDIUM, Resources(max(1, gpus) * 8000, max(1, gpus) * 64 * GIB, gpus), members,
        queue_seq=key + head * 10_000, waiting_since=NOW - dice.uniform(0, 3000),
        limit_s=dice.choice((600.0, 3600.0, 14400.0)), can_preempt=shapes.random() < preempting,
    )  # fmt: skip
