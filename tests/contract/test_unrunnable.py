"""Jobs that no registered node could ever run: how each contract refuses or shows them, and Prometheus counts them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from app.services import unrunnable
from config.settings import Settings
from tests.contract.conftest import Caller, job_body
from tests.contract.jobs_document import is_error
from tests.factories import Fabric

MESSAGE = "No registered node could ever run this job. No node is big enough. The largest for this job, small,"
ASKED = {"resources": {"cpus": 64}}


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    return replace(settings, unrunnable=getattr(request, "param", "refuse"))


@pytest.fixture(autouse=True)
def small(app: Flask, settings: Settings) -> Fabric:
    fabric = Fabric(app.extensions["cfab"].db, settings)
    fabric.add_node("small", cpus=2)
    return fabric


def test_the_jobs_contract_refuses_with_400(api: Caller) -> None:
    answer = api.post("/jobs", json=job_body(**ASKED))
    context = is_error(answer, 400)
    assert answer.json is not None and answer.json["error"].startswith(MESSAGE)
    assert context["field"] == "resources"
    many = api.post("/jobs/bulk", json=[job_body(), job_body(**ASKED)])
    assert is_error(many, 400)["errors"][0]["index"] == 1
    told: Any = api.post("/jobs?dry_run=true", json=job_body(**ASKED)).json
    assert (told["admitted"], told["refusal"]["status"]) == (False, 400)
    assert api.submit()["status"] == "pending"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ai/api/v1/jobs/", {"job_type": "training", "image": "x", "resources": {"cpu": "64"}}),
        ("/gpu/api/v1/jobs", {"name": "x", "gpu_count": 1, "gpu_memory_mb": 1000, "script": "true"}),
        ("/api/v1/runtime/compute/jobs", {"image": "x", "cpu": 64}),
    ],
    ids=["ai", "gpu", "compute"],
)
def test_the_others_refuse_with_400_in_their_own_form(api: Caller, path: str, body: dict[str, Any]) -> None:
    api.prefix = ""
    answer = api.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert "No registered node could ever run this job" in answer.text


@pytest.mark.parametrize("settings", ["explain"], indirect=True)
def test_else_it_waits_says_so_and_is_counted(api: Caller, small: Fabric) -> None:
    job = api.submit(**ASKED)["id"]
    unrunnable.mark(small.db, small.settings)
    shown: Any = api.get(f"/jobs/{job}").json
    assert (shown["status"], shown["reason"]) == ("pending", "unrunnable")
    assert shown["message"].startswith("No node is big enough.")
    assert "cfab_unrunnable_jobs 1.0" in api.get("/metrics").text
