"""Registry credentials are found by the image's host, in the file that `docker login` writes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from workers.agent.registries import credentials_for

AUTH = base64.b64encode(b"me:a:b").decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    auths = {"reg.example:5000": {"auth": AUTH}, "https://index.docker.io/v1/": {"username": "u", "password": "p"},
             "https://token.example": {"identitytoken": "t"}}  # fmt: skip
    path.write_text(json.dumps({"auths": auths}))
    return path


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("reg.example:5000/a/b:1", {"username": "me", "password": "a:b", "serveraddress": "reg.example:5000"}),
        ("busybox", {"username": "u", "password": "p", "serveraddress": "docker.io"}),
        ("token.example/x", {"identitytoken": "t", "serveraddress": "token.example"}),
        ("reg.example/a", None),
        ("NOT an image", None),
    ],
)
def test_host_decides(file: Path, image: str, found: dict[str, str] | None) -> None:
    assert credentials_for(image, str(file)) == found


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"auths": {"a.b": 3}}', '{"auths": {"a.b": {"auth": "secret!"}}}'])
def test_unusable_file_is_logged_without_its_content(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert credentials_for("a.b/c", str(path)) is None
    assert "cannot be used" in caplog.text and "secret" not in caplog.text


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert credentials_for("a.b/c", "") is None
    assert credentials_for("a.b/c", str(tmp_path / "absent")) is None
