"""`cfab nodes` against a running fabric."""

from __future__ import annotations

import json

from app.cli.failure import ExitCode
from tests.e2e.conftest import Shell


def test_a_drain_keeps_jobs_away_until_resume(cfab: Shell) -> None:
    (node,) = json.loads(cfab("nodes", "ls", "--json").stdout)
    name = node["name"]
    assert name in cfab("nodes", "ls").stdout
    drained = cfab("nodes", "drain", name, "--reason", "new driver", "--deadline", "1h")
    assert drained.returncode == ExitCode.OK, drained.stderr
    assert "new driver" in drained.stdout
    submitted = cfab("submit", "--script", "-", stdin="true").stdout.strip()
    told = json.loads(cfab("explain", submitted, "--json").stdout)
    assert (told["nodes"][0]["fit"], told["nodes"][0]["state"]) == ("draining", "draining")
    assert json.loads(cfab("nodes", "ls", "--state", "ready", "--json").stdout) == []
    assert json.loads(cfab("nodes", "resume", name, "--json").stdout)["state"] == "ready"
    assert cfab("wait", submitted).returncode == ExitCode.OK


def test_labels_and_what_does_not_exist(cfab: Shell) -> None:
    (node,) = json.loads(cfab("nodes", "ls", "--json").stdout)
    labelled = json.loads(cfab("nodes", "label", node["name"], "rack=7", "--json").stdout)
    assert labelled["labels"]["rack"] == "7"
    assert [one["name"] for one in json.loads(cfab("nodes", "ls", "--label", "rack=7", "--json").stdout)] == [
        node["name"]
    ]
    assert json.loads(cfab("nodes", "label", node["name"], "rack-", "--json").stdout)["operator_labels"] == {}
    assert cfab("nodes", "show", "nobody").returncode == ExitCode.NOT_FOUND
    assert cfab("nodes", "gpu", node["name"], "77", "--out", "x").returncode == ExitCode.NOT_FOUND
    assert cfab("nodes", "gpu", node["name"], "0").returncode == ExitCode.USAGE
    assert cfab("nodes", "label", node["name"], "rack").returncode == ExitCode.USAGE


def test_a_node_that_lives_is_not_forgotten(cfab: Shell) -> None:
    (node,) = json.loads(cfab("nodes", "ls", "--json").stdout)
    refused = cfab("nodes", "forget", node["name"])
    assert refused.returncode == ExitCode.REFUSED
    assert "Stop its worker first" in refused.stderr
    assert cfab("nodes", "forget", "nobody").returncode == ExitCode.NOT_FOUND
