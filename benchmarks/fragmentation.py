"""`python -m benchmarks.fragmentation`: do whole hosts stay free under jobs of 1, 2 and 8 GPUs? In virtual time.

The same seeded load is placed twice by the fabric's own `choose`: first come, where whichever node hears of a job takes
it, and packed, where it leaves fresh jobs to fuller nodes (`put_off`). No planner: nothing is reserved or preempted.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from app.domain.packing import Neighbour, put_off
from app.domain.policy import KeySummary, TenantView, choose
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, Free, Gpu, Resources
from benchmarks.figures import quantile

GPUS = 8
MIX = ((1, 0.6), (2, 0.25), (8, 0.15))
MEAN_S = {1: 1200.0, 2: 1800.0, 8: 1800.0}
TENANT = UUID(int=1)
HOP_S = 0.01
"""From a node that leaves a job to the claim of the node that it wakes."""
POLL_S = 5.0
"""Within this time every node asks for work by itself, once, while a job waits that came with no success."""


@dataclass(frozen=True)
class Job:
    """A job that comes `at` (seconds) and runs for `runs_s`."""

    at: float
    gpus: int
    runs_s: float


@dataclass
class Host:
    """A node: what is free of it."""

    name: str
    free: Free


@dataclass
class Tally:
    """What one run shows; times in seconds."""

    waits: dict[int, list[float]] = field(default_factory=lambda: {gpus: [] for gpus, _share in MIX})
    whole_s: float = 0.0
    busy_gpu_s: float = 0.0
    seen_s: float = 0.0
    free_gpu_s: float = 0.0
    whole_gpu_s: float = 0.0


def load(rng: random.Random, hosts: int, hours: float, share: float) -> list[Job]:
    """Jobs whose demand is `share` of all GPUs on average, at random times; exponential run times."""
    each = sum(weight * gpus * MEAN_S[gpus] for gpus, weight in MIX)
    rate = share * hosts * GPUS / each
    jobs, at = [], 0.0
    while (at := at + rng.expovariate(rate)) < hours * 3600:
        gpus = rng.choices([g for g, _w in MIX], [w for _g, w in MIX])[0]
        jobs.append(Job(at, gpus, rng.expovariate(1 / MEAN_S[gpus])))
    return jobs


class Run:
    """One load on one fabric under one rule. `delay_s` 0: first come."""

    def __init__(self, jobs: Sequence[Job], hosts: int, delay_s: float, rng: random.Random) -> None:
        self._delay_s = delay_s
        self._rng = rng
        self._hosts = [Host(f"host-{n}", _whole(n)) for n in range(hosts)]
        self._waiting: dict[int, deque[Job]] = {gpus: deque() for gpus, _share in MIX}
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, Any]] = []
        self._now = 0.0
        self._last_at = jobs[-1].at if jobs else 0.0
        self.tally = Tally()
        for job in jobs:
            self._at(job.at, "comes", job)

    def run(self) -> Tally:
        """Until every job has ended; time is measured until the last one has come, after a tenth to fill up."""
        while self._events:
            at, _order, what, about = heapq.heappop(self._events)
            self._measure(min(at, self._last_at) - max(self._now, self._last_at / 10))
            self._now = at
            getattr(self, f"_{what}")(about)
        return self.tally

    def _at(self, when: float, what: str, about: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, about))

    def _measure(self, seconds: float) -> None:
        if seconds <= 0:
            return
        frees = [len(host.free.gpus) for host in self._hosts]
        whole = sum(free == GPUS for free in frees)
        tally = self.tally
        tally.seen_s += seconds
        tally.whole_s += seconds * (whole > 0)
        tally.free_gpu_s += seconds * sum(frees)
        tally.whole_gpu_s += seconds * whole * GPUS
        tally.busy_gpu_s += seconds * (len(frees) * GPUS - sum(frees))

    def _comes(self, job: Job) -> None:
        self._waiting[job.gpus].append(job)
        # A bell reaches one node of those that have anything free, whichever it is.
        idle = [host for host in self._hosts if host.free.gpus]
        if idle:
            self._claim(self._rng.choice(idle))
        if job in self._waiting[job.gpus]:
            for host in self._hosts:
                self._at(self._now + self._rng.uniform(0, POLL_S), "claim", host)

    def _ends(self, end: tuple[Host, Resources, tuple[Gpu, ...]]) -> None:
        host, need, gpus = end
        free = host.free
        host.free = replace(
            free,
            slots=free.slots + 1,
            cpus_milli=free.cpus_milli + need.cpus_milli,
            memory_bytes=free.memory_bytes + need.memory_bytes,
            gpus=tuple(sorted((*free.gpus, *gpus), key=lambda gpu: gpu.index)),
        )
        self._claim(host)

    def _claim(self, host: Host) -> None:
        keys = list(self._keys(host))
        for take in choose(keys, {TENANT: TenantView()}, host.free, GPUS):
            for gpus in take.pins:
                job = self._waiting[take.shape.gpus].popleft()
                self.tally.waits[job.gpus].append(self._now - job.at)
                host.free = host.free.less(take.shape, gpus)
                self._at(self._now + job.runs_s, "ends", (host, take.shape, gpus))

    def _keys(self, host: Host) -> Iterator[KeySummary]:
        for gpus, line in self._waiting.items():
            need = Resources(1000, GIB, gpus)
            if not line or not host.free.fits(need):
                continue
            left_s = self._delay_s - (self._now - line[0].at)
            off = 0
            if left_s > 0:
                others = [Neighbour(other.name, other.free) for other in self._hosts if other is not host]
                better = put_off(need, host.free, others, len(line))
                off = better.jobs
                for name in better.nodes:
                    self._at(self._now + HOP_S, "claim", next(h for h in self._hosts if h.name == name))
                if off:
                    self._at(self._now + left_s, "claim", host)
            if off < len(line):
                yield KeySummary(gpus, TENANT, PriorityClass.BACKGROUND, 500, need, int(line[0].at * 1000), 0,
                                 len(line) - off)  # fmt: skip


def _whole(place: int) -> Free:
    gpus = tuple(Gpu(f"GPU-{place}-{n}", "A100", 80 * 10**9, n) for n in range(GPUS))
    return Free(1000, 1_000_000, 10_000 * GIB, gpus)


def figures(tallies: Sequence[Tally]) -> dict[str, float]:
    """One line of the table, over the runs of all seeds."""

    def whole(name: str) -> float:
        return float(sum(getattr(tally, name) for tally in tallies))

    def waits(gpus: int) -> list[float]:
        return [wait for tally in tallies for wait in tally.waits[gpus]]

    gpu_s = whole("busy_gpu_s") + whole("free_gpu_s")
    return {
        "host_free": whole("whole_s") / whole("seen_s"),
        "free_gpus_on_whole_hosts": whole("whole_gpu_s") / max(1.0, whole("free_gpu_s")),
        "utilisation": whole("busy_gpu_s") / gpu_s,
        **{f"wait{gpus}_p{q}_s": quantile(waits(gpus), q / 100) for gpus in (8, 1) for q in (50, 90)},
    }


def measure(
    hosts: int, hours: float, share: float, delay_s: float, seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Both rules on the same loads."""
    told = {}
    for rule, delay in (("first come", 0.0), ("packed", delay_s)):
        loads = [(seed, load(random.Random(seed), hosts, hours, share)) for seed in seeds]
        told[rule] = figures([Run(jobs, hosts, delay, random.Random(seed)).run() for seed, jobs in loads])
    return told


def main() -> int:
    """Prints a table and JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fragmentation", description=__doc__)
    parser.add_argument("--hosts", type=int, default=12, help=f"of {GPUS} GPUs each")
    parser.add_argument("--hours", type=float, default=48.0, help="of load, per seed")
    parser.add_argument("--delay", type=float, default=1.0, help="CFAB_PACK_DELAY_S")
    parser.add_argument("--seeds", type=int, default=5, help="how many loads, from seed 1 on")
    parser.add_argument("--load", type=float, action="append", help="demand as a part of all GPUs; may be given twice")
    asked = parser.parse_args()
    results = {}
    seeds = range(1, asked.seeds + 1)
    for share in asked.load or (0.5, 0.7, 0.85):
        results[f"{share:g}"] = measure(asked.hosts, asked.hours, share, asked.delay, seeds)
    print(f"{asked.hosts} hosts of {GPUS} GPUs, {asked.hours:g} h, seeds 1 to {asked.seeds}, delay {asked.delay:g} s\n")
    columns = list(next(iter(results.values()))["packed"])
    print(f"{'load':<6}{'rule':<12}" + "".join(f"{name:>26}" for name in columns))
    for share_name, rules in results.items():
        for rule, row in rules.items():
            print(f"{share_name:<6}{rule:<12}" + "".join(f"{row[name]:>26.3f}" for name in columns))
    print("\n" + json.dumps({"hosts": asked.hosts, "hours": asked.hours, "delay_s": asked.delay,
                             "seeds": list(seeds), "loads": results}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
