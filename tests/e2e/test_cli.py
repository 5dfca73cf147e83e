"""The user's commands against a running fabric: what they print, and what they tell the shell."""

from __future__ import annotations

import json
import signal
from typing import Any
from uuid import UUID

import pytest

from app.cli.failure import ExitCode
from tests.e2e.conftest import Shell

STEADY = "trap 'echo goodbye; exit 0' TERM; echo up; while :; do sleep 0.05; done"


def submit(cfab: Shell, script: str, *options: str) -> str:
    """The id of a new job."""
    done = cfab("submit", "--script", "-", *options, stdin=script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def shown(cfab: Shell, job_id: str) -> dict[str, Any]:
    """The job as `cfab show --json` prints it."""
    job: dict[str, Any] = json.loads(cfab("show", job_id, "--json").stdout)
    return job


@pytest.fixture
def running(cfab: Shell) -> str:
    """The id of a job that runs until it is stopped."""
    job_id = submit(cfab, STEADY)
    with cfab.start("logs", "-f", job_id) as follower:
        assert follower.stdout is not None and follower.stdout.readline() == "up\n"
        follower.terminate()
    return job_id


def test_follow_keeps_the_streams_apart(cfab: Shell) -> None:
    script = 'echo "hello $NAME $1"; echo oh >&2'
    done = cfab("submit", "--script", "-", "--env", "NAME=dear", "--follow", "--", "world", stdin=script)
    assert (done.returncode, done.stdout) == (ExitCode.OK, "hello dear world\n")
    assert "oh\n" in done.stderr and "completed: exit code 0" in done.stderr


def test_a_failed_job_is_exit_code_1(cfab: Shell) -> None:
    job_id = submit(cfab, "echo no; exit 3")
    waited = cfab("wait", job_id)
    assert waited.returncode == ExitCode.JOB_FAILED
    assert waited.stdout.startswith(job_id) and "failed: exit code 3" in waited.stdout
    assert shown(cfab, job_id)["attempts"][0]["exit_code"] == 3
    page = cfab("show", job_id).stdout
    assert "exit code     3" in page and "  no" in page


def test_submit_prints_the_id_alone(cfab: Shell) -> None:
    job_id = submit(cfab, "true", "--type", "quick", "--priority", "foreground")
    assert str(UUID(job_id)) == job_id
    assert cfab("wait", job_id, "--json").returncode == ExitCode.OK
    job = shown(cfab, job_id)
    assert (job["type"], job["priority"], job["status"]) == ("quick", "foreground", "completed")


def test_a_running_job_is_stopped_gracefully(cfab: Shell, running: str) -> None:
    early = cfab("wait", running, "--timeout", "0.2")
    assert (early.returncode, early.stdout) == (ExitCode.TIMEOUT, "")
    assert "is still running after 0.2 s" in early.stderr
    refused = cfab("cancel", running)
    assert refused.returncode == ExitCode.REFUSED and "not pending" in refused.stderr
    stopped = cfab("stop", running, "--reason", "enough", "--wait")
    assert stopped.returncode == ExitCode.OK and "cancelled" in stopped.stdout
    assert cfab("logs", running, "--stream", "stdout").stdout == "up\ngoodbye\n"
    assert cfab("wait", running).returncode == ExitCode.JOB_FAILED
    again = cfab("stop", running, "--json")
    assert again.returncode == ExitCode.REFUSED
    assert json.loads(again.stderr)["context"]["job_id"] == running


def test_ctrl_c_leaves_the_job_alone(cfab: Shell, running: str) -> None:
    with cfab.start("logs", "-f", running) as follower:
        assert follower.stdout is not None and follower.stdout.readline() == "up\n"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == ExitCode.INTERRUPTED
    assert shown(cfab, running)["status"] == "running"
    assert cfab("stop", running).returncode == ExitCode.OK


def test_a_pending_job_is_cancelled(cfab: Shell) -> None:
    job_id = submit(cfab, "true", "--gpus", "8", "--gpu-model", "none-such")
    cancelled = cfab("cancel", job_id)
    assert (cancelled.returncode, cancelled.stdout) == (ExitCode.OK, f"{job_id}  cancelled\n")


def test_logs_in_every_form(cfab: Shell) -> None:
    job_id = submit(cfab, "for n in 1 2 3 4; do echo line $n; done; echo wrong >&2")
    cfab("wait", job_id)
    assert cfab("logs", job_id, "--stream", "stdout").stdout == "line 1\nline 2\nline 3\nline 4\n"
    assert cfab("logs", job_id, "--stream", "stdout", "--tail", "2").stdout == "line 3\nline 4\n"
    assert cfab("logs", job_id, "--stream", "stderr", "--json").stdout.find('"wrong"') > 0
    followed = cfab("logs", "-f", job_id, "--json")
    told = [json.loads(line) for line in followed.stdout.splitlines()]
    assert {piece["attempt"] for piece in told} == {1}
    text = {stream: "".join(p["text"] for p in told if p["stream"] == stream) for stream in ("stdout", "stderr")}
    assert text == {"stdout": "line 1\nline 2\nline 3\nline 4\n", "stderr": "wrong\n"}


def test_ps_filters(cfab: Shell) -> None:
    job_id = submit(cfab, "true", "--type", "listed")
    cfab("wait", job_id)
    listed = json.loads(cfab("ps", "--type", "listed", "--status", "completed", "--json").stdout)
    assert [job["id"] for job in listed] == [job_id]
    assert json.loads(cfab("ps", "--type", "listed", "--status", "failed", "--json").stdout) == []
    lines = cfab("ps", "--limit", "1").stdout.splitlines()
    assert lines[0].split()[:2] == ["ID", "TYPE"] and len(lines) == 2


def test_a_unique_prefix_will_do(cfab: Shell) -> None:
    job_id = submit(cfab, "true")
    assert shown(cfab, job_id[:-1])["id"] == job_id
    assert cfab("show", "ffffffffffff").returncode == ExitCode.NOT_FOUND


def test_one_key_makes_one_job(cfab: Shell) -> None:
    assert submit(cfab, "echo once", "--key", "cli-once") == submit(cfab, "echo once", "--key", "cli-once")
    other = cfab("submit", "--script", "-", "--key", "cli-once", stdin="echo twice")
    assert other.returncode == ExitCode.REFUSED


def test_what_the_server_refuses(cfab: Shell) -> None:
    spaced = cfab("submit", "--script", "-", "--type", "two words", stdin="true")
    assert spaced.returncode == ExitCode.REFUSED and "type" in spaced.stderr and spaced.stdout == ""
    unknown = cfab("show", "550e8400-e29b-41d4-a716-446655440000")
    assert (unknown.returncode, unknown.stdout) == (ExitCode.NOT_FOUND, "")
    locked = cfab("ps", CFAB_API_TOKEN="wrong")
    assert locked.returncode == ExitCode.REFUSED and "`cfab token` prints it" in locked.stderr
    away = cfab("ps", "--server", "http://127.0.0.1:9")
    assert away.returncode == ExitCode.UNREACHABLE and "no server answers" in away.stderr
