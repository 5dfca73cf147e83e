"""One load under several policies, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from scheduler.simulate.baseline import Baseline
from scheduler.simulate.cluster import CARDS_GB, Cluster
from scheduler.simulate.fabric import Fabric, Ways
from scheduler.simulate.tally import Tally
from scheduler.simulate.trace import TraceJob

POLICIES = ("fabric", "easy", "fifo")


def fitting(jobs: Sequence[TraceJob], cluster: Cluster) -> list[TraceJob]:
    """The jobs that the empty cluster would hold, from time 0 on; no policy is asked about the others."""
    views = cluster.views()

    def holds(job: TraceJob) -> bool:
        nodes = sum(min((gpu.memory_bytes for gpu in v.gpus), default=0) >= job.gpu_memory_gb * 10**9 for v in views)
        return not job.gpus or (cluster.gpus // job.gpus) * nodes >= job.gang

    first = jobs[0].submit_s if jobs else 0.0
    return [replace(job, submit_s=job.submit_s - first) for job in jobs if holds(job)]


def compare(
    jobs: Sequence[TraceJob], cluster: Cluster, policies: Sequence[str], ways: Ways, say: Callable[[str], None]
) -> list[Tally]:
    """Runs every policy on the jobs, which must all fit; their tallies."""
    tallies = []
    for name in policies:
        if name == "fabric":
            tallies.append(Fabric(jobs, cluster, ways, say).run())
        else:
            tallies.append(Baseline(jobs, cluster, name == "easy", say).run())
    return tallies


__all__ = ["CARDS_GB", "POLICIES", "compare", "fitting"]
