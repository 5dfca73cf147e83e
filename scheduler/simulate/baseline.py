"""What others do with the same load: FIFO, where the oldest job blocks all, and EASY backfill as Slurm does it.

Both go by submission alone. EASY reserves a start for the oldest job; whatever else ends before it by its limit, or
leaves its GPUs alone, may run ahead. It knows GPUs by count, and is given every start and end at once.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from scheduler.simulate.cluster import Cluster
from scheduler.simulate.pool import Ahead, Pool, Seats
from scheduler.simulate.tally import Tally
from scheduler.simulate.trace import TraceJob

SHADOW_S = 30.0
"""The oldest job's reserved start is found anew this often, and whenever another job becomes the oldest."""
DEPTH = 100
"""Jobs of one size that are tried for backfill at a time; Slurm's default is 100 in all."""

Size = tuple[int, int, int]
"""GPUs of a member, GB of each card, members."""


class Baseline:
    """One run of a trace. `run` fills the tally."""

    def __init__(self, jobs: Sequence[TraceJob], cluster: Cluster, backfill: bool, say: Callable[[str], None]) -> None:
        self._jobs, self._backfill, self._say = jobs, backfill, say
        self._pool = Pool(cluster.views())
        self._queue: deque[int] = deque()
        self._by_size: dict[Size, deque[int]] = {}
        self._started = bytearray(len(jobs))
        self._ends: list[tuple[float, int]] = []
        self._seats: dict[int, tuple[float, Seats]] = {}
        self._shadow: tuple[int, float, float, dict[int, int]] | None = None
        self._now = 0.0
        self.tally = Tally("easy" if backfill else "fifo", jobs, cluster.all_gpus)

    def run(self) -> Tally:
        """Runs until every job is done."""
        at, told, again = 0, 0, math.inf
        while at < len(self._jobs) or self._ends:
            submit = self._jobs[at].submit_s if at < len(self._jobs) else math.inf
            end = self._ends[0][0] if self._ends else math.inf
            self._now = min(submit, end, again)
            freed: list[int] = []
            while self._ends and self._ends[0][0] <= self._now:
                freed += self._end(heapq.heappop(self._ends)[1])
            new = at
            while at < len(self._jobs) and self._jobs[at].submit_s <= self._now:
                self._queue.append(at)
                self._by_size.setdefault(_size(self._jobs[at]), deque()).append(at)
                at += 1
            self._cycle(range(new, at), freed, self._now >= again)
            again = self._now + SHADOW_S if self._queue and self._backfill and (freed or again <= self._now) else again
            again = again if self._queue else math.inf
            if self.tally.done >= told:
                told += max(1, len(self._jobs) // 200)
                self._say(f"{self.tally.name}: {self.tally.done:,} of {len(self._jobs):,} jobs")
        return self.tally

    def _cycle(self, new: range, freed: Sequence[int], thorough: bool) -> None:
        began = time.process_time()
        head = self._head()
        while head is not None and self._try(head):
            head = self._head()
        if head is not None and self._backfill and (new or freed or thorough):
            self._fill(head, new, freed, thorough)
        self.tally.cycle_ms.append((time.process_time() - began) * 1000)

    def _head(self) -> int | None:
        while self._queue and self._started[self._queue[0]]:
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    def _try(self, number: int) -> bool:
        seats = self._pool.seats(*_size(self._jobs[number]))
        if seats is not None:
            self._start(number, seats)
        return seats is not None

    def _start(self, number: int, seats: Seats) -> None:
        job = self._jobs[number]
        self._started[number] = 1
        for host, gpus in seats:
            self._pool.change(host, -gpus)
        heapq.heappush(self._ends, (self._now + job.runs_s, number))
        self._seats[number] = (self._now + job.limit_s, seats)
        self.tally.start(number, self._now)
        self.tally.busy(self._now, job.all_gpus)

    def _end(self, number: int) -> list[int]:
        _limit, seats = self._seats.pop(number)
        for host, gpus in seats:
            self._pool.change(host, gpus)
        self.tally.finish(number, self._now)
        self.tally.busy(self._now, -self._jobs[number].all_gpus)
        return list(dict.fromkeys(host for host, _gpus in seats))

    def _fill(self, head: int, new: range, freed: Sequence[int], thorough: bool) -> None:
        """Starts what does not make the oldest job start later than its shadow time."""
        if self._shadow is None or self._shadow[0] != head or self._now - self._shadow[1] >= SHADOW_S:
            start, spare = Ahead(self._pool, self._seats.values()).first_start(self._now, *_size(self._jobs[head]))
            self._shadow = (head, self._now, start, spare)
            thorough = True
        if thorough:
            for size in sorted(self._by_size, key=lambda size: self._first(size)):
                self._fill_size(size)
            return
        for number in new:
            if not self._started[number]:
                self._ahead(number)
        for host in freed:
            self._fill_host(host)

    def _first(self, size: Size) -> int:
        jobs = self._by_size[size]
        while jobs and self._started[jobs[0]]:
            jobs.popleft()
        return jobs[0] if jobs else len(self._jobs)

    def _fill_size(self, size: Size) -> None:
        if self._first(size) == len(self._jobs):
            del self._by_size[size]
            return
        tried = 0
        for number in list(self._some(size)):
            if self._pool.seats(*size) is None:
                return
            tried += not self._ahead(number)
            if tried >= DEPTH:
                return

    def _some(self, size: Size) -> list[int]:
        jobs = self._by_size[size]
        return [jobs[i] for i in range(min(len(jobs), 4 * DEPTH)) if not self._started[jobs[i]]]

    def _fill_host(self, host: int) -> None:
        """The oldest jobs that may run on GPUs which just came free."""
        while self._pool.free[host]:
            free, card = self._pool.free[host], self._pool.card_gb[host]
            fit = [s for s in self._by_size if 0 < s[0] <= free and s[1] <= card and s[2] == 1]
            numbers = sorted(
                number for size in fit if self._first(size) < len(self._jobs) for number in self._some(size)
            )
            if not any(self._ahead(number, host) for number in numbers[:DEPTH]):
                return

    def _ahead(self, number: int, on: int | None = None) -> bool:
        """Starts a job ahead of the oldest if that harms it in no way; whether it did."""
        assert self._shadow is not None
        _head, _at, shadow, spare = self._shadow
        job = self._jobs[number]
        gpus, memory, members = _size(job)
        ends_in_time = self._now + job.limit_s <= shadow
        found: list[tuple[int, int]] = []
        hosts = self._pool.tightest_first(gpus, memory) if on is None else iter((on,))
        for host in hosts:
            room = self._pool.free[host]
            if not ends_in_time and host in spare:
                room = min(room, spare[host])
            found += [(host, gpus)] * min(members - len(found), room // gpus if gpus else members)
            if len(found) == members:
                break
        if len(found) < members:
            return False
        if not ends_in_time:
            for host, count in found:
                if host in spare:
                    spare[host] -= count
        self._start(number, tuple(found))
        return True


def _size(job: TraceJob) -> Size:
    return job.gpus, job.gpu_memory_gb, job.gang
