# ruff: noqa: F811 (fixtures are imported by name)
"""`/metrics` of the hpc contract: exactly the documented families, types and labels, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from flask import Flask

from app.api.factory import create_app
from app.services import observed
from app.storage.database import Database
from config.settings import Settings
from tests.contract.conftest import Bells, Caller
from tests.contract.hpc_document import METRIC_LINE, METRICS, STATES, is_error, raw, series
from tests.contract.hpc_lab import api, create, database_url, fabric, hpc_database_url  # noqa: F401
from tests.contract.test_hpc_fabric import GIB, measure, running
from tests.factories import Fabric

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@pytest.fixture
def scrape(api: Caller) -> Callable[[], dict[str, dict[str, float]]]:
    """The families as Prometheus would read them."""
    api.prefix = ""

    def read() -> dict[str, dict[str, float]]:
        answer = api.get("/metrics", headers={"Accept": OPENMETRICS})
        assert answer.status_code == 200, answer.text
        return series(answer.text)

    return read


def tracked(api: Caller, job_id: str = "job-001", **changes: object) -> None:
    create(Caller(api.client, "/v1"), job_id, **changes)


def patch(api: Caller, job_id: str, **changes: object) -> None:
    assert Caller(api.client, "/v1")("PATCH", f"/jobs/{job_id}", json=changes).status_code == 200


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_families_types_and_labels_are_the_documented_ones(api: Caller, slash: str) -> None:
    tracked(api)
    patch(api, "job-001", cpu_usage=75.5, gpu_usage=1)
    answer = Caller(api.client, "").get("/metrics" + slash, headers={"Accept": OPENMETRICS})
    assert answer.status_code == 200
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    types = {line.split()[2]: line.split()[3] for line in answer.text.splitlines() if line.startswith("# TYPE")}
    assert types == {name: kind for name, (kind, _) in METRICS.items()}
    helps = [line.split()[2] for line in answer.text.splitlines() if line.startswith("# HELP")]
    assert helps == list(types)
    assert METRIC_LINE in answer.text.splitlines()
    assert "# HELP hpc_job_cpu_usage_percent Current CPU usage of the job" in answer.text
    assert "# HELP hpc_job_state_total Number of jobs in each state" in answer.text
    assert "_created" not in answer.text
    assert "# EOF" not in answer.text
    for family, lines in series(answer.text).items():
        for labels in lines:
            names = {pair.partition("=")[0] for pair in labels.split(",") if pair}
            assert names == METRICS[family][1]


def test_an_empty_fabric_has_all_states_at_0_and_no_series_of_jobs(
    scrape: Callable[[], dict[str, dict[str, float]]],
) -> None:
    found = scrape()
    assert found["hpc_job_state_total"] == {f'state="{state}"': 0.0 for state in STATES}
    assert found["hpc_job_total"] == {"": 0.0}
    assert {name for name, lines in found.items() if not lines} == {n for n in METRICS if "user" in METRICS[n][1]}


def test_only_running_jobs_have_series_and_states_and_totals_count_all(
    api: Caller, fabric: Fabric, scrape: Callable[[], dict[str, dict[str, float]]]
) -> None:
    for number, state in enumerate(STATES):
        tracked(api, f"t{number}", nodes=[f"n{number}", "other"])
        patch(api, f"t{number}", state=state, memory_usage_mb=3)
    taken = running(fabric)
    measure(fabric, taken, 1.0, 5 * GIB, 12.5)
    fabric.submit_one()
    found = scrape()
    ours = f'job_id="{taken.job_id}",node="node-a",user="default"'
    theirs = 'job_id="t1",node="n1",user="alice"'
    assert found["hpc_job_cpu_usage_percent"] == {theirs: 0.0, ours: 50.0}
    assert found["hpc_job_memory_usage_bytes"] == {theirs: 3.0 * 2**20, ours: 5.0 * GIB}
    assert found["hpc_job_gpu_usage_percent"] == {ours: 12.5}
    assert set(found["hpc_job_runtime_seconds"]) == {theirs, ours}
    assert all(0 <= value < 600 for value in found["hpc_job_runtime_seconds"].values())
    assert found["hpc_job_state_total"] == {
        'state="pending"': 2, 'state="running"': 2, 'state="completed"': 1, 'state="failed"': 1, 'state="cancelled"': 1,
    }  # fmt: skip
    assert found["hpc_job_total"] == {"": 7.0}


def test_the_total_survives_deletes_and_retention(
    api: Caller, fabric: Fabric, scrape: Callable[[], dict[str, dict[str, float]]]
) -> None:
    taken = running(fabric)
    fabric.finish(taken)
    tracked(api)
    tracked(api, "job-002")
    client = Caller(api.client, "/v1")
    client.delete("/jobs/job-001")
    client.delete(f"/jobs/{taken.job_id}")
    assert scrape()["hpc_job_total"] == {"": 3.0}
    assert sum(scrape()["hpc_job_state_total"].values()) == 1
    fabric.sql("DELETE FROM job")
    assert scrape()["hpc_job_total"] == {"": 3.0}
    assert sum(scrape()["hpc_job_state_total"].values()) == 1


def test_a_tracked_job_that_is_silent_for_a_day_leaves_and_comes_back(
    api: Caller, fabric: Fabric, scrape: Callable[[], dict[str, dict[str, float]]]
) -> None:
    tracked(api)
    fabric.sql("UPDATE tracked_job SET heard_at = now() - interval '24 hours 1 second'")
    assert scrape()["hpc_job_runtime_seconds"] == {}
    assert scrape()["hpc_job_state_total"]['state="running"'] == 1
    patch(api, "job-001")
    assert len(scrape()["hpc_job_runtime_seconds"]) == 1


def test_odd_names_are_escaped_and_equal_ones_of_two_tenants_stay_apart(
    api: Caller, fabric: Fabric, scrape: Callable[[], dict[str, dict[str, float]]]
) -> None:
    tracked(api, 'a"b\\c', user='x"\\y', nodes=["ü{}"])
    other = fabric.add_tenant("other")
    first = fabric.value("SELECT id FROM tracked_job")
    fabric.sql(
        """INSERT INTO tracked_job (id, tenant_id, client_id, owner, nodes)
        SELECT 'ffffffff-0000-7000-8000-000000000000', %s, client_id, owner, nodes FROM tracked_job WHERE id = %s""",
        other, first,
    )  # fmt: skip
    assert set(scrape()["hpc_job_cpu_usage_percent"]) == {
        r'job_id="a\"b\\c",node="ü{}",user="x\"\\y"',
        r'job_id="ffffffff-0000-7000-8000-000000000000",node="ü{}",user="x\"\\y"',
    }


def test_the_number_of_series_is_bounded_and_the_newest_stay(
    api: Caller,
    fabric: Fabric,
    scrape: Callable[[], dict[str, dict[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(observed, "MAX_SERIES", 2)
    for number in range(3):
        tracked(api, f"t{number}")
    taken = running(fabric)
    with caplog.at_level(logging.WARNING):
        jobs = {labels.split('"')[1] for labels in scrape()["hpc_job_runtime_seconds"]}
    assert jobs == {"t2", str(taken.job_id)}
    assert "2 pairs" in caplog.text


class TestWho:
    def test_needs_a_token_and_says_so_in_the_form(self, app: Flask) -> None:
        is_error(Caller(app.test_client(), "", token=None).get("/metrics"), 401, "unauthorized")

    def test_other_methods_are_405_in_the_form(self, api: Caller) -> None:
        answer = Caller(api.client, "").post("/metrics", **raw("{}"))
        is_error(answer, 405, "method_not_allowed")
        assert "GET" in answer.headers["Allow"]

    @pytest.fixture(params=[{"metrics_open": True}, {"auth": "off", "api_token": ""}])
    def opened(self, request: pytest.FixtureRequest, settings: Settings, bells: Bells) -> Iterator[Caller]:
        db = Database(settings.database_url, 2, "contract-test")
        yield Caller(create_app(replace(settings, **request.param), db, bells).test_client(), "", token=None)
        db.close()

    def test_is_open_without_auth_and_by_the_setting(self, opened: Caller) -> None:
        assert opened.get("/metrics").status_code == 200

    def test_with_the_database_away_it_is_503(self, refusing: Caller) -> None:
        refusing.prefix = ""
        answer = refusing.get("/metrics")
        is_error(answer, 503, "unavailable")
        assert int(answer.headers["Retry-After"]) > 0
