"""`GET /jobs/{id}/explain`: documented, the caller's own only, and true of what waits."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from app.api.hub import Hub
from tests.contract.conftest import PREFIXES, Caller
from tests.contract.jobs_document import is_error
from tests.factories import Fabric


@pytest.fixture
def fabric(app: Flask) -> Fabric:
    shared: Hub = app.extensions["cfab"]
    return Fabric(shared.db, shared.settings)


def documented(api: Caller, name: str) -> set[str]:
    spec: Any = api.get("/openapi.json").json
    return set(spec["components"]["schemas"][name]["properties"])


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_job_without_a_node_says_so(api: Caller, prefix: str) -> None:
    api.prefix = prefix
    told = api.get(f"/jobs/{api.submit()['id']}/explain").json
    assert (told["status"], told["code"]) == ("pending", "no_nodes")
    assert told["message"].startswith("No node has ever joined")
    assert told["causes"][0]["code"] == told["code"]
    assert [change["state_detail"] for change in told["history"]] == ["pending"]


def test_the_answer_has_exactly_the_documented_fields(api: Caller, fabric: Fabric) -> None:
    fabric.add_node("n1", cpus=4)
    job = api.submit(resources={"cpus": 2, "memory_mib": 512})["id"]
    told = api.get(f"/jobs/{job}/explain").json
    assert set(told) == documented(api, "ExplanationShown")
    for part, name in (
        (told["causes"][0], "CauseShown"),
        (told["asks"], "AsksShown"),
        (told["tenant"], "HeldShown"),
        (told["nodes"][0], "NodeShown"),
        (told["history"][0], "ChangeShown"),
        (told["queue"], "PlaceShown"),
    ):
        assert set(part) == documented(api, name)
    assert told["code"] == "starts_now"
    assert told["asks"]["cpus"] == 2
    assert told["nodes"][0]["cpus"] == {"free": 4, "total": 4}
    assert (told["ahead"], told["queue"]["position"], told["queue"]["of"]) == (0, 1, 1)


def test_a_node_says_what_of_it_is_missing(api: Caller, fabric: Fabric) -> None:
    fabric.add_node("n1", cpus=4)
    told = api.get(f"/jobs/{api.submit(resources={'cpus': 8, 'gpus': 1})['id']}/explain").json
    (node,) = told["nodes"]
    assert (node["fit"], node["lacks"]) == ("no_gpu", ["cpus_milli", "gpus"])
    assert told["code"] == "no_gpu_model"


def test_a_running_job_says_where_it_runs(api: Caller) -> None:
    api.submit()
    told = api.get(f"/jobs/{api.claim('w1')['id']}/explain").json
    assert (told["status"], told["code"], told["nodes"], told["ahead"]) == ("running", "running", [], None)
    assert "runs on node w1" in told["message"]


def test_nobody_elses_job_is_explained(api: Caller, stranger: Caller, fabric: Fabric) -> None:
    job = api.submit()["id"]
    is_error(stranger.get(f"/jobs/{job}/explain"), 401)
    foreign = fabric.submit_one(fabric.add_tenant("other"))
    for name in (foreign, uuid4(), "x"):
        is_error(api.get(f"/jobs/{name}/explain"), 404)
    is_error(api.post(f"/jobs/{job}/explain"), 405)


def test_a_job_that_waits_for_its_quota_shows_that_itself(api: Caller, fabric: Fabric) -> None:
    node = fabric.add_node()
    api.submit()
    fabric.claim_one(node)
    fabric.sql("UPDATE tenant SET quota_jobs = 1")
    job = api.get(f"/jobs/{api.submit()['id']}").json
    assert (job["status"], job["reason"]) == ("pending", "quota")
    assert job["message"] == "Tenant default holds 1 of 1 job; this job asks 1 job more."
