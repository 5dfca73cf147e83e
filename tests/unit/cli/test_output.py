"""Where output goes that cannot be written, and that no terminal reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli.failure import ExitCode
from app.cli.main import main
from tests.unit.cli.conftest import Answers

JOB = "550e8400-e29b-41d4-a716-446655440000"
PLAN = {
    "cycle": None, "late": False, "silent_seconds": 1, "totals": {"cycles": 0}, "reservations": [],
    "reservations_total": 0, "making_room": [], "making_room_total": 0,
}  # fmt: skip
LONG = "gpu-host-" + "x" * 200


def node(**changes: Any) -> dict[str, Any]:
    amount = {"total": 8, "free": 4}
    return {
        "id": LONG, "name": LONG, "kind": "agent", "cluster": "default", "state": "ready", "ip": None, "version": "1",
        "runners": ["process"], "labels": {}, "silent_seconds": 2.0, "slots": amount, "cpus": amount,
        "memory_bytes": amount, "gpus": [], "jobs": 1, "drain": None, "running": [], **changes,
    }  # fmt: skip


def test_a_pipe_gets_everything_on_lines_of_their_own(answers: Answers) -> None:
    answers.given["GET", "/nodes"] = (200, [node()])
    answers.given["GET", f"/nodes/{LONG}"] = (200, node())
    asks = {"cpus": 1, "memory_bytes": 1, "gpus": 0}
    tenant = {"name": "lab", "quota": {}, "used": {}}
    shared = {"code": "busy", "causes": [], "asks": asks, "tenant": tenant, "nodes_seen": 1, "queue": None}
    shown = {**shared, "id": JOB, "state_detail": "pending", "ahead": 0, "history": []}
    nodes = [node(fit="busy", gpus=None)]
    answers.given["GET", f"/jobs/{JOB}/explain"] = (200, {**shown, "nodes": nodes})
    places = {"count": 1, "names": [LONG]}
    rehearsed = {
        **shared, "admitted": True, "nodes": nodes, "effective_class": "background", "effective_priority": 500,
        "priority": "background", "queue_position": 0, "runs_now": places, "runs_ever": places,
    }  # fmt: skip
    answers.given["POST", "/jobs"] = (200, rehearsed)
    for words in (["nodes", "ls"], ["nodes", "show", LONG], ["explain", JOB], ["submit", "--image", "x", "--dry-run"]):
        done = CliRunner().invoke(main, [*words, "--server", answers.url])
        assert done.exit_code == ExitCode.OK, done.output
        assert LONG in done.stdout, words
        assert "█████░░░░░ 4/8" in done.stdout, words


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
