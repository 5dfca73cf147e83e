"""Registry credentials: a tenant's own by its reference, else the host's; found by registry, never told to a log."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.services.registry_logins import Chosen, LoginMissing, login_for

AUTH = base64.b64encode(b"me:a:b").decode()
TENANT = UUID(int=7)
REGISTRY = "reg.example:5000"


def write(path: Path, auths: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": auths}))


def chosen(registry: str, directory: Path | str = "", shared: Path | str = "", **credentials: str) -> Chosen:
    return login_for(registry, TENANT, "lab", credentials or {}, str(directory), str(shared))


@pytest.mark.parametrize(
    ("registry", "engine"),
    [
        (REGISTRY, {"username": "me", "password": "a:b", "serveraddress": REGISTRY}),
        ("docker.io", {"username": "u", "password": "p", "serveraddress": "docker.io"}),
        ("token.example", {"identitytoken": "t", "serveraddress": "token.example"}),
        ("reg.example", None),
    ],
)
def test_host_s_own_file_is_for_everybody(tmp_path: Path, registry: str, engine: dict[str, str] | None) -> None:
    auths = {REGISTRY: {"auth": AUTH}, "https://index.docker.io/v1/": {"username": "u", "password": "p"},
             "https://token.example": {"identitytoken": "t"}}  # fmt: skip
    write(tmp_path / "config.json", auths)
    login, owner = chosen(registry, shared=tmp_path / "config.json")
    assert owner == ""
    assert (None if login is None else login.as_engine_takes_it(registry)) == engine


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"auths": {"a.b": 3}}', '{"auths": {"a.b": {"auth": "secret!"}}}'])
def test_unusable_file_of_the_host_is_logged_without_its_content(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text(text)
    assert chosen("a.b", shared=tmp_path / "config.json").login is None
    assert "cannot be used" in caplog.text and "secret" not in caplog.text


def test_without_files_there_are_none(tmp_path: Path) -> None:
    assert chosen("a.b") == chosen("a.b", shared=tmp_path / "absent") == Chosen(None, "")


@pytest.mark.parametrize("folder", ["lab", str(TENANT)])
def test_tenant_s_own_goes_before_the_host_s(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "config.json", {REGISTRY: {"auth": AUTH}})
    write(tmp_path / folder / "ours.json", {REGISTRY: {"username": "lab", "password": "x"}})
    found = login_for(REGISTRY, TENANT, "lab", {REGISTRY: "ours"}, str(tmp_path), str(tmp_path / "config.json"))
    assert found.login is not None and found.login.username == "lab"
    assert found.owner == str(TENANT)
    assert "x" not in repr(found.login)


@pytest.mark.parametrize(
    ("auths", "why"),
    [
        (None, "is not on this host"),
        ({"other.example": {"auth": AUTH}}, "does not name reg.example"),
        ({REGISTRY: {"auth": "c2VjcmV0!"}}, "cannot be read"),
        ({REGISTRY: 3}, "cannot be read"),
    ],
)
def test_named_credential_that_cannot_be_used_is_missing_without_a_word_of_it(
    tmp_path: Path, auths: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if auths is not None:
        write(tmp_path / "lab" / "ours.json", auths)
    with pytest.raises(LoginMissing, match=why) as missing:
        login_for(REGISTRY, TENANT, "lab", {REGISTRY: "ours"}, str(tmp_path), "")
    assert "c2Vj" not in str(missing.value) + caplog.text


def test_another_tenant_s_file_is_never_read(tmp_path: Path) -> None:
    write(tmp_path / "other" / "ours.json", {REGISTRY: {"auth": AUTH}})
    with pytest.raises(LoginMissing):
        login_for(REGISTRY, TENANT, "lab", {REGISTRY: "ours"}, str(tmp_path), "")
    assert chosen(REGISTRY, tmp_path).login is None


def test_host_without_a_directory_says_so() -> None:
    with pytest.raises(LoginMissing, match="CFAB_REGISTRY_CREDENTIALS_DIR"):
        login_for(REGISTRY, TENANT, "lab", {REGISTRY: "ours"}, "", "")
