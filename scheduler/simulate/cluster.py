"""The simulated hosts: so many nodes of so many GPUs, some with smaller cards; CPUs and memory in proportion."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.resources import GIB, Gpu, Resources
from scheduler.planner import NodeView

CPUS_PER_GPU = 8
GIB_PER_GPU = 64
CARDS_GB = (40, 80)


@dataclass(frozen=True)
class Cluster:
    """`small_part` of the nodes have cards of 40 GB, the others of 80 GB."""

    nodes: int = 100
    gpus: int = 8
    small_part: float = 0.25

    @property
    def all_gpus(self) -> int:
        """GPUs over all nodes."""
        return self.nodes * self.gpus

    def views(self) -> list[NodeView]:
        """The nodes, those with small cards first."""
        small = round(self.nodes * self.small_part)
        return [self._view(number, CARDS_GB[number >= small]) for number in range(self.nodes)]

    def _view(self, number: int, card_gb: int) -> NodeView:
        name = f"node-{number:05}"
        cards = tuple(Gpu(f"{name}-{i}", f"A100-{card_gb}GB", card_gb * 10**9, i) for i in range(self.gpus))
        # Some CPUs and memory more than the GPUs' share, for jobs without GPUs and for the node itself.
        cpus, memory = (self.gpus + 1) * CPUS_PER_GPU * 1000, (self.gpus + 1) * GIB_PER_GPU * GIB
        return NodeView(name, 64, cpus, memory, cards)


def shape_of(gpus: int, gpu_memory_gb: int) -> Resources:
    """What one member asks for: CPUs and memory in proportion to its GPUs; without GPUs one CPU."""
    if not gpus:
        return Resources(1000, 4 * GIB)
    return Resources(gpus * CPUS_PER_GPU * 1000, gpus * GIB_PER_GPU * GIB, gpus, gpu_memory_gb * 10**9)
