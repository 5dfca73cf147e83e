"""Celery beat and the worker that runs its tasks, in one child process that may die at any time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading

import psutil
from celery import Celery
from celery.beat import Scheduler

from app.bells import Ringer, make_celery
from app.domain.errors import FabricError
from app.storage.database import Database
from config.celery import SCHEDULER_QUEUE
from config.logs import set_up_logging
from config.settings import Settings
from scheduler.tasks import Task, make_tasks, perform

log = logging.getLogger(__name__)

END_PATIENCE_S = 3.0


def make_beat(settings: Settings) -> Celery:
    """A Celery application whose beat sends the scheduler's tasks; each expires before its next."""
    app = make_celery(settings)
    db = Database(settings.database_url, pool_size=2, application_name="cfab-scheduler-beat")
    ringer = Ringer(settings)
    schedule = {}
    for task in make_tasks(db, settings).values():
        _add(app, task, ringer)
        schedule[task.name] = {
            "task": f"scheduler.{task.name}",
            "schedule": task.every_s,
            "options": {"queue": SCHEDULER_QUEUE, "expires": max(1.0, task.every_s), "retry": False},
        }
    app.conf.beat_schedule = schedule
    app.conf.beat_scheduler = Scheduler
    app.conf.beat_max_loop_interval = 1
    return app


def _add(app: Celery, task: Task, ringer: Ringer) -> None:
    @app.task(name=f"scheduler.{task.name}", ignore_result=True, send_events=False)  # type: ignore[untyped-decorator]
    def run() -> None:
        try:
            perform(task, ringer)
        except FabricError as exc:
            # An outage fails every task of every second: a line each says as much as Celery's traceback.
            log.warning("task %s failed and will run again: %s", task.name, exc.message)


def _end_with_parent() -> None:
    """Ends this process and its own children soon after the scheduler's process, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    # A worker that waits for a broker may not hear it.
    threading.Event().wait(END_PATIENCE_S)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def run_beat(settings: Settings) -> None:
    """Runs until it is told to end."""
    set_up_logging(settings)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    make_beat(settings).worker_main(
        [
            "worker", "--beat", "--pool", "solo", "--queues", SCHEDULER_QUEUE, "--hostname", "scheduler@%h",
            "--without-mingle", "--without-gossip", "--without-heartbeat", "--loglevel", settings.log_level,
        ]
    )  # fmt: skip
