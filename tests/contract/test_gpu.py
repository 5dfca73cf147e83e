"""The gpu contract from its document: each example sent verbatim, key sets, states, quotas, errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from app.api.factory import create_app
from app.api.gpu.translate import go_duration
from app.storage.database import Database
from config.settings import Settings
from tests.contract.conftest import Bells, Caller

AT = "/gpu/api/v1"
CURL_EXAMPLE = """{
    "tenant_id": "tenant-123",
    "name": "training-job",
    "priority": 500,
    "gpu_count": 2,
    "gpu_memory_mb": 16000,
    "cpu_cores": 8,
    "memory_mb": 32000,
    "image": "nvidia/cuda:12.0-base",
    "script": "python train.py"
  }"""
FULL_EXAMPLE = """{
  "tenant_id": "string",
  "name": "string",
  "priority": 100,
  "gpu_count": 2,
  "gpu_memory_mb": 16000,
  "cpu_cores": 8,
  "memory_mb": 32000,
  "script": "string",
  "environment": {
    "KEY": "value"
  },
  "image": "nvidia/cuda:12.0-base",
  "command": ["python"],
  "args": ["train.py"],
  "gang_scheduling": false,
  "max_runtime_minutes": 120
}"""
PYTHON_EXAMPLE = {
    "tenant_id": "tenant-123", "name": "python-job", "priority": 100, "gpu_count": 1, "gpu_memory_mb": 16000,
    "cpu_cores": 4, "memory_mb": 32000, "image": "nvidia/cuda:12.0-base", "script": "python train.py",
}  # fmt: skip
TENANT_EXAMPLE = """{
    "name": "research-team",
    "max_gpus": 10,
    "max_cpu_cores": 64,
    "max_memory_mb": 256000,
    "priority_tier": "high"
  }"""
FULL_TENANT = """{
  "name": "string",
  "email": "string",
  "organization": "string",
  "max_gpus": 10,
  "max_gpu_memory_mb": 160000,
  "max_cpu_cores": 64,
  "max_memory_mb": 256000,
  "max_concurrent_jobs": 20,
  "priority_tier": "high",
  "allow_preemption": true,
  "can_preempt_others": false
}"""
SHOWN = {"job_id", "state", "message", "allocated_gpus", "node_name", "queue_position", "estimated_wait"}
LISTED = {"id", "tenant_id", "name", "state", "priority", "gpu_count", "submitted_at", "started_at"}
TENANT = {"id", "name", "max_gpus", "current_gpus", "priority_tier", "active", "created_at"}
CLUSTER = {
    "total_gpus", "available_gpus", "total_nodes", "online_nodes", "total_jobs", "pending_jobs", "running_jobs",
}  # fmt: skip
UNKNOWN = "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111"
JOB_ID, TENANT_ID = re.compile(r"job-[0-9a-f]{32}"), re.compile(r"tenant-[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture
def gpu(app: Flask) -> Caller:
    return Caller(app.test_client(), AT)


@pytest.fixture
def tenant(gpu: Caller) -> str:
    """The tenant that the document's examples name."""
    answer = gpu.post("/tenants", json={"name": "tenant-123", "priority_tier": "critical"})
    assert answer.status_code == 201, answer.text
    return str(answer.json["id"])


def sent(text: str) -> dict[str, Any]:
    return {"data": text, "headers": {"Content-Type": "application/json"}}


def refused(answer: Any, status: int, text: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.is_json
    assert set(answer.json) <= {"error", "details"}
    assert isinstance(answer.json["error"], str)
    if text is not None:
        assert answer.json["error"] == text
    return dict(answer.json)


def submit(caller: Caller, **changes: Any) -> str:
    answer = caller.post("/jobs", json={"name": "j", "script": "true", **changes})
    assert answer.status_code == 201, answer.text
    return str(answer.json["job_id"])


def run(db: Database, job_id: str, *steps: str) -> None:
    """Moves a pending job on as a claim and its end would."""
    began = "state = 1, attempt = 1, attempt_id = gen_random_uuid(), node_id = 'n1', ready = false, reason = NULL"
    with db.transaction("test") as tx:
        for step in (began, *steps):
            tx.run(f"UPDATE job SET {step} WHERE id = %(id)s", {"id": job_id.removeprefix("job-")})


class TestSubmit:
    @pytest.mark.usefixtures("tenant")
    @pytest.mark.parametrize("body", [CURL_EXAMPLE, FULL_EXAMPLE.replace('"string"', '"tenant-123"', 1)])
    def test_the_examples_of_the_document(self, gpu: Caller, body: str) -> None:
        for path in ("/jobs", "/jobs/"):
            answer = gpu.post(path, **sent(body))
            assert answer.status_code == 201, answer.text
            assert set(answer.json) == {"job_id", "status", "message"}
            assert JOB_ID.fullmatch(answer.json["job_id"])
            assert (answer.json["status"], answer.json["message"]) == ("submitted", "Job submitted successfully")

    @pytest.mark.usefixtures("tenant")
    def test_the_python_example(self, gpu: Caller) -> None:
        assert gpu.post("/jobs", json=PYTHON_EXAMPLE).status_code == 201

    def test_only_a_name_and_something_to_run_are_required(self, gpu: Caller) -> None:
        for body in ({"script": "true"}, {"command": ["true"]}, {"image": "busybox"}):
            assert gpu.post("/jobs", json={"name": "j", **body}).status_code == 201
        for body in ({}, {"args": ["x"]}, {"command": []}):
            details = refused(gpu.post("/jobs", json={"name": "j", **body}), 400)["details"]
            assert details[0]["field"] == "script"

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"name": None}, "name"),
            ({"priority": -1}, "priority"),
            ({"priority": 5001}, "priority"),
            ({"priority": 1.5}, "priority"),
            ({"gpu_count": -1}, "gpu_count"),
            ({"gpu_count": True}, "gpu_count"),
            ({"gpu_memory_mb": "16000"}, "gpu_memory_mb"),
            ({"cpu_cores": 0}, "cpu_cores"),
            ({"memory_mb": 0}, "memory_mb"),
            ({"environment": {"CFAB_X": "1"}}, "environment.CFAB_X"),
            ({"image": "NOT AN IMAGE"}, "image"),
            ({"command": "python"}, "command"),
            ({"gang_scheduling": "yes"}, "gang_scheduling"),
            ({"max_runtime_minutes": 0}, "max_runtime_minutes"),
            ({"gpus": 1}, "gpus"),
        ],
    )
    def test_what_cannot_be_is_refused_by_field(self, gpu: Caller, change: dict[str, Any], field: str) -> None:
        answer = gpu.post("/jobs", json={"name": "j", "script": "true", **change})
        assert [one["field"] for one in refused(answer, 400, "Invalid request body")["details"]] == [field]

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name":"a","name":"b"}', '{"name":NaN}'])
    def test_bodies_that_are_not_a_job(self, gpu: Caller, text: str) -> None:
        refused(gpu.post("/jobs", **sent(text)), 400, "Invalid request body")

    def test_a_tenant_is_named_by_id_or_name(self, gpu: Caller, tenant: str) -> None:
        for name in (tenant, "tenant-123"):
            submit(gpu, tenant_id=name)
        assert gpu.get("/jobs").json["total"] == 0
        listed = gpu.get("/jobs?tenant_id=tenant-123").json
        assert listed["total"] == 2
        assert {job["tenant_id"] for job in listed["jobs"]} == {tenant}
        refused(gpu.post("/jobs", json={"name": "j", "script": "x", "tenant_id": "nobody"}), 404, "Tenant not found")

    def test_a_job_beyond_its_tenants_quota_is_refused(self, gpu: Caller) -> None:
        gpu.post("/tenants", json={"name": "small", "max_gpus": 2, "max_gpu_memory_mb": 32000})
        fits = {"name": "j", "script": "x", "tenant_id": "small", "gpu_count": 2, "gpu_memory_mb": 16000}
        assert gpu.post("/jobs", json=fits).status_code == 201
        assert gpu.post("/jobs", json=fits).status_code == 201, "what exceeds only what is left waits"
        for change in ({"gpu_count": 3}, {"gpu_memory_mb": 16001}):
            refused(gpu.post("/jobs", json={**fits, **change}), 403, "Tenant quota exceeded")

    def test_the_same_key_has_one_effect(self, gpu: Caller) -> None:
        body = {"name": "j", "script": "true"}
        answers = [gpu.post("/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
        assert answers[0].json == answers[1].json
        assert gpu.get("/jobs").json["total"] == 1


class TestProgram:
    """What the other contracts and the worker see of what was asked."""

    @pytest.mark.parametrize(
        ("asked", "runner", "script", "command", "arguments"),
        [
            ({"script": "echo hi"}, "process", "echo hi", [], []),
            ({"script": "echo hi", "args": ["a"]}, "process", "echo hi", [], ["a"]),
            ({"script": "x", "command": ["python"], "args": ["t.py"]}, "process", 'exec "$@"', [], ["python", "t.py"]),
            ({"image": "a", "script": "echo hi"}, "container", None, ["/bin/sh", "-c", "echo hi", "sh"], []),
            ({"image": "a", "script": "x", "command": ["p"], "args": ["t"]}, "container", None, ["p"], ["t"]),
            ({"image": "a", "args": ["t"]}, "container", None, [], ["t"]),
        ],
    )
    def test_command_wins_over_script_and_an_image_over_the_sandbox(
        self, gpu: Caller, db: Database, asked: Any, runner: str, script: Any, command: Any, arguments: Any
    ) -> None:
        answer = gpu.post("/jobs", json={"name": "j", **asked})
        with db.transaction("test") as tx:
            job_id = answer.json["job_id"].removeprefix("job-")
            row = tx.row("SELECT * FROM job_spec WHERE job_id = %(id)s", {"id": job_id})
        assert row is not None
        assert (row.runner, row.script, row.command, row.arguments) == (runner, script, command, arguments)

    def test_sizes_reach_the_other_contracts(self, gpu: Caller, api: Caller) -> None:
        submit(gpu, gpu_count=2, gpu_memory_mb=16000, cpu_cores=8, memory_mb=32000, priority=1500)
        job = api.get(f"/jobs/{api.get('/jobs').json[0]['id']}").json
        assert (job["type"], job["priority"], job["effective_priority"]) == ("j", "foreground", 1500)
        assert (job["resources"]["gpus"], job["resources"]["cpus"]) == (2, 8)


class TestShow:
    def test_a_waiting_job(self, gpu: Caller) -> None:
        first, second = submit(gpu), submit(gpu)
        shown = gpu.get(f"/jobs/{second}").json
        assert set(shown) >= SHOWN
        assert (shown["job_id"], shown["state"], shown["message"]) == (second, "pending", "")
        assert (shown["allocated_gpus"], shown["node_name"], shown["queue_position"]) == ([], "", 2)
        assert isinstance(shown["estimated_wait"], str)
        assert gpu.get(f"/jobs/{first}").json["queue_position"] == 1

    @pytest.mark.parametrize(
        ("steps", "word"),
        [
            ((), "running"),
            (("state = 2, started_at = now()",), "running"),
            (("state = 3, stop_cause = 4",), "cancelled"),
            (("state = 3, stop_cause = 2",), "running"),
            (("state = 4, attempt_id = NULL, finished_at = now()",), "completed"),
            (("state = 5, attempt_id = NULL, finished_at = now(), exit_code = 3",), "failed"),
            (("state = 0, attempt_id = NULL, ready = true, reason = 'preempted'",), "preempted"),
            (("state = 0, attempt_id = NULL, reason = 'backoff', not_before = now()",), "pending"),
        ],
    )
    def test_states_and_their_filter(self, gpu: Caller, db: Database, steps: tuple[str, ...], word: str) -> None:
        job_id = submit(gpu)
        run(db, job_id, *steps)
        shown = gpu.get(f"/jobs/{job_id}").json
        assert shown["state"] == word
        for state in ("pending", "running", "completed", "failed", "preempted", "cancelled"):
            listed = gpu.get(f"/jobs?state={state}").json
            assert [job["id"] for job in listed["jobs"]] == ([job_id] if state == word else [])
            assert listed["total"] == (1 if state == word else 0)
        if word == "failed":
            assert "3" in shown["message"]

    def test_the_list(self, gpu: Caller) -> None:
        jobs = [submit(gpu, name=f"j{number}", priority=100 + number, gpu_count=number) for number in range(3)]
        listed = gpu.get("/jobs?limit=2&offset=1").json
        assert set(listed) == {"jobs", "total"}
        assert listed["total"] == 3
        assert [job["id"] for job in listed["jobs"]] == [jobs[1], jobs[0]]
        one = listed["jobs"][0]
        assert set(one) >= LISTED
        assert (one["name"], one["priority"], one["gpu_count"], one["state"]) == ("j1", 101, 1, "pending")
        assert TENANT_ID.fullmatch(one["tenant_id"])
        assert TIME.fullmatch(one["submitted_at"])
        assert one["started_at"] is None

    @pytest.mark.parametrize("query", ["state=queued", "limit=0", "limit=10001", "offset=-1", "limit=1e3"])
    def test_bad_queries(self, gpu: Caller, query: str) -> None:
        refused(gpu.get(f"/jobs?{query}"), 400)

    @pytest.mark.parametrize(
        "job_id",
        ["job-1234567890", "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111", "job-6f0f2a526a304a8f8f0b3f0f3ad2b111", "%00"],
    )
    def test_unknown_and_malformed_ids(self, gpu: Caller, job_id: str) -> None:
        for answer in (gpu.get(f"/jobs/{job_id}"), gpu.delete(f"/jobs/{job_id}")):
            refused(answer, 404, "Job not found")


class TestCancel:
    def test_a_waiting_and_a_running_job(self, gpu: Caller, db: Database, bells: Bells) -> None:
        waiting, running = submit(gpu), submit(gpu)
        run(db, running, "state = 2, started_at = now()")
        for job_id in (waiting, running):
            answer = gpu.delete(f"/jobs/{job_id}")
            assert (answer.status_code, answer.json) == (200, {"message": "Job cancelled successfully"})
            assert gpu.get(f"/jobs/{job_id}").json["state"] == "cancelled"
        assert bells.woken == ["n1"]
        assert gpu.get(f"/jobs/{running}").json["stopping"] is True

    def test_a_finished_job_is_a_bad_request(self, gpu: Caller, db: Database) -> None:
        job_id = submit(gpu)
        run(db, job_id, "state = 4, attempt_id = NULL, finished_at = now()")
        refused(gpu.delete(f"/jobs/{job_id}"), 400)


class TestTenants:
    @pytest.mark.parametrize("body", [TENANT_EXAMPLE, FULL_TENANT])
    def test_the_examples_of_the_document(self, gpu: Caller, body: str) -> None:
        answer = gpu.post("/tenants", **sent(body))
        assert answer.status_code == 201, answer.text
        asked, shown = json.loads(body), answer.json
        assert set(shown) >= TENANT
        assert TENANT_ID.fullmatch(shown["id"])
        assert TIME.fullmatch(shown["created_at"])
        assert (shown["name"], shown["max_gpus"], shown["current_gpus"]) == (asked["name"], 10, 0)
        assert (shown["priority_tier"], shown["active"]) == ("high", True)
        assert {name: shown[name] for name in asked} == asked

    def test_only_a_name_is_required_and_the_rest_is_unlimited(self, gpu: Caller) -> None:
        shown = gpu.post("/tenants", json={"name": "t"}).json
        assert (shown["priority_tier"], shown["max_gpus"], shown["max_cpu_cores"]) == ("medium", None, None)

    @pytest.mark.parametrize(
        "change",
        [
            {"name": None}, {"name": "a b"}, {"priority_tier": "highest"}, {"max_gpus": -1}, {"max_gpus": 1.5},
            {"allow_preemption": "yes"}, {"quota": {}},
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_a_bad_request(self, gpu: Caller, change: dict[str, Any]) -> None:
        refused(gpu.post("/tenants", json={"name": "t", **change}), 400)

    def test_a_taken_name_is_a_bad_request(self, gpu: Caller) -> None:
        assert gpu.post("/tenants", json={"name": "t"}).status_code == 201
        refused(gpu.post("/tenants", json={"name": "t"}), 400)


class TestCluster:
    def test_it_adds_up_what_the_nodes_are_and_the_jobs_do(self, gpu: Caller, db: Database) -> None:
        assert gpu.get("/cluster/status").json == dict.fromkeys(CLUSTER, 0)
        cards = json.dumps([{"uuid": f"GPU-{n}", "model": "A100", "memory_bytes": 80 * 10**9} for n in range(4)])
        with db.transaction("test") as tx:
            for name, state in (("n1", "ready"), ("n2", "offline")):
                tx.run(
                    """INSERT INTO node (id, kind, incarnation, protocol, state, slots, cpus_milli, memory_bytes, gpus)
                    VALUES (%(id)s, 'agent', gen_random_uuid(), 1, %(s)s, 8, 8000, 1000, %(gpus)s)""",
                    {"id": name, "s": state, "gpus": cards},
                )
        waiting, running = submit(gpu), submit(gpu)
        run(db, running, "state = 2, started_at = now()")
        preempted = submit(gpu)
        run(db, preempted, "state = 0, attempt_id = NULL, ready = true, reason = 'preempted'")
        assert gpu.get(f"/jobs/{waiting}").json["state"] == "pending"
        assert gpu.get("/cluster/status").json == {
            "total_gpus": 4, "available_gpus": 4, "total_nodes": 2, "online_nodes": 1, "total_jobs": 3,
            "pending_jobs": 2, "running_jobs": 1,
        }  # fmt: skip


class TestErrors:
    def test_without_a_token(self, app: Flask) -> None:
        stranger = Caller(app.test_client(), AT, token=None)
        for answer in (stranger.get("/jobs"), stranger.post("/jobs", json={}), stranger.get("/cluster/status")):
            refused(answer, 401, "Unauthorized")

    def test_health_is_open_beside_the_prefix_and_below_it(self, app: Flask) -> None:
        for prefix in ("", AT):
            answer = Caller(app.test_client(), prefix, token=None).get("/health")
            assert (answer.status_code, answer.json) == (200, {"status": "healthy"})

    def test_routes_and_methods(self, gpu: Caller) -> None:
        refused(gpu.get("/none"), 404)
        refused(gpu.put("/jobs", json={}), 405)
        refused(gpu.post("/jobs", data="x", headers={"Content-Type": "text/plain"}), 415)

    def test_postgresql_away(self, refusing: Caller) -> None:
        refusing.prefix = AT
        refused(refusing.get("/jobs"), 503)
        assert (refusing.get("/health").status_code, refusing.get("/health").json) == (503, {"status": "unhealthy"})

    def test_without_auth_the_examples_work_as_they_are(self, settings: Settings, bells: Bells) -> None:
        db = Database(settings.database_url, 2, "contract-test")
        app = create_app(replace(settings, auth="off"), db, bells, primary="gpu")
        caller = Caller(app.test_client(), "/api/v1", token=None)
        assert caller.post("/tenants", **sent(TENANT_EXAMPLE)).status_code == 201
        body = CURL_EXAMPLE.replace("tenant-123", "research-team")
        job_id = caller.post("/jobs", **sent(body)).json["job_id"]
        assert caller.get(f"/jobs/{job_id}").json["state"] == "pending"
        assert caller.get("/jobs?tenant_id=research-team").json["total"] == 1
        assert caller.delete(f"/jobs/{job_id}").status_code == 200
        db.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (5.4, "5s"), (59.6, "1m0s"), (90, "1m30s"), (3600, "1h0m0s"), (7325, "2h2m5s")]
)
def test_durations_are_printed_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
