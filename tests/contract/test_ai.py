"""The ai contract from its document: each example sent verbatim, key sets, states, queues, clusters, errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from app.api.ai.fabric_translate import gpu_slug
from app.api.factory import create_app
from app.services import recover
from app.storage.database import Database
from config.settings import Settings
from tests.contract.conftest import Bells, Caller

AT = "/ai/api/v1"
CREATE_EXAMPLE = """{
  "job_type": "inference",
  "priority": 80,
  "image": "pytorch-inference:v1.0",
  "config": {
    "model": "resnet50",
    "batch_size": 32
  },
  "resources": {
    "cpu": "2",
    "memory": "8Gi",
    "gpu": 1
  },
  "gang": {
    "enabled": false,
    "min_members": 1
  },
  "timeout_seconds": 3600,
  "retry_policy": {
    "max_retries": 3,
    "backoff_multiplier": 2
  }
}"""
CREATED = {"id", "job_type", "priority", "status", "created_at", "queue_position"}
LISTED = {"id", "job_type", "priority", "status", "created_at", "started_at"}
SHOWN = LISTED | {"image", "config", "resources", "completed_at", "retry_count", "worker_id", "logs_url"}
QUEUE = {"name", "depth", "processing", "max_concurrency", "oldest_job_age_seconds"}
UNKNOWN = "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111"
JOB_ID = re.compile(r"job-[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture
def ai(app: Flask) -> Caller:
    return Caller(app.test_client(), AT)


def sent(text: str) -> dict[str, Any]:
    return {"data": text, "headers": {"Content-Type": "application/json"}}


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json) == {"error"}
    error = answer.json["error"]
    assert set(error) == {"code", "message", "details", "request_id"}
    assert error["code"] == code
    assert error["message"]
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert all(set(one) == {"field", "message"} for one in error["details"])
    return dict(error)


def create(caller: Caller, **changes: Any) -> str:
    answer = caller.post("/jobs/", json={"job_type": "inference", "image": "a", **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json["id"])


def run(db: Database, job_id: str, *steps: str) -> None:
    """Moves a pending job on as a claim and its end would."""
    began = "state = 1, attempt = 1, attempt_id = gen_random_uuid(), node_id = 'w1', ready = false, reason = NULL"
    with db.transaction("test") as tx:
        for step in (began, *steps):
            tx.run(f"UPDATE job SET {step} WHERE id = %(id)s", {"id": job_id.removeprefix("job-")})


def add_node(db: Database, name: str, state: str = "ready", cluster: str = "gpu-cluster", gpus: int = 4) -> None:
    card = {"model": "NVIDIA A100-SXM4-80GB", "memory_bytes": 80 * 10**9}
    cards = json.dumps([{**card, "uuid": f"{name}-{n}"} for n in range(gpus)])
    with db.transaction("test") as tx:
        tx.run(
            """INSERT INTO node (id, kind, incarnation, protocol, state, cluster, slots, cpus_milli, memory_bytes, gpus)
            VALUES (%(id)s, 'agent', gen_random_uuid(), 1, %(s)s, %(c)s, 50, 32000, 274877906944, %(gpus)s)""",
            {"id": name, "s": state, "c": cluster, "gpus": cards},
        )


class TestCreate:
    def test_a_config_counts_as_it_is_kept(self, ai: Caller) -> None:
        body = {"job_type": "inference", "image": "a"}
        assert ai.post("/jobs/", json={**body, "config": {"a": [1e300] * 100}}).status_code == 201
        for config in ({"a": [1e300] * 4000}, {"a": [1e-300] * 4000}, {"a": "x" * 2**20}):
            error = refused(ai.post("/jobs/", json={**body, "config": config}), 400, "VALIDATION_ERROR")
            assert error["details"][0]["field"] == "config"

    def test_the_example_of_the_document(self, ai: Caller, bells: Bells) -> None:
        for path in ("/jobs/", "/jobs"):
            answer = ai.post(path, **sent(CREATE_EXAMPLE))
            assert answer.status_code == 201, answer.text
            assert set(answer.json) == CREATED
            assert JOB_ID.fullmatch(answer.json["id"])
            assert TIME.fullmatch(answer.json["created_at"])
            assert (answer.json["job_type"], answer.json["priority"]) == ("inference", 80)
            assert answer.json["status"] == "pending"
        assert answer.json["queue_position"] == 2
        assert {c.word for c in bells.rung} == {"foreground"}

    def test_what_was_asked_is_echoed_as_it_was_asked(self, ai: Caller) -> None:
        asked = json.loads(CREATE_EXAMPLE)
        job_id = ai.post("/jobs/", **sent(CREATE_EXAMPLE)).json["id"]
        shown = ai.get(f"/jobs/{job_id}").json
        assert set(shown) >= SHOWN
        for name in ("job_type", "priority", "image", "config", "resources", "gang", "timeout_seconds", "retry_policy"):
            assert shown[name] == asked[name]
        assert (shown["status"], shown["retry_count"], shown["worker_id"]) == ("queued", 0, None)
        assert (shown["started_at"], shown["completed_at"]) == (None, None)
        assert shown["logs_url"] == f"{AT}/jobs/{job_id}/logs"

    def test_defaults(self, ai: Caller) -> None:
        shown = ai.get(f"/jobs/{create(ai)}").json
        assert (shown["priority"], shown["config"], shown["resources"]) == (50, None, None)
        answer = ai.post("/jobs/", json={"job_type": "shell", "script": "true"})
        assert answer.status_code == 201

    def test_a_gang_waits_for_nodes_that_start_all_members_together(self, ai: Caller, api: Caller) -> None:
        for gang, runner in (
            ({"enabled": True, "min_members": 4}, "gang-process"),
            ({"enabled": True, "min_members": 1}, "process"),
            ({"enabled": False, "min_members": 4}, "process"),
        ):
            body = {"job_type": "a", "script": "true", "gang": gang}
            shown = ai.get(f"/jobs/{ai.post('/jobs/', json=body).json['id']}").json
            assert (shown["status"], shown["gang"]) == ("queued", gang)
            job = api.get("/jobs").json[0]["id"]
            assert api.get(f"/jobs/{job}/explain").json["asks"]["runner"] == runner

    @pytest.mark.parametrize("priority", [0, 29, 30, 69, 70, 100])
    def test_every_priority_comes_back(self, ai: Caller, priority: int) -> None:
        assert ai.get(f"/jobs/{create(ai, priority=priority)}").json["priority"] == priority

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"job_type": None}, "job_type"),
            ({"job_type": "a b"}, "job_type"),
            ({"priority": 101}, "priority"),
            ({"priority": -1}, "priority"),
            ({"priority": "high"}, "priority"),
            ({"image": "NOT AN IMAGE"}, "image"),
            ({"config": []}, "config"),
            ({"resources": {"cpu": "2 cores"}}, "resources.cpu"),
            ({"resources": {"cpu": 0}}, "resources.cpu"),
            ({"resources": {"memory": "8GiB"}}, "resources.memory"),
            ({"resources": {"gpu": "1"}}, "resources.gpu"),
            ({"resources": {"tpu": 1}}, "resources.tpu"),
            ({"gang": {"enabled": 1}}, "gang.enabled"),
            ({"gang": {"min_members": 0}}, "gang.min_members"),
            ({"timeout_seconds": 0}, "timeout_seconds"),
            ({"retry_policy": {"max_retries": -1}}, "retry_policy.max_retries"),
            ({"retry_policy": {"backoff_multiplier": 0}}, "retry_policy.backoff_multiplier"),
            ({"script": "true"}, "image"),
        ],
    )
    def test_what_cannot_be_is_refused_by_field(self, ai: Caller, change: dict[str, Any], field: str) -> None:
        answer = ai.post("/jobs/", json={"job_type": "inference", "image": "a", **change})
        assert [one["field"] for one in refused(answer, 400, "VALIDATION_ERROR")["details"]] == [field]

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"job_type":"a","job_type":"b"}', '{"priority":NaN}'])
    def test_bodies_that_are_not_a_job(self, ai: Caller, text: str) -> None:
        refused(ai.post("/jobs/", **sent(text)), 400, "VALIDATION_ERROR")

    def test_an_ask_beyond_the_quota_is_forbidden(self, ai: Caller, db: Database) -> None:
        with db.transaction("test") as tx:
            tx.run("UPDATE tenant SET quota_gpus = 1", {})
        answer = ai.post("/jobs/", json={"job_type": "a", "image": "a", "resources": {"gpu": 2}})
        refused(answer, 403, "FORBIDDEN")

    def test_the_same_key_has_one_effect(self, ai: Caller) -> None:
        answers = [ai.post("/jobs/", **{**sent(CREATE_EXAMPLE), "headers": _key("k")}) for _ in range(2)]
        assert answers[0].json["id"] == answers[1].json["id"]
        assert ai.get("/jobs/").json["total"] == 1
        refused(ai.post("/jobs/", json={"job_type": "b", "image": "b"}, headers=_key("k")), 409, "CONFLICT")


def _key(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Idempotency-Key": key}


class TestList:
    def test_the_page(self, ai: Caller) -> None:
        jobs = [create(ai, job_type=f"t{number % 2}", priority=number * 30) for number in range(4)]
        page = ai.get("/jobs/?limit=2&offset=1").json
        assert set(page) == {"items", "total", "limit", "offset"}
        assert (page["total"], page["limit"], page["offset"]) == (4, 2, 1)
        assert [item["id"] for item in page["items"]] == [jobs[2], jobs[1]]
        assert set(page["items"][0]) >= LISTED
        default = ai.get("/jobs").json
        assert (default["limit"], default["offset"]) == (50, 0)

    def test_filters_and_their_totals(self, ai: Caller) -> None:
        jobs = [create(ai, job_type=f"t{number % 2}", priority=number * 30) for number in range(4)]
        for query, expected in (
            ("job_type=t1", [jobs[3], jobs[1]]),
            ("priority_min=60", [jobs[3], jobs[2]]),
            ("priority_min=61", [jobs[3]]),
            ("priority_min=0", jobs[::-1]),
            ("job_type=t0&priority_min=1", [jobs[2]]),
            ("status=queued", jobs[::-1]),
            ("status=running", []),
        ):
            page = ai.get(f"/jobs/?{query}").json
            assert [item["id"] for item in page["items"]] == expected, query
            assert page["total"] == len(expected), query

    @pytest.mark.parametrize(
        ("steps", "word"),
        [
            ((), "running"),
            (("state = 2, started_at = now()",), "running"),
            (("state = 3, stop_cause = 4",), "cancelled"),
            (("state = 3, stop_cause = 1",), "running"),
            (("state = 4, attempt_id = NULL, finished_at = now()",), "succeeded"),
            (("state = 5, attempt_id = NULL, finished_at = now()",), "failed"),
            (("state = 0, attempt_id = NULL, ready = true, reason = 'preempted'",), "queued"),
            (("state = 0, attempt_id = NULL, reason = 'backoff', not_before = now()",), "pending"),
        ],
    )
    def test_states_and_their_filter(self, ai: Caller, db: Database, steps: tuple[str, ...], word: str) -> None:
        job_id = create(ai)
        run(db, job_id, *steps)
        assert ai.get(f"/jobs/{job_id}").json["status"] == word
        for status in ("pending", "queued", "running", "succeeded", "failed", "cancelled"):
            page = ai.get(f"/jobs/?status={status}").json
            assert [item["id"] for item in page["items"]] == ([job_id] if status == word else [])
            assert page["total"] == (1 if status == word else 0)

    @pytest.mark.parametrize(
        "query", ["status=completed", "limit=101", "limit=0", "offset=-1", "priority_min=101", "priority_min=x"]
    )
    def test_bad_queries(self, ai: Caller, query: str) -> None:
        refused(ai.get(f"/jobs/?{query}"), 400, "VALIDATION_ERROR")


class TestCancel:
    def test_a_waiting_and_a_running_job(self, ai: Caller, db: Database, bells: Bells) -> None:
        waiting, running = create(ai), create(ai)
        run(db, running, "state = 2, started_at = now()")
        for job_id in (waiting, running):
            answer = ai.delete(f"/jobs/{job_id}")
            assert answer.status_code == 200
            assert set(answer.json) == {"id", "status", "cancelled_at"}
            assert (answer.json["id"], answer.json["status"]) == (job_id, "cancelled")
            assert TIME.fullmatch(answer.json["cancelled_at"])
            refused(ai.delete(f"/jobs/{job_id}"), 409, "CONFLICT")
        assert bells.woken == ["w1"]

    @pytest.mark.parametrize(
        "job_id", ["job-abc123", "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111", "job-6f0f2a526a304a8f8f0b3f0f3ad2b111", "%00"]
    )
    def test_unknown_and_malformed_ids(self, ai: Caller, job_id: str) -> None:
        for answer in (ai.get(f"/jobs/{job_id}"), ai.delete(f"/jobs/{job_id}"), ai.get(f"/jobs/{job_id}/logs")):
            refused(answer, 404, "NOT_FOUND")


class TestQueues:
    def test_the_queues(self, ai: Caller, db: Database) -> None:
        add_node(db, "w1")
        jobs = [create(ai, priority=priority) for priority in (90, 50, 50, 10)]
        run(db, jobs[1], "state = 2, started_at = now()")
        shown = ai.get("/queues/").json
        assert set(shown) == {"queues", "total_pending", "total_processing"}
        assert (shown["total_pending"], shown["total_processing"]) == (3, 1)
        assert all(set(queue) == QUEUE for queue in shown["queues"])
        by_name = {queue["name"]: queue for queue in shown["queues"]}
        assert set(by_name) == {"high-priority", "default", "low-priority"}
        assert (by_name["default"]["depth"], by_name["default"]["processing"]) == (1, 1)
        assert by_name["default"]["max_concurrency"] == 50
        assert all(isinstance(queue["oldest_job_age_seconds"], int) for queue in by_name.values())

    def test_one_queue_by_either_name(self, ai: Caller) -> None:
        low, high = create(ai, priority=75), create(ai, priority=95)
        create(ai, priority=10)
        for name in ("high-priority", "foreground"):
            shown = ai.get(f"/queues/{name}").json
            assert set(shown) == {"name", "depth", "processing", "max_concurrency", "jobs", "stats"}
            assert (shown["name"], shown["depth"]) == ("high-priority", 2)
            assert [job["id"] for job in shown["jobs"]] == [high, low]
            assert set(shown["jobs"][0]) == {"id", "priority", "queued_at"}
            assert set(shown["stats"]) == {
                "jobs_processed_1h", "avg_wait_time_seconds", "avg_processing_time_seconds"
            }  # fmt: skip
        refused(ai.get("/queues/none"), 404, "NOT_FOUND")


class TestClusters:
    def test_the_clusters(self, ai: Caller, db: Database) -> None:
        assert ai.get("/clusters/").json == {"clusters": []}
        add_node(db, "gpu-node-01")
        add_node(db, "gpu-node-02", state="offline")
        assert ai.get("/clusters").json == {
            "clusters": [
                {
                    "name": "gpu-cluster", "status": "degraded", "total_nodes": 2, "available_gpus": 4,
                    "total_gpus": 4, "running_jobs": 0,
                }
            ]
        }  # fmt: skip

    def test_one_cluster(self, ai: Caller, db: Database) -> None:
        add_node(db, "gpu-node-01")
        assert ai.get("/clusters/gpu-cluster").json == {
            "name": "gpu-cluster",
            "status": "healthy",
            "nodes": [
                {
                    "name": "gpu-node-01",
                    "status": "ready",
                    "gpus": {"total": 4, "available": 4, "type": "nvidia-a100"},
                    "cpu": {"total": "32", "available": "32"},
                    "memory": {"total": "256Gi", "available": "256Gi"},
                }
            ],
            "capacity": {"max_jobs": 50, "current_jobs": 0},
        }
        refused(ai.get("/clusters/none"), 404, "NOT_FOUND")

    @pytest.mark.parametrize(
        ("model", "slug"),
        [
            ("NVIDIA A100-SXM4-80GB", "nvidia-a100"), ("NVIDIA H200", "nvidia-h200"), ("A100-80GB", "nvidia-a100"),
            ("Tesla T4", "nvidia-tesla-t4"), ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx"),
        ],
    )  # fmt: skip
    def test_slugs(self, model: str, slug: str) -> None:
        assert gpu_slug(model) == slug


class TestFigures:
    def test_they_are_counted_from_what_happened(self, ai: Caller, db: Database) -> None:
        recover.sum_up(db)
        done, failed = create(ai), create(ai)
        running = "state = 2, started_at = now() + interval '1 second'"
        end = "attempt_id = NULL, finished_at = now() + interval '3 seconds'"
        run(db, done, running, f"state = 4, {end}")
        run(db, failed, running, f"state = 5, {end}")
        recover.sum_up(db)
        shown = ai.get("/metrics/").json
        assert shown["jobs"] == {
            "total_submitted_24h": 2, "total_completed_24h": 1, "total_failed_24h": 1, "success_rate": 0.5
        }  # fmt: skip
        assert set(shown) == {"jobs", "latency", "throughput"}
        assert set(shown["latency"]) == {
            "dispatch_p50_ms", "dispatch_p99_ms", "execution_p50_seconds", "execution_p99_seconds"
        }  # fmt: skip
        assert 800 < shown["latency"]["dispatch_p50_ms"] < 1700
        assert 1.6 < shown["latency"]["execution_p50_seconds"] < 2.5
        assert set(shown["throughput"]) == {"jobs_per_second", "peak_jobs_per_second"}
        assert shown["throughput"]["peak_jobs_per_second"] >= 1

    def test_nothing_yet(self, ai: Caller) -> None:
        shown = ai.get("/metrics/").json
        assert shown["jobs"]["success_rate"] == 0
        assert shown["latency"]["dispatch_p50_ms"] == 0


class TestProbes:
    def test_live_is_open(self, app: Flask) -> None:
        answer = Caller(app.test_client(), AT, token=None).get("/health/live")
        assert (answer.status_code, answer.json) == (200, {"status": "ok"})

    def test_ready_names_what_is_away(self, app: Flask, db: Database) -> None:
        stranger = Caller(app.test_client(), AT, token=None)
        answer = stranger.get("/health/ready")
        assert (answer.status_code, answer.json) == (
            503, {"status": "degraded", "checks": {"database": "ok", "redis": "ok", "kubernetes": "error"}}
        )  # fmt: skip
        with db.transaction("test") as tx:
            tx.run("INSERT INTO task_run (name, last_run_at, duration_s) VALUES ('reap', now(), 0)", {})
        answer = stranger.get("/health/ready/")
        assert (answer.status_code, answer.json) == (
            200, {"status": "ok", "checks": {"database": "ok", "redis": "ok", "kubernetes": "ok"}}
        )  # fmt: skip

    def test_ready_without_a_broker_that_should_be_there(self, settings: Settings, bells: Bells, db: Database) -> None:
        app = create_app(replace(settings, broker_url="redis://127.0.0.1:1/0"), db, bells)
        answer = Caller(app.test_client(), AT, token=None).get("/health/ready")
        assert answer.status_code == 503
        assert answer.json["checks"]["redis"] == "error"


class TestLimits:
    def test_headers_are_on_every_answer(self, ai: Caller) -> None:
        for answer, limit in (
            (ai.post("/jobs/", **sent(CREATE_EXAMPLE)), 100),
            (ai.get("/jobs/"), 300),
            (ai.get("/queues/"), 600),
            (ai.get(f"/jobs/job-{uuid4().hex}"), 600),
        ):
            assert int(answer.headers["X-RateLimit-Limit"]) == limit
            assert 0 <= int(answer.headers["X-RateLimit-Remaining"]) < limit
            assert int(answer.headers["X-RateLimit-Reset"]) > 1_700_000_000

    def test_beyond_the_limit(self, ai: Caller) -> None:
        answers = [ai.post("/jobs/", json={}) for _ in range(101)]
        assert answers[0].status_code == 400
        late = [answer for answer in answers if answer.status_code == 429]
        if late:  # A minute may end in between; then the count begins anew.
            refused(late[0], 429, "RATE_LIMITED")
            assert late[0].headers["X-RateLimit-Remaining"] == "0"


class TestErrors:
    def test_without_a_token(self, app: Flask) -> None:
        stranger = Caller(app.test_client(), AT, token=None)
        for answer in (stranger.get("/jobs/"), stranger.get("/queues/"), stranger.get("/metrics/")):
            refused(answer, 401, "UNAUTHORIZED")

    def test_routes_methods_and_types(self, ai: Caller) -> None:
        refused(ai.get("/none"), 404, "NOT_FOUND")
        refused(ai.put("/jobs/", json={}), 405, "METHOD_NOT_ALLOWED")
        refused(ai.post("/jobs/", data="x", headers={"Content-Type": "text/plain"}), 415, "VALIDATION_ERROR")

    def test_postgresql_away(self, refusing: Caller) -> None:
        refusing.prefix = AT
        answer = refusing.get("/jobs/")
        refused(answer, 503, "SERVICE_UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) > 0

    def test_on_its_own_listener_it_answers_at_the_documented_prefix(self, settings: Settings, bells: Bells) -> None:
        db = Database(settings.database_url, 2, "contract-test")
        caller = Caller(create_app(settings, db, bells, primary="ai").test_client(), "/api/v1")
        job_id = caller.post("/jobs/", **sent(CREATE_EXAMPLE)).json["id"]
        assert caller.get(f"/jobs/{job_id}").json["logs_url"] == f"/api/v1/jobs/{job_id}/logs"
        refused(caller.get("/none"), 404, "NOT_FOUND")
        db.close()
