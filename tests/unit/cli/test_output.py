"""Where output goes that cannot be written, and that no terminal reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.failure import ExitCode
from tests.unit.cli.conftest import Answers

JOB = "550e8400-e29b-41d4-a716-446655440000"
PLAN = {
    "cycle": None, "late": False, "silent_seconds": 1, "totals": {"cycles": 0}, "reservations": [],
    "reservations_total": 0, "making_room": [], "making_room_total": 0,
}  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["ps"], ["ps", "--json"], ["logs", JOB], ["logs", JOB, "--json"], ["plan"]])
def test_a_full_disk_is_told_in_one_line(answers: Answers, words: list[str]) -> None:
    answers.given["GET", "/jobs"] = (200, [])
    answers.given["GET", f"/jobs/{JOB}/logs"] = (200, {"lines": ["hello"]})
    answers.given["GET", "/plan"] = (200, PLAN)
    answers.given["GET", "/nodes"] = (200, [])
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli.main", *words, "--server", answers.url],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    assert "the output cannot be written: No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == ExitCode.OUTPUT_LOST
