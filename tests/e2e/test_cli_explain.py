"""`cfab explain` and `cfab top` against a running fabric."""

from __future__ import annotations

import json

from app.cli.failure import ExitCode
from tests.e2e.conftest import Shell

STEADY = "echo up; while :; do :; done"


def submit(cfab: Shell, script: str, *options: str) -> str:
    """The id of a new job."""
    done = cfab("submit", "--script", "-", *options, stdin=script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_job_that_is_too_big_is_explained_with_the_nodes(cfab: Shell) -> None:
    job_id = submit(cfab, "true", "--cpus", "4000")
    told = cfab("explain", job_id)
    assert told.returncode == ExitCode.OK, told.stderr
    assert "No node is big enough" in told.stdout
    assert "too small" in told.stdout
    answer = json.loads(cfab("explain", job_id, "--json").stdout)
    assert (answer["code"], answer["nodes"][0]["fit"]) == ("too_big", "too_small")
    assert answer["history"][0]["reason"] == "new"
    cfab("stop", job_id)
    assert "cancelled" in cfab("explain", job_id).stdout
    assert cfab("explain", "550e8400-e29b-41d4-a716-446655440000").returncode == ExitCode.NOT_FOUND


def test_a_running_job_is_on_top_with_what_it_uses(cfab: Shell) -> None:
    job_id = submit(cfab, STEADY)
    with cfab.start("logs", "-f", job_id) as follower:
        assert follower.stdout is not None and follower.stdout.readline() == "up\n"
        follower.terminate()
    (used,) = json.loads(cfab("top", job_id, "--json").stdout)
    while not used["recent"]:
        (used,) = json.loads(cfab("top", job_id, "--json").stdout)
    assert used["recent"][0]["cpu_cores"] > 0
    assert used["recent"][0]["memory_bytes"] > 0
    shown = cfab("top", "--once")
    assert shown.returncode == ExitCode.OK, shown.stderr
    assert job_id in shown.stdout
    cfab("stop", job_id)
    assert cfab("wait", job_id).returncode == ExitCode.JOB_FAILED
    (attempt,) = json.loads(cfab("show", job_id, "--json").stdout)["attempts"]
    assert attempt["peak_cpu_cores"] > 0
