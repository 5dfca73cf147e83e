"""`POST /jobs?dry_run=true`: the documented answer, refusals inside it, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from config.settings import Settings
from tests.contract.conftest import PREFIXES, Bells, Caller, job_body
from tests.contract.jobs_document import is_error
from tests.factories import Fabric


@pytest.fixture
def fabric(app: Flask, settings: Settings) -> Fabric:
    return Fabric(app.extensions["cfab"].db, settings)


def dry(api: Caller, **changes: Any) -> Any:
    return api.post("/jobs?dry_run=true", json=job_body(**changes))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_answer_has_exactly_the_documented_fields(api: Caller, fabric: Fabric, prefix: str) -> None:
    api.prefix = prefix
    fabric.add_node("host", cpus=4)
    answer = dry(api, resources={"cpus": 2})
    assert answer.status_code == 200
    told: Any = answer.json
    schemas: Any = api.get("/openapi.json").json["components"]["schemas"]
    assert set(told) == set(schemas["RehearsalShown"]["properties"])
    assert (told["dry_run"], told["admitted"], told["refusal"], told["code"]) == (True, True, None, "starts_now")
    assert (told["effective_class"], told["effective_priority"], told["queue_position"]) == ("background", 500, 1)
    assert told["runs_now"] == told["runs_ever"] == {"count": 1, "names": ["host"]}
    assert told["nodes"][0]["cpus"] == {"free": 4, "total": 4}


def test_nothing_is_made_and_nobody_is_told(api: Caller, fabric: Fabric, bells: Bells) -> None:
    for _ in range(2):
        answer = api.post("/jobs?dry_run=1", json=job_body(), headers={"Idempotency-Key": "k"})
        assert answer.status_code == 200
    for table in ("job", "scheduling_key", "idempotency"):
        assert fabric.value(f"SELECT count(*) FROM {table}") == 0
    assert (bells.rung, bells.hinted) == ([], [])
    made = api.post("/jobs?dry_run=false", json=job_body(), headers={"Idempotency-Key": "k"})
    assert made.status_code == 201
    assert "Idempotent-Replayed" not in made.headers


def test_a_refusal_is_told_with_its_status(api: Caller, fabric: Fabric) -> None:
    fabric.sql("UPDATE tenant SET quota_gpus = 1")
    body = {"resources": {"gpus": 2}}
    told = dry(api, **body).json
    real = api.post("/jobs", json=job_body(**body))
    assert told["admitted"] is False
    assert told["refusal"] == {"status": real.status_code, **real.json}
    assert (told["code"], told["nodes"], told["message"]) == (None, None, real.json["error"])


def test_what_no_submit_takes_is_refused_as_ever(api: Caller, stranger: Caller) -> None:
    is_error(dry(api, priority="urgent"), 400)
    is_error(api.post("/jobs?dry_run=maybe", json=job_body()), 400)
    is_error(stranger.post("/jobs?dry_run=true", json=job_body()), 401)
