# ruff: noqa: F811 (fixtures are imported by name)
"""What the hpc contract refuses, in which order, with which code, and always in its own form."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
from flask import Flask

from app.api.factory import create_app
from app.api.hpc.contract import CONTRACT
from app.storage.database import Database
from config.rates import parse_rules
from config.settings import Settings
from tests.contract.conftest import Bells, Caller
from tests.contract.hpc_document import CREATE_EXAMPLE, RECORD_EXAMPLE, UPDATE_EXAMPLE, is_error, raw
from tests.contract.hpc_lab import api, create, database_url, hpc, hpc_database_url  # noqa: F401
from tests.contract.test_jobs_errors import HOSTILE

FLAWS = {
    "a duplicate key": b'"user": "other"',
    "a duplicate key of usage": b'"cpu_usage": 1, "cpu_usage": 2',
    "NaN": b'"cpu_usage": NaN',
    "Infinity": b'"cpu_usage": Infinity',
    "1e400": b'"cpu_usage": 1e400',
    "NUL": b'"extra": "a\\u0000b"',
    "NUL in a key": b'"a\\u0000b": 1',
    "a lone surrogate": b'"extra": "\\ud800"',
    "a surrogate as UTF-8": b'"extra": "\xed\xa0\x80"',
    "not UTF-8": b'"extra": "\xff"',
    "a control character": b'"extra": "\x01"',
    "5,000 digits": b'"memory_usage_mb": ' + b"1" * 5000,
    "33 levels": b'"extra": ' + b"[" * 33 + b"]" * 33,
}
ROUTES = (("POST", "/jobs"), ("PATCH", "/jobs/job-001"), ("POST", "/jobs/job-001/metrics"))


class TestHostileBodies:
    def test_are_400_invalid_request_on_every_route_and_change_nothing(self, hpc: Caller) -> None:
        before = create(hpc)
        for method, path in ROUTES:
            for name, body in HOSTILE.items():
                answer = hpc(method, path, data=body, content_type="application/json")
                assert answer.status_code == 400, (name, answer.text)
                # What is JSON but has an unknown field is a fault of the field.
                code = "validation_error" if answer.json["error"] == "validation_error" else "invalid_request"
                is_error(answer, 400, code)
                assert code == "invalid_request" or name == "5,000 digits", (name, answer.text)
            is_error(hpc(method, path, content_type="application/json"), 400, "invalid_request")
            for value in ("[]", "[{}]", '"x"', "1", "true", "null"):
                is_error(hpc(method, path, **raw(value)), 400, "invalid_request")
        after = hpc.get("/jobs").json
        assert after["total"] == 1
        assert after["jobs"][0] | {"runtime_seconds": 0} == before | {"runtime_seconds": 0}

    def test_one_flaw_spoils_a_good_body(self, api: Caller) -> None:
        create(api)
        good = {"POST /jobs": CREATE_EXAMPLE, "PATCH /jobs/job-001": UPDATE_EXAMPLE}
        good["POST /jobs/job-001/metrics"] = RECORD_EXAMPLE
        for route, example in good.items():
            method, path = route.split()
            for name, flaw in FLAWS.items():
                body = example.encode().rstrip()[:-1] + b", " + flaw + b"}"
                answer = api(method, path, data=body, content_type="application/json")
                assert answer.status_code == 400, (route, name, answer.text)
                assert set(answer.json) == {"error", "message"}
        assert api.get("/jobs/job-001").json["state"] == "running"
        assert api.get("/jobs/job-001/metrics").json["total"] == 0
        assert api.get("/jobs").json["total"] == 1

    def test_a_body_beyond_the_limit_is_413_and_another_type_415(self, database_url: str, bells: Bells) -> None:
        settings = Settings(database_url=database_url, auth="off", max_body_bytes=1000)
        small = Caller(create_app(settings, ringer=bells).test_client(), "/v1", token=None)
        is_error(small.post("/jobs", data=b" " * 1001, content_type="application/json"), 413, "invalid_request")
        is_error(small.post("/jobs", data=CREATE_EXAMPLE, content_type="text/plain"), 415, "invalid_request")
        is_error(small.post("/jobs", data=CREATE_EXAMPLE, content_type="application/xml"), 415, "invalid_request")
        is_error(small.post("/jobs", data=CREATE_EXAMPLE), 415, "invalid_request")
        assert small.post("/jobs", **raw(CREATE_EXAMPLE)).status_code == 201

    def test_a_missing_content_type_is_accepted_with_a_token(self, api: Caller) -> None:
        assert api.post("/jobs", data=CREATE_EXAMPLE).status_code == 201


class TestOrder:
    def test_401_comes_before_all_else(self, refusing: Caller) -> None:
        refusing.headers, refusing.prefix = {}, "/v1"
        for answer in (
            refusing.get("/nothing-here"),
            refusing("PUT", "/jobs"),
            refusing.post("/jobs", data=b"{", content_type="text/plain"),
            refusing.get(f"/jobs/{uuid4()}"),
            refusing.get("/jobs?limit=x"),
        ):
            is_error(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")

    def test_then_404_405_415_400_and_404_of_the_object(self, api: Caller) -> None:
        is_error(api.post("/nothing-here", data=b"{", content_type="text/plain"), 404, "not_found")
        answer = api.put("/jobs", data=b"{", content_type="text/plain")
        is_error(answer, 405, "method_not_allowed")
        assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}
        is_error(api("PATCH", "/jobs/x", data=b"{", content_type="text/plain"), 415, "invalid_request")
        is_error(api("PATCH", "/jobs/x", data=b"{", content_type="application/json"), 400, "invalid_request")
        is_error(api("PATCH", "/jobs/x", json={"state": "x"}), 400, "validation_error")
        is_error(api("PATCH", "/jobs/x", json={}), 404, "not_found")
        is_error(api.get("/jobs/x/metrics?limit=0"), 400, "validation_error")

    @pytest.mark.parametrize(
        "path", ["", "/", "/none", "/jobs/a/none", "/jobs/a/metrics/b", "//jobs", "/jobs//metrics"]
    )
    def test_unknown_paths_answer_in_the_form_without_a_redirect(self, api: Caller, path: str) -> None:
        is_error(api.get(path), 404, "not_found")

    def test_without_auth_pages_of_other_sites_are_403(self, settings: Settings, bells: Bells) -> None:
        db = Database(settings.database_url, 2, "contract-test")
        open_settings = replace(settings, auth="off", api_token="")
        client = Caller(create_app(open_settings, db, bells).test_client(), "/v1", token=None)
        is_error(client.get("/jobs", headers={"Host": "example.com"}), 403, "forbidden")
        is_error(client.post("/jobs", **raw("{}"), headers={"Origin": "http://example.com"}), 403, "forbidden")
        db.close()


def test_beyond_an_operators_limit_it_is_429_rate_limited_but_health_answers(settings: Settings, bells: Bells) -> None:
    db = Database(settings.database_url, 2, "contract-test")
    limited = replace(settings, rate_limits=parse_rules("hpc:*=2/hour"))
    client = Caller(create_app(limited, db, bells).test_client(), "/v1")
    answers = [client.get("/jobs") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    is_error(answers[2], 429, "rate_limited")
    assert int(answers[2].headers["Retry-After"]) > 0
    assert client.get("/health").status_code == 200
    db.close()


class TestEveryRoute:
    def test_answers_in_both_slash_forms_and_only_with_a_token(self, app: Flask, api: Caller) -> None:
        stranger = Caller(api.client, "", token=None)
        rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith(CONTRACT.at + "/")]
        assert len(rules) >= 9
        api.prefix = ""
        for rule in rules:
            path = rule.rule.replace("<job_id>", "none").replace("<file>", "swagger-ui.css")
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                for slash in ("", "/"):
                    answer = api(method, path + slash, **({} if method in {"GET", "DELETE"} else raw("{}")))
                    assert answer.status_code in {200, 400, 404}, path
                    assert "no path" not in answer.text, path
                    unknown = stranger(method, path + slash)
                    assert unknown.status_code == (200 if path.endswith("/health") else 401), path


class TestDatabaseAway:
    @pytest.fixture
    def away(self, refusing: Caller) -> Iterator[Caller]:
        refusing.prefix = "/v1"
        yield refusing

    def test_is_503_in_the_form_with_retry_after(self, away: Caller) -> None:
        for answer in (
            away.get("/jobs"),
            away.post("/jobs", **raw(CREATE_EXAMPLE)),
            away.get("/jobs/a"),
            away("PATCH", "/jobs/a", **raw(UPDATE_EXAMPLE)),
            away.delete("/jobs/a"),
            away.get("/jobs/a/metrics"),
            away.post("/jobs/a/metrics", **raw(RECORD_EXAMPLE)),
        ):
            is_error(answer, 503, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0

    def test_health_is_503_unhealthy(self, away: Caller) -> None:
        away.headers = {}
        answer = away.get("/health")
        assert answer.status_code == 503
        assert set(answer.json) == {"status", "timestamp", "version"}
        assert answer.json["status"] == "unhealthy"
        assert int(answer.headers["Retry-After"]) > 0


def test_a_fault_of_the_server_is_500_internal_error(
    app: Flask, api: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("app.services.observed.list_jobs", broken)
    with caplog.at_level(logging.ERROR):
        answer = api.get("/jobs")
    is_error(answer, 500, "internal_error")
    assert "secret detail" not in answer.text


class TestDocumentation:
    def test_every_route_and_every_field_is_in_it(self, app: Flask, api: Caller) -> None:
        spec = api.get("/openapi.json").json
        served = {
            re.sub(r"<(.*?)>", r"{\1}", rule.rule).removeprefix(CONTRACT.at)
            for rule in app.url_map.iter_rules()
            if rule.rule.startswith(CONTRACT.at + "/") and "docs" not in rule.rule and "openapi" not in rule.rule
        }
        assert set(spec["paths"]) == served
        assert spec["servers"] == [{"url": "/v1"}]
        create(api)
        api.post("/jobs/job-001/metrics", **raw(RECORD_EXAMPLE))
        schemas = spec["components"]["schemas"]
        assert set(api.get("/jobs/job-001").json) == set(schemas["JobShown"]["properties"])
        assert set(api.get("/jobs").json) == set(schemas["JobsListed"]["properties"])
        assert set(api.get("/jobs/job-001/metrics").json) == set(schemas["SamplesListed"]["properties"])
        assert set(api.get("/health").json) == set(schemas["HealthShown"]["properties"])
        assert set(api.get("/none").json) == set(schemas["ErrorShown"]["properties"])

    def test_its_examples_are_the_documents(self, api: Caller) -> None:
        properties = api.get("/openapi.json").json["components"]["schemas"]["JobAsked"]["properties"]
        assert {name: one["example"] for name, one in properties.items()} == json.loads(CREATE_EXAMPLE)
