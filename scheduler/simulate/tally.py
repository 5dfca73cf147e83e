"""What a simulation counts while it runs, whatever decides: waits, busy GPUs, lost work, time spent deciding."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from scheduler.simulate.trace import TraceJob


class Tally:
    """The facts of one run. Job numbers are places in the trace; `first_start` and `end` are -1 until known."""

    def __init__(self, name: str, jobs: Sequence[TraceJob], gpus: int) -> None:
        self.name, self.jobs, self.gpus = name, jobs, gpus
        self.window_s = jobs[-1].submit_s
        self.first_start = array("d", [-1.0]) * len(jobs)
        self.end = array("d", [-1.0]) * len(jobs)
        self.preemptions = 0
        self.lost_gpu_s = 0.0
        self.cycle_ms = array("d")
        self.done = 0
        self.series: list[tuple[float, int]] = []
        self._busy, self._busy_gpu_s, self._since = 0, 0.0, 0.0

    def busy(self, now: float, gpus: int) -> None:
        """From now on so many GPUs more are busy, or fewer."""
        upto = min(now, self.window_s)
        if upto > self._since:
            self._busy_gpu_s += self._busy * (upto - self._since)
            self._since = upto
        self._busy += gpus
        if not self.series or now - self.series[-1][0] >= self.window_s / 2000:
            self.series.append((now, self._busy))

    def start(self, number: int, now: float) -> None:
        """A job runs, maybe not for the first time."""
        if self.first_start[number] < 0:
            self.first_start[number] = now

    def finish(self, number: int, now: float) -> None:
        """A job is done."""
        self.end[number] = now
        self.done += 1

    def utilisation(self) -> float:
        """The part of all GPUs that was busy until the last job was submitted, without work that was lost later."""
        return (self._busy_gpu_s - self.lost_gpu_s) / (self.gpus * self.window_s) if self.window_s else 0.0

    def wait_s(self, number: int) -> float:
        """From submission until the first start."""
        return self.first_start[number] - self.jobs[number].submit_s
