# ruff: noqa: F811 (fixtures are imported by name)
"""Jobs of the fabric in the hpc contract: with live usage, beside tracked ones; stopped and hidden, but never set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from app.domain.policy import Ending
from tests.contract.conftest import Bells, Caller
from tests.contract.hpc_document import RECORD_EXAMPLE, TIME, UPDATE_EXAMPLE, has_kinds, is_error, raw
from tests.contract.hpc_lab import api, create, database_url, fabric, hpc_database_url  # noqa: F401
from tests.factories import Assignment, Fabric, job, share

GIB = 2**30


def measure(
    fabric: Fabric, taken: Assignment, cores: float | None, memory: int, gpu: float | None = None, age_s: float = 0
) -> None:
    """A sample as an agent writes it."""
    fabric.sql(
        """INSERT INTO sample (day, attempt_id, at, cpu_cores, memory_bytes, gpu_percent)
        SELECT (at AT TIME ZONE 'UTC')::date, %s, at, %s, %s, %s
        FROM (SELECT clock_timestamp() - make_interval(secs => %s) AS at) t""",
        taken.attempt_id, cores, memory, gpu, age_s,
    )  # fmt: skip


def running(fabric: Fabric, node_id: str = "node-a", cpus: float = 2) -> Assignment:
    """A running job on a node of its own."""
    fabric.submit_one(resources=share(cpus))
    return fabric.run(fabric.add_node(node_id))


class TestShown:
    def test_a_pending_job_has_no_node_no_start_and_no_usage(self, api: Caller, fabric: Fabric) -> None:
        pending = fabric.submit_one()
        shown = api.get(f"/jobs/{pending}").json
        assert {**shown, "runtime_seconds": 0} == {
            "id": str(pending), "user": "default", "nodes": [], "state": "pending", "start_time": None, "cpu_usage": 0,
            "memory_usage_mb": 0, "end_time": None, "runtime_seconds": 0, "state_detail": "pending", "reason": "new",
            "fabric_id": str(pending),
        }  # fmt: skip

    def test_a_running_job_shows_percent_of_its_cpus_and_binary_megabytes(self, api: Caller, fabric: Fabric) -> None:
        taken = running(fabric)
        measure(fabric, taken, 1.9, GIB, age_s=30)
        measure(fabric, taken, 1.5, 3 * GIB, 40.5)
        shown = api.get(f"/jobs/{taken.job_id}").json
        has_kinds(shown)
        assert (shown["state"], shown["state_detail"], shown["nodes"]) == ("running", "running", ["node-a"])
        assert (shown["cpu_usage"], shown["memory_usage_mb"], shown["gpu_usage"]) == (75.0, 3072, 40.5)
        assert TIME.fullmatch(shown["start_time"])
        assert shown in api.get("/jobs").json["jobs"]

    def test_more_than_its_cpus_is_100_and_the_unknown_is_0(self, api: Caller, fabric: Fabric) -> None:
        taken = running(fabric)
        measure(fabric, taken, None, 5)
        assert api.get(f"/jobs/{taken.job_id}").json["cpu_usage"] == 0
        measure(fabric, taken, 64, 5)
        assert api.get(f"/jobs/{taken.job_id}").json["cpu_usage"] == 100

    def test_an_ended_job_keeps_node_and_last_usage(self, api: Caller, fabric: Fabric) -> None:
        taken = running(fabric)
        measure(fabric, taken, 1, GIB)
        fabric.finish(taken, Ending(exit_code=1))
        shown = api.get(f"/jobs/{taken.job_id}").json
        assert (shown["state"], shown["nodes"], shown["cpu_usage"]) == ("failed", ["node-a"], 50.0)
        assert TIME.fullmatch(shown["end_time"])

    def test_a_job_that_waits_again_has_no_node(self, api: Caller, fabric: Fabric) -> None:
        taken = running(fabric)
        fabric.expire(taken)
        fabric.reap()
        shown = api.get(f"/jobs/{taken.job_id}").json
        assert (shown["state"], shown["reason"], shown["nodes"]) == ("pending", "lost", [])
        assert api.get("/jobs?node=node-a").json["total"] == 0

    def test_of_another_tenant_are_404_and_uncounted(self, api: Caller, fabric: Fabric) -> None:
        job = fabric.submit_one(tenant=fabric.add_tenant("other"))
        for method in ("GET", "PATCH", "DELETE"):
            is_error(api(method, f"/jobs/{job}", **(raw("{}") if method == "PATCH" else {})), 404, "not_found")
        is_error(api.get(f"/jobs/{job}/metrics"), 404, "not_found")
        is_error(api.post(f"/jobs/{job}/metrics", **raw(RECORD_EXAMPLE)), 404, "not_found")
        assert api.get("/jobs").json["total"] == 0


class TestList:
    def test_both_kinds_are_merged_newest_first_and_counted(self, api: Caller, fabric: Fabric) -> None:
        names = []
        for number in range(4):
            names += [create(api, f"t{number}")["id"], str(fabric.submit_one())]
        names.reverse()
        assert [job["id"] for job in api.get("/jobs").json["jobs"]] == names
        for limit in (1, 3, 8, 10):
            paged: list[str] = []
            for offset in range(0, 8, limit):
                page = api.get(f"/jobs?limit={limit}&offset={offset}").json
                assert page["total"] == 8
                paged += [job["id"] for job in page["jobs"]]
            assert paged == names

    def test_filters_hold_both_kinds(self, api: Caller, fabric: Fabric) -> None:
        create(api, "t", user="default", nodes=["node-a"])
        create(api, "u", user="alice", nodes=["node-b"])
        taken, failed = running(fabric), running(fabric, "node-b")
        fabric.finish(failed, Ending(exit_code=1))
        pending = fabric.submit_one()
        a, b, p = str(taken.job_id), str(failed.job_id), str(pending)
        for query, ids in {
            "": {"t", "u", a, b, p},
            "state=running": {"t", "u", a},
            "state=pending": {p},
            "state=failed": {b},
            "user=default": {"t", a, b, p},
            "user=alice": {"u"},
            "node=node-a": {"t", a},
            "node=node-b": {"u", b},
            "node=node-b&state=running": {"u"},
            "node=node-a&user=default": {"t", a},
            "node=node-a&user=alice": set(),
            "user=alice&state=failed": set(),
        }.items():
            answer = api.get("/jobs?" + query).json
            assert {job["id"] for job in answer["jobs"]} == ids, query
            assert answer["total"] == len(ids), query


class TestCancel:
    def test_patch_cancelled_stops_a_running_job(self, api: Caller, fabric: Fabric, bells: Bells) -> None:
        taken = running(fabric)
        answer = api("PATCH", f"/jobs/{taken.job_id}", json={"state": "cancelled"})
        assert answer.status_code == 200
        shown = answer.json
        assert (shown["state"], shown["state_detail"], shown["reason"]) == ("running", "stopping", "cancel")
        assert bells.woken == ["node-a"]
        assert api("PATCH", f"/jobs/{taken.job_id}", json={"state": "cancelled"}).status_code == 200
        fabric.finish(taken, Ending(exit_code=0))
        assert api.get(f"/jobs/{taken.job_id}").json["state"] == "cancelled"
        assert api("PATCH", f"/jobs/{taken.job_id}", json={"state": "cancelled"}).status_code == 200

    def test_patch_cancelled_ends_a_pending_job(self, api: Caller, fabric: Fabric) -> None:
        job = fabric.submit_one()
        assert api("PATCH", f"/jobs/{job}", json={"state": "cancelled"}).json["state"] == "cancelled"

    def test_a_job_that_has_ended_otherwise_is_400(self, api: Caller, fabric: Fabric) -> None:
        taken = running(fabric)
        fabric.finish(taken)
        message = is_error(api("PATCH", f"/jobs/{taken.job_id}", json={"state": "cancelled"}), 400, "validation_error")
        assert "completed" in message

    @pytest.mark.parametrize(
        "body",
        [{"state": "completed"}, {"state": "running"}, {"state": "pending"}, {"state": "failed"}, {"cpu_usage": 1},
         {"memory_usage_mb": 1}, {"gpu_usage": 1}, {"state": "cancelled", "cpu_usage": 1}, {"user": "alice"},
         {"id": "x"}, {"nodes": ["x"]}, {"start_time": "2020-01-01T00:00:00Z"}, {"start_time": None}],
    )  # fmt: skip
    def test_nothing_else_can_be_set(self, api: Caller, fabric: Fabric, body: dict[str, Any]) -> None:
        taken = running(fabric)
        is_error(api("PATCH", f"/jobs/{taken.job_id}", json=body), 400, "validation_error")
        assert api.get(f"/jobs/{taken.job_id}").json["state_detail"] == "running"

    def test_nothing_or_the_same_is_200(self, api: Caller, fabric: Fabric) -> None:
        taken = running(fabric)
        shown = api("PATCH", f"/jobs/{taken.job_id}", json={}).json
        same = {name: shown[name] for name in ("id", "user", "nodes", "start_time", "fabric_id", "reason")}
        assert api("PATCH", f"/jobs/{taken.job_id}", json=same).status_code == 200

    def test_samples_cannot_be_posted(self, api: Caller, fabric: Fabric) -> None:
        taken = running(fabric)
        is_error(api.post(f"/jobs/{taken.job_id}/metrics", **raw(RECORD_EXAMPLE)), 400, "validation_error")
        is_error(api("PATCH", f"/jobs/{uuid4()}", **raw(UPDATE_EXAMPLE)), 404, "not_found")


class TestDelete:
    def test_a_running_job_is_cancelled_and_hidden_here_only(self, api: Caller, fabric: Fabric, bells: Bells) -> None:
        taken = running(fabric)
        path = f"/jobs/{taken.job_id}"
        answer = api.delete(path)
        assert (answer.status_code, answer.data) == (204, b"")
        assert bells.woken == ["node-a"]
        for method, options in (("GET", {}), ("DELETE", {}), ("PATCH", raw('{"state": "cancelled"}'))):
            is_error(api(method, path, **options), 404, "not_found")
        is_error(api.get(path + "/metrics"), 404, "not_found")
        for query in ("", "?state=running", "?node=node-a", "?user=default"):
            assert api.get("/jobs" + query).json["total"] == 0
            assert api.get("/jobs" + query).json["jobs"] == []
        jobs = Caller(api.client, "/jobs/api/v1")
        assert jobs.get(path).json["state_detail"] == "stopping"
        fabric.finish(taken, Ending(exit_code=0))
        assert jobs.get(path).json["status"] == "cancelled"
        for query in ("", "?state=cancelled", "?state=running"):
            assert api.get("/jobs" + query).json["total"] == 0, query

    def test_pending_and_ended_jobs_go_too_and_totals_stay_exact(self, api: Caller, fabric: Fabric) -> None:
        ended = running(fabric)
        fabric.finish(ended)
        kept, pending = fabric.submit(job(), job())
        for gone in (ended.job_id, pending):
            assert api.delete(f"/jobs/{gone}").status_code == 204
        for state, ids in {"": [kept], "pending": [kept], "completed": [], "cancelled": []}.items():
            answer = api.get("/jobs" + (f"?state={state}" if state else "")).json
            assert [shown["id"] for shown in answer["jobs"]] == [str(one) for one in ids], state
            assert answer["total"] == len(ids), state


class TestSamples:
    def test_are_the_agents_ascending_over_all_attempts(self, api: Caller, fabric: Fabric) -> None:
        taken = running(fabric)
        fabric.sql("UPDATE attempt SET claimed_at = now() - interval '2 days'")
        for age_s, cores in ((90_000, 0.5), (60, 1.0), (30, 1.5)):
            measure(fabric, taken, cores, GIB, age_s=age_s)
        path = f"/jobs/{taken.job_id}/metrics"
        answer = api.get(path).json
        assert answer["job_id"] == str(taken.job_id)
        assert answer["total"] == 3
        assert [one["cpu_usage"] for one in answer["samples"]] == [25.0, 50.0, 75.0]
        for one in answer["samples"]:
            has_kinds(one)
            assert set(one) == {"timestamp", "cpu_usage", "memory_usage_mb"}
        assert [one["cpu_usage"] for one in api.get(path + "?limit=1").json["samples"]] == [75.0]
        since = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        first = api.get(f"{path}?start_time={since}&limit=1").json
        assert ([one["cpu_usage"] for one in first["samples"]], first["total"]) == ([50.0], 2)
        assert api.get(f"{path}?end_time={since}").json["total"] == 1

    def test_a_job_without_any_has_none(self, api: Caller, fabric: Fabric) -> None:
        job = fabric.submit_one()
        assert api.get(f"/jobs/{job}/metrics").json == {"job_id": str(job), "samples": [], "total": 0}


class TestElsewhere:
    def test_a_tracked_job_is_never_claimed_counted_or_charged(self, api: Caller, fabric: Fabric) -> None:
        create(api)
        for state in ("pending", "running"):
            api("PATCH", "/jobs/job-001", json={"state": state})
            assert fabric.claim(fabric.add_node()) == []
        jobs = Caller(api.client, "/jobs/api/v1")
        assert jobs.post("/jobs/claim", json={"executor_id": "w"}).status_code == 204
        stats = jobs.get("/admin/stats").json
        assert sum(stats["jobs_by_status"].values()) == 0
        fabric.assert_in_order()

    def test_its_id_in_the_fabric_finds_it_too(self, api: Caller) -> None:
        created = create(api)
        for written in (created["fabric_id"], created["fabric_id"].upper()):
            assert api.get(f"/jobs/{written}").json["id"] == "job-001"
        recorded = api.post(f"/jobs/{created['fabric_id']}/metrics", **raw(RECORD_EXAMPLE))
        assert recorded.status_code == 201
        assert api.delete(f"/jobs/{created['fabric_id']}").status_code == 204
        is_error(api.get("/jobs/job-001"), 404, "not_found")

    def test_the_jobs_contract_shows_it_and_does_nothing_to_it(self, api: Caller, fabric: Fabric) -> None:
        created = create(api)
        api("PATCH", "/jobs/job-001", json={"state": "failed"})
        jobs, path = Caller(api.client, "/jobs/api/v1"), f"/jobs/{created['fabric_id']}"
        shown = jobs.get(path).json
        real = jobs.get(f"/jobs/{fabric.submit_one()}").json
        assert set(shown) == set(real)
        assert shown["id"] == created["fabric_id"]
        assert (shown["external_id"], real["external_id"]) == ("job-001", None)
        assert (shown["type"], shown["status"], shown["executor_id"]) == ("tracked", "failed", "node-01")
        assert (shown["binary_url"], shown["binary_sha256"], shown["attempts"], shown["stdout"]) == (None, None, [], "")
        assert shown["created_at"] == created["start_time"]
        for answer in (jobs.delete(path), jobs.post(path + "/stop"), jobs.get(path + "/logs")):
            assert answer.status_code == 404
        other = Caller(api.client, "/jobs/api/v1")
        other.headers = {**other.headers, "X-Tenant": "other"}
        fabric.add_tenant("other")
        assert other.get(path).status_code == 404
