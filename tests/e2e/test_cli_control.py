"""`cfab hold`, `release`, `reprioritise`, `requeue`, `resubmit`, `checkpoint` against a running fabric."""

from __future__ import annotations

import json

from app.cli.failure import ExitCode
from tests.e2e.conftest import Shell


def submit(cfab: Shell, script: str, *words: str) -> str:
    done = cfab("submit", "--script", "-", *words, stdin=script)
    assert done.returncode == ExitCode.OK, done.stderr
    return done.stdout.strip()


def test_held_jobs_wait_until_they_are_released(cfab: Shell) -> None:
    first, second = (submit(cfab, "true", "--hold") for _ in range(2))
    assert cfab("wait", first, "--timeout", "3").returncode == ExitCode.TIMEOUT
    told = json.loads(cfab("explain", first, "--json").stdout)
    assert (told["code"], told["reason"]) == ("hold", "hold")
    moved = json.loads(cfab("reprioritise", "foreground", first, second, "--json").stdout)
    assert [one["effective_class"] for one in moved] == ["foreground"] * 2
    released = cfab("release", first, second)
    assert released.returncode == ExitCode.OK, released.stderr
    assert cfab("wait", first, second).returncode == ExitCode.OK


def test_a_running_job_runs_again(cfab: Shell) -> None:
    job_id = submit(cfab, 'test "$CFAB_ATTEMPT" = 1 || exit 0; sleep 600')
    while json.loads(cfab("show", job_id, "--json").stdout)["state_detail"] != "running":
        pass
    requeued = cfab("requeue", job_id, "--reason", "stuck")
    assert requeued.returncode == ExitCode.OK, requeued.stderr
    assert cfab("wait", job_id, "--timeout", "50").returncode == ExitCode.OK
    attempts = json.loads(cfab("show", job_id, "--json").stdout)["attempts"]
    assert [one["outcome"] for one in attempts] == ["requeued", "completed"]
    ended = cfab("requeue", job_id)
    assert ended.returncode == ExitCode.REFUSED
    assert f"cfab resubmit {job_id}" in ended.stderr


def test_a_running_job_has_saved_its_work(cfab: Shell) -> None:
    job_id = submit(cfab, "exec sleep 600", "--preemptible")
    assert "preemptible   yes" in cfab("show", job_id).stdout.splitlines()
    while json.loads(cfab("show", job_id, "--json").stdout)["state_detail"] != "running":
        pass
    told = cfab("checkpoint", job_id)
    assert (told.returncode, told.stdout.strip()) == (ExitCode.OK, f"{job_id}  checkpoint reported"), told.stderr
    assert json.loads(cfab("checkpoint", job_id, "--json").stdout)["id"] == job_id
    assert cfab("stop", job_id, "--wait").returncode == ExitCode.OK
    over = cfab("checkpoint", job_id)
    assert over.returncode == ExitCode.REFUSED and "not running" in over.stderr
    assert cfab("checkpoint", "ffffffff-0000-0000-0000-000000000000").returncode == ExitCode.NOT_FOUND
    assert cfab("checkpoint").returncode == ExitCode.USAGE
    assert cfab("checkpoint", job_id, "--server", "http://127.0.0.1:9").returncode == ExitCode.UNREACHABLE


def test_a_job_that_must_not_be_stopped_for_others(cfab: Shell) -> None:
    job_id = submit(cfab, "true", "--not-preemptible")
    assert "preemptible   no" in cfab("show", job_id).stdout.splitlines()
    assert json.loads(cfab("show", job_id, "--json").stdout)["preemptible"] is False
    assert cfab("wait", job_id).returncode == ExitCode.OK


def test_one_of_several_that_is_refused(cfab: Shell) -> None:
    held, done = submit(cfab, "true", "--hold"), submit(cfab, "true")
    assert cfab("wait", done).returncode == ExitCode.OK
    answer = cfab("hold", done, held, "ffffffff-0000-0000-0000-000000000000")
    assert answer.returncode == ExitCode.REFUSED
    assert answer.stdout.startswith(held) and len(answer.stderr.splitlines()) == 2
    assert cfab("cancel", held).returncode == ExitCode.OK
    assert cfab("reprioritise", "urgent", held).returncode == ExitCode.USAGE


def test_the_same_again(cfab: Shell) -> None:
    job_id = submit(cfab, "exit 3")
    assert cfab("wait", job_id).returncode == ExitCode.JOB_FAILED
    again = cfab("resubmit", job_id, "--key", "again").stdout.strip()
    assert again != job_id and cfab("resubmit", job_id, "--key", "again").stdout.strip() == again
    assert cfab("wait", again).returncode == ExitCode.JOB_FAILED


def test_a_dry_run_submits_nothing(cfab: Shell) -> None:
    before = json.loads(cfab("ps", "--json").stdout)
    told = cfab("submit", "--script", "-", "--dry-run", stdin="true")
    assert told.returncode == ExitCode.OK, told.stderr
    assert told.stdout.startswith("would be admitted as background 500")
    never = json.loads(cfab("submit", "--script", "-", "--gpus", "64", "--dry-run", "--json", stdin="true").stdout)
    assert (never["admitted"], never["runs_ever"]["count"]) == (True, 0)
    assert json.loads(cfab("ps", "--json").stdout) == before
