"""`cfab plan` against a running fabric: what is reserved, for whom and until when; and who may not see it."""

from __future__ import annotations

import json
import time
from typing import Any

from app.cli.failure import ExitCode
from tests.e2e.conftest import Shell
from tests.factories import until

WAIT_S = 60.0


def submit(cfab: Shell, script: str, *words: str) -> str:
    done = cfab("submit", "--script", "-", *words, stdin=script)
    assert done.returncode == ExitCode.OK, done.stderr
    return done.stdout.strip()


def planned(cfab: Shell) -> dict[str, Any]:
    done = cfab("plan", "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    return dict(json.loads(done.stdout))


def reserved(cfab: Shell, job_id: str) -> list[dict[str, Any]]:
    return [one for one in planned(cfab)["reservations"] if one["job_id"] == job_id]


def test_a_gang_that_waits_for_a_gpu_is_shown_until_it_runs(cfab: Shell) -> None:
    share = ("--cpus", "0.1", "--memory", "64M")
    before = submit(cfab, "exec sleep 600", "--gpus", "1", "--timeout", "10m", *share)
    until(lambda: json.loads(cfab("show", before, "--json").stdout)["status"] == "running", WAIT_S)
    gang = submit(cfab, "true", "--members", "2", "--gpus", "1", *share)
    until(lambda: reserved(cfab, gang), WAIT_S)
    (place,) = reserved(cfab, gang)
    assert (place["why"], place["members"], place["job_members"], len(place["gpus"])) == ("gang", 2, 2, 2)
    assert place["starts_at"] is not None
    told = cfab("plan")
    assert told.returncode == ExitCode.OK, told.stderr
    lines = told.stdout.splitlines()
    at = lines.index(f"{gang}  default  background")
    assert lines[at + 1].startswith("  starts within ") and "its members start together" in lines[at + 1]
    line = next(line for line in lines if line.startswith(place["node"]))
    assert "1/2 +2" in line and "◆" in line and "▨" in line
    assert not planned(cfab)["late"] and planned(cfab)["totals"]["cycles"] > 0
    assert cfab("stop", before, "--wait").returncode == ExitCode.OK
    assert cfab("wait", gang, "--timeout", "60").returncode == ExitCode.OK
    until(lambda: not reserved(cfab, gang), WAIT_S)
    assert planned(cfab)["totals"]["placed"] >= 1


def test_it_is_shown_again_and_again(cfab: Shell) -> None:
    watching = cfab.start("plan", "--watch", "--every", "0.1")
    assert watching.stdout is not None
    seen, deadline = 0, time.monotonic() + WAIT_S
    while seen < 2 and time.monotonic() < deadline:
        seen += watching.stdout.readline().startswith("Planned")
    watching.terminate()
    watching.wait(30)
    assert seen == 2


def test_who_may_not_see_it_and_where_nobody_is(cfab: Shell) -> None:
    user = cfab("token", "create", "--tenant", "default", "--role", "user").stdout.strip()
    refused = cfab("plan", CFAB_API_TOKEN=user)
    assert (refused.returncode, refused.stdout) == (ExitCode.REFUSED, "")
    assert len(refused.stderr.splitlines()) == 1 and "role" in refused.stderr
    operator = cfab("token", "create", "--tenant", "default", "--role", "operator").stdout.strip()
    assert cfab("plan", CFAB_API_TOKEN=operator).returncode == ExitCode.OK
    assert json.loads(cfab("plan", "--json", CFAB_API_TOKEN=user).stderr)["context"]["status_code"] == 403
    assert cfab("plan", "--server", "http://127.0.0.1:9").returncode == ExitCode.UNREACHABLE
    assert cfab("plan", "--every", "soon").returncode == ExitCode.USAGE
