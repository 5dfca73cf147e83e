"""Runs every task that beat has not run in time, judged by its last run in the database, not by any broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from app.bells import Ringer
from app.domain.errors import FabricError
from app.services import recover
from app.storage.database import Database
from scheduler.tasks import Task, perform

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""A task is run from here when its last run is this many periods old."""


class Ticker:
    """A loop in the scheduler's own process."""

    def __init__(self, db: Database, tasks: Mapping[str, Task], ringer: Ringer, tick_s: float) -> None:
        self._db = db
        self._tasks = tasks
        self._ringer = ringer
        self._tick_s = tick_s
        self.stopped = threading.Event()

    def run(self) -> None:
        """Ticks until `stopped` is set. A database that is away is asked again with a pause."""
        while not self.stopped.is_set():
            began = time.monotonic()
            pause = self._tick_s
            try:
                self.tick()
            except FabricError as exc:
                log.warning("the scheduler waits for the database: %s", exc.message)
                pause = 2 * self._tick_s
            except Exception:
                log.exception("a tick failed")
            self.stopped.wait(max(0.05, pause - (time.monotonic() - began)))

    def tick(self) -> list[str]:
        """Runs what is overdue, each in its own transaction; the names. A failing task does not hold up the others."""
        ages = recover.task_ages(self._db)
        ran = []
        for task in self._tasks.values():
            if ages.get(task.name, float("inf")) < PATIENCE * task.every_s:
                continue
            try:
                perform(task, self._ringer)
                ran.append(task.name)
            except FabricError as exc:
                log.warning("task %s failed and will run again: %s", task.name, exc.message)
            except Exception:
                log.exception("task %s failed and will run again", task.name)
        return ran
