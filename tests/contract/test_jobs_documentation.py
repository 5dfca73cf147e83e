"""OpenAPI and Swagger UI of the jobs contract: true, complete, and served from this machine alone."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from flask import Flask

from app.api.jobs.contract import CONTRACT
from tests.contract.conftest import PREFIXES, TOKEN, Caller
from tests.contract.jobs_document import COMPLETE_EXAMPLE, is_error, raw


@pytest.fixture
def spec(api: Caller) -> dict[str, Any]:
    return dict(api.get("/openapi.json").json)


def properties(spec: dict[str, Any], path: str, method: str, status: str) -> set[str]:
    schema = spec["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]
    name = (schema.get("items") or schema)["$ref"].rpartition("/")[2]
    return set(spec["components"]["schemas"][name]["properties"])


def test_every_route_is_in_it_and_paths_are_relative_to_the_readers_prefix(app: Flask, api: Caller) -> None:
    for prefix in PREFIXES:
        api.prefix = prefix
        spec = api.get("/openapi.json/").json
        assert spec["openapi"].startswith("3.")
        assert spec["servers"] == [{"url": prefix}]
        documented = {re.sub(r"\{.*?\}", "", path) for path in spec["paths"]}
        served = {
            re.sub(r"<.*?>", "", rule.rule).removeprefix(CONTRACT.at)
            for rule in app.url_map.iter_rules()
            if rule.rule.startswith(CONTRACT.at + "/") and "docs" not in rule.rule and "openapi" not in rule.rule
        }
        assert documented == served


def test_answers_have_exactly_the_documented_fields(api: Caller, spec: dict[str, Any]) -> None:
    submitted = api.submit()
    bulk = api.post("/jobs/bulk", json=[]).json
    assert set(bulk) == set(spec["components"]["schemas"]["ErrorShown"]["properties"])
    claimed = api.claim()
    job = claimed["id"]
    beat = api.put(f"/jobs/{job}/heartbeat", json={"executor_id": "worker-1-abc123"}).json
    done = api.put(f"/jobs/{job}/complete", **raw(COMPLETE_EXAMPLE)).json
    shown = api.get(f"/jobs/{job}").json
    lines = api.get(f"/jobs/{job}/logs", headers={"Accept": "application/json"}).json
    expected = {
        ("/jobs", "post", "201"): submitted,
        ("/jobs", "get", "200"): api.get("/jobs").json[0],
        ("/jobs/{job_id}", "get", "200"): shown,
        ("/jobs/claim", "post", "200"): claimed,
        ("/jobs/{job_id}/heartbeat", "put", "200"): beat,
        ("/jobs/{job_id}/complete", "put", "200"): done,
        ("/jobs/{job_id}/logs", "get", "200"): lines,
        ("/admin/stats", "get", "200"): api.get("/admin/stats").json,
        ("/admin/executors", "get", "200"): api.get("/admin/executors").json[0],
        ("/health", "get", "200"): api.get("/health").json,
        ("/jobs/bulk/cancel", "post", "200"): api.post("/jobs/bulk/cancel", json={"job_ids": [job]}).json,
    }
    for (path, method, status), answer in expected.items():
        assert set(answer) == properties(spec, path, method, status), path
    attempt = set(spec["components"]["schemas"]["AttemptShown"]["properties"])
    assert set(shown["attempts"][0]) == attempt


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_page_loads_from_this_server_only(api: Caller, prefix: str) -> None:
    api.prefix = prefix
    page = api.get("/docs")
    assert page.status_code == 200
    assert page.mimetype == "text/html"
    addresses = re.findall(r'(?:src|href)="(.*?)"', page.text)
    assert len(addresses) == 4
    api.prefix = ""
    for address in addresses:
        assert address.startswith(prefix + "/")
        assert api.get(address).status_code == 200
    assert "//" not in "".join(addresses)


def test_a_browser_can_send_the_token_as_a_password_but_only_for_the_pages(stranger: Caller) -> None:
    asked = stranger.get("/docs")
    is_error(asked, 401)
    assert asked.headers["WWW-Authenticate"].startswith("Basic")
    basic = base64.b64encode(f"cfab:{TOKEN}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}"}
    assert stranger.get("/docs", headers=headers).status_code == 200
    assert stranger.get("/openapi.json", headers=headers).status_code == 200
    is_error(stranger.get("/jobs", headers=headers), 401)
    wrong = base64.b64encode(b"cfab:wrong").decode()
    is_error(stranger.get("/docs", headers={"Authorization": f"Basic {wrong}"}), 401)


def test_no_other_file_is_served(api: Caller) -> None:
    for name in ("../__init__.py", "..%2f__init__.py", "oauth2-redirect.html", "x"):
        is_error(api.get(f"/docs/assets/{name}"), 404)
