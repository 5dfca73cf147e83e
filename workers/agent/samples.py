"""Samples of what each job uses, written in batches: CPU cores since the last sample, and memory, absolute."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.domain.errors import FabricError
from app.services.report import store_samples
from app.storage.database import Database
from workers.agent.registry import Registry
from workers.runners.base import Runner, RunnerError

log = logging.getLogger(__name__)


class Sampler:
    """Measures running attempts every `every_s` in one thread. A sample that cannot be stored is dropped."""

    def __init__(self, db: Database, runner: Runner, registry: Registry, every_s: float) -> None:
        self._db = db
        self._runner = runner
        self._registry = registry
        self._every_s = every_s
        self._before: dict[UUID, tuple[float, float]] = {}
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
        while not self._stopped.wait(self._every_s):
            try:
                rows = self._measure()
                if rows:
                    store_samples(self._db, rows)
            except (RunnerError, FabricError) as exc:
                log.warning("samples were dropped: %s", exc)
            except Exception:
                log.exception("samples were dropped")

    def _measure(self) -> list[dict[str, Any]]:
        now, at = time.monotonic(), datetime.now(UTC)
        rows: list[dict[str, Any]] = []
        seen: dict[UUID, tuple[float, float]] = {}
        for sample in self._runner.samples():
            attempt_id = UUID(sample.attempt_id)
            entry = self._registry.get(attempt_id)
            if entry is None:
                continue
            entry.peak_memory_bytes = max(entry.peak_memory_bytes or 0, sample.memory_bytes)
            seen[attempt_id] = (now, sample.cpu_seconds)
            then, used = self._before.get(attempt_id, (0.0, 0.0))
            cores = (sample.cpu_seconds - used) / (now - then) if then and now > then else None
            rows.append({"attempt_id": attempt_id, "at": at, "cpu_cores": cores, "memory_bytes": sample.memory_bytes})
        self._before = seen
        return rows
