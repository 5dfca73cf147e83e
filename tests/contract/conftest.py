"""The real application on a real, migrated database; a caller with and one without the token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.api.factory import create_app
from app.domain.priority import PriorityClass
from app.storage.database import Database
from config.settings import Settings

TOKEN = "t0ken-of-the-test-stack"
SHA = "ab" * 32
PREFIXES = ("/api/v1", "/jobs/api/v1")


@dataclass
class Bells:
    """Keeps what was rung, in place of a broker."""

    rung: list[PriorityClass] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)
    hinted: list[str] = field(default_factory=list)

    def ring(self, priority_class: PriorityClass) -> None:
        self.rung.append(priority_class)

    def wake_node(self, node: str) -> None:
        self.woken.append(node)

    def hint(self, job_ids: Iterable[UUID]) -> None:
        self.hinted += map(str, job_ids)


class Caller:
    """Sends requests to one application at one prefix, with the token unless told otherwise."""

    def __init__(self, client: FlaskClient, prefix: str = "/api/v1", token: str | None = TOKEN) -> None:
        self.client = client
        self.prefix = prefix
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = {**self.headers, **options.pop("headers", {})}
        return self.client.open(self.prefix + path, method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        return self("GET", path, **options)

    def post(self, path: str, **options: Any) -> TestResponse:
        return self("POST", path, **options)

    def put(self, path: str, **options: Any) -> TestResponse:
        return self("PUT", path, **options)

    def delete(self, path: str, **options: Any) -> TestResponse:
        return self("DELETE", path, **options)

    def submit(self, **changes: Any) -> dict[str, Any]:
        """A job that is now pending."""
        answer = self.post("/jobs", json=job_body(**changes))
        assert answer.status_code == 201, answer.text
        return dict(answer.json)

    def claim(self, executor_id: str = "worker-1-abc123") -> dict[str, Any]:
        """A job that runs on an external executor."""
        answer = self.post("/jobs/claim", json={"executor_id": executor_id, "executor_ip": "192.168.1.100"})
        assert answer.status_code == 200, answer.text
        return dict(answer.json)


def job_body(**changes: Any) -> dict[str, Any]:
    """The document's example of a job, with a real digest; a change to None removes a field."""
    body = {
        "type": "data-processing",
        "binary_url": "https://example.com/binary",
        "binary_sha256": SHA,
        "arguments": ["arg1", "arg2"],
        "env_variables": {"KEY1": "value1", "KEY2": "value2"},
        "priority": "background",
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url, api_token=TOKEN, database_pool=4, api_threads=8, api_streams=4)


@pytest.fixture
def bells() -> Bells:
    return Bells()


@pytest.fixture
def app(settings: Settings, bells: Bells) -> Iterator[Flask]:
    db = Database(settings.database_url, settings.database_pool, "contract-test")
    yield create_app(settings, db, bells)
    db.close()


@pytest.fixture
def api(app: Flask) -> Caller:
    return Caller(app.test_client())


@pytest.fixture
def stranger(app: Flask) -> Caller:
    """Someone without a token."""
    return Caller(app.test_client(), token=None)


@pytest.fixture
def refusing() -> Caller:
    """An application without a database, for requests that are refused before one is asked."""
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/none", api_token=TOKEN)
    return Caller(create_app(settings, ringer=Bells()).test_client())
