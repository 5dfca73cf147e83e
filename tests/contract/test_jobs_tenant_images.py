"""What a tenant's images must be, in the jobs contract: who may see and change it, and what it does to submits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask, Request

from app.api.auth import ADMIN, OPERATOR, USER, Identity
from app.api.factory import create_app
from config.settings import Settings
from tests.contract.conftest import TOKEN, Bells, Caller
from tests.contract.jobs_document import is_error
from tests.signing import Signer

AT = "/tenants/default/images"
PLAIN = {"policy": None, "effective_policy": "off", "keys": [], "repositories": [], "credentials": {}}
COMPUTE = "/api/v1/runtime/compute"
As = Callable[..., Caller]


@pytest.fixture
def as_(settings: Settings, app: Flask, monkeypatch: pytest.MonkeyPatch) -> As:
    """Callers of any tenant with any roles, on the same database."""
    db = app.extensions["cfab"].db

    def caller(tenant: str, *roles: str) -> Caller:
        class Fixed:
            def authenticate(self, request: Request) -> Identity:
                return Identity(frozenset(roles), "someone", UUID(tenant))

        monkeypatch.setattr("app.api.auth.authenticator", lambda *_args, **_options: Fixed())
        return Caller(create_app(settings, db, Bells()).test_client())

    return caller


def test_nothing_is_asked_of_images_at_first(api: Caller) -> None:
    assert api.get(AT).json == PLAIN


def test_each_field_is_changed_as_a_whole_and_the_others_stay(api: Caller) -> None:
    pem = Signer().pem
    first = api("PATCH", AT, json={"policy": "signed", "keys": [{"name": "ci", "pem": pem}]})
    assert first.status_code == 200, first.text
    assert first.json["keys"][0]["pem"] == pem and len(first.json["keys"][0]["sha256"]) == 64
    more = {"repositories": ["ghcr.io/acme"], "credentials": {"ghcr.io": "team"}}
    second = api("PATCH", AT, json=more).json
    assert second == {**first.json, **more, "effective_policy": "signed"}
    assert api("PATCH", AT, json={"policy": None, "keys": [], "repositories": [], "credentials": {}}).json == PLAIN


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"policy": "maybe"}, "policy"),
        ({"keys": None}, "keys"),
        ({"keys": [{"name": "ci"}]}, "keys[0].pem"),
        ({"keys": [{"name": "ci", "pem": "x"}]}, "keys[0].pem"),
        ({"keys": [None]}, "keys[0]"),
        ({"repositories": "ghcr.io"}, "repositories"),
        ({"repositories": ["acme"]}, "repositories[0]"),
        ({"credentials": {"ghcr.io": "../secret"}}, "credentials.ghcr.io"),
        ({"credentials": {"ghcr.io": {"password": "x"}}}, "credentials.ghcr.io.value"),
        ({"color": 1}, "color"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_field(api: Caller, body: dict[str, object], field: str) -> None:
    assert is_error(api("PATCH", AT, json=body), 400)["field"] == field


def test_a_private_key_is_refused_and_not_echoed(api: Caller) -> None:
    pem = "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----"
    answer = api("PATCH", AT, json={"keys": [{"name": "ci", "pem": pem}]})
    is_error(answer, 400)
    assert "private key" in answer.json["error"] and "c2VjcmV0" not in answer.text


def test_admins_change_operators_and_the_tenant_see(api: Caller, as_: As) -> None:
    other = api.post("/tenants", json={"name": "other"}).json["id"]
    default = api.get("/tenants/default").json["id"]
    assert as_(other, OPERATOR).get(AT).json == PLAIN
    assert as_(default, USER).get(AT).json == PLAIN
    is_error(as_(other, USER).get(AT), 404)
    for role in (USER, OPERATOR):
        is_error(as_(default, role)("PATCH", AT, json={"policy": "off"}), 403)
    assert as_(other, ADMIN)("PATCH", AT, json={"policy": "digest"}).status_code == 200
    is_error(api.get("/tenants/nobody/images"), 404)


def test_policy_decides_about_submits_in_every_contract_with_images(api: Caller) -> None:
    api("PATCH", AT, json={"policy": "digest"})
    tag, digest = "ghcr.io/acme/tool:1", f"ghcr.io/acme/tool@sha256:{'a' * 64}"
    bodies: dict[str, dict[str, Any]] = {
        COMPUTE + "/jobs": {},
        "/jobs/api/v1/jobs": {"type": "tool", "priority": "background"},
        "/ai/api/v1/jobs/": {"job_type": "training"},
        "/gpu/api/v1/jobs": {"name": "tool", "priority": 100},
    }
    for path, body in bodies.items():
        caller = Caller(api.client, "")
        refused = caller.post(path, json={**body, "image": tag})
        assert refused.status_code == 403 and "by its digest" in refused.text, refused.text
        accepted = caller.post(path, json={**body, "image": digest})
        assert accepted.status_code == 201, accepted.text


def test_answer_of_a_key_stands_when_the_policy_has_changed_since(api: Caller) -> None:
    caller = Caller(api.client, COMPUTE)
    key = {"X-Request-Id": "once"}
    body = {"image": "ghcr.io/acme/tool:1"}
    first = caller.post("/jobs", json=body, headers=key)
    api("PATCH", AT, json={"policy": "digest"})
    again = caller.post("/jobs", json=body, headers=key)
    assert (again.status_code, again.json) == (201, first.json)
    assert caller.post("/jobs", json=body, headers={"X-Request-Id": "twice"}).status_code == 403


def test_registry_that_is_away_is_503_with_a_time_to_come_again(settings: Settings, app: Flask) -> None:
    closed = replace(
        settings, registry_hosts=("http://127.0.0.1:1",), image_signatures="signed", image_keys=Signer().pem
    )
    client = create_app(closed, app.extensions["cfab"].db, Bells()).test_client()
    answer = Caller(client, COMPUTE, TOKEN).post("/jobs", json={"image": "127.0.0.1:1/acme/tool:1"})
    assert (answer.status_code, answer.json["error"]) == (503, "dependency_down")
    assert int(answer.headers["Retry-After"]) > 0 and "cannot be used now" in answer.json["message"]
