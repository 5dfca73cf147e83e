"""The demo shows what it should, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from app.local.demo.fabric import temporary_directory
from tests.e2e.conftest import ROOT


@contextmanager
def demo(place: Path) -> Iterator[subprocess.Popen[str]]:
    """The running demo, whose temporary directory lies in `place`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CFAB_")}
    environment |= {"TMPDIR": str(place), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "app.local.demo.command"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory for all that the demo makes, open to the database's and the jobs' users on the way."""
    with temporary_directory() as root:
        yield root


def remains(place: Path) -> list[str]:
    """Files in the directory, and processes that name it or work in it."""
    found = [str(path) for path in place.iterdir()]
    for process in psutil.process_iter():
        try:
            if any(str(place) in word for word in (*process.cmdline(), process.cwd())):
                found.append(str(process))
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_every_outcome_is_right_and_nothing_is_left(place: Path) -> None:
    with demo(place) as running:
        shown, _ = running.communicate(timeout=110)
    assert running.returncode == 0, shown
    for what in ("foreground job", "background job", "best_effort job", "wrong checksum", "graceful stop"):
        assert what in shown
    assert "kill -9" in shown and "completed, attempts: 1" in shown
    assert "all 9 outcomes were right" in shown or "all 8 outcomes were right" in shown
    assert not remains(place)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), [("cfab up", signal.SIGINT), ("at work", signal.SIGTERM)])
def test_an_interrupted_demo_leaves_nothing(place: Path, moment: str, number: signal.Signals) -> None:
    with demo(place) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if moment in line:
                break
        running.send_signal(number)
        rest, _ = running.communicate(timeout=60)
    assert running.returncode == 130, rest
    assert not remains(place)
