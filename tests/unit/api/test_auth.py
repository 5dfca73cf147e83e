"""Roles, and what counts as this machine."""

from __future__ import annotations

from uuid import UUID

import pytest
from flask import Flask, Request

from app.api import auth, errors
from app.api.auth import EXECUTOR, OPERATOR, USER, Identity, TenantBook, is_loopback_name
from app.api.jobs.translate import JobsErrorForm
from config.settings import Settings


class ByHeader:
    """Gives the role that a header names."""

    def authenticate(self, request: Request) -> Identity:
        return Identity(frozenset({request.headers["Role"]}), "test", UUID(int=1))


@pytest.mark.parametrize(
    ("route", "allowed"),
    [
        ("/plain", {"user", "admin"}),
        ("/executors", {"executor", "admin"}),
        ("/both", {"executor", "operator", "admin"}),
    ],
)
def test_a_role_opens_what_is_marked_for_it(route: str, allowed: set[str]) -> None:
    app = Flask("test")
    auth.install(app, ByHeader(), Settings(), TenantBook(lambda _: None))
    form = JobsErrorForm()
    errors.install(app, errors.ErrorForms({"": form}))
    app.add_url_rule("/plain", "plain", lambda: "ok")
    app.add_url_rule("/executors", "executors", auth.needs(EXECUTOR)(lambda: "ok"))
    app.add_url_rule("/both", "both", auth.needs(EXECUTOR, OPERATOR)(lambda: "ok"))
    client = app.test_client()
    for role in (USER, EXECUTOR, OPERATOR, auth.ADMIN):
        answer = client.get(route, headers={"Role": role})
        assert answer.status_code == (200 if role in allowed else 403), role
        assert client.post(route, headers={"Role": role}).status_code == 405


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "localhost.", "127.0.0.1", "127.255.0.1", "::1"])
def test_loopback_names(name: str) -> None:
    assert is_loopback_name(name)


@pytest.mark.parametrize(
    "name", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.com", "127.0.0.1.nip.io", "2130706433", "127.1", "[::1]", "a"]
)
def test_other_names(name: str) -> None:
    assert not is_loopback_name(name)
