"""A scheduler that is killed takes its beat with it: nothing of it goes on holding connections."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE_S = 30.0
SCHEDULER = "from config.settings import load_settings; from scheduler.main import run; run(load_settings())"


def eventually(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"no {what} within {PATIENCE_S} s"
        time.sleep(0.05)


def test_beat_ends_with_a_killed_scheduler(database_url: str, broker_url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CFAB_DATABASE_URL": database_url}
    environment["CFAB_BROKER_URL"] = broker_url
    with (tmp_path / "log").open("wb") as log:
        scheduler = subprocess.Popen(
            [sys.executable, "-c", SCHEDULER], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    below: list[psutil.Process] = []
    try:
        # Beat's own worker and the beat that it embeds, beside multiprocessing's tracker.
        eventually(lambda: "ready." in (tmp_path / "log").read_text(errors="replace"), "start of beat's worker")
        eventually(lambda: len(beats(scheduler.pid)) >= 2, "start of beat")
        below = beats(scheduler.pid)
        scheduler.kill()
        scheduler.wait()
        eventually(lambda: not any(is_there(process) for process in below), "end of beat")
    finally:
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(scheduler.pid, signal.SIGKILL)
        scheduler.wait()


def beats(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def is_there(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
