"""`GET /jobs/{id}/samples` and `/samples/latest`: documented, in order, the caller's own only."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask

from app.api.hub import Hub
from app.domain.job import Assignment
from app.services import samples
from app.services.samples import Measured
from tests.contract.conftest import PREFIXES, Caller
from tests.contract.jobs_document import TIME, is_error
from tests.factories import Fabric


@pytest.fixture
def fabric(app: Flask) -> Fabric:
    shared: Hub = app.extensions["cfab"]
    return Fabric(shared.db, shared.settings)


@pytest.fixture
def taken(api: Caller, fabric: Fabric) -> Assignment:
    """A running job with samples of 90, 60, 30 and 0 s ago."""
    api.submit(resources={"cpus": 2, "memory_mib": 1024})
    held = fabric.run(fabric.add_node("n1"))
    ages = (90.0, 60.0, 30.0, 0.0)
    samples.store(fabric.db, [Measured(held.attempt_id, a, cpu_cores=a, memory_bytes=2**20) for a in ages])
    return held


def documented(api: Caller, name: str) -> set[str]:
    spec: Any = api.get("/openapi.json").json
    return set(spec["components"]["schemas"][name]["properties"])


@pytest.mark.parametrize("prefix", PREFIXES)
def test_samples_ascend_and_the_total_is_of_all(api: Caller, taken: Assignment, prefix: str) -> None:
    api.prefix = prefix
    page: Any = api.get(f"/jobs/{taken.job_id}/samples?limit=2").json
    assert ([one["cpu_cores"] for one in page["samples"]], page["total"]) == ([30.0, 0.0], 4)
    assert page["holds"] == {"cpus": 2, "memory_bytes": 2**30, "gpus": 0, "gpu_memory_bytes": 0}
    start = page["samples"][0]["timestamp"]
    assert TIME.fullmatch(start)
    later: Any = api.get(f"/jobs/{taken.job_id}/samples", query_string={"start_time": start}).json
    assert [one["cpu_cores"] for one in later["samples"]] == [30.0, 0.0]
    offset = start.replace("Z", "+00:00")
    assert api.get(f"/jobs/{taken.job_id}/samples?start_time={offset}&limit=1").json["total"] == 2
    earlier: Any = api.get(f"/jobs/{taken.job_id}/samples", query_string={"end_time": start}).json
    assert earlier["total"] == 3


def test_answers_have_exactly_the_documented_fields(api: Caller, taken: Assignment) -> None:
    page: Any = api.get(f"/jobs/{taken.job_id}/samples").json
    assert set(page) == documented(api, "SamplesShown")
    assert set(page["samples"][0]) == documented(api, "SampleShown")
    assert set(page["holds"]) == documented(api, "ShareShown")
    (used,) = api.get("/samples/latest").json
    assert set(used) == documented(api, "UsageShown")
    assert [one["cpu_cores"] for one in used["recent"]] == [90.0, 60.0, 30.0, 0.0]
    assert (used["state_detail"], used["executor_id"], used["hard_limits"]) == ("running", "n1", True)
    assert api.get(f"/samples/latest?job_id={taken.job_id}").json == [used]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=10001", "limit=x", "attempt=0", "start_time=yesterday", "end_time=2024-13-01T00:00:00Z",
     "start_time=0001-01-01T00:00:00%2B14:00", "start_time="],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(api: Caller, taken: Assignment, query: str) -> None:
    is_error(api.get(f"/jobs/{taken.job_id}/samples?{query}"), 400)


def test_a_time_without_an_offset_is_utc_and_any_year_can_be_asked_for(api: Caller, taken: Assignment) -> None:
    for start, total in (("2024-01-01T00:00:00", 4), ("0001-01-01", 4), ("9999-12-31T23:59:59", 0)):
        assert api.get(f"/jobs/{taken.job_id}/samples?start_time={start}").json["total"] == total
    assert api.get(f"/jobs/{taken.job_id}/samples?end_time=9999-12-31T23:59:59Z").json["total"] == 4


def test_nobody_elses_samples_are_shown(api: Caller, stranger: Caller, fabric: Fabric, taken: Assignment) -> None:
    foreign: UUID = fabric.submit_one(fabric.add_tenant("other"))
    fabric.run(fabric.add_node("n2"))
    for name in (foreign, uuid4(), "x"):
        is_error(api.get(f"/jobs/{name}/samples"), 404)
        is_error(api.get(f"/samples/latest?job_id={name}"), 404)
    is_error(api.get(f"/jobs/{taken.job_id}/samples?attempt=7"), 404)
    assert [one["job_id"] for one in api.get("/samples/latest").json] == [str(taken.job_id)]
    for path in (f"/jobs/{taken.job_id}/samples", "/samples/latest"):
        is_error(stranger.get(path), 401)


def test_an_attempt_shows_its_peaks(api: Caller, fabric: Fabric, taken: Assignment) -> None:
    fabric.finish(taken, peak_cpu_cores=1.25, peak_memory_bytes=5)
    (attempt,) = api.get(f"/jobs/{taken.job_id}").json["attempts"]
    assert (attempt["peak_cpu_cores"], attempt["peak_memory_bytes"]) == (1.25, 5)
    assert attempt["peak_gpu_memory_bytes"] is None
