"""Rates as clients of the jobs contract meet them, and its idempotency keys on stop and cancel."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from werkzeug.test import TestResponse

from app.api.factory import create_app
from app.api.limits.table import DOCUMENTED, GROUPS
from app.cli.main import main
from app.storage.database import Database
from config.rates import parse_rules
from config.settings import Settings
from tests.contract.conftest import TOKEN, Bells, Caller, job_body

NOON = 1_705_315_230.0
PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
Make = Callable[..., Caller]


@pytest.fixture
def make(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes an application with these settings; the clock of its windows stands still."""
    opened: list[Database] = []
    monkeypatch.setattr(time, "time", lambda: NOON)

    def made(rules: str = "", token: str | None = TOKEN, **changes: Any) -> Caller:
        db = Database(settings.database_url, settings.database_pool, "contract-test")
        opened.append(db)
        values = replace(settings, rate_limits=parse_rules(rules), **changes)
        return Caller(create_app(values, db, Bells()).test_client(), token=token)

    yield made
    for db in opened:
        db.close()


def value(answer: TestResponse) -> dict[str, Any]:
    """The JSON object of an answer."""
    found = answer.get_json()
    assert isinstance(found, dict)
    return found


class TestRefusals:
    def test_a_refusal_has_the_contracts_form_and_says_when_to_come_again(self, make: Make) -> None:
        api = make("jobs:submit=2/minute")
        assert api.submit()["status"] == "pending"
        assert api.post("/jobs", json=job_body()).headers["X-RateLimit-Remaining"] == "0"
        refused = api.post("/jobs", json=job_body())
        assert refused.status_code == 429
        assert refused.json == {
            "error": "Rate limit exceeded: 2 requests per minute; try again in 30 s.",
            "context": {"limit": 2, "window_seconds": 60, "retry_after": 30},
        }
        assert refused.headers["Retry-After"] == "30"
        assert refused.headers["X-RateLimit-Limit"] == "2"
        assert refused.headers["X-RateLimit-Remaining"] == "0"
        assert refused.headers["X-RateLimit-Reset"] == "1705315260"
        assert api.get("/jobs").headers["X-Total-Count"] == "2"

    @pytest.mark.parametrize(
        ("group", "method", "path"),
        [
            ("submit", "POST", "/jobs"),
            ("bulk", "POST", "/jobs/bulk"),
            ("bulk", "POST", "/jobs/bulk/cancel"),
            ("read", "GET", "/jobs"),
            ("read", "GET", "/jobs/1"),
            ("stream", "GET", "/jobs/1/logs"),
            ("executor", "POST", "/jobs/claim"),
            ("executor", "PUT", "/jobs/1/heartbeat"),
            ("executor", "PUT", "/jobs/1/complete"),
            ("executor", "PUT", "/jobs/1/fail"),
            ("admin", "GET", "/admin/stats"),
            ("admin", "GET", "/admin/executors"),
            ("admin", "GET", "/metrics"),
            ("*", "POST", "/jobs/1/stop"),
            ("*", "DELETE", "/jobs/1"),
        ],
    )
    def test_each_group_holds_its_routes(self, make: Make, group: str, method: str, path: str) -> None:
        api = make(f"jobs:{group}=1/minute")
        assert api(method, path).status_code != 429
        assert api(method, path).status_code == 429

    def test_health_always_answers(self, make: Make) -> None:
        api = make("jobs:*=1/minute")
        assert [api.get("/health").status_code for _ in range(5)] == [200] * 5

    def test_both_prefixes_count_together(self, make: Make) -> None:
        api = make("jobs:read=1/minute")
        assert api.get("/jobs").status_code == 200
        assert Caller(api.client, "/jobs/api/v1").get("/jobs").status_code == 429

    def test_it_comes_after_auth_and_before_the_body_is_read(self, make: Make) -> None:
        api = make("jobs:*=1/minute")
        stranger = Caller(api.client, token=None)
        assert api.post("/jobs", data=b"{").status_code == 400
        assert stranger.post("/jobs").status_code == 401
        expected = {("POST", "/jobs"): 429, ("GET", "/jobs/1"): 429, ("GET", "/nothing"): 404, ("PATCH", "/jobs"): 405}
        for (method, path), status in expected.items():
            assert api(method, path, data=b"{").status_code == status

    def test_a_replay_counts_too(self, make: Make) -> None:
        api = make("jobs:submit=2/minute")
        key = {"Idempotency-Key": "k"}
        statuses = [api.post("/jobs", json=job_body(), headers=key).status_code for _ in range(3)]
        assert statuses == [201, 201, 429]

    def test_prometheus_counts_refusals(self, make: Make) -> None:
        api = make("jobs:read=1/minute")
        for _ in range(3):
            api.get("/jobs")
        text = api.get("/metrics").text
        assert 'cfab_rate_limited_total{contract="jobs",group="read"} 2.0' in text


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("jobs:sumbit=1/day", "there is no jobs:sumbit to limit; there are jobs:submit,"),
        ("jobs:submit=1/eon", "'1/eon' in 'jobs:submit=1/eon' is not a rate such as 100/second"),
    ],
)
def test_the_api_does_not_start_with_a_limit_that_cannot_be(rules: str, said: str) -> None:
    values = {"CFAB_DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "CFAB_API_TOKEN": TOKEN, "CFAB_RATE_LIMITS": rules}
    done = CliRunner().invoke(main, ["api"], env=values)
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.splitlines()) == 1


class TestFailedLogins:
    def test_an_address_with_many_bad_tokens_must_wait_but_known_tokens_go_on(self, make: Make) -> None:
        api = make(failed_logins_per_minute=3)
        thief = Caller(api.client, token="guess")
        assert api.get("/jobs").status_code == 200
        assert [thief.get("/jobs").status_code for _ in range(5)] == [401, 401, 401, 429, 429]
        refused = thief.get("/jobs")
        assert refused.headers["Retry-After"] == "30"
        assert "Too many failed logins" in refused.text
        assert api.get("/jobs").status_code == 200
        assert thief.get("/health").status_code == 200
        assert Caller(api.client, token=None).get("/jobs").status_code == 401
        elsewhere = {"REMOTE_ADDR": "192.0.2.7"}
        assert thief.get("/jobs", environ_base=elsewhere).status_code == 401

    def test_addresses_of_one_ipv6_site_count_as_one(self, make: Make) -> None:
        thief = make(failed_logins_per_minute=2, token="guess")
        for last in ("1", "2"):
            assert thief.get("/jobs", environ_base={"REMOTE_ADDR": f"2001:db8:1:2::{last}"}).status_code == 401
        assert thief.get("/jobs", environ_base={"REMOTE_ADDR": "2001:db8:1:2:ffff::3"}).status_code == 429
        assert thief.get("/jobs", environ_base={"REMOTE_ADDR": "2001:db8:1:3::1"}).status_code == 401

    def test_a_forwarded_address_is_believed_from_trusted_proxies_only(self, make: Make) -> None:
        def statuses(thief: Caller) -> list[int]:
            return [
                thief.get("/jobs", headers={"X-Forwarded-For": f"10.0.0.{n}, 192.0.2.{n}"}).status_code
                for n in range(3)
            ]

        assert statuses(make(failed_logins_per_minute=1, token="guess")) == [401, 429, 429]
        assert statuses(make(failed_logins_per_minute=1, token="guess", trusted_proxies=1)) == [401, 401, 401]


class TestIdempotencyOfStops:
    def test_a_stop_is_answered_as_the_first_time(self, api: Caller) -> None:
        job_id = api.submit()["id"]
        key = {"Idempotency-Key": "stop-it"}
        first = api.post(f"/jobs/{job_id}/stop", json={"reason": "a"}, headers=key)
        again = api.post(f"/jobs/{job_id}/stop", json={"reason": "a"}, headers=key)
        assert (first.status_code, again.status_code) == (200, 200)
        assert first.json == again.json
        assert again.headers["Idempotent-Replayed"] == "true"
        assert api.post(f"/jobs/{job_id}/stop", json={"reason": "b"}, headers=key).status_code == 422
        assert api.post(f"/jobs/{job_id}/stop", json={"reason": "a"}).status_code == 400

    def test_one_key_on_two_jobs_is_two_requests(self, api: Caller) -> None:
        key = {"Idempotency-Key": "same"}
        for _ in range(2):
            job_id = api.submit()["id"]
            answer = api.post(f"/jobs/{job_id}/stop", headers=key)
            assert (answer.status_code, value(answer)["id"]) == (200, job_id)
            assert "Idempotent-Replayed" not in answer.headers

    def test_a_bulk_cancel_is_answered_as_the_first_time(self, api: Caller) -> None:
        body = {"job_ids": [api.submit()["id"], "nonsense"]}
        key = {"Idempotency-Key": "cancel-both"}
        first = api.post("/jobs/bulk/cancel", json=body, headers=key)
        again = api.post("/jobs/bulk/cancel", json=body, headers=key)
        assert first.json == again.json
        assert (value(again)["cancelled"], value(again)["failed"]) == (1, 1)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert value(api.post("/jobs/bulk/cancel", json=body))["cancelled"] == 0


def test_the_page_lists_every_documented_limit_and_every_group() -> None:
    lines = PAGE.read_text().splitlines()
    limits = [
        f"| {row.contract} | `{row.group}` | {row.key} | {', '.join(map(str, row.rates))} "
        f"| {'every answer' if row.headers else 'refusals'} |"
        for row in DOCUMENTED
    ]
    groups = [
        f"| `{contract}:{group}` | {holds} |" for contract, names in GROUPS.items() for group, holds in names.items()
    ]
    assert [line for line in limits + groups if line not in lines] == []
    shown = [line for line in lines if re.match(r"\| (\w+ \| `|`\w+:)", line)]
    assert sorted(shown) == sorted(limits + groups)
