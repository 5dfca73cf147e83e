"""One load under several policies, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from scheduler.simulate.baseline import Baseline
from scheduler.simulate.cluster import Cluster
from scheduler.simulate.fabric import Fabric, Ways
from scheduler.simulate.tally import Tally
from scheduler.simulate.trace import TraceJob


def fitting(jobs: Sequence[TraceJob], cluster: Cluster) -> list[TraceJob]:
    """The jobs that the empty cluster would hold, from time 0 on; no policy is asked about the others."""
    cards = [view.gpus[0].memory_bytes // 10**9 for view in cluster.views()]
    nodes = {memory: sum(card >= memory for card in cards) for memory in {job.gpu_memory_gb for job in jobs}}

    def holds(job: TraceJob) -> bool:
        return not job.gpus or (cluster.gpus // job.gpus) * nodes[job.gpu_memory_gb] >= job.gang

    first = jobs[0].submit_s if jobs else 0.0
    return [replace(job, submit_s=job.submit_s - first) for job in jobs if holds(job)]


def compare(
    jobs: Sequence[TraceJob], cluster: Cluster, policies: Sequence[str], ways: Ways, say: Callable[[str], None]
) -> list[Tally]:
    """Runs every policy on the jobs, which must all fit; their tallies."""

    def run(name: str) -> Tally:
        if name == "fabric":
            return Fabric(jobs, cluster, ways, say).run()
        return Baseline(jobs, cluster, name == "easy", say).run()

    with _uncollected():
        return [run(name) for name in policies]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles: it would walk millions of jobs again and again, and none is made here."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
