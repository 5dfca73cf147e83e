"""Arrays and dependencies from the shell, run by a real worker."""

from __future__ import annotations

import json
from typing import Any

from app.cli.failure import ExitCode
from app.local.demo.fabric import Fabric
from tests.e2e.conftest import Shell

MARKED = 'date +%s%N; sleep 0.2; date +%s%N; echo "$CFAB_ARRAY_INDEX of $CFAB_ARRAY_COUNT in $CFAB_ARRAY_ID"'


def submit(cfab: Shell, script: str, *options: str) -> str:
    """The id of a new job or array."""
    done = cfab("submit", "--script", "-", *options, stdin=script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def shown(cfab: Shell, array_id: str) -> dict[str, Any]:
    """The array as `cfab array show --json` prints it."""
    array: dict[str, Any] = json.loads(cfab("array", "show", array_id, "--json").stdout)
    return array


def test_an_array_runs_so_many_at_a_time_and_then_what_waits_for_it(cfab: Shell, fabric: Fabric) -> None:
    array_id = submit(cfab, MARKED, "--array", "50", "--max-parallel", "3", "--priority", "foreground")
    last = submit(cfab, "date +%s%N", "--after", array_id, "--priority", "foreground")
    never = submit(cfab, "true", "--after", f"{array_id}:notok")
    waits = cfab("explain", last).stdout
    assert array_id in waits
    assert cfab("wait", array_id, last, "--timeout", "55").returncode == ExitCode.OK
    assert cfab("wait", never, "--timeout", "30").returncode == ExitCode.JOB_FAILED
    assert (shown(cfab, array_id)["status"], shown(cfab, array_id)["counts"]["completed"]) == ("completed", 50)

    client = fabric.client
    jobs = client.array_jobs(array_id, limit="100")
    assert [job["array_index"] for job in jobs] == list(range(50))
    changes: list[tuple[int, int]] = []
    end = 0
    for job in jobs:
        began, ended, words = client.job(job["id"])["stdout"].splitlines()
        assert words == f"{job['array_index']} of 50 in {array_id}"
        changes += [(int(began), 1), (int(ended), -1)]
        end = max(end, int(ended))
    running = most = 0
    for _at, change in sorted(changes):
        running += change
        most = max(most, running)
    assert most == 3
    assert int(client.job(last)["stdout"]) >= end


def test_failed_indices_run_again_from_the_shell(cfab: Shell) -> None:
    done = cfab("submit", "--script", "-", "--array", "4", "--wait", stdin='[ "$CFAB_ARRAY_INDEX" != 2 ]')
    assert done.returncode == ExitCode.JOB_FAILED
    assert "3 completed, 1 failed" in done.stderr
    array_id = done.stderr.split()[0]
    again = cfab("array", "retry", array_id)
    assert (again.returncode, "1 run again" in again.stdout) == (0, True)
    assert cfab("wait", array_id, "--timeout", "50").returncode == ExitCode.JOB_FAILED
    assert cfab("array", "retry", array_id, "--indices", "0-1").returncode == ExitCode.REFUSED
    listed = cfab("array", "jobs", array_id, "--status", "failed").stdout.splitlines()
    assert listed[1].split()[0] == "2"
    assert array_id in cfab("array", "ls").stdout


def test_an_array_is_cancelled_from_the_shell(cfab: Shell) -> None:
    array_id = submit(cfab, "while :; do sleep 0.1; done", "--array", "2000", "--max-parallel", "2", "--grace", "1")
    some = cfab("array", "cancel", array_id, "--indices", "10-19,1999")
    assert "cancelled 11 now, stopping 0" in some.stdout
    assert cfab("array", "cancel", array_id, "--reason", "enough").returncode == 0
    assert cfab("wait", array_id, "--timeout", "50").returncode == ExitCode.JOB_FAILED
    ended = shown(cfab, array_id)
    assert (ended["status"], ended["counts"]["cancelled"], ended["stop_reason"]) == ("cancelled", 2000, "enough")
    assert cfab("array", "cancel", array_id).returncode == ExitCode.REFUSED
    assert cfab("array", "show", "019aa5a5-0000-7000-8000-000000000000").returncode == ExitCode.NOT_FOUND
