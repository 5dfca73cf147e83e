"""Samples of what each job uses, written in batches: CPU cores since the last sample, and memory, absolute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from app.domain.errors import FabricError
from app.services import checkpoints
from app.services.samples import Measured, store
from app.storage.database import Database
from workers.agent.checkpoints import Checkpoints
from workers.agent.overuse import Overuse
from workers.agent.registry import Entry, Registry
from workers.runners.base import Runner, RunnerError, Sample

log = logging.getLogger(__name__)

FIRST_S = 1.0
"""An attempt's first sample comes this long after its start, so that short jobs have one too."""
MAX_CORES = 1e6


class GpuUse(Protocol):
    """What jobs use of GPUs."""

    def use(self, uuids: Sequence[str], /) -> tuple[float | None, int | None]:
        """Percent and bytes of a job that has these GPUs to itself."""

    def use_of(self, uuids: Sequence[str], pids: Collection[int], /) -> int | None:
        """Bytes of these processes alone."""


@dataclass(slots=True)
class _Last:
    """An attempt's sample before: when (monotonic), and how much CPU time it had used by then."""

    at: float
    cpu_seconds: float


class Sampler:
    """Measures running attempts every `every_s` in one thread. A sample that cannot be stored is dropped.

    It looks for their checkpoints in the same turn.

    Peaks are kept in the registry's entries and go into the attempt's record, also when their sample was dropped.
    """

    def __init__(
        self, db: Database, runner: Runner, registry: Registry, every_s: float, gpus: GpuUse, overuse: Overuse
    ) -> None:
        self._db = db
        self._runner = runner
        self._registry = registry
        self._every_s = every_s
        self._gpus = gpus
        self._overuse = overuse
        self._tick_s = min(every_s, FIRST_S)
        self._last: dict[UUID, _Last] = {}
        self._checkpoints = Checkpoints(runner)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begins to measure."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.wait(self._tick_s):
            try:
                self.turn()
            except (RunnerError, FabricError) as exc:
                log.warning("samples were dropped: %s", exc)
            except Exception:
                log.exception("samples were dropped")

    def turn(self) -> None:
        """Measures the attempts whose time has come, and stores what was found in one statement."""
        entries = {entry.attempt_id: entry for entry in self._registry.all() if self._runs(entry)}
        for gone in self._last.keys() - entries.keys():
            del self._last[gone]
        due = {str(key): entry for key, entry in entries.items() if self._due(entry)}
        if not due:
            return
        checkpoints.store(self._db, self._checkpoints.news(entries))
        taken = self._runner.samples(due.keys())
        store(self._db, [self._measured(due[one.attempt_id], one) for one in taken if one.attempt_id in due])

    @staticmethod
    def _runs(entry: Entry) -> bool:
        return entry.launched and entry.started_wall is not None and entry.record is None

    def _due(self, entry: Entry) -> bool:
        # Half a tick of tolerance: a sample that came a little early must not put the next one off by a whole tick.
        last = self._last.get(entry.attempt_id)
        if last is None:
            return _age_s(entry) >= self._tick_s / 2
        return time.monotonic() - last.at >= self._every_s - self._tick_s / 2

    def _measured(self, entry: Entry, sample: Sample) -> Measured:
        now = time.monotonic()
        last = self._last.get(entry.attempt_id) or _Last(now - _age_s(entry), 0.0)
        self._last[entry.attempt_id] = _Last(now, sample.cpu_seconds)
        cores = None
        if now > last.at:
            # The time of processes that were lost from sight can be missing from the sum: never below nothing.
            cores = min(MAX_CORES, max(0.0, (sample.cpu_seconds - last.cpu_seconds) / (now - last.at)))
            entry.peak_cpu_cores = max(entry.peak_cpu_cores or 0.0, cores)
        entry.peak_memory_bytes = max(entry.peak_memory_bytes or 0, sample.memory_bytes)
        gpu_percent, gpu_memory_bytes = self._gpu_use(entry, sample)
        if gpu_memory_bytes is not None:
            entry.peak_gpu_memory_bytes = max(entry.peak_gpu_memory_bytes or 0, gpu_memory_bytes)
            self._overuse.judge(entry, gpu_memory_bytes)
        return Measured(
            attempt_id=entry.attempt_id,
            cpu_cores=cores,
            memory_bytes=sample.memory_bytes,
            gpu_percent=gpu_percent,
            gpu_memory_bytes=gpu_memory_bytes,
        )

    def _gpu_use(self, entry: Entry, sample: Sample) -> tuple[float | None, int | None]:
        if sample.gpu_memory_bytes is not None or not entry.gpu_uuids:
            return sample.gpu_percent, sample.gpu_memory_bytes
        if entry.gpu_slice_bytes is not None:
            # How busy the GPU is says nothing of one of those who share it.
            return None, self._gpus.use_of(entry.gpu_uuids, sample.pids)
        return self._gpus.use(entry.gpu_uuids)


def _age_s(entry: Entry) -> float:
    """For how long the attempt has run."""
    return max(0.0, time.time() - (entry.started_wall or 0.0))
