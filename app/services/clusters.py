"""Clusters and their nodes as they are now: what there is, what is free, and how many jobs each holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from app.storage import nodes as stored
from app.storage.claims import gpus_of
from app.storage.database import Database, Row

SHOWN_FOR_S = 86_400.0
"""An offline node is shown this long after its last sign of life; one that holds jobs, always."""


@dataclass(frozen=True)
class NodeView:
    """One GPU host: totals, and what no allocation holds. CPUs in thousandths, memory in bytes."""

    name: str
    cluster: str
    state: str
    gpus: int
    free_gpus: int
    gpu_models: tuple[str, ...]
    cpus_milli: int
    free_cpus_milli: int
    memory_bytes: int
    free_memory_bytes: int
    slots: int
    jobs: int


@dataclass(frozen=True)
class ClusterView:
    """A cluster: the nodes that name it."""

    name: str
    nodes: Sequence[NodeView]

    @property
    def status(self) -> str:
        """healthy when every node is ready, offline when none is there, else degraded."""
        states = {node.state for node in self.nodes}
        return "healthy" if states == {"ready"} else "offline" if states <= {"offline"} else "degraded"


def clusters(db: Database) -> list[ClusterView]:
    """All clusters by name, each with its nodes by name. One statement, whatever the number of jobs."""
    with db.transaction("read") as tx:
        views = [_view(row) for row in stored.capacities(tx, SHOWN_FOR_S)]
    return [ClusterView(name, tuple(nodes)) for name, nodes in groupby(views, key=lambda node: node.cluster)]


def _view(row: Row) -> NodeView:
    held = set(row.held)
    return NodeView(
        name=row.id,
        cluster=row.cluster,
        state=row.state,
        gpus=len(row.gpus),
        free_gpus=sum(gpu.healthy and gpu.uuid not in held for gpu in gpus_of(row)),
        gpu_models=tuple(gpu["model"] for gpu in row.gpus),
        cpus_milli=row.cpus_milli,
        free_cpus_milli=max(0, row.cpus_milli - row.used_cpus),
        memory_bytes=row.memory_bytes,
        free_memory_bytes=max(0, row.memory_bytes - row.used_memory),
        slots=row.slots,
        jobs=row.used_jobs,
    )
