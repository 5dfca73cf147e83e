"""The scheduler's tasks by name, each short, idempotent and locked in the database; and how often they run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from app.bells import Ringer
from app.services import arrays, dependencies, recover, unrunnable
from app.services.passes import Pass
from app.storage.database import Database
from config.settings import Settings
from scheduler.plan import run_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One beat task: every how many seconds it runs, and what it does."""

    name: str
    every_s: float
    run: Callable[[], Pass]


def make_tasks(db: Database, settings: Settings) -> dict[str, Task]:
    """All tasks of the scheduler."""
    tick = settings.tick_s
    return {
        task.name: task
        for task in (
            Task("reap", tick, lambda: recover.reap(db, settings)),
            Task("drain", tick, lambda: recover.end_drains(db)),
            Task("promote", tick, lambda: recover.promote(db, settings.retry_elsewhere_s)),
            Task("release", tick, lambda: dependencies.release(db, settings)),
            Task("arrays", tick, lambda: arrays.advance(db, settings)),
            Task("plan", settings.plan_s, lambda: run_plan(db, settings)),
            Task("sweep", tick, lambda: recover.sweep(db)),
            Task("stats", 2 * tick, lambda: recover.fold_stats(db)),
            Task("statistics", 2 * tick, lambda: recover.sum_up(db)),
            Task("unrunnable", 10 * tick, lambda: unrunnable.mark(db, settings)),
            Task("audit", 60.0, lambda: recover.audit(db)),
            Task("jobs", 5.0, lambda: recover.forget_jobs(db, settings)),
            Task("forget_arrays", 60.0, lambda: arrays.forget(db, settings)),
            Task("keys", 60.0, lambda: recover.forget_keys(db, settings)),
            Task("nodes", 600.0, lambda: recover.forget_nodes(db, settings)),
            Task("retain", 3600.0, lambda: recover.retain(db, settings)),
        )
    }


def perform(task: Task, ringer: Ringer) -> Pass:
    """Runs a task, rings for what became ready, and wakes nodes that have something to stop.

    Another run of it at the same time makes this one do nothing.
    """
    done = task.run()
    if done.ran:
        ringer.ring_all(done.ready)
        for node in done.wake:
            ringer.wake_node(node)
        for problem in done.detail.get("alerts", ()):
            log.error("%s: %s", task.name, problem)
        if done.detail.get("waits"):
            log.warning("%s waits: %s", task.name, done.detail["waits"])
    return done
