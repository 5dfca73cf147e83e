"""A load from a seed: the mix of a shared GPU cluster, by day and night. Fixed: results of another mix do not compare.

The shape follows what is published of such clusters (Microsoft's Philly, SenseTime's Helios): most jobs ask for one
GPU and are short, most GPU time goes to few large and long ones, users ask for far longer limits than they need, few
tenants submit most, and there is more to do by day than by night.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from scheduler.simulate.trace import TraceJob

DAY_S = 86_400.0

# GPUs of each member, members, weight.
_SIZES = (
    (1, 1, 640), (2, 1, 100), (4, 1, 90), (8, 1, 110),
    (8, 2, 30), (8, 4, 18), (8, 8, 8), (8, 16, 3), (4, 2, 11),
)  # fmt: skip
_CLASSES = (("foreground", 15), ("background", 50), ("best_effort", 35))
_MEMORY_GB = ((0, 50), (20, 20), (40, 15), (80, 15))
_LIMITS_S = (900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 86_400.0)
MEDIAN_S, SPREAD, LONGEST_S = 600.0, 1.5, 86_400.0
TENANTS = 20


@dataclass(frozen=True)
class Load:
    """How much to generate. `load` 1.0 asks for exactly what `gpus` can give over the time in which jobs arrive."""

    jobs: int = 10_000
    gpus: int = 800
    load: float = 1.0
    seed: int = 1


def generate(load: Load) -> list[TraceJob]:
    """The jobs of a load by time of submission; the same for the same load, on every machine."""
    dice = random.Random(f"compute-fabric-load-1-{load.seed}")
    weights = [1 / (rank + 1) for rank in range(TENANTS)]
    drafts = [_draft(dice, weights) for _ in range(load.jobs)]
    asked = sum(gpus * gang * runtime for _tenant, _word, gpus, gang, _memory, runtime, _limit in drafts)
    span = asked / (load.gpus * load.load)
    times = sorted(_time(dice, span) for _ in drafts)
    return [
        TraceJob(round(time, 3), tenant, word, gpus, memory, runtime, limit, gang)
        for time, (tenant, word, gpus, gang, memory, runtime, limit) in zip(times, drafts, strict=True)
    ]


def _draft(dice: random.Random, weights: list[float]) -> tuple[str, str, int, int, int, float, float]:
    tenant = f"tenant-{dice.choices(range(TENANTS), weights)[0] + 1:02}"
    gpus, gang, _weight = dice.choices(_SIZES, [size[2] for size in _SIZES])[0]
    word = dice.choices([name for name, _w in _CLASSES], [w for _name, w in _CLASSES])[0]
    memory = dice.choices([gb for gb, _w in _MEMORY_GB], [w for _gb, w in _MEMORY_GB])[0]
    # Larger jobs run longer: the median grows with the square root of the GPUs.
    median = MEDIAN_S * math.sqrt(gpus * gang) ** 0.7
    runtime = round(min(LONGEST_S * 0.9, max(5.0, dice.lognormvariate(math.log(median), SPREAD))), 1)
    asked = runtime * dice.uniform(1.05, 6.0)
    limit = next((step for step in _LIMITS_S if step >= asked), LONGEST_S)
    return tenant, word, gpus, gang, memory, runtime, limit


def _time(dice: random.Random, span: float) -> float:
    """A time in the span, twice as likely at noon as at midnight where the span has days."""
    while True:
        time = dice.uniform(0.0, span)
        if dice.random() < (1.5 - 0.5 * math.cos(2 * math.pi * time / DAY_S)) / 2:
            return time
