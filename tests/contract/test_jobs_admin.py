"""The jobs contract for operators: health, metrics, counts, executors."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest

from tests.contract.conftest import PREFIXES, Caller
from tests.contract.jobs_document import COMPLETE_EXAMPLE, TIME, is_error, raw


class TestHealth:
    @pytest.mark.parametrize("prefix", PREFIXES)
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_is_the_documented_answer_without_a_token(self, stranger: Caller, prefix: str, slash: str) -> None:
        stranger.prefix = prefix
        answer = stranger.get("/health" + slash)
        assert answer.status_code == 200
        assert answer.json == {"status": "healthy", "database": "connected"}


class TestMetrics:
    def test_is_prometheus_text_with_the_fabrics_numbers(self, api: Caller) -> None:
        api.submit(priority="foreground")
        answer = api.get("/metrics")
        assert answer.status_code == 200
        assert answer.content_type.startswith("text/plain")
        assert 'cfab_jobs{priority="foreground",state="pending"} 1.0' in answer.text
        assert "cfab_database_up 1.0" in answer.text
        assert re.search(r'cfab_http_request_total\{method="POST",status="201"\} 1\.0', answer.text)

    def test_paths_of_callers_make_no_series(self, api: Caller) -> None:
        api.get("/no-such-path")
        api.get(f"/jobs/{uuid4()}")
        text = api.get("/metrics").text
        assert "no-such-path" not in text
        assert 'route="/jobs/api/v1/jobs/<job_id>"' in text

    def test_needs_a_token(self, stranger: Caller) -> None:
        is_error(stranger.get("/metrics"), 401)


class TestStats:
    def test_every_word_is_there_at_zero(self, api: Caller) -> None:
        assert api.get("/admin/stats").json == {
            "jobs_by_status": {"pending": 0, "running": 0, "completed": 0, "failed": 0, "cancelled": 0},
            "pending_by_priority": {"foreground": 0, "background": 0, "best_effort": 0},
            "active_executors": 0,
        }

    def test_counts_are_exact(self, api: Caller) -> None:
        api.submit(priority="foreground")
        api.claim()
        api.submit(priority="foreground")
        api.submit(priority="best_effort")
        api.delete(f"/jobs/{api.submit()['id']}")
        stats = api.get("/admin/stats/").json
        assert stats["jobs_by_status"] == {
            "pending": 2,
            "running": 1,
            "completed": 0,
            "failed": 0,
            "cancelled": 1,
        }
        assert stats["pending_by_priority"] == {"foreground": 1, "background": 0, "best_effort": 1}
        assert stats["active_executors"] == 1


class TestExecutors:
    def test_the_documented_keys(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        (executor,) = api.get("/admin/executors").json
        assert set(executor) >= {
            "executor_id",
            "current_job_id",
            "job_type",
            "last_heartbeat",
            "jobs_completed",
        }
        assert executor["executor_id"] == "worker-1-abc123"
        assert executor["current_job_id"] == job
        assert executor["job_type"] == "data-processing"
        assert TIME.fullmatch(executor["last_heartbeat"])
        assert executor["jobs_completed"] == 0

    def test_an_idle_one_has_nulls_and_its_count(self, api: Caller) -> None:
        api.submit()
        api.put(f"/jobs/{api.claim()['id']}/complete", **raw(COMPLETE_EXAMPLE))
        (executor,) = api.get("/admin/executors").json
        assert executor["current_job_id"] is None
        assert executor["job_type"] is None
        assert executor["jobs_completed"] == 1
