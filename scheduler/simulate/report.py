"""What a simulation found, as numbers: how busy, how long who waited, how evenly, what was lost, what deciding cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from scheduler.simulate.tally import Tally
from scheduler.simulate.trace import CLASSES, TraceJob

Numbers = dict[str, Any]


def quantile(values: Sequence[float], q: float) -> float:
    """The least of these sorted values (at least one) that at least the fraction `q` of all do not exceed."""
    return values[max(0, math.ceil(q * len(values)) - 1)]


def report(tallies: Iterable[Tally]) -> dict[str, Numbers]:
    """The numbers of each run, by its name."""
    return {tally.name: _numbers(tally) for tally in tallies}


def _numbers(tally: Tally) -> Numbers:
    waits: dict[str, list[float]] = {}
    for number, job in enumerate(tally.jobs):
        if tally.first_start[number] >= 0:
            for group in _groups(job):
                waits.setdefault(group, []).append(tally.wait_s(number))
    cycles = sorted(tally.cycle_ms)
    return {
        "jobs_done": tally.done,
        "utilisation": round(tally.utilisation(), 4),
        "window_h": round(tally.window_s / 3600, 2),
        "makespan_h": round(max(tally.end) / 3600, 2),
        "wait_s": {group: _spread(waits[group]) for group in sorted(waits, key=_rank)},
        "jain_fairness": round(jain(list(progress(tally).values())), 4),
        "preemptions": tally.preemptions,
        "lost_gpu_s": round(tally.lost_gpu_s),
        "cycles": len(cycles),
        "cycle_ms": {
            name: round(quantile(cycles, q), 2) if cycles else None
            for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
    }


def _groups(job: TraceJob) -> Iterator[str]:
    yield "all"
    yield job.class_
    yield "gangs" if job.gang > 1 else "one node" if job.gpus > 1 else "one GPU"
    if job.gang > 1:
        yield f"gangs, {job.class_}"
    yield job.tenant


def _rank(group: str) -> tuple[int, str]:
    first = ["all", *CLASSES, "one GPU", "one node", "gangs", *(f"gangs, {word}" for word in CLASSES)]
    return (first.index(group) if group in first else len(first)), group


def _spread(values: list[float]) -> Numbers:
    values.sort()
    return {
        "jobs": len(values),
        **{name: round(quantile(values, q), 1) for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))},
        "max": round(values[-1], 1),
        "mean": round(statistics.fmean(values), 1),
    }


def progress(tally: Tally) -> Mapping[str, float]:
    """By tenant: the part of its jobs' time, weighed by GPUs, in which they ran instead of waiting; 1 is no wait."""
    run: dict[str, float] = {}
    total: dict[str, float] = {}
    for number, job in enumerate(tally.jobs):
        if tally.end[number] >= 0:
            weight = max(1, job.all_gpus)
            run[job.tenant] = run.get(job.tenant, 0.0) + weight * job.runs_s
            total[job.tenant] = total.get(job.tenant, 0.0) + weight * (tally.end[number] - job.submit_s)
    return {tenant: run[tenant] / total[tenant] if total[tenant] else 1.0 for tenant in run}


def jain(values: Sequence[float]) -> float:
    """Jain's index of evenness: 1 if all have the same, 1/n if one has everything (Jain, Chiu and Hawe 1984)."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1.0


def table(found: Mapping[str, Numbers], tenants: bool = False) -> str:
    """The numbers as lines of text; waits in readable units."""
    lines = [f"{'':<24}" + "".join(f"{name:>34}" for name in found)]

    def row(title: str, cells: Iterable[str]) -> None:
        lines.append(f"{title:<24}" + "".join(f"{cell:>34}" for cell in cells))

    every = list(found.values())
    row("GPU utilisation", (f"{one['utilisation']:.1%}" for one in every))
    row("all jobs done after", (f"{one['makespan_h']:.1f} h" for one in every))
    row("Jain fairness", (f"{one['jain_fairness']:.3f}" for one in every))
    row("preemptions", (f"{one['preemptions']:,}" for one in every))
    row("lost GPU hours", (f"{one['lost_gpu_s'] / 3600:,.1f}" for one in every))
    row("a cycle: p50, p99, max", (_cycle(one["cycle_ms"]) for one in every))
    lines += ["", "wait: p50  p90  p99  max"]
    named = {"all", *CLASSES, "one GPU", "one node"}
    for group in every[0]["wait_s"]:
        if tenants or group in named or group.startswith("gangs"):
            spreads = (one["wait_s"].get(group) for one in every)
            cells = ("  ".join(told(s[q]) for q in ("p50", "p90", "p99", "max")) if s else "" for s in spreads)
            row(f"  {group}", cells)
    return "\n".join(line.rstrip() for line in lines)


def _cycle(ms: Mapping[str, float | None]) -> str:
    known = [f"{one:,.1f}" for one in ms.values() if one is not None]
    return " ".join(known) + " ms" if known else "no cycle ran"


def told(seconds: float) -> str:
    """A time as people say it: 12s, 3.4min, 5.6h, 2.1d."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"
