# ruff: noqa: F811 (fixtures are imported by name)
"""The hpc contract as its document has it: every endpoint, parameter, default, field, status, by its own examples."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask

from tests.contract.conftest import Caller
from tests.contract.hpc_document import (
    CREATE_EXAMPLE,
    CREATED_EXAMPLE,
    RECORD_EXAMPLE,
    RECORDED_EXAMPLE,
    SHOWN_EXAMPLE,
    STATES,
    TIME,
    UPDATE_EXAMPLE,
    has_kinds,
    is_error,
    is_like,
    raw,
)
from tests.contract.hpc_lab import create, database_url, hpc, hpc_database_url  # noqa: F401


@pytest.mark.parametrize("slash", ["", "/"])
class TestExamples:
    """Each documented request, verbatim, in both slash forms."""

    def test_health(self, hpc: Caller, slash: str) -> None:
        hpc.headers = {}
        answer = hpc.get("/health" + slash)
        assert answer.status_code == 200
        assert answer.content_type == "application/json"
        assert set(answer.json) == {"status", "timestamp", "version"}
        assert answer.json["status"] == "healthy"
        assert TIME.fullmatch(answer.json["timestamp"])
        shown = datetime.strptime(answer.json["timestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - shown) < timedelta(minutes=1)
        assert re.fullmatch(r"\d+\.\d+\.\d+", answer.json["version"])

    def test_create(self, hpc: Caller, slash: str) -> None:
        answer = hpc.post("/jobs" + slash, **raw(CREATE_EXAMPLE))
        assert answer.status_code == 201
        assert answer.content_type == "application/json"
        is_like(answer.json, CREATED_EXAMPLE)
        assert '"cpu_usage":0,' in answer.text

    def test_update(self, hpc: Caller, slash: str) -> None:
        create(hpc)
        answer = hpc("PATCH", "/jobs/job-001" + slash, **raw(UPDATE_EXAMPLE))
        assert answer.status_code == 200
        is_like(answer.json, SHOWN_EXAMPLE | json.loads(UPDATE_EXAMPLE))

    def test_record_then_get_then_list(self, hpc: Caller, slash: str) -> None:
        create(hpc)
        recorded = hpc.post("/jobs/job-001/metrics" + slash, **raw(RECORD_EXAMPLE))
        assert recorded.status_code == 201
        is_like(recorded.json, RECORDED_EXAMPLE)
        shown = hpc.get("/jobs/job-001" + slash)
        assert shown.status_code == 200
        is_like(shown.json, SHOWN_EXAMPLE)
        listed = hpc.get("/jobs" + slash)
        assert listed.status_code == 200
        assert set(listed.json) == {"jobs", "total", "limit", "offset"}
        assert {name: listed.json[name] for name in ("total", "limit", "offset")} == {
            "total": 1,
            "limit": 100,
            "offset": 0,
        }
        is_like(listed.json["jobs"][0], SHOWN_EXAMPLE)

    def test_samples(self, hpc: Caller, slash: str) -> None:
        create(hpc)
        hpc.post("/jobs/job-001/metrics", **raw(RECORD_EXAMPLE))
        hpc.post("/jobs/job-001/metrics", json={"cpu_usage": 78.2, "memory_usage_mb": 4200, "gpu_usage": 52.0})
        answer = hpc.get("/jobs/job-001/metrics" + slash)
        assert answer.status_code == 200
        assert set(answer.json) == {"job_id", "samples", "total"}
        assert answer.json["job_id"] == "job-001"
        assert answer.json["total"] == 2
        first, second = answer.json["samples"]
        is_like(first, RECORDED_EXAMPLE)
        is_like(second, RECORDED_EXAMPLE | {"cpu_usage": 78.2, "memory_usage_mb": 4200, "gpu_usage": 52.0})

    def test_delete(self, hpc: Caller, slash: str) -> None:
        create(hpc)
        answer = hpc.delete("/jobs/job-001" + slash)
        assert answer.status_code == 204
        assert answer.data == b""
        is_error(hpc.get("/jobs/job-001" + slash), 404, "not_found")


class TestList:
    def test_filters_by_state_user_and_node_alone_and_together(self, hpc: Caller) -> None:
        create(hpc, "a", user="alice", nodes=["n1", "n2"])
        create(hpc, "b", user="bob", nodes=["n2"])
        create(hpc, "c", user="alice", nodes=["n3"])
        hpc("PATCH", "/jobs/b", json={"state": "failed"})
        for query, ids in {
            "": ["c", "b", "a"],
            "?state=running": ["c", "a"],
            "?state=failed": ["b"],
            "?state=pending": [],
            "?user=alice": ["c", "a"],
            "?user=nobody": [],
            "?node=n2": ["b", "a"],
            "?node=n1": ["a"],
            "?node=n": [],
            "?node=n2&user=alice": ["a"],
            "?node=n2&state=failed": ["b"],
            "?node=n2&state=failed&user=alice": [],
            "?user=alice&state=running": ["c", "a"],
            "?limit=1": ["c"],
            "?limit=1&offset=1": ["b"],
            "?offset=3": [],
            "?state=running&limit=1&offset=1": ["a"],
            "?unknown=1": ["c", "b", "a"],
        }.items():
            answer = hpc.get("/jobs" + query)
            assert answer.status_code == 200, answer.text
            assert [job["id"] for job in answer.json["jobs"]] == ids, query
            unpaged = hpc.get("/jobs" + query.replace("limit=", "x=").replace("offset=", "y=")).json
            assert answer.json["total"] == len(unpaged["jobs"]), query

    def test_echoes_limit_and_offset(self, hpc: Caller) -> None:
        for limit, offset in ((1, 0), (10_000, 5)):
            answer = hpc.get(f"/jobs?limit={limit}&offset={offset}").json
            assert answer == {"jobs": [], "total": 0, "limit": limit, "offset": offset}

    @pytest.mark.parametrize(
        "query",
        ["limit=0", "limit=-1", "limit=10001", "limit=x", "limit=", "limit=1.5", "offset=-1", "offset=x", "state=done",
         "state=", "state=RUNNING", "user=", "node=", "user=%00", "node=%0a", "offset=99999999999999999999"],
    )  # fmt: skip
    def test_what_cannot_be_meant_is_400(self, hpc: Caller, query: str) -> None:
        assert query.partition("=")[0] in is_error(hpc.get("/jobs?" + query), 400, "validation_error")


class TestCreate:
    @pytest.mark.parametrize("field", ["id", "user", "nodes"])
    def test_every_field_is_required(self, hpc: Caller, field: str) -> None:
        body = json.loads(CREATE_EXAMPLE)
        del body[field]
        assert field in is_error(hpc.post("/jobs", json=body), 400, "validation_error")

    def test_all_missing_fields_are_named(self, hpc: Caller) -> None:
        message = is_error(hpc.post("/jobs", json={}), 400, "validation_error")
        assert all(field in message for field in ("id", "user", "nodes"))

    @pytest.mark.parametrize(
        "changes",
        [{"nodes": []}, {"nodes": "node-01"}, {"nodes": [1]}, {"nodes": [""]}, {"nodes": None}, {"nodes": {"a": 1}},
         {"nodes": ["a\nb"]}, {"nodes": [["a"]]}, {"nodes": ["n"] * 20_000}, {"id": ""}, {"id": 1}, {"id": True},
         {"id": None}, {"id": "a/b"}, {"id": "a\nb"}, {"id": "x" * 256}, {"id": "."}, {"id": ".."}, {"id": "\u200b"},
         {"user": ""}, {"user": 7}, {"user": "a\tb"}, {"user": "x" * 256}, {"user": ["alice"]}, {"state": "pending"},
         {"start_time": "2026-01-20T10:00:00Z"}, {"extra": 1}],
    )  # fmt: skip
    def test_bad_fields_are_named(self, hpc: Caller, changes: dict[str, Any]) -> None:
        body = json.loads(CREATE_EXAMPLE) | changes
        assert next(iter(changes)) in is_error(hpc.post("/jobs", json=body), 400, "validation_error")
        assert hpc.get("/jobs").json["total"] == 0

    @pytest.mark.parametrize(
        "job_id",
        ["0190c5a4-7d3e-7a11-8000-000000000001", "0190C5A4-7D3E-7A11-8000-000000000001",
         "0190c5a47d3e7a118000000000000001", "job-0190c5a47d3e7a118000000000000001",
         "job_0190c5a47d3e7a118000000000000001", "{0190c5a4-7d3e-7a11-8000-000000000001}",
         "urn:uuid:0190c5a4-7d3e-7a11-8000-000000000001"],
    )  # fmt: skip
    def test_an_id_that_reads_as_one_of_the_fabric_is_refused(self, hpc: Caller, job_id: str) -> None:
        body = json.loads(CREATE_EXAMPLE) | {"id": job_id}
        assert "id" in is_error(hpc.post("/jobs", json=body), 400, "validation_error")

    @pytest.mark.parametrize("job_id", ["a", "x" * 255, "1234[7].batch", "ä ö", "a?b#c%d&e", "C:\\job", "日本語"])
    def test_odd_ids_work_everywhere(self, hpc: Caller, job_id: str) -> None:
        assert create(hpc, job_id)["id"] == job_id
        path = "/jobs/" + quote(job_id, safe="")
        assert hpc.get(path).json["id"] == job_id
        assert hpc.post(path + "/metrics", **raw(RECORD_EXAMPLE)).status_code == 201
        assert hpc.get(path + "/metrics").json["job_id"] == job_id
        assert hpc("PATCH", path, json={"state": "failed"}).json["state"] == "failed"
        assert hpc.delete(path).status_code == 204

    def test_a_second_one_is_409_and_a_deleted_id_can_be_used_again(self, hpc: Caller) -> None:
        create(hpc)
        hpc("PATCH", "/jobs/job-001", **raw(UPDATE_EXAMPLE))
        is_error(hpc.post("/jobs", **raw(CREATE_EXAMPLE)), 409, "conflict")
        hpc.delete("/jobs/job-001")
        is_like(create(hpc), CREATED_EXAMPLE)
        assert hpc.get("/jobs/job-001/metrics").json["samples"] == []

    def test_users_and_nodes_are_kept_as_given(self, hpc: Caller) -> None:
        nodes = ["n2", "n1", "n2", "ü"]
        shown = create(hpc, user=" Ann O'Neil ", nodes=nodes)
        assert shown["user"] == " Ann O'Neil "
        assert shown["nodes"] == nodes


class TestUpdate:
    def test_any_state_follows_any(self, hpc: Caller) -> None:
        create(hpc)
        for before in STATES:
            for after in STATES:
                assert hpc("PATCH", "/jobs/job-001", json={"state": before}).json["state"] == before
                assert hpc("PATCH", "/jobs/job-001", json={"state": after}).json["state"] == after
                assert hpc.get(f"/jobs?state={after}").json["total"] == 1

    def test_only_what_is_given_changes(self, hpc: Caller) -> None:
        create(hpc)
        assert hpc("PATCH", "/jobs/job-001", json={"memory_usage_mb": 7}).json["memory_usage_mb"] == 7
        shown = hpc("PATCH", "/jobs/job-001", json={"cpu_usage": 1.5}).json
        assert (shown["cpu_usage"], shown["memory_usage_mb"], shown["state"]) == (1.5, 7, "running")
        assert "gpu_usage" not in shown
        assert hpc("PATCH", "/jobs/job-001", json={"gpu_usage": 0}).json["gpu_usage"] == 0
        assert hpc("PATCH", "/jobs/job-001", json={}).json["cpu_usage"] == 1.5
        assert hpc.get("/jobs/job-001/metrics").json == {"job_id": "job-001", "samples": [], "total": 0}

    def test_a_job_can_be_sent_back_as_it_was_shown(self, hpc: Caller) -> None:
        shown = create(hpc) | {"state": "failed"}
        answer = hpc("PATCH", "/jobs/job-001", json=shown)
        assert answer.status_code == 200
        assert answer.json["state"] == "failed"

    @pytest.mark.parametrize(
        "changes",
        [{"state": "done"}, {"state": "RUNNING"}, {"state": ""}, {"state": None}, {"state": 1}, {"state": ["failed"]},
         {"cpu_usage": -0.1}, {"cpu_usage": 100.1}, {"cpu_usage": "75"}, {"cpu_usage": True}, {"cpu_usage": None},
         {"memory_usage_mb": -1}, {"memory_usage_mb": 1.5}, {"memory_usage_mb": 10**18}, {"memory_usage_mb": False},
         {"gpu_usage": 101}, {"gpu_usage": "x"}, {"gpu_usage": -1}, {"unknown": 1}, {"id": "job-002"}, {"user": "bob"},
         {"nodes": ["node-01"]}, {"nodes": 1}, {"start_time": "2020-01-01T00:00:00Z"}, {"start_time": "x"}, {"id": 5}],
    )  # fmt: skip
    def test_bad_values_are_named_and_change_nothing(self, hpc: Caller, changes: dict[str, Any]) -> None:
        before = create(hpc)
        answer = hpc("PATCH", "/jobs/job-001", json={"state": "completed"} | changes)
        assert next(iter(changes)) in is_error(answer, 400, "validation_error")
        after = hpc.get("/jobs/job-001").json
        assert after | {"runtime_seconds": 0} == before | {"runtime_seconds": 0}

    def test_the_clock_stops_at_the_first_end_and_goes_on_after_a_return(self, hpc: Caller) -> None:
        assert create(hpc)["end_time"] is None
        ended = hpc("PATCH", "/jobs/job-001", json={"state": "completed"}).json
        assert TIME.fullmatch(ended["end_time"])
        assert hpc("PATCH", "/jobs/job-001", json={"state": "failed"}).json["end_time"] == ended["end_time"]
        assert hpc("PATCH", "/jobs/job-001", json={"state": "running"}).json["end_time"] is None


class TestSamples:
    def test_gpu_usage_is_optional_and_absent_until_reported(self, hpc: Caller) -> None:
        create(hpc)
        answer = hpc.post("/jobs/job-001/metrics", json={"cpu_usage": 0, "memory_usage_mb": 0})
        assert answer.status_code == 201
        assert set(answer.json) == {"timestamp", "cpu_usage", "memory_usage_mb"}
        assert "gpu_usage" not in hpc.get("/jobs/job-001").json
        assert "gpu_usage" not in hpc.get("/jobs/job-001/metrics").json["samples"][0]
        hpc.post("/jobs/job-001/metrics", json={"cpu_usage": 1, "memory_usage_mb": 2, "gpu_usage": None})
        assert "gpu_usage" not in hpc.get("/jobs/job-001").json
        hpc.post("/jobs/job-001/metrics", **raw(RECORD_EXAMPLE))
        assert [set(one) for one in hpc.get("/jobs/job-001/metrics").json["samples"]] == [
            {"timestamp", "cpu_usage", "memory_usage_mb"},
            {"timestamp", "cpu_usage", "memory_usage_mb"},
            {"timestamp", "cpu_usage", "memory_usage_mb", "gpu_usage"},
        ]

    @pytest.mark.parametrize(
        "body",
        [{}, {"cpu_usage": 1}, {"memory_usage_mb": 1}, {"cpu_usage": 1, "memory_usage_mb": 1.0},
         {"cpu_usage": 101, "memory_usage_mb": 1}, {"cpu_usage": -1, "memory_usage_mb": 1},
         {"cpu_usage": True, "memory_usage_mb": 1}, {"cpu_usage": 1, "memory_usage_mb": True},
         {"cpu_usage": 1, "memory_usage_mb": -1}, {"cpu_usage": 1, "memory_usage_mb": 1, "gpu_usage": 100.5},
         {"cpu_usage": None, "memory_usage_mb": 1}, {"cpu_usage": 1, "memory_usage_mb": 2**70},
         {"cpu_usage": "1", "memory_usage_mb": 1}, {"cpu_usage": 1, "memory_usage_mb": 1, "state": "failed"}],
    )  # fmt: skip
    def test_bad_values_are_400(self, hpc: Caller, body: dict[str, Any]) -> None:
        create(hpc)
        is_error(hpc.post("/jobs/job-001/metrics", json=body), 400, "validation_error")
        assert hpc.get("/jobs/job-001/metrics").json["total"] == 0

    def test_a_range_with_a_start_gives_the_first_and_else_the_latest_always_ascending(
        self, hpc: Caller, app: Flask
    ) -> None:
        create(hpc)
        self._samples(hpc, app)
        for query, seen, total in (
            ("", [0, 1, 2, 3, 4, 5], 6),
            ("?limit=2", [4, 5], 6),
            ("?start_time=2026-01-20T10:01:00Z", [2, 3, 4, 5], 4),
            ("?start_time=2026-01-20T10:01:00Z&limit=2", [2, 3], 4),
            ("?start_time=2026-01-20T10:01:01Z", [3, 4, 5], 3),
            ("?end_time=2026-01-20T10:01:00Z", [0, 1, 2], 3),
            ("?end_time=2026-01-20T10:01:00Z&limit=2", [1, 2], 3),
            ("?end_time=2026-01-20T10:00:59.9Z", [0, 1], 2),
            ("?start_time=2026-01-20T12:01:00%2B02:00&end_time=2026-01-20T12:01:30%2B02:00", [2, 3], 2),
            ("?start_time=2026-01-20T12:01:00+02:00&end_time=2026-01-20T12:01:30+02:00", [2, 3], 2),
            ("?start_time=2026-01-20T10:01:00&end_time=2026-01-20T10:01:00.5", [2], 1),
            ("?start_time=2026-01-20", [0, 1, 2, 3, 4, 5], 6),
            ("?end_time=2026-01-20", [], 0),
            ("?start_time=2026-01-20T10:02:00Z&end_time=2026-01-20T10:01:00Z", [], 0),
        ):
            answer = hpc.get("/jobs/job-001/metrics" + query)
            assert answer.status_code == 200, answer.text
            assert [one["memory_usage_mb"] for one in answer.json["samples"]] == seen, query
            assert answer.json["total"] == total, query

    def _samples(self, hpc: Caller, app: Flask) -> None:
        """Six samples, 30 s and some milliseconds apart."""
        db = app.extensions["cfab"].db
        for number in range(6):
            hpc.post("/jobs/job-001/metrics", json={"cpu_usage": 1, "memory_usage_mb": number})
        with db.transaction() as tx:
            tx.run(
                """UPDATE tracked_sample SET at = timestamptz '2026-01-20T10:00:00.25Z'
                + memory_mib * interval '30 seconds'"""
            )

    @pytest.mark.parametrize(
        "query",
        ["start_time=yesterday", "end_time=", "start_time=2026-13-01", "limit=0", "limit=10001", "limit=x",
         "start_time=0001-01-01T00:00:00%2B14:00", "end_time=9999-12-31T23:59:59-14:00", "start_time=1700000000",
         "end_time=2026-01-20T25:00:00Z", "start_time=%00"],
    )  # fmt: skip
    def test_what_cannot_be_meant_is_400(self, hpc: Caller, query: str) -> None:
        create(hpc)
        message = is_error(hpc.get("/jobs/job-001/metrics?" + query), 400, "validation_error")
        assert query.partition("=")[0] in message

    def test_the_extremes_of_time_are_read(self, hpc: Caller) -> None:
        create(hpc)
        query = "?start_time=0001-01-01T00:00:00Z&end_time=9999-12-31T23:59:59.999Z"
        assert hpc.get("/jobs/job-001/metrics" + query).json["total"] == 0


class TestUnknownJobs:
    @pytest.mark.parametrize(
        "job_id",
        ["none", "0190c5a4-7d3e-7a11-8000-000000000001", "%00", "x%0ay", "y" * 300, "%ff%fe", "%ed%a0%80", " "],
    )
    def test_are_404_on_every_route(self, hpc: Caller, job_id: str) -> None:
        create(hpc)
        for method, path, options in (
            ("GET", "", {}),
            ("PATCH", "", raw(UPDATE_EXAMPLE)),
            ("PATCH", "", raw("{}")),
            ("DELETE", "", {}),
            ("GET", "/metrics", {}),
            ("POST", "/metrics", raw(RECORD_EXAMPLE)),
        ):
            is_error(hpc(method, f"/jobs/{job_id}{path}", **options), 404, "not_found")


def test_every_answer_has_the_documented_types(hpc: Caller) -> None:
    has_kinds(create(hpc))
    has_kinds(hpc("PATCH", "/jobs/job-001", **raw(UPDATE_EXAMPLE)).json)
    for job in hpc.get("/jobs").json["jobs"]:
        has_kinds(job)
