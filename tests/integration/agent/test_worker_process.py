"""`cfab worker` as a process: it ends when it is told to, whatever is away."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from app.local.keepers import end_keepers
from tests.chaos.process import Process
from tests.factories import until

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize("broker", ["", f"redis://{NOWHERE}/0"], ids=["no broker", "with Celery"])
def test_a_worker_that_waits_for_its_database_ends_on_sigterm(directory: Path, broker: str) -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("CFAB_")}
    own = {
        "CFAB_DATABASE_URL": f"postgresql://nobody@{NOWHERE}/none", "CFAB_BROKER_URL": broker,
        "CFAB_NODE_NAME": "n1", "CFAB_WORK_DIR": str(directory / "work"), "CFAB_SANDBOX": "off",
        "CFAB_JOB_UID_BASE": "530000", "CFAB_CONTAINER_RUNTIME": "off",
    }  # fmt: skip
    log = directory / "worker.log"
    worker = Process("n1", [sys.executable, "-m", "app.cli.main", "worker"], {**plain, **own}, log)
    try:
        worker.start()
        until(lambda: "cannot take up the node yet" in log.read_text(), 60)
        worker.ask_to_end()
        until(lambda: not worker.alive, 30)
        assert worker._process is not None and worker._process.returncode == 0
        assert "Traceback" not in log.read_text()
    finally:
        worker.end()
        end_keepers(directory / "work")
