"""A keeper's container jobs in the test's own process, on a real engine that a test may make behave badly."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tests.conformance.lab import boottime, eventually
from tests.engine import TEST_IMAGE
from workers.containers.engine import Engine
from workers.containers.jobs import CLOCK_S, Jobs
from workers.containers.recipe import parse_wanted
from workers.runners.container import ContainerSpec


class Here:
    """The jobs, with their clock."""

    def __init__(self, directory: Path, engine: Engine, max_image_bytes: int = 1 << 40) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.events: list[dict[str, Any]] = []
        self.jobs = Jobs(str(directory), engine, max_image_bytes, self.events.append)
        self._stopped = threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()

    def start(self, attempt_id: str, *argv: str, **more: Any) -> None:
        values: dict[str, Any] = {
            "env": {"PATH": "/bin"}, "deadline": boottime() + 300, "job_id": "job-1", "grace_s": 0.3,
            "image": TEST_IMAGE, "pull": "never",
        }  # fmt: skip
        spec = ContainerSpec(attempt_id, list(argv), **{**values, **more})
        self.jobs.start(parse_wanted(spec.to_wire()))

    def ended(self, attempt_id: str) -> dict[str, Any]:
        """Wait for the end of an attempt and return its record."""
        found: dict[str, Any] = eventually(lambda: self._record(attempt_id), f"end of {attempt_id}")
        return found

    def run(self, attempt_id: str, *argv: str, **more: Any) -> dict[str, Any]:
        self.start(attempt_id, *argv, **more)
        return self.ended(attempt_id)

    def close(self) -> None:
        self._stopped.set()

    def _record(self, attempt_id: str) -> dict[str, Any] | None:
        ends = [one for one in list(self.events) if one["event"] == "exited" and one["attempt_id"] == attempt_id]
        return ends[0]["record"] if ends else None

    def _tick(self) -> None:
        while not self._stopped.wait(CLOCK_S):
            self.jobs.tick()
