"""The jobs contract as its users see it, endpoint by endpoint, from its document."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask

from app.domain.priority import PriorityClass
from tests.contract.conftest import PREFIXES, SHA, Bells, Caller, job_body
from tests.contract.jobs_document import (
    ADDED,
    ATTEMPT,
    BULK_EXAMPLE,
    CLAIM_EXAMPLE,
    COMPLETE_EXAMPLE,
    LISTED,
    SHOWN,
    SUBMIT_EXAMPLE,
    TIME,
    is_error,
    raw,
)

BAD_VALUES = [
    ("type", "two words"), ("type", ""), ("type", "x" * 256), ("type", "tab\there"), ("type", 7),
    ("type", "new\nline"), ("type", True), ("type", ["a"]),
    ("binary_url", "ftp://example.com/x"), ("binary_url", "file:///etc/passwd"), ("binary_url", "nonsense"),
    ("binary_url", "http://"), ("binary_url", "https://example.com/" + "x" * 2048), ("binary_url", 1),
    ("binary_url", "https://user:secret@example.com/x"), ("binary_url", "https://exa mple.com/"),
    ("binary_url", "https://example.com:99999/"), ("binary_url", "http://[::1/"),
    ("binary_sha256", "xyz"), ("binary_sha256", "g" * 64), ("binary_sha256", "a" * 63),
    ("binary_sha256", "a" * 64 + "\n"), ("binary_sha256", 5),
    ("arguments", "arg"), ("arguments", [1]), ("arguments", {}), ("arguments", ["a"] * 1001),
    ("arguments", ["x" * 131_072]), ("arguments", [None]), ("arguments", ["x" * 131_000] * 9),
    ("env_variables", []), ("env_variables", {"A": 1}), ("env_variables", {"1A": "x"}),
    ("env_variables", {"A=B": "x"}), ("env_variables", {"": "x"}), ("env_variables", {"CFAB_JOB_ID": "x"}),
    ("env_variables", {"A": "x" * 131_072}), ("env_variables", {"A": None}), ("env_variables", {"Ä": "x"}),
    ("priority", "urgent"), ("priority", ""), ("priority", 0), ("priority", "FOREGROUND"), ("priority", []),
    ("timeout_seconds", 0), ("timeout_seconds", -1), ("timeout_seconds", "5"), ("timeout_seconds", True),
    ("grace_seconds", -1), ("grace_seconds", 1e9), ("max_retries", -1), ("max_retries", 1.5),
    ("max_retries", True), ("backoff_seconds", "x"), ("resources", []), ("resources", {"cpus": 0}),
    ("resources", {"memory_mib": 1.5}), ("resources", {"gpus": -1}), ("resources", {"disk": 1}),
    ("script", "echo"), ("unknown_field", 1),
]  # fmt: skip
EDGE_VALUES = [
    ("type", "x" * 255), ("type", "größe-β"), ("binary_url", "http://127.0.0.1:8000/a?b=c#d"),
    ("binary_sha256", "AB" * 32), ("arguments", ["", "ünï", "--a=b c", "x" * 131_071]),
    ("arguments", ["a"] * 1000), ("env_variables", {"_a1": "", "PATH": "/x:/y", "Z": "a\nb"}),
    ("priority", "best_effort"), ("priority", "foreground"), ("timeout_seconds", 0.5), ("grace_seconds", 0),
    ("max_retries", 3), ("resources", {"cpus": 1.5, "memory_mib": 100, "gpus": 1, "gpu_model": "A100"}),
]  # fmt: skip
BAD_QUERIES = [
    "limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit=1.5", "limit=1_0", "limit=9" + "9" * 5000,
    "offset=-1", "offset=x", "offset=99999999999999999999", "status=unknown", "status=", "status=RUNNING",
    "priority=high", "limit=٣", "type=a%00b", "type=",
]  # fmt: skip


class TestSubmit:
    @pytest.mark.parametrize("prefix", PREFIXES)
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_the_documented_example(self, api: Caller, bells: Bells, prefix: str, slash: str) -> None:
        api.prefix = prefix
        answer = api.post("/jobs" + slash, **raw(SUBMIT_EXAMPLE))
        assert answer.status_code == 201
        assert set(answer.json) == {"id", "type", "status", "created_at", "array"} | ADDED
        assert answer.json["type"] == "data-processing"
        assert answer.json["status"] == "pending"
        assert TIME.fullmatch(answer.json["created_at"])
        assert str(UUID(answer.json["id"])) == answer.json["id"]
        assert bells.rung == [PriorityClass.BACKGROUND]

    def test_the_digest_as_the_document_abbreviates_it_is_refused(self, api: Caller) -> None:
        context = is_error(api.post("/jobs", data=SUBMIT_EXAMPLE, content_type="application/json"), 400)
        assert context["field"] == "binary_sha256"

    def test_only_the_required_fields(self, api: Caller) -> None:
        job = api.submit(arguments=None, env_variables=None)
        shown = api.get(f"/jobs/{job['id']}").json
        assert shown["arguments"] == []
        assert shown["env_variables"] == {}

    @pytest.mark.parametrize("field", ["type", "binary_url", "binary_sha256", "priority"])
    def test_a_missing_required_field(self, api: Caller, bells: Bells, field: str) -> None:
        context = is_error(api.post("/jobs", json=job_body(**{field: None})), 400)
        assert context["field"] == field
        assert bells.rung == []

    def test_a_value_that_cannot_be_is_named(self, api: Caller, bells: Bells) -> None:
        for field, value in BAD_VALUES:
            context = is_error(api.post("/jobs", json={**job_body(), field: value}), 400)
            named = [problem["field"] for problem in context["errors"]]
            assert field == "script" or any(field in name for name in named), (field, value, named)
        assert bells.rung == []
        assert api.get("/jobs").json == []

    def test_an_unknown_field_is_named_with_the_known_ones(self, api: Caller) -> None:
        answer = api.post("/jobs", json=job_body(arguement=["a"]))
        is_error(answer, 400)
        assert "arguement" in answer.json["error"]
        assert "env_variables" in answer.json["error"]

    def test_a_value_at_the_edge_is_kept_as_given(self, api: Caller) -> None:
        for field, value in EDGE_VALUES:
            job = api.submit(**{field: value})
            shown = api.get(f"/jobs/{job['id']}").json
            assert shown[field] == (value.lower() if field == "binary_sha256" else value), field

    def test_a_script_instead_of_a_binary(self, api: Caller) -> None:
        job = api.submit(script="echo hello\n", binary_url=None, binary_sha256=None)
        shown = api.get(f"/jobs/{job['id']}").json
        assert shown["script"] == "echo hello\n"
        assert shown["binary_url"] is None
        assert shown["binary_sha256"] is None

    def test_needs_a_token(self, stranger: Caller, bells: Bells) -> None:
        answer = stranger.post("/jobs", **raw(SUBMIT_EXAMPLE))
        is_error(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert bells.rung == []

    def test_content_type(self, api: Caller) -> None:
        assert api.post("/jobs", data=json.dumps(job_body())).status_code == 201
        body = json.dumps(job_body())
        assert api.post("/jobs", data=body, content_type="application/json; charset=UTF-8").status_code == 201
        is_error(api.post("/jobs", data=body, content_type="application/x-www-form-urlencoded"), 415)
        is_error(api.post("/jobs", data=body, content_type="application/json; charset=latin-1"), 415)
        is_error(api.post("/jobs", data=body, content_type="text/plain"), 415)


class TestIdempotency:
    def test_the_same_request_has_one_effect_and_one_answer(self, api: Caller, bells: Bells) -> None:
        key = {"Idempotency-Key": "order-17"}
        first = api.post("/jobs", json=job_body(), headers=key)
        again = api.post("/jobs/", data=json.dumps(job_body(), indent=3), headers=key)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json == first.json
        assert again.headers["Idempotent-Replayed"] == "true"
        assert len(bells.rung) == 1
        assert api.get("/jobs").headers["X-Total-Count"] == "1"

    def test_another_body_under_the_key_is_422(self, api: Caller) -> None:
        key = {"Idempotency-Key": "order-17"}
        api.post("/jobs", json=job_body(), headers=key)
        is_error(api.post("/jobs", json=job_body(type="other"), headers=key), 422)

    def test_the_key_belongs_to_its_path(self, api: Caller) -> None:
        key = {"Idempotency-Key": "order-17"}
        one = api.post("/jobs", json=job_body(), headers=key)
        bulk = api.post("/jobs/bulk", json=[job_body()], headers=key)
        assert (one.status_code, bulk.status_code) == (201, 201)

    def test_bulk_replays_too(self, api: Caller) -> None:
        key = {"Idempotency-Key": "b"}
        first = api.post("/jobs/bulk", json=[job_body(), job_body()], headers=key)
        assert api.post("/jobs/bulk", json=[job_body(), job_body()], headers=key).json == first.json
        assert api.get("/jobs").headers["X-Total-Count"] == "2"

    def test_a_key_that_cannot_be(self, refusing: Caller) -> None:
        for key in ("", "with space", "x" * 256, "ü"):
            is_error(refusing.post("/jobs", json=job_body(), headers={"Idempotency-Key": key}), 400)


class TestList:
    def test_the_documented_keys_and_types(self, api: Caller) -> None:
        api.submit()
        running = api.claim()["id"]
        answer = api.get("/jobs?status=running&type=data-processing&priority=background&limit=10&offset=0")
        assert answer.status_code == 200
        assert answer.headers["X-Total-Count"] == "1"
        (job,) = answer.json
        assert set(job) >= LISTED | ADDED
        assert job["id"] == running
        assert job["status"] == "running"
        assert job["priority"] == "background"
        assert job["executor_id"] == "worker-1-abc123"
        assert TIME.fullmatch(job["created_at"])
        assert TIME.fullmatch(job["started_at"])

    def test_unknown_values_are_null(self, api: Caller) -> None:
        api.submit()
        (job,) = api.get("/jobs/").json
        assert job["executor_id"] is None
        assert job["started_at"] is None

    def test_newest_first_in_pages_with_the_total(self, api: Caller) -> None:
        ids = [api.submit()["id"] for _ in range(5)]
        pages = [api.get(f"/jobs?limit=2&offset={offset}") for offset in (0, 2, 4, 6)]
        assert [job["id"] for page in pages for job in page.json] == ids[::-1]
        assert {page.headers["X-Total-Count"] for page in pages} == {"5"}

    def test_each_status_filters(self, api: Caller) -> None:
        ids = {word: api.submit(type=word)["id"] for word in ("pending", "cancelled")}
        api.delete(f"/jobs/{ids['cancelled']}")
        for status in ("pending", "running", "completed", "failed", "cancelled"):
            found = api.get(f"/jobs?status={status}").json
            assert [job["id"] for job in found] == ([ids[status]] if status in ids else [])
            assert all(job["status"] == status for job in found)

    def test_filters_by_type_and_priority(self, api: Caller) -> None:
        one = api.submit(type="a", priority="foreground")["id"]
        api.submit(type="b", priority="foreground")
        api.submit(type="a", priority="best_effort")
        assert [job["id"] for job in api.get("/jobs?type=a&priority=foreground").json] == [one]

    def test_a_parameter_that_cannot_be_is_named(self, api: Caller) -> None:
        for query in BAD_QUERIES:
            context = is_error(api.get("/jobs?" + query), 400)
            assert context["field"] == query.partition("=")[0], query

    def test_bounds_and_unknown_parameters(self, api: Caller) -> None:
        assert api.get("/jobs?limit=1000&offset=1000000&colour=red").json == []
        assert api.get("/jobs?limit=1").status_code == 200

    def test_needs_a_token(self, stranger: Caller) -> None:
        is_error(stranger.get("/jobs"), 401)


class TestShow:
    def test_says_where_a_job_waits(self, api: Caller) -> None:
        sent = [api.submit()["id"] for _ in range(3)]
        assert [api.get(f"/jobs/{one}").json["queue_position"] for one in sent] == [1, 2, 3]
        api.claim()
        assert [api.get(f"/jobs/{one}").json["queue_position"] for one in sent] == [0, 1, 2]

    def test_a_completed_job_has_the_documented_keys(self, api: Caller) -> None:
        job = api.submit()["id"]
        api.post("/jobs/claim", **raw(CLAIM_EXAMPLE))
        api.put(f"/jobs/{job}/complete", **raw(COMPLETE_EXAMPLE))
        shown = api.get(f"/jobs/{job}").json
        assert set(shown) >= SHOWN | ADDED
        assert shown["status"] == shown["state_detail"] == "completed"
        assert shown["binary_url"] == "https://example.com/binary"
        assert shown["binary_sha256"] == SHA
        assert shown["arguments"] == ["arg1", "arg2"]
        assert shown["env_variables"] == {"KEY1": "value1", "KEY2": "value2"}
        assert (shown["stdout"], shown["stderr"], shown["exit_code"]) == ("Job output...", "", 0)
        assert all(TIME.fullmatch(shown[key]) for key in ("created_at", "started_at", "completed_at"))
        (attempt,) = shown["attempts"]
        assert set(attempt) >= ATTEMPT
        assert attempt["executor_id"] == "worker-1-abc123"
        assert attempt["executor_ip"] == "192.168.1.100"
        assert attempt["status"] == "completed"
        assert TIME.fullmatch(attempt["started_at"])
        assert TIME.fullmatch(attempt["ended_at"])

    def test_a_pending_job_has_them_all_too(self, api: Caller) -> None:
        shown = api.get(f"/jobs/{api.submit()['id']}/").json
        assert set(shown) >= SHOWN | ADDED
        assert [shown[key] for key in ("executor_id", "exit_code", "started_at", "completed_at")] == [None] * 4
        assert shown["attempts"] == []
        assert shown["reason"] == "new"

    def test_an_unknown_or_malformed_id_is_404(self, api: Caller) -> None:
        for job_id in (str(uuid4()), "claim", "x", "1", "%00", "a" * 3000, "{" + str(uuid4()) + "}"):
            is_error(api.get(f"/jobs/{job_id}"), 404)

    def test_ids_in_capitals_are_the_same(self, api: Caller) -> None:
        job = api.submit()["id"]
        assert api.get(f"/jobs/{job.upper()}").json["id"] == job

    def test_another_tenants_job_is_404(self, api: Caller, app: Flask) -> None:
        job = api.submit()["id"]
        with app.extensions["cfab"].db.transaction() as tx:
            tenant = tx.value("INSERT INTO tenant (id, name) VALUES (gen_random_uuid(), 'other') RETURNING id")
            tx.run("UPDATE job SET tenant_id = %(t)s WHERE id = %(id)s", {"t": tenant, "id": job})
        is_error(api.get(f"/jobs/{job}"), 404)
        is_error(api.delete(f"/jobs/{job}"), 404)
        is_error(api.post(f"/jobs/{job}/stop"), 404)
        is_error(api.get(f"/jobs/{job}/logs"), 404)

    def test_needs_a_token(self, stranger: Caller) -> None:
        is_error(stranger.get(f"/jobs/{uuid4()}"), 401)


class TestCancel:
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_pending_job(self, api: Caller, slash: str) -> None:
        job = api.submit()["id"]
        answer = api.delete(f"/jobs/{job}{slash}")
        assert answer.status_code == 200
        assert answer.json == {"id": job, "status": "cancelled"}

    def test_again_is_400_with_id_and_status(self, api: Caller) -> None:
        job = api.submit()["id"]
        api.delete(f"/jobs/{job}")
        context = is_error(api.delete(f"/jobs/{job}"), 400)
        assert (context["job_id"], context["status"]) == (job, "cancelled")

    def test_a_running_job_is_400(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        assert is_error(api.delete(f"/jobs/{job}"), 400)["status"] == "running"

    def test_an_unknown_one_is_404(self, api: Caller) -> None:
        is_error(api.delete(f"/jobs/{uuid4()}"), 404)


class TestHints:
    def test_followers_are_told_of_every_change_that_the_api_makes(self, api: Caller, bells: Bells) -> None:
        cancelled, stopped, both = (api.submit()["id"] for _ in range(3))
        held = api.claim()["id"]
        assert bells.hinted == [cancelled, stopped, both, held]
        bells.hinted.clear()
        others = [one for one in (cancelled, stopped, both) if one != held]
        api.put(f"/jobs/{held}/complete", json={"executor_id": "worker-1-abc123", "exit_code": 0})
        api.delete(f"/jobs/{others[0]}")
        api.post("/jobs/bulk/cancel", json={"job_ids": others})
        assert bells.hinted == [held, *others]

    def test_a_stop_is_told_once_and_not_by_its_replay(self, api: Caller, bells: Bells) -> None:
        job_id = api.submit()["id"]
        bells.hinted.clear()
        for _ in range(2):
            answer = api.post(f"/jobs/{job_id}/stop", headers={"Idempotency-Key": "once"})
            assert answer.status_code == 200
        assert bells.hinted == [job_id]


class TestStop:
    def test_a_running_job_is_stopping_and_its_node_woken(self, api: Caller, bells: Bells) -> None:
        api.submit()
        job = api.claim()["id"]
        answer = api.post(f"/jobs/{job}/stop", json={"reason": "no longer needed"})
        assert answer.status_code == 200
        assert answer.json == {"id": job, "status": "running", "state_detail": "stopping", "reason": "cancel"}
        assert bells.woken == ["worker-1-abc123"]
        assert api.get(f"/jobs/{job}").json["stop_reason"] == "no longer needed"
        assert api.post(f"/jobs/{job}/stop").json == answer.json

    @pytest.mark.parametrize("options", [{}, {"json": {}}, {"json": {"reason": None}}])
    def test_a_pending_one_is_cancelled_at_once(self, api: Caller, options: dict[str, Any]) -> None:
        job = api.submit()["id"]
        assert api.post(f"/jobs/{job}/stop", **options).json["status"] == "cancelled"

    def test_a_finished_one_is_400(self, api: Caller) -> None:
        job = api.submit()["id"]
        api.delete(f"/jobs/{job}")
        assert is_error(api.post(f"/jobs/{job}/stop"), 400)["status"] == "cancelled"

    def test_unknown_404_and_bad_body_400(self, api: Caller) -> None:
        is_error(api.post(f"/jobs/{uuid4()}/stop"), 404)
        is_error(api.post("/jobs/x/stop", json={"reason": 5}), 400)
        is_error(api.post("/jobs/x/stop", json=[]), 400)


class TestBulkSubmit:
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_the_documented_example(self, api: Caller, bells: Bells, slash: str) -> None:
        answer = api.post("/jobs/bulk" + slash, **raw(BULK_EXAMPLE))
        assert answer.status_code == 201
        assert len(answer.json) == 2
        assert all(set(job) == {"id", "status"} | ADDED and job["status"] == "pending" for job in answer.json)
        shown = [api.get(f"/jobs/{job['id']}").json for job in answer.json]
        assert [job["type"] for job in shown] == ["job-1", "job-2"]
        assert sorted(bells.rung) == [PriorityClass.FOREGROUND, PriorityClass.BACKGROUND]

    def test_one_bad_job_refuses_all_and_is_named(self, api: Caller) -> None:
        body = [job_body(), job_body(type="a b"), job_body(priority=None)]
        context = is_error(api.post("/jobs/bulk", json=body), 400)
        assert [(e["index"], e["field"]) for e in context["errors"]] == [(1, "type"), (2, "priority")]
        assert all(e["message"] for e in context["errors"])
        assert api.get("/jobs").json == []

    def test_bounds(self, api: Caller, bells: Bells) -> None:
        is_error(api.post("/jobs/bulk", json=[]), 400)
        is_error(api.post("/jobs/bulk", json=[job_body()] * 1001), 400)
        is_error(api.post("/jobs/bulk", json={}), 400)
        is_error(api.post("/jobs/bulk", json=[5]), 400)
        assert len(api.post("/jobs/bulk", json=[job_body()] * 1000).json) == 1000
        assert bells.rung == [PriorityClass.BACKGROUND]


class TestBulkCancel:
    def test_the_documented_answer(self, api: Caller) -> None:
        ids = [api.submit()["id"] for _ in range(2)]
        answer = api.post("/jobs/bulk/cancel", json={"job_ids": ids})
        assert answer.status_code == 200
        assert answer.json == {"cancelled": 2, "failed": 0, "errors": []}

    def test_each_failure_is_named(self, api: Caller) -> None:
        api.submit()
        running, pending, unknown = api.claim()["id"], api.submit()["id"], str(uuid4())
        answer = api.post("/jobs/bulk/cancel/", json={"job_ids": [running, pending, unknown, "nonsense", pending]})
        assert answer.status_code == 200
        assert (answer.json["cancelled"], answer.json["failed"]) == (1, 3)
        assert {error["job_id"] for error in answer.json["errors"]} == {running, unknown, "nonsense"}
        assert all(set(error) == {"job_id", "error"} for error in answer.json["errors"])

    def test_a_body_that_cannot_be(self, refusing: Caller) -> None:
        for body in ({}, [], "x", {"job_ids": "x"}, {"job_ids": []}, {"job_ids": [1]}, {"job_ids": None},
                     {"job_ids": ["x"] * 1001}, {"ids": []}):  # fmt: skip
            is_error(refusing.post("/jobs/bulk/cancel", json=body), 400)
