"""Free GPUs of all hosts by count: all that the comparisons look at. Found by card and number free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scheduler.planner import NodeView

Seats = tuple[tuple[int, int], ...]
"""Hosts, and how many GPUs of each."""


class Pool:
    """How many GPUs each host has free. Hosts without GPUs hold what asks for none."""

    def __init__(self, views: Iterable[NodeView]) -> None:
        views = list(views)
        self.free = [len(view.gpus) for view in views]
        self.card_gb = [max((gpu.memory_bytes for gpu in view.gpus), default=0) // 10**9 for view in views]
        self._by_free: list[dict[int, None]] = [{} for _ in range(max(self.free) + 1)]
        for host, free in enumerate(self.free):
            self._by_free[free][host] = None

    def change(self, host: int, by: int) -> None:
        """The host has so many GPUs more free, or fewer."""
        before = self.free[host]
        self.free[host] = before + by
        if by:
            del self._by_free[before][host]
            self._by_free[before + by][host] = None

    def tightest_first(self, gpus: int, memory_gb: int) -> Iterator[int]:
        """Hosts with so many free GPUs of that memory, those with fewest free first."""
        for bucket in self._by_free[gpus:]:
            for host in bucket:
                if self.card_gb[host] >= memory_gb:
                    yield host

    def seats(self, gpus: int, memory_gb: int, members: int) -> Seats | None:
        """Where so many members can start now: tightest hosts first; None if not all can."""
        if not gpus:
            return ((0, 0),) * members
        found: list[tuple[int, int]] = []
        for host in self.tightest_first(gpus, memory_gb):
            for _ in range(self.free[host] // gpus):
                found.append((host, gpus))
                if len(found) == members:
                    return tuple(found)
        return None


class Ahead:
    """The pool at a later time, if all that runs uses its limit: so far as one waiting job needs to know."""

    def __init__(self, pool: Pool, ends: Iterable[tuple[float, Seats]]) -> None:
        self._free = list(pool.free)
        self._cards = pool.card_gb
        self._ends = sorted(ends)

    def first_start(self, now: float, gpus: int, memory_gb: int, members: int) -> tuple[float, dict[int, int]]:
        """When so many members fit at the earliest; how many GPUs each host has to spare beside them then."""
        fits = [(free // gpus if card >= memory_gb else 0) for free, card in zip(self._free, self._cards, strict=True)]
        found, time = sum(fits), now
        for end, seats in self._ends:
            if found >= members:
                break
            time = max(now, end)
            for host, count in seats:
                self._free[host] += count
                if self._cards[host] >= memory_gb:
                    found += self._free[host] // gpus - fits[host]
                    fits[host] = self._free[host] // gpus
        taken = self._taken(fits, gpus, members)
        return time, {host: self._free[host] - count for host, count in taken.items()}

    @staticmethod
    def _taken(fits: list[int], gpus: int, members: int) -> dict[int, int]:
        taken: dict[int, int] = {}
        for host, times in enumerate(fits):
            take = min(times, members)
            if take:
                taken[host] = take * gpus
                members -= take
        return taken
