"""Hold, release, reprioritise, requeue and resubmit in the jobs contract: answers, refusals, who may do what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from app.api.factory import create_app
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from config.settings import Settings
from tests.contract.conftest import PREFIXES, Bells, Caller
from tests.contract.jobs_document import is_error
from tests.factories import Fabric, Node
from tests.issuer import AUDIENCE, ISSUER, Issuer, key_set

SIGNER = Issuer("EdDSA", "ed25519")


@pytest.fixture
def fabric(app: Flask, settings: Settings) -> Fabric:
    return Fabric(app.extensions["cfab"].db, settings)


@pytest.fixture
def node(fabric: Fabric) -> Node:
    return fabric.add_node("host")


def patch(api: Caller, job: str, **options: Any) -> Any:
    return api("PATCH", f"/jobs/{job}", **options)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_job_is_held_and_released(api: Caller, fabric: Fabric, node: Node, bells: Bells, prefix: str) -> None:
    api.prefix = prefix
    job = api.submit()["id"]
    held = api.post(f"/jobs/{job}/hold", json={"reason": "budget"}).json
    assert (held["status"], held["reason"], held["queue_position"]) == ("pending", "hold", 0)
    assert held["message"].endswith(": budget")
    assert held["hold"]["reason"] == "budget"
    assert api.get(f"/jobs/{job}").json["hold"] == held["hold"]
    assert fabric.claim(node) == []
    bells.rung.clear()
    released = api.post(f"/jobs/{job}/release").json
    assert (released["reason"], released["hold"], released["queue_position"]) == ("new", None, 1)
    assert bells.rung == [PriorityClass.BACKGROUND]
    assert len(fabric.claim(node)) == 1


def test_answers_have_exactly_the_documented_fields(api: Caller) -> None:
    job = api.submit()["id"]
    schemas: Any = api.get("/openapi.json").json["components"]["schemas"]
    held = api.post(f"/jobs/{job}/hold").json
    assert set(held) == set(schemas["JobChanged"]["properties"])
    assert set(held["hold"]) == set(schemas["HoldShown"]["properties"])
    assert set(api.post(f"/jobs/{job}/resubmit").json) == set(schemas["JobSubmitted"]["properties"])


def test_jobs_may_be_submitted_held_one_or_many(api: Caller, fabric: Fabric, node: Node) -> None:
    assert api.submit(hold=True)["reason"] == "hold"
    body = {"type": "x", "script": "true", "priority": "background"}
    answer = api.post("/jobs/bulk", json=[{**body, "hold": True}, body]).json
    assert [one["reason"] for one in answer] == ["hold", "new"]
    assert [str(one.job_id) for one in fabric.claim(node)] == [answer[1]["id"]]
    is_error(api.post("/jobs", json={**body, "hold": "yes"}), 400)


@pytest.mark.parametrize(
    ("body", "cls", "priority"),
    [
        ({"priority": "foreground"}, "foreground", 1000),
        ({"priority_class": "foreground"}, "foreground", 1000),
        ({"priority": 700}, "background", 700),
        ({"priority": 4000, "priority_class": "foreground"}, "foreground", 4000),
        ({"priority": 0}, "best_effort", 0),
    ],
)
def test_a_priority_is_a_class_or_a_number(
    api: Caller, fabric: Fabric, body: dict[str, Any], cls: str, priority: int
) -> None:
    job = api.submit()["id"]
    changed = patch(api, job, json=body).json
    assert (changed["priority"], changed["effective_class"], changed["effective_priority"]) == (cls, cls, priority)
    assert changed["queue_position"] == 1
    assert api.get(f"/jobs/{job}").json["priority"] == cls
    assert [one["id"] for one in api.get(f"/jobs?priority={cls}").json] == [job]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "priority: is required, or priority_class"),
        ({"priority": "urgent"}, "priority: must be one of foreground, background, best_effort or a whole number"),
        ({"priority": 5001}, "a whole number to 5000, not 5001"),
        ({"priority": True}, "not True"),
        ({"priority": 1.0}, "not 1.0"),
        (
            {"priority": 700, "priority_class": "foreground"},
            "700 is no priority of the class foreground: that has",
        ),
        ({"priority": "background", "priority_class": "foreground"}, "is foreground, and priority is background"),
        ({"type": "other"}, "type: is not a known field; allowed: priority, priority_class"),
    ],
)
def test_a_priority_that_is_none(api: Caller, body: dict[str, Any], told: str) -> None:
    answer = patch(api, api.submit()["id"], json=body)
    is_error(answer, 400)
    assert told in answer.json["error"]


def test_a_running_job_is_requeued_and_its_node_woken(api: Caller, fabric: Fabric, node: Node, bells: Bells) -> None:
    job = api.submit()["id"]
    taken = fabric.run(node)
    answer = api.post(f"/jobs/{job}/requeue", json={"reason": "stuck"}).json
    assert (answer["status"], answer["state_detail"], answer["reason"]) == ("running", "stopping", "requeue")
    assert bells.woken == ["host"]
    shown = api.get("/nodes/host").json["running"][0]
    assert shown["state_detail"] == "stopping (requeue)"
    fabric.finish(taken, Ending(signal=15, stopped=True))
    job_now = api.get(f"/jobs/{job}").json
    assert (job_now["status"], job_now["reason"], job_now["queue_position"]) == ("pending", "requeued", 1)
    assert [one["outcome"] for one in job_now["attempts"]] == ["requeued"]
    assert job_now["attempt_started_at"] == job_now["started_at"] is not None
    # Claimed again, it has not begun again; the list says so, as the job does.
    assert len(fabric.claim(node)) == 1
    for told in (api.get("/jobs").json[0], api.get(f"/jobs/{job}").json):
        assert (told["status"], told["started_at"]) == ("running", job_now["started_at"])
        assert told["attempt_started_at"] is None


def test_an_executor_outside_lets_a_job_go_again(api: Caller) -> None:
    job = api.submit()["id"]
    api.claim("w1")
    api.post(f"/jobs/{job}/requeue")
    beat = api.put(f"/jobs/{job}/heartbeat", json={"executor_id": "w1"}).json
    assert beat["stop"] is True
    body = {"executor_id": "w1", "exit_code": 143, "error_message": "stopped"}
    for _ in range(2):
        answer = api.put(f"/jobs/{job}/fail", json=body)
        assert (answer.status_code, answer.json["status"]) == (200, "pending"), answer.text
    assert api.claim("w2")["id"] == job


def test_wrong_states_are_refused_with_what_to_do(api: Caller, fabric: Fabric, node: Node) -> None:
    job = api.submit()["id"]
    taken = fabric.run(node)
    for answer, told in (
        (api.post(f"/jobs/{job}/hold"), "The job is running: only a job that waits can be held; requeue it with"),
        (patch(api, job, json={"priority": "foreground"}), "a priority counts only while a job waits"),
    ):
        assert is_error(answer, 400)["state_detail"] == "running"
        assert told in answer.json["error"]
    fabric.finish(taken)
    for path in ("hold", "release", "requeue"):
        assert is_error(api.post(f"/jobs/{job}/{path}"), 400)["status"] == "completed"
    assert f"cfab resubmit {job}" in api.post(f"/jobs/{job}/requeue").json["error"]
    is_error(api.post("/jobs/x/hold"), 404)
    is_error(api.post(f"/jobs/{job}/hold", json={"why": 1}), 400)


def test_the_same_key_has_one_effect(api: Caller, fabric: Fabric) -> None:
    job = api.submit()["id"]
    key = {"Idempotency-Key": "k1"}
    first = api.post(f"/jobs/{job}/hold", json={"reason": "a"}, headers=key)
    api.post(f"/jobs/{job}/release")
    again = api.post(f"/jobs/{job}/hold", json={"reason": "a"}, headers=key)
    assert (again.json, again.headers["Idempotent-Replayed"]) == (first.json, "true")
    assert api.get(f"/jobs/{job}").json["reason"] == "new"
    is_error(api.post(f"/jobs/{job}/hold", json={"reason": "b"}, headers=key), 422)
    made = {api.post(f"/jobs/{job}/resubmit", headers=key).json["id"] for _ in range(3)}
    assert len(made) == 1
    assert fabric.value("SELECT count(*) FROM job") == 2


# -- resubmit ----------------------------------------------------------------------------------------------------


def test_the_same_again_asks_for_everything_that_was_asked(api: Caller, fabric: Fabric, node: Node) -> None:
    job = api.submit(
        resources={"cpus": 1.3, "memory_mib": 700, "gpus": 0}, timeout_seconds=60, grace_seconds=3, max_retries=2,
        backoff_seconds=7,
    )["id"]  # fmt: skip
    patch(api, job, json={"priority": 4321})
    fabric.finish(fabric.run(node), Ending(exit_code=3))
    answer = api.post(f"/jobs/{job}/resubmit")
    assert (answer.status_code, answer.json["status"]) == (201, "pending")
    specs = fabric.all("SELECT to_jsonb(s) - 'job_id' FROM job_spec s")
    assert specs[0] == specs[1]
    jobs = fabric.all("SELECT tenant_id, key_id, class, priority, contract, type FROM job")
    assert jobs[0] == jobs[1]
    old, new = (api.get(f"/jobs/{one}").json for one in (job, answer.json["id"]))
    for name in ("type", "binary_url", "binary_sha256", "arguments", "env_variables", "resources", "timeout_seconds"):
        assert old[name] == new[name]
    assert new["attempts"] == []


def test_the_same_again_is_admitted_anew(api: Caller, fabric: Fabric) -> None:
    job = api.submit(resources={"cpus": 8})["id"]
    fabric.sql("UPDATE tenant SET quota_cpus_milli = 4000")
    is_error(api.post(f"/jobs/{job}/resubmit"), 403)
    assert fabric.value("SELECT count(*) FROM job") == 1


# -- users and operators -----------------------------------------------------------------------------------------


@pytest.fixture
def callers(fabric: Fabric, settings: Settings, tmp_path: Path) -> dict[str, Caller]:
    """A user and an operator of `acme`, an operator of nobody's, a user of `other`."""
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set(SIGNER.jwk()))
    signed = Settings(
        database_url=settings.database_url, auth_keys=str(keys), auth_issuer=ISSUER, auth_audience=(AUDIENCE,),
        auth_algorithms=("EdDSA",),
    )  # fmt: skip
    client = create_app(signed, fabric.db, Bells()).test_client()
    for name in ("acme", "other"):
        fabric.add_tenant(name)
    roles = {"user": ("acme", "user"), "operator": ("other", "operator"), "stranger": ("other", "user")}
    return {
        who: Caller(client, "/jobs/api/v1", SIGNER.token(roles=[role], tenant=tenant, sub=who))
        for who, (tenant, role) in roles.items()
    }


def test_operators_reach_every_job_and_users_their_own(callers: dict[str, Caller]) -> None:
    user, operator, stranger = callers["user"], callers["operator"], callers["stranger"]
    job = user.submit()["id"]
    for path in ("hold", "release", "requeue", "resubmit"):
        is_error(stranger.post(f"/jobs/{job}/{path}"), 404)
    is_error(patch(stranger, job, json={"priority": 1}), 404)
    held = operator.post(f"/jobs/{job}/hold", json={"reason": "maintenance"}).json
    assert (held["hold"]["by"], held["hold"]["operator"]) == ("operator", True)
    told = is_error(user.post(f"/jobs/{job}/release"), 403)
    assert told["held_by"] == "operator"
    assert patch(user, job, json={"priority": 600}).status_code == 200
    assert patch(operator, job, json={"priority": 900}).json["effective_priority"] == 500
    assert operator.post(f"/jobs/{job}/release").json["hold"] is None
    is_error(operator.post(f"/jobs/{job}/resubmit"), 403)


def test_what_a_user_submits_held_a_user_releases(callers: dict[str, Caller]) -> None:
    job = callers["user"].submit(hold=True)["id"]
    assert callers["user"].get(f"/jobs/{job}").json["message"] == "held by user"
    assert callers["user"].post(f"/jobs/{job}/release").status_code == 200
