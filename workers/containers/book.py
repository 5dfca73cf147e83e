"""What a keeper of containers knows of its attempts: each by its id, how it is noted, and how its end is told.

All of it is under one lock. Knows neither the engine nor the keeper's socket.
"""

from __future__ import annotations

import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

from workers.containers.attempt import ENDED, Attempt
from workers.keeper.output import OutputNews
from workers.keeper.processes import boot_id


class Book:
    """The attempts of one keeper."""

    def __init__(self, directory: str, emit: Callable[[dict[str, Any]], None]) -> None:
        """Keep those of `directory`; `emit` is called with the lock held and must not wait."""
        self.directory = directory
        self.name = f"{zlib.crc32(directory.encode()):08x}"
        self.lock = threading.RLock()
        self.attempts: dict[str, Attempt] = {}
        self.boot = boot_id()
        self.news = OutputNews(emit)
        self._emit = emit

    def path(self, attempt_id: str) -> str:
        """Return where an attempt's folder is."""
        return f"{self.directory}/attempts/{attempt_id}"

    def container_name(self, attempt_id: str) -> str:
        """The name of an attempt's container, unique on this host."""
        return f"cfab-{self.name}-{attempt_id}"

    def note(self, attempt: Attempt) -> None:
        """Write down where an attempt is; a disk that is full now is no reason to end it."""
        try:
            attempt.note(self.boot)
        except OSError as exc:
            complain(f"attempt {attempt.id} could not be noted: {exc}")

    def say(self, attempt: Attempt, text: str) -> None:
        """Append a line of the keeper's own to the job's log."""
        with self.lock:
            if attempt.state != ENDED:
                attempt.output.say(text)
                self.news.grown[attempt.id] = attempt.output

    def announce(self, attempt: Attempt) -> None:
        """Tell that an attempt runs. With the lock held."""
        self._emit(
            {
                "event": "started",
                "attempt_id": attempt.id,
                "pid": attempt.pid,
                "uid": None,
                "cgroup": None,
                "started_boottime": attempt.record["started_boottime"],
                "started_wall": attempt.record["started_wall"],
            }
        )

    def fail(self, attempt: Attempt, spawn_error: str | None = None, node_fault: str | None = None) -> None:
        """End an attempt that never ran, and say why in its log."""
        with self.lock:
            if attempt.state != ENDED:
                attempt.record["spawn_error"], attempt.record["node_fault"] = spawn_error, node_fault
                self.say(attempt, str(spawn_error or node_fault))
                self.end(attempt)

    def end(self, attempt: Attempt) -> None:
        """Write the exit record and tell of it, once. With the lock held."""
        if attempt.state == ENDED:
            return
        attempt.over.set()
        attempt.finish()
        self.news.grown.pop(attempt.id, None)
        try:
            attempt.note_end()
        except OSError as exc:
            complain(f"the end of attempt {attempt.id} could not be written down: {exc}")
        self._emit({"event": "exited", "attempt_id": attempt.id, "record": attempt.full_record()})


def complain(text: str) -> None:
    """Say something in the keeper's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
    sys.stderr.flush()
