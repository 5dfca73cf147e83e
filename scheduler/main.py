"""`cfab scheduler`: beat in a child process for the operators' familiar tools, and a ticker that needs no broker.

Run two of them, or none for a while: every task is locked and repeatable, and the row is the truth.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
import threading
import time

from app.bells import Ringer
from app.storage.database import Database
from app.storage.faults import parse_faults
from config.logs import set_up_logging
from config.settings import Settings
from scheduler.beat import run_beat
from scheduler.tasks import make_tasks
from scheduler.ticker import Ticker

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Runs the scheduler until SIGTERM or SIGINT; exit code 0, or 2 when it cannot be set up."""
    set_up_logging(settings)
    if not settings.database_url:
        print("cfab scheduler: CFAB_DATABASE_URL must be set", file=sys.stderr)
        return 2
    db = Database(
        settings.database_url, pool_size=2, application_name="cfab-scheduler",
        statement_timeout_s=settings.statement_timeout_s,
        faults=parse_faults(settings.faults) if settings.faults else None,
    )  # fmt: skip
    ringer = Ringer(settings)
    ticker = Ticker(db, make_tasks(db, settings), ringer, settings.tick_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ticker.stopped.set())
    keeper = threading.Thread(target=_keep_beat, args=(settings, ticker.stopped), daemon=True)
    if settings.broker_url:
        keeper.start()
    ticker.run()
    if settings.broker_url:
        keeper.join(timeout=10)
    ringer.close()
    db.close()
    return 0


def _keep_beat(settings: Settings, stopped: threading.Event) -> None:
    """Keeps one beat child running, with a growing pause between deaths."""
    context = multiprocessing.get_context("spawn")
    pause = 1.0
    while not stopped.is_set():
        began = time.monotonic()
        child = context.Process(target=run_beat, args=(settings,), name="beat", daemon=True)
        child.start()
        while child.is_alive() and not stopped.is_set():
            child.join(0.5)
        if stopped.is_set():
            child.terminate()
            child.join(5)
            if child.is_alive():
                child.kill()
            return
        pause = 1.0 if time.monotonic() - began > 60 else min(30.0, pause * 2)
        log.warning("beat ended with %s; the ticker goes on, beat starts again in %g s", child.exitcode, pause)
        stopped.wait(pause)
