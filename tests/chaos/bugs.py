"""Bugs to plant in a real role, one per function, so that a run can show that its checks fail when they should.

`python -m tests.chaos.role worker --bug no_fence_deadline` runs the real worker with this one bug and no other change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.domain.resources import Free
from app.storage import attempts, leases
from app.storage.database import Tx
from workers.agent.claimer import ClaimLoop
from workers.runners.base import RunSpec
from workers.runners.process import ProcessRunner

FAR_S = 3600.0


def no_fence_deadline() -> None:
    """The keeper is told deadlines that never come: a frozen agent's job lives on when its lease has passed."""
    start_many, extend = ProcessRunner.start_many, ProcessRunner.extend

    def start_late(self: ProcessRunner, specs: Sequence[RunSpec]) -> Any:
        return start_many(self, [replace(spec, deadline=spec.deadline + FAR_S) for spec in specs])

    def extend_far(self: ProcessRunner, deadlines: Mapping[str, float]) -> list[str]:
        return extend(self, {name: deadline + FAR_S for name, deadline in deadlines.items()})

    ProcessRunner.start_many = start_late  # type: ignore[method-assign]
    ProcessRunner.extend = extend_far  # type: ignore[method-assign]


def reaper_without_patience() -> None:
    """The reaper takes every lease for expired, as if leases lasted no time at all."""

    def census(tx: Tx) -> Any:
        return tx.row("SELECT 1000 AS live, (SELECT count(*) FROM lease) AS expired, 1000000.0 AS up_s")

    def expired(tx: Tx, limit: int) -> Any:
        return tx.rows(
            """SELECT l.attempt_id, a.job_id FROM lease l JOIN attempt a ON a.id = l.attempt_id
            JOIN job j ON j.id = a.job_id WHERE j.state = 2 LIMIT %(limit)s""",
            {"limit": min(limit, 3)},
        )

    def lock_expired(tx: Tx, attempts: Sequence[Any]) -> set[Any]:
        sql = "SELECT attempt_id FROM lease WHERE attempt_id = ANY(%(attempts)s) FOR UPDATE SKIP LOCKED"
        return {row[0] for row in tx.rows(sql, {"attempts": list(attempts)})}

    leases.census = census
    leases.expired = expired
    leases.lock_expired = lock_expired


def usage_kept() -> None:
    """An end gives its allocation back, but not the usage that was counted for it."""
    end = attempts.write_endings

    def end_and_keep(tx: Tx, endings: Sequence[Mapping[str, Any]]) -> None:
        end(tx, endings)
        tx.run(
            """UPDATE usage u SET jobs = u.jobs + 1 FROM attempt a JOIN job j ON j.id = a.job_id
            WHERE a.id = ANY(%(ids)s) AND u.tenant_id = j.tenant_id AND u.node_id = a.node_id""",
            {"ids": [ending["attempt_id"] for ending in endings]},
        )

    attempts.write_endings = end_and_keep


def deaf() -> None:
    """An agent that lives, renews and reports, and never claims."""

    def start(self: ClaimLoop) -> None:
        self._thread = threading.Thread(target=self._stopped.wait, daemon=True)
        self._thread.start()

    ClaimLoop.start = start  # type: ignore[method-assign]


def gpus_thought_free() -> None:
    """A claim never looks at which GPUs are held already."""

    def without(self: Free, held: Mapping[str, int | None]) -> Free:
        return self

    Free.without = without  # type: ignore[method-assign]


BUGS: Mapping[str, Callable[[], None]] = {
    bug.__name__: bug for bug in (no_fence_deadline, reaper_without_patience, usage_kept, deaf, gpus_thought_free)
}
