"""A claim's look at other nodes: a fresh GPU job that fills one of them better is left to it for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from app.domain.packing import Neighbour, PutOff, put_off
from app.domain.resources import Free, Resources
from app.storage import claims
from app.storage.database import Row, Tx

LOOK_S = 0.5
"""Other nodes are looked at no more often: an old picture costs a job a moment, never its start."""
SHARE = 0.02
"""The greatest part of the time that looking may take; a larger fabric is looked at less often."""
NEIGHBOURS = 32


class Packing:
    """What one agent knows of the other nodes. `delay_s`: how long a job is left to them at most; 0: never."""

    def __init__(self, delay_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._delay_s = delay_s
        self._clock = clock
        self._seen: list[Neighbour] = []
        self._good_until = float("-inf")

    def left_s(self, waited_s: float) -> float:
        """How long a job that has waited so long may still be left to others; 0 or less: it is taken."""
        return self._delay_s - waited_s

    def put_off(
        self, tx: Tx, node_id: str, runners: Sequence[str], need: Resources, free: Free, waiting: int | None
    ) -> PutOff:
        """What of these jobs a node with `free` should leave to others now."""
        whole = [gpu for gpu in free.gpus if gpu.suits(need)]
        if not need.gpus or (len(whole) == need.gpus and not need.gpu_shared):
            return PutOff()
        others = [one for one in self._look(tx, node_id, len(free.gpus)) if one.runners >= set(runners)]
        return put_off(need, free, others, waiting)

    def _look(self, tx: Tx, node_id: str, mine: int) -> list[Neighbour]:
        began = self._clock()
        if began >= self._good_until:
            rows = claims.neighbours(tx, node_id, mine, NEIGHBOURS)
            self._seen = [Neighbour(row.id, free_of(row), frozenset(row.capabilities)) for row in rows]
            took_s = self._clock() - began
            self._good_until = began + max(LOOK_S, took_s / SHARE)
        return self._seen


def free_of(node: Row) -> Free:
    """What of a node no allocation holds, whatever is reserved."""
    free = Free(
        slots=node.slots - node.used_jobs,
        cpus_milli=node.cpus_milli - node.used_cpus,
        memory_bytes=node.memory_bytes - node.used_memory,
        gpus=claims.gpus_of(node),
    )
    return free.without(node.held or {})
