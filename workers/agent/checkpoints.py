"""Checkpoints: a job touches a file in its work directory, and what it did before is safe if it is stopped."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from workers.keeper.folders import WORK
from workers.runners.base import Runner

CHECKPOINT = ".cfab-checkpoint"
"""The file's name; jobs find its path in CFAB_CHECKPOINT."""


class Checkpoints:
    """Looks at the files of running attempts; tells each change once."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._seen: dict[UUID, int] = {}

    def news(self, attempt_ids: Iterable[UUID]) -> dict[UUID, float]:
        """Attempts that reported a checkpoint since the last look, and how many seconds ago.

        What the job says of the time is bounded by now; whatever else lies at the path, links too, says nothing.
        """
        wanted = set(attempt_ids)
        self._seen = {attempt: at for attempt, at in self._seen.items() if attempt in wanted}
        found = {}
        for attempt in wanted:
            at = self._changed_at(attempt)
            if at is not None and at != self._seen.get(attempt):
                self._seen[attempt] = at
                found[attempt] = max(0.0, time.time() - at / 1e9)
        return found

    def _changed_at(self, attempt: UUID) -> int | None:
        path = Path(self._runner.spool_path(str(attempt))).parent / WORK / CHECKPOINT
        try:
            found = os.lstat(path)
        except OSError:
            return None
        return found.st_mtime_ns if stat.S_ISREG(found.st_mode) else None
