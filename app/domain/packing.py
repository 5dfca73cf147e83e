"""Which node takes a GPU job, so that whole hosts stay free: the one that it leaves with the fewest GPUs to spare.

Pure. What is known of other nodes may be out of date: whoever waits for one of them does so for a moment only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.resources import Free, Resources

GLANCE = 4
"""How many jobs of a shape are looked at: as many as a claim knows of one."""


@dataclass(frozen=True)
class Neighbour:
    """Another node that takes jobs, and what of it is free."""

    id: str
    free: Free
    runners: frozenset[str] = frozenset({"process"})


@dataclass(frozen=True)
class PutOff:
    """How many of the next jobs of a shape are better left to other nodes, and to which, the best first."""

    jobs: int = 0
    nodes: tuple[str, ...] = ()


def spare(free: Free, need: Resources) -> int:
    """How many GPUs that suit stay whole and free after one job of `need`, which must fit.

    A slice of a GPU that is shared already costs none: it is the best place.
    """
    if need.gpu_shared and any(gpu.held_bytes and gpu.suits(need) for gpu in free.gpus):
        return 0
    return sum(gpu.suits(need) for gpu in free.gpus) - need.gpus + (1 if need.gpu_shared else 0)


def put_off(need: Resources, mine: Free, others: Sequence[Neighbour], waiting: int | None) -> PutOff:
    """What of the `waiting` jobs of this shape (None: many) a node with `mine` free should leave to tighter nodes.

    Nothing when no other node would be filled better, and never more than those have room for: what they cannot take
    is not held up. Of many jobs all are left only where there is room for GLANCE of them.
    """
    own = spare(mine, need)
    if not need.gpus or own <= 0:
        return PutOff()
    tighter = sorted((spare(o.free, need), o.id, o) for o in others if o.free.fits(need) and spare(o.free, need) < own)
    wanted, left, names = GLANCE if waiting is None else waiting, 0, []
    for _spare, name, other in tighter:
        if left >= wanted:
            break
        left += _fit_times(other.free, need, wanted - left)
        names.append(name)
    return PutOff(left, tuple(names)) if waiting is not None or left >= wanted else PutOff()


def _fit_times(free: Free, need: Resources, most: int) -> int:
    count = 0
    while count < most and free.fits(need):
        free, _given = free.take(need)
        count += 1
    return count
