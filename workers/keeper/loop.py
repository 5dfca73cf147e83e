"""The keeper's event loop parts: ranked descriptors over epoll, and timers on the boot clock.

Knows nothing of what its callbacks do.
"""

from __future__ import annotations

import heapq
import select
from collections.abc import Callable

Callback = Callable[[int], None]

# Within one batch output comes before exits, or the last lines of a job would be read after its end.
RANK_OUTPUT = 0
RANK_GATE = 1
RANK_SIGNAL = 2
RANK_SOCKET = 3


class Poller:
    """Calls back for ready descriptors, lower ranks first."""

    def __init__(self) -> None:
        """Open the epoll descriptor."""
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[int, Callback]] = {}

    def add(self, fd: int, rank: int, callback: Callback) -> None:
        """Watch `fd` for reading (and hang-up)."""
        self._callbacks[fd] = (rank, callback)
        self._epoll.register(fd, select.EPOLLIN)

    def watch_writes(self, fd: int, wanted: bool) -> None:
        """Also (or no longer) call back when `fd` takes bytes again."""
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def remove(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def poll(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` and run what is ready."""
        ready = self._epoll.poll(timeout_s, 512)
        if len(ready) == 1:
            self._call(ready[0][0])
            return
        ranked = sorted((self._callbacks[fd][0], fd) for fd, _ in ready if fd in self._callbacks)
        for _, fd in ranked:
            self._call(fd)

    def _call(self, fd: int) -> None:
        # A callback earlier in the batch may have removed this one.
        entry = self._callbacks.get(fd)
        if entry is not None:
            entry[1](fd)


class Timers:
    """Callbacks at boot-clock times; a callback that has become pointless must find that out itself."""

    def __init__(self) -> None:
        """Begin with none."""
        self._heap: list[tuple[float, int, str, Callable[[str], None]]] = []
        self._sequence = 0

    def at(self, when: float, owner: str, callback: Callable[[str], None]) -> None:
        """Run `callback(owner)` once, at or after `when`; `owner` is the attempt it is for.

        The timer holds no attempt alive: limits of hours outlive thousands of short jobs.
        """
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, owner, callback))

    def next_in(self, now: float, most_s: float) -> float:
        """Return the seconds to the next timer, 0 to `most_s`."""
        return min(most_s, max(0.0, self._heap[0][0] - now)) if self._heap else most_s

    def run_due(self, now: float) -> None:
        """Run everything due at `now`."""
        while self._heap and self._heap[0][0] <= now:
            _, _, owner, callback = heapq.heappop(self._heap)
            callback(owner)

    def prune(self, live: Callable[[str], bool], expected: int) -> None:
        """Drop the timers of ended owners once they are the majority."""
        if len(self._heap) > 6 * expected + 1024:
            self._heap = [entry for entry in self._heap if live(entry[2])]
            heapq.heapify(self._heap)
