"""What the jobs contract refuses, in which order, and always in its own form."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from app.api.factory import create_app
from app.api.jobs.contract import CONTRACT
from app.storage.database import Database
from config.settings import Settings, SettingsError
from tests.contract.conftest import PREFIXES, TOKEN, Bells, Caller, job_body
from tests.contract.jobs_document import is_error

HOSTILE = {
    "not JSON": b"{",
    "no value": b"   ",
    "two values": b"{} {}",
    "a BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"type": "a"}'.encode("utf-16"),
    "not UTF-8": b'{"type": "\xff"}',
    "a duplicate key": b'{"type": "a", "type": "b"}',
    "a duplicate key below": b'{"env_variables": {"A": "1", "A": "2"}}',
    "NaN": b'{"timeout_seconds": NaN}',
    "Infinity": b'{"timeout_seconds": -Infinity}',
    "1e400": b'{"timeout_seconds": 1e400}',
    "NUL": b'{"type": "a\\u0000b"}',
    "NUL in a key": b'{"env_variables": {"a\\u0000b": "x"}}',
    "a lone surrogate": b'{"type": "\\ud800"}',
    "a surrogate as UTF-8": b'{"type": "\xed\xa0\x80"}',
    "33 levels": b"[" * 33 + b"]" * 33,
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "5,000 digits": b'{"max_retries": ' + b"9" * 5000 + b"}",
    "a control character": b'{"type": "a\x01"}',
    "null": b"null",
    "a string": b'"x"',
    "a number": b"1",
}


FLAWS = {
    "a duplicate key": b'"type": "other"',
    "a duplicate key below": b'"env_variables": {"A": "1", "A": "2"}',
    "NaN": b'"timeout_seconds": NaN',
    "Infinity": b'"timeout_seconds": Infinity',
    "1e400": b'"timeout_seconds": 1e400',
    "NUL": b'"arguments": ["a\\u0000b"]',
    "NUL in a key": b'"env_variables": {"a\\u0000b": "x"}',
    "a lone surrogate": b'"arguments": ["\\ud800"]',
    "a surrogate as UTF-8": b'"arguments": ["\xed\xa0\x80"]',
    "not UTF-8": b'"arguments": ["\xff"]',
    "a control character": b'"arguments": ["\x01"]',
    "5,000 digits": b'"max_retries": ' + b"1" * 5000,
}


class TestHostileBodies:
    def test_one_flaw_spoils_a_good_job(self, api: Caller) -> None:
        good = json.dumps(job_body(arguments=None, env_variables=None)).encode()
        assert api.post("/jobs", data=good, content_type="application/json").status_code == 201
        for name, flaw in FLAWS.items():
            body = good[:-1] + b", " + flaw + b"}"
            answer = api.post("/jobs", data=body, content_type="application/json")
            assert answer.status_code == 400, (name, answer.text)
        assert api.get("/jobs").headers["X-Total-Count"] == "1"

    @pytest.mark.parametrize("path", ["/jobs", "/jobs/bulk", "/jobs/claim", "/jobs/bulk/cancel"])
    def test_are_400_on_every_route_and_change_nothing(self, api: Caller, bells: Bells, path: str) -> None:
        for name, body in HOSTILE.items():
            answer = api.post(path, data=body, content_type="application/json")
            assert answer.status_code == 400, (name, answer.text)
            is_error(answer, 400)
        is_error(api.post(path, content_type="application/json"), 400)
        assert bells.rung == []
        assert api.get("/jobs").json == []

    def test_32_levels_are_read(self, api: Caller) -> None:
        body = b"[" * 32 + b"]" * 32
        assert "levels" not in api.post("/jobs", data=body, content_type="application/json").json["error"]

    def test_a_body_beyond_the_limit_is_413(self, database_url: str, bells: Bells) -> None:
        settings = Settings(database_url=database_url, api_token=TOKEN, max_body_bytes=1000)
        api = Caller(create_app(settings, ringer=bells).test_client())
        is_error(api.post("/jobs", data=b" " * 1001, content_type="application/json"), 413)
        is_error(api.post("/jobs", data=b" " * 1001, content_type="text/plain"), 415)
        assert api.post("/jobs", json=job_body()).status_code == 201


class TestOrder:
    def test_401_comes_before_all_else(self, refusing: Caller) -> None:
        refusing.headers = {}
        is_error(refusing.get("/nothing-here"), 401)
        is_error(refusing("PATCH", "/jobs"), 401)
        is_error(refusing.post("/jobs", data=b"{", content_type="text/plain"), 401)
        is_error(refusing.get(f"/jobs/{uuid4()}"), 401)
        is_error(refusing("POST", "/health"), 401)

    def test_then_404_405_415_400_and_404_of_the_object(self, api: Caller) -> None:
        is_error(api.post("/nothing-here", data=b"{", content_type="text/plain"), 404)
        answer = api.put("/jobs", data=b"{", content_type="text/plain")
        is_error(answer, 405)
        assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}
        is_error(api.put("/jobs/nonsense/heartbeat", data=b"{", content_type="text/plain"), 415)
        is_error(api.put("/jobs/nonsense/heartbeat", data=b"{", content_type="application/json"), 400)
        is_error(api.put("/jobs/nonsense/heartbeat", json={"executor_id": "a"}), 404)

    @pytest.mark.parametrize("path", ["/", "/v2", "/api/v2/jobs", "/api/v1//jobs", "/jobs", "/jobs/api/v1/none"])
    def test_unknown_paths_answer_in_the_form_without_a_redirect(self, refusing: Caller, path: str) -> None:
        refusing.prefix = ""
        is_error(refusing.get(path), 404)

    @pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper(), "ü"])
    def test_a_wrong_token_is_401(self, refusing: Caller, token: str) -> None:
        is_error(refusing.get("/jobs", headers={"Authorization": f"Bearer {token}"}), 401)
        is_error(refusing.get("/jobs", headers={"Authorization": f"Token {TOKEN}"}), 401)
        is_error(refusing.get("/jobs", headers={"Authorization": TOKEN}), 401)


class TestEveryRoute:
    def test_answers_at_both_prefixes_with_both_slash_forms_and_only_with_a_token(
        self, app: Flask, api: Caller, stranger: Caller
    ) -> None:
        rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith(CONTRACT.at)]
        assert len(rules) > 15
        api.prefix = stranger.prefix = ""
        for rule in rules:
            path = rule.rule.replace("<job_id>", str(uuid4())).replace("<file>", "swagger-ui.css")
            method = next(iter(rule.methods - {"HEAD", "OPTIONS"}))
            for base in PREFIXES:
                for slash in ("", "/"):
                    there = path.replace(CONTRACT.at, base, 1) + slash
                    known = api(method, there)
                    assert known.status_code in {200, 400, 404}, there
                    if known.mimetype != "text/event-stream":  # Such a stream has no end.
                        assert "no path" not in known.text, there
                    known.close()
                    unknown = stranger(method, there)
                    assert unknown.status_code == (200 if path.endswith("/health") else 401), there


class TestTrace:
    def test_every_answer_carries_an_id(self, api: Caller, stranger: Caller) -> None:
        assert api.get("/jobs", headers={"X-Request-Id": "trace-1"}).headers["X-Request-Id"] == "trace-1"
        for answer in (stranger.get("/jobs"), api.get("/none"), api.get("/jobs", headers={"X-Request-Id": "a b"})):
            assert len(answer.headers["X-Request-Id"]) == 32


class TestDatabaseAway:
    def test_is_503_in_the_form_with_retry_after(self, refusing: Caller) -> None:
        for answer in (
            refusing.get("/jobs"),
            refusing.post("/jobs", json=job_body()),
            refusing.get(f"/jobs/{uuid4()}"),
            refusing.get("/admin/stats"),
            refusing.post("/jobs/claim", json={"executor_id": "a"}),
            refusing.get(f"/jobs/{uuid4()}/logs?follow=true"),
        ):
            is_error(answer, 503)
            assert int(answer.headers["Retry-After"]) > 0

    def test_health_is_503_unhealthy(self, refusing: Caller) -> None:
        answer = refusing.get("/health")
        assert answer.status_code == 503
        assert answer.json == {"status": "unhealthy", "database": "disconnected"}

    def test_metrics_say_so(self, refusing: Caller) -> None:
        assert "cfab_database_up 0.0" in refusing.get("/metrics").text


class TestServerFault:
    def test_is_500_in_the_form_and_logged_without_details_for_the_caller(
        self, app: Flask, api: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        with app.extensions["cfab"].db.transaction() as tx:
            tx.run("ALTER TABLE job RENAME TO job_was")
        with caplog.at_level(logging.ERROR):
            answer = api.get("/jobs", headers={"X-Request-Id": "trace-500"})
        context = is_error(answer, 500)
        assert context == {"request_id": "trace-500"}
        assert "job_was" not in answer.text
        assert "trace-500" in caplog.text


class TestWithoutAuth:
    """`--no-auth`: whoever reaches the port may do everything, so only this machine and no web page may."""

    @pytest.fixture
    def open_api(self, settings: Settings, bells: Bells) -> Iterator[Caller]:
        open_settings = replace(settings, auth="off", api_token="")
        db = Database(settings.database_url, 2, "contract-test")
        yield Caller(create_app(open_settings, db, bells).test_client(), token=None)
        db.close()

    def test_loopback_names_are_served(self, open_api: Caller) -> None:
        for host in ("localhost", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST:1", "127.8.8.8"):
            assert open_api.post("/jobs", json=job_body(), headers={"Host": host}).status_code == 201, host
            assert open_api.get("/metrics", headers={"Host": host}).status_code == 200, host

    def test_other_names_are_403(self, open_api: Caller) -> None:
        for host in (
            "example.com",
            "10.1.1.5:8080",
            "localhost.a.com",
            "127.0.0.1.a.com",
            "127.0.0.1@a.com",
            "0.0.0.0",
        ):
            is_error(open_api.get("/jobs", headers={"Host": host}), 403)

    def test_pages_of_other_origins_are_403(self, open_api: Caller) -> None:
        for origin in ("http://example.com", "null", "https://localhost.evil.com", "", "file://"):
            is_error(open_api.post("/jobs", json=job_body(), headers={"Origin": origin}), 403)

    def test_a_page_of_this_machine_is_served(self, open_api: Caller) -> None:
        headers = {"Origin": "http://localhost:8080"}
        assert open_api.post("/jobs", json=job_body(), headers=headers).status_code == 201

    def test_a_body_without_a_content_type_is_415(self, open_api: Caller) -> None:
        is_error(open_api.post("/jobs", data=json.dumps(job_body())), 415)
        is_error(open_api.post("/jobs", data=json.dumps(job_body()), content_type="text/plain"), 415)

    @pytest.mark.parametrize(
        "changes", [{"auth": "off", "api_host": "0.0.0.0"}, {"auth": "off", "api_host": "::"}, {"api_token": ""},
                    {"auth": "off", "api_host": "example.com"}],
    )  # fmt: skip
    def test_settings_that_open_or_close_the_api_to_all_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(SettingsError):
            create_app(replace(Settings(api_token=TOKEN), **changes), ringer=Bells())
