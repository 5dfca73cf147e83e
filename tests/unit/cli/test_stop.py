"""`cfab stop` and `cfab cancel` of several jobs: one refusal keeps no other, and what was done is told."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from app.cli.failure import ExitCode
from app.cli.main import main
from tests.unit.cli.conftest import Answers

A, B, C = (f"550e8400-e29b-41d4-a716-44665544000{n}" for n in range(3))
REFUSAL = (400, {"error": "Job is not pending", "context": {"status": "running"}})


def cfab(answers: Answers, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--server", answers.url])


def test_cancel_goes_on_behind_a_refusal(answers: Answers) -> None:
    for job in (A, C):
        answers.given["DELETE", f"/jobs/{job}"] = (200, {"id": job, "status": "cancelled"})
    answers.given["DELETE", f"/jobs/{B}"] = REFUSAL

    done = cfab(answers, "cancel", A, B, C)

    assert done.exit_code == ExitCode.REFUSED
    assert done.stdout.splitlines() == [f"{A}  cancelled", f"{C}  cancelled"]
    assert done.stderr == f"cfab: {B}: Job is not pending\n"


def test_stop_goes_on_behind_a_job_that_is_not_there(answers: Answers) -> None:
    for job in (A, C):
        answers.given["POST", f"/jobs/{job}/stop"] = (200, {"id": job, "status": "running", "state_detail": "stopping"})

    done = cfab(answers, "stop", A, B, C, "--json")

    assert done.exit_code == ExitCode.NOT_FOUND
    assert [job["id"] for job in json.loads(done.stdout)] == [A, C]
    assert json.loads(done.stderr)["error"] == f"{B}: Job not found"


@pytest.mark.parametrize("as_json", [False, True])
def test_stop_waits_for_those_that_it_stopped(answers: Answers, as_json: bool) -> None:
    for job in (A, C):
        answers.given["POST", f"/jobs/{job}/stop"] = (200, {"id": job, "status": "running", "state_detail": "stopping"})
        answers.given["GET", f"/jobs/{job}"] = (200, {"id": job, "status": "cancelled", "signal": 15})

    done = cfab(answers, "stop", "--wait", A, B, C, *(["--json"] if as_json else []))

    assert done.exit_code == ExitCode.NOT_FOUND
    if as_json:
        assert [job["signal"] for job in json.loads(done.stdout)] == [15, 15]
    else:
        assert done.stdout.splitlines() == [f"{A}  cancelled: signal 15", f"{C}  cancelled: signal 15"]
        assert done.stderr.splitlines() == [f"{A}  stopping", f"cfab: {B}: Job not found", f"{C}  stopping"]


def test_a_server_that_goes_away_hides_nothing(answers: Answers) -> None:
    answers.given["DELETE", f"/jobs/{A}"] = (200, {"id": A, "status": "cancelled"})
    answers.given["DELETE", f"/jobs/{B}"] = (503, {"error": "The database is away", "context": {}})

    done = cfab(answers, "cancel", A, B, C, "--json")

    assert done.exit_code == ExitCode.UNREACHABLE
    assert [job["id"] for job in json.loads(done.stdout)] == [A]
    assert json.loads(done.stderr)["error"] == f"{B}: The database is away"
    assert [one.path for one in answers.asked] == [f"/jobs/{A}", f"/jobs/{B}"]


def test_a_wait_that_gives_up_says_after_how_long(answers: Answers) -> None:
    answers.given["GET", f"/jobs/{A}"] = (200, {"id": A, "status": "running"})

    done = cfab(answers, "wait", A, "--timeout", "0.15")

    assert done.exit_code == ExitCode.TIMEOUT
    assert done.stderr == f"cfab: job {A} is still running after 0.15 s\n"
