"""One pass of a task of the scheduler: what it did, and who is to be told. Two at the same time do no harm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.domain.priority import PriorityClass
from app.storage import upkeep
from app.storage.database import Database, Tx


@dataclass
class Pass:
    """What one pass did, the classes in which jobs became ready, and the nodes that have something to stop."""

    name: str
    ran: bool = False
    detail: dict[str, Any] = field(default_factory=dict)
    ready: frozenset[PriorityClass] = frozenset()
    wake: frozenset[str] = frozenset()


def run_task(db: Database, name: str, work: Callable[[Tx, Pass], None]) -> Pass:
    """Runs `work` in one transaction under the task's lock; does nothing when another runs it just now."""
    done = Pass(name)
    began = time.monotonic()
    with db.transaction(name) as tx:
        if not upkeep.try_task_lock(tx, name):
            return done
        work(tx, done)
        done.ran = True
        upkeep.note_run(tx, name, time.monotonic() - began, done.detail)
    return done
