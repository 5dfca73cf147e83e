"""A simulated host: what is free, what is held for whom; claims subtract it as the fabric's do."""

from __future__ import annotations

from collections.abc import Iterator

from app.domain.priority import PriorityClass
from app.domain.resources import Free, Gpu, Resources
from scheduler.planner import NodeView, Reserved


class SimNode:
    """One host."""

    __slots__ = ("at", "cards", "free", "held", "view")

    def __init__(self, view: NodeView, at: int) -> None:
        self.view, self.at = view, at
        self.cards = {gpu.uuid: gpu for gpu in view.gpus}
        self.free = Free(view.slots, view.cpus_milli, view.memory_bytes, view.gpus)
        self.held: list[Reserved] = []

    def free_for(self, cls: PriorityClass) -> Free:
        """What a claim of a class may use: free less what is reserved under that class or a better one."""
        held = [held for held in self.held if held.priority_class <= cls]
        if not held:
            return self.free
        closed = {uuid for one in held for uuid in one.gpu_uuids}
        return Free(
            self.free.slots - sum(one.slots for one in held),
            self.free.cpus_milli - sum(one.cpus_milli for one in held),
            self.free.memory_bytes - sum(one.memory_bytes for one in held),
            tuple(gpu for gpu in self.free.gpus if gpu.uuid not in closed),
        )

    def take(self, need: Resources, gpus: tuple[Gpu, ...]) -> None:
        """Something starts here."""
        self.free = self.free.less(need, gpus)

    def give_back(self, need: Resources, gpus: tuple[Gpu, ...]) -> None:
        """Something ended here."""
        free = self.free
        self.free = Free(
            free.slots + 1, free.cpus_milli + need.cpus_milli, free.memory_bytes + need.memory_bytes, free.gpus + gpus
        )


class SimNodes:
    """All hosts, found by free GPUs: a job's bell rings the tightest first."""

    def __init__(self, views: list[NodeView]) -> None:
        self.all = [SimNode(view, at) for at, view in enumerate(views)]
        self.by_id = {node.view.id: node for node in self.all}
        most = max((len(view.gpus) for view in views), default=0)
        self._by_free: list[dict[int, None]] = [{} for _ in range(most + 1)]
        for node in self.all:
            self._by_free[len(node.view.gpus)][node.at] = None

    def take(self, node: SimNode, need: Resources, gpus: tuple[Gpu, ...]) -> None:
        """Something starts on a host."""
        before = len(node.free.gpus)
        node.take(need, gpus)
        self._move(node, before)

    def give_back(self, node: SimNode, need: Resources, gpus: tuple[Gpu, ...]) -> None:
        """Something ended on a host."""
        before = len(node.free.gpus)
        node.give_back(need, gpus)
        self._move(node, before)

    def _move(self, node: SimNode, before: int) -> None:
        after = len(node.free.gpus)
        if after != before:
            del self._by_free[before][node.at]
            self._by_free[after][node.at] = None

    def tightest_first(self, gpus: int) -> Iterator[SimNode]:
        """Hosts with at least so many free GPUs, those with fewest first."""
        for bucket in self._by_free[gpus:]:
            for at in bucket:
                yield self.all[at]
