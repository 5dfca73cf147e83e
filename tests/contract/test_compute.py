"""The compute contract from its document: each example sent verbatim, key sets, states, errors, keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from app.api.factory import create_app
from app.domain.states import JobState
from app.storage.database import Database
from config.settings import Settings
from tests.contract.conftest import TOKEN, Bells, Caller

AT = "/api/v1/runtime/compute"
SUBMIT_EXAMPLE = '{ "image":"repo/transform:24","cmd":["/app/run"],"cpu":2,"mem_gib":4,"env":{"TZ":"Asia/Kolkata"} }'
STOP_EXAMPLE = '{ "reason":"operator_request" }'
UNKNOWN = "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111"
JOB_ID = re.compile(r"job_[0-9a-f]{32}")
SHOWN = {
    "job_id", "state", "image", "cmd", "cpu", "mem_gib", "env", "created_at", "started_at", "finished_at", "exit_code",
    "signal", "state_detail", "reason", "message", "attempt", "node", "stop_reason", "external_id",
}  # fmt: skip


@pytest.fixture
def compute(app: Flask) -> Caller:
    return Caller(app.test_client(), AT)


@pytest.fixture
def open_app(settings: Settings, bells: Bells) -> Iterator[Flask]:
    """An application without auth."""
    db = Database(settings.database_url, 2, "contract-test")
    yield create_app(replace(settings, auth="off"), db, bells)
    db.close()


def example(text: str) -> dict[str, Any]:
    # The document's header names hold U+2011 hyphens; on the wire they are plain ones.
    return {"data": text, "headers": {"Content-Type": "application/json"}}


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.is_json
    assert answer.json["error"] == code
    assert set(answer.json) <= {"error", "message", "details"}
    assert isinstance(answer.json["message"], str)
    assert answer.json["message"]
    return dict(answer.json)


def submit(caller: Caller, **changes: Any) -> str:
    answer = caller.post("/jobs", json={"image": "repo/transform:24", **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json["job_id"])


def in_state(db: Database, job_id: str, state: JobState) -> None:
    """Puts a pending job into a state as a claim and its end would."""
    active = "attempt = 1, attempt_id = gen_random_uuid(), node_id = 'n1', ready = false, reason = NULL"
    over = "attempt_id = NULL, finished_at = now()"
    steps = {
        JobState.RUNNING: [f"state = 1, {active}", "state = 2, started_at = now()"],
        JobState.STOPPING: [f"state = 1, {active}", "state = 3, stop_cause = 4"],
        JobState.COMPLETED: [f"state = 1, {active}", f"state = 4, {over}, exit_code = 0"],
        JobState.FAILED: [f"state = 1, {active}", f"state = 5, {over}, exit_code = 1"],
        JobState.CANCELLED: ["state = 6, ready = false, reason = NULL, stop_cause = 4, finished_at = now()"],
    }
    with db.transaction("test") as tx:
        for step in steps[state]:
            tx.run(f"UPDATE job SET {step} WHERE id = %(id)s", {"id": job_id.removeprefix("job_")})


class TestSubmit:
    def test_the_example_of_the_document(self, compute: Caller, bells: Bells) -> None:
        answer = compute.post("/jobs", **example(SUBMIT_EXAMPLE))
        assert answer.status_code == 201
        assert set(answer.json) == {"job_id", "state"}
        assert JOB_ID.fullmatch(answer.json["job_id"])
        assert answer.json["state"] == "queued"
        assert [c.word for c in bells.rung] == ["background"]
        shown = compute.get(f"/jobs/{answer.json['job_id']}").json
        assert set(shown) == SHOWN
        assert (shown["image"], shown["cmd"]) == ("repo/transform:24", ["/app/run"])
        assert shown["env"] == {"TZ": "Asia/Kolkata"}
        assert (shown["cpu"], shown["mem_gib"]) == (2, 4)

    def test_only_the_image_is_required_and_fractions_of_a_cpu_are_allowed(self, compute: Caller) -> None:
        shown = compute.get(f"/jobs/{submit(compute)}").json
        assert (shown["cmd"], shown["env"], shown["cpu"], shown["mem_gib"]) == ([], {}, None, None)
        shown = compute.get(f"/jobs/{submit(compute, cpu=0.25, mem_gib=0.5)}").json
        assert (shown["cpu"], shown["mem_gib"]) == (0.25, 0.5)

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "image"),
            ({"image": None}, "image"),
            ({"image": ""}, "image"),
            ({"image": "Repo/UPPER"}, "image"),
            ({"image": "a b"}, "image"),
            ({"image": 7}, "image"),
            ({"image": "a", "cpu": 0}, "cpu"),
            ({"image": "a", "cpu": -1}, "cpu"),
            ({"image": "a", "cpu": True}, "cpu"),
            ({"image": "a", "cpu": "2"}, "cpu"),
            ({"image": "a", "mem_gib": 0}, "mem_gib"),
            ({"image": "a", "mem_gib": 1e300}, "mem_gib"),
            ({"image": "a", "cmd": "run"}, "cmd"),
            ({"image": "a", "cmd": [1]}, "cmd[0]"),
            ({"image": "a", "env": {"A B": "c"}}, "env.A B"),
            ({"image": "a", "env": {"A": 1}}, "env.A"),
            ({"image": "a", "unknown": 1}, "unknown"),
        ],
    )
    def test_what_cannot_be_is_refused_by_field(self, compute: Caller, body: dict[str, Any], field: str) -> None:
        details = refused(compute.post("/jobs", json=body), 400, "invalid_request")["details"]
        assert [one["field"] for one in details] == [field]

    @pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null", '{"image":"a","image":"b"}', '{"image":"\\u0000"}'])
    def test_bodies_that_are_not_a_job(self, compute: Caller, text: str) -> None:
        refused(compute.post("/jobs", **example(text)), 400, "invalid_request")

    def test_every_problem_of_a_body_is_named(self, compute: Caller) -> None:
        answer = compute.post("/jobs", json={"cpu": 0, "mem_gib": 0})
        details = refused(answer, 400, "invalid_request")["details"]
        assert {one["field"] for one in details} == {"image", "cpu", "mem_gib"}


class TestKey:
    def test_the_same_request_has_one_effect(self, compute: Caller) -> None:
        sent = {"json": {"image": "repo/a"}, "headers": {"X-Request-Id": "k1"}}
        first, second = compute.post("/jobs", **sent), compute.post("/jobs/", **sent)
        assert first.json == second.json
        assert second.status_code == 201
        assert compute.get("/jobs").json["total"] == 1

    def test_another_body_under_the_key_is_a_conflict(self, compute: Caller) -> None:
        headers = {"X-Request-Id": "k2"}
        assert compute.post("/jobs", json={"image": "repo/a"}, headers=headers).status_code == 201
        refused(compute.post("/jobs", json={"image": "repo/b"}, headers=headers), 409, "version_conflict")


class TestStop:
    def test_the_example_of_the_document(self, compute: Caller) -> None:
        job_id = submit(compute)
        answer = compute.post(f"/jobs/{job_id}/stop", **example(STOP_EXAMPLE))
        assert (answer.status_code, answer.json) == (200, {"job_id": job_id, "state": "stopping"})
        shown = compute.get(f"/jobs/{job_id}").json
        assert (shown["state"], shown["stop_reason"]) == ("stopped", "operator_request")

    def test_a_running_job_is_stopping_and_again(self, compute: Caller, db: Database, bells: Bells) -> None:
        job_id = submit(compute)
        in_state(db, job_id, JobState.RUNNING)
        for _ in range(2):
            answer = compute.post(f"/jobs/{job_id}/stop")
            assert (answer.status_code, answer.json) == (200, {"job_id": job_id, "state": "stopping"})
        assert compute.get(f"/jobs/{job_id}").json["state"] == "stopping"
        assert bells.woken == ["n1", "n1"]

    @pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED])
    def test_a_finished_job_is_a_conflict(self, compute: Caller, db: Database, state: JobState) -> None:
        job_id = submit(compute)
        in_state(db, job_id, state)
        refused(compute.post(f"/jobs/{job_id}/stop", json={}), 409, "version_conflict")


class TestShow:
    @pytest.mark.parametrize(
        ("state", "word"),
        [
            (JobState.RUNNING, "running"),
            (JobState.STOPPING, "stopping"),
            (JobState.COMPLETED, "succeeded"),
            (JobState.FAILED, "failed"),
            (JobState.CANCELLED, "stopped"),
        ],
    )
    def test_states_and_their_filter(self, compute: Caller, db: Database, state: JobState, word: str) -> None:
        job_id, waiting = submit(compute), submit(compute)
        in_state(db, job_id, state)
        assert compute.get(f"/jobs/{job_id}").json["state"] == word
        assert [j["job_id"] for j in compute.get(f"/jobs?state={word}").json["jobs"]] == [job_id]
        assert [j["job_id"] for j in compute.get("/jobs?state=queued").json["jobs"]] == [waiting]
        assert compute.get("/jobs").json["total"] == 2

    @pytest.mark.parametrize("query", ["state=pending", "limit=0", "limit=1001", "limit=x", "offset=-1"])
    def test_bad_queries(self, compute: Caller, query: str) -> None:
        refused(compute.get(f"/jobs?{query}"), 400, "invalid_request")

    @pytest.mark.parametrize(
        "job_id",
        [
            "job_7",
            "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111",
            "job_6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111",
            "job_6f0f2a526a304a8f8f0b3f0f3ad2b111",
            "%00",
            "x" * 5000,
        ],
    )
    def test_unknown_and_malformed_ids(self, compute: Caller, job_id: str) -> None:
        for answer in (
            compute.get(f"/jobs/{job_id}"),
            compute.post(f"/jobs/{job_id}/stop"),
            compute.get(f"/jobs/{job_id}/logs"),
        ):
            refused(answer, 404, "not_found")

    def test_a_job_of_the_jobs_contract_shows_here_and_back(self, compute: Caller, api: Caller) -> None:
        native = api.submit(env_variables={"A": "b"}, arguments=["x"])["id"].replace("-", "")
        shown = compute.get(f"/jobs/job_{native}").json
        assert set(shown) == SHOWN
        assert (shown["image"], shown["cmd"], shown["env"], shown["state"]) == (None, ["x"], {"A": "b"}, "queued")
        listed = api.get(f"/jobs/{submit(compute).removeprefix('job_')}")
        assert listed.status_code == 404  # The jobs contract shows UUIDs in their usual form only.
        mine = next(job for job in api.get("/jobs").json if job["type"] == "container")
        detail = api.get(f"/jobs/{mine['id']}").json
        assert (detail["binary_url"], detail["binary_sha256"], detail["status"]) == (None, None, "pending")


class TestErrors:
    def test_without_a_token(self, app: Flask) -> None:
        stranger = Caller(app.test_client(), AT, token=None)
        for answer in (stranger.get("/jobs"), stranger.post("/jobs", json={}), stranger.get("/none")):
            refused(answer, 401, "unauthorized")

    def test_routes_methods_types_and_sizes(self, compute: Caller) -> None:
        refused(compute.get("/none"), 404, "not_found")
        answer = compute.put("/jobs", json={})
        refused(answer, 405, "invalid_request")
        assert "POST" in answer.headers["Allow"]
        refused(compute.post("/jobs", data="x", headers={"Content-Type": "text/plain"}), 415, "invalid_request")

    def test_both_slash_forms_answer_without_a_redirect(self, compute: Caller) -> None:
        job_id = submit(compute)
        for path in ("/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/logs"):
            assert compute.get(path).status_code == compute.get(path + "/").status_code == 200

    def test_postgresql_away_is_a_dependency_down(self, refusing: Caller) -> None:
        refusing.prefix = AT
        for answer in (refusing.get("/jobs"), refusing.post("/jobs", json={"image": "a"})):
            refused(answer, 503, "dependency_down")
            assert int(answer.headers["Retry-After"]) > 0

    def test_more_than_ten_a_second_are_refused(self, compute: Caller) -> None:
        answers = [compute.get("/jobs") for _ in range(40)]
        late = [answer for answer in answers if answer.status_code != 200]
        assert late
        refused(late[0], 429, "rate_limited")
        assert int(late[0].headers["Retry-After"]) > 0
        assert compute.get("/openapi.json").status_code == 200

    def test_without_auth_it_serves_this_machine(self, open_app: Flask) -> None:
        caller = Caller(open_app.test_client(), AT, token=None)
        assert caller.post("/jobs", **example(SUBMIT_EXAMPLE)).status_code == 201
        refused(caller.post("/jobs", data=SUBMIT_EXAMPLE), 415, "invalid_request")
        refused(caller.post("/jobs", json={}, headers={"Origin": "https://evil.example"}), 403, "forbidden")

    def test_images_are_refused_where_signatures_are_required(self, settings: Settings, bells: Bells) -> None:
        db = Database(settings.database_url, 2, "contract-test")
        app = create_app(replace(settings, image_signatures="signed"), db, bells)
        message = refused(Caller(app.test_client(), AT).post("/jobs", json={"image": "repo/a"}), 403, "forbidden")
        assert "no key is trusted" in message["message"]
        db.close()


class TestDocument:
    def test_it_names_every_route_with_its_examples(self, app: Flask, compute: Caller) -> None:
        spec = compute.get("/openapi.json").json
        assert spec["info"]["title"] == "Compute Fabric: compute"
        assert spec["servers"] == [{"url": AT}]
        assert set(spec["paths"]) == {"/jobs", "/jobs/{job_id}", "/jobs/{job_id}/stop", "/jobs/{job_id}/logs"}
        assert Caller(app.test_client(), AT).get("/docs").status_code == 200
        assert TOKEN not in str(spec)
