"""Nodes in the jobs contract: what operators see, what they may say, and what a refusal looks like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from app.domain.resources import Resources
from app.domain.states import JobState
from config.settings import Settings
from tests.contract.conftest import PREFIXES, Bells, Caller
from tests.contract.jobs_document import TIME, is_error
from tests.factories import Fabric, Node, gpu, job, share


@pytest.fixture
def fabric(app: Flask, settings: Settings) -> Fabric:
    return Fabric(app.extensions["cfab"].db, settings)


@pytest.fixture
def node(fabric: Fabric) -> Node:
    return fabric.add_node("host", slots=4, cpus=8, memory=2**33, gpus=[gpu(0), gpu(1)])


def slice_of(gigabytes: int) -> Resources:
    return replace(share(gpus=1, gpu_memory=gigabytes * 10**9), gpu_shared=True)


def properties(api: Caller, path: str, method: str = "get") -> tuple[set[str], dict[str, Any]]:
    spec = api.get("/openapi.json").json
    schema = spec["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    name = (schema.get("items") or schema)["$ref"].rpartition("/")[2]
    return set(spec["components"]["schemas"][name]["properties"]), spec["components"]["schemas"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_node_shows_what_it_has_and_what_of_it_is_free(api: Caller, fabric: Fabric, node: Node, prefix: str) -> None:
    api.prefix = prefix
    fabric.submit_one(resources=share(cpus=2, memory_mib=1024, gpus=1))
    taken = fabric.run(node)
    (listed,) = api.get("/nodes").json
    shown = api.get("/nodes/host").json
    assert {name: shown[name] for name in listed if name != "silent_seconds"} == {
        name: value for name, value in listed.items() if name != "silent_seconds"
    }
    assert (shown["state"], shown["kind"], shown["cluster"], shown["drain"]) == ("ready", "agent", "default", None)
    assert shown["slots"] == {"total": 4, "free": 3}
    assert shown["cpus"] == {"total": 8, "free": 6}
    assert shown["memory_bytes"] == {"total": 2**33, "free": 2**33 - 2**30}
    assert [one["state"] for one in shown["gpus"]] == ["held", "free"]
    (job,) = shown["running"]
    assert (job["id"], job["tenant"], job["gpus"]) == (str(taken.job_id), "default", ["GPU-0"])
    assert TIME.fullmatch(shown["last_seen_at"]) and TIME.fullmatch(job["since"])


def test_answers_have_exactly_the_documented_fields(api: Caller, fabric: Fabric, node: Node) -> None:
    fabric.submit_one(resources=share(gpus=1))
    fabric.run(node)
    shown = api.post("/nodes/host/drain", json={"reason": "x", "deadline_seconds": 60}).json
    documented, schemas = properties(api, "/nodes/{node}")
    assert set(shown) == documented
    assert set(shown["gpus"][0]) == set(schemas["GpuOfNode"]["properties"])
    assert set(shown["drain"]) == set(schemas["DrainOfNode"]["properties"])
    assert set(shown["running"][0]) == set(schemas["JobOfNode"]["properties"])
    assert set(api.get("/nodes").json[0]) == properties(api, "/nodes")[0]


def test_a_drain_holds_until_resume_and_wakes_the_node(api: Caller, fabric: Fabric, node: Node, bells: Bells) -> None:
    drained = api.post("/nodes/host/drain", json={"reason": "new driver", "deadline_seconds": 3600}).json
    assert drained["state"] == "draining"
    assert (drained["drain"]["reason"], bool(drained["drain"]["by"])) == ("new driver", True)
    assert TIME.fullmatch(drained["drain"]["deadline"]) and TIME.fullmatch(drained["drain"]["since"])
    fabric.submit_one()
    assert fabric.claim(node) == []
    assert [one["name"] for one in api.get("/nodes?state=draining").json] == ["host"]
    resumed = api.post("/nodes/host/resume").json
    assert (resumed["state"], resumed["drain"]) == ("ready", None)
    assert len(fabric.claim(node)) == 1
    assert bells.woken == ["host", "host"]


def test_a_drain_needs_no_body_and_may_stop_jobs_at_once(api: Caller, fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    assert api.post("/nodes/host/drain").json["drain"]["deadline"] is None
    assert fabric.state(taken.job_id) == JobState.RUNNING
    now = api.post("/nodes/host/drain", json={"deadline_seconds": 0}).json
    assert now["running"][0]["state_detail"] == "stopping (drain)"


def test_labels_are_set_and_removed(api: Caller, node: Node) -> None:
    assert api("PATCH", "/nodes/host", json={"labels": {"zone": "a", "rack": "7"}}).json["labels"] == {
        "zone": "a", "rack": "7",
    }  # fmt: skip
    assert api("PATCH", "/nodes/host", json={"labels": {"zone": None}}).json["operator_labels"] == {"rack": "7"}
    assert len(api.get("/nodes?label=rack%3D7").json) == 1
    assert api.get("/nodes?label=rack%3D8").json == []


def test_a_gpu_goes_out_and_in_by_uuid_or_index(api: Caller, fabric: Fabric, node: Node, bells: Bells) -> None:
    out = api("PATCH", "/nodes/host/gpus/1", json={"out": "fan"}).json["gpus"][1]
    assert (out["uuid"], out["state"], out["reason"], bool(out["out_by"])) == ("GPU-1", "out", "fan", True)
    assert TIME.fullmatch(out["out_since"])
    back = api("PATCH", "/nodes/host/gpus/GPU-1", json={"out": None}).json["gpus"][1]
    assert (back["state"], back["out_by"]) == ("free", None)
    assert bells.rung


def test_an_operator_lets_jobs_share_a_gpu(api: Caller, fabric: Fabric, node: Node) -> None:
    changed = api("PATCH", "/nodes/host/gpus/1", json={"shared": True}).json["gpus"]
    assert [one["sharing"] for one in changed] == [False, True]
    fabric.submit(*[job(resources=slice_of(20)), job(resources=slice_of(30))])
    taken = fabric.claim(node)
    shown = api("GET", "/nodes/host").json["gpus"][1]
    assert (shown["state"], shown["job_id"], shown["slice_bytes"]) == ("shared", None, 50 * 10**9)
    assert sorted(shown["job_ids"]) == sorted(str(one.job_id) for one in taken)
    assert not api("PATCH", "/nodes/host/gpus/1", json={"shared": None}).json["gpus"][1]["sharing"]
    fabric.submit_one(resources=slice_of(1))
    assert fabric.claim(node) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/nodes/nobody", None, 404, "nobody"),
        ("GET", "/nodes/%00", None, 404, "nothing"),
        ("POST", "/nodes/nobody/drain", {}, 404, "nobody"),
        ("POST", "/nodes/nobody/resume", {}, 404, "nobody"),
        ("PATCH", "/nodes/nobody", {"labels": {}}, 404, "nobody"),
        ("PATCH", "/nodes/host/gpus/7", {"out": "x"}, 404, "0 GPU-0, 1 GPU-1"),
        ("POST", "/nodes/host/drain", {"deadline_seconds": -1}, 400, "deadline_seconds"),
        ("POST", "/nodes/host/drain", {"deadline": 1}, 400, "allowed: reason, deadline_seconds"),
        ("POST", "/nodes/host/drain", {"reason": "a\nb"}, 400, "control characters"),
        ("PATCH", "/nodes/host", {}, 400, "labels: is required"),
        ("PATCH", "/nodes/host", {"labels": {"": "x"}}, 400, "label's name"),
        ("PATCH", "/nodes/host", {"labels": {"a b": "x"}}, 400, "label's name"),
        ("PATCH", "/nodes/host", {"labels": {"a": 1}}, 400, "must be a string"),
        ("PATCH", "/nodes/host", {"labels": {"a": "x" * 256}}, 400, "0 to 255"),
        ("PATCH", "/nodes/host", {"labels": [1]}, 400, "JSON object"),
        ("PATCH", "/nodes/host", {"labels": {f"l{n}": "" for n in range(65)}}, 400, "64"),
        ("PATCH", "/nodes/host/gpus/0", {"out": ""}, 400, "1 to 500"),
        ("PATCH", "/nodes/host/gpus/0", {}, 400, "must name out or shared"),
        ("PATCH", "/nodes/host/gpus/0", {"shared": "yes"}, 400, "must be true or false"),
        ("GET", "/nodes?state=gone", None, 400, "ready, draining, offline"),
        ("GET", "/nodes?label=zone", None, 400, "NAME=VALUE"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_was_wrong(
    api: Caller, node: Node, method: str, path: str, body: Any, status: int, words: str
) -> None:
    answer = api(method, path, **({} if body is None else {"json": body}))
    is_error(answer, status)
    assert words in answer.text


def test_a_node_that_is_gone_is_forgotten(api: Caller, fabric: Fabric, node: Node) -> None:
    is_error(api.delete("/nodes/host"), 400)
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour'")
    assert api.delete("/nodes/host").status_code == 204
    assert api.get("/nodes").json == []
    is_error(api.delete("/nodes/host"), 404)
