"""A bell that we put into Redis is the message that Celery itself would have put there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis

from app.bell_message import encode
from app.bells import BELL, BURST, QUEUE_CAP, Ringer, make_celery
from app.domain.priority import PriorityClass
from config.settings import load_settings
from tests.factories import until
from tests.servers import TestServers


@pytest.fixture
def broker(servers: TestServers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(servers.valkey.url) as client:
        client.delete("background")
        yield client
        client.delete("background")


def without_names(message: dict[str, Any]) -> dict[str, Any]:
    """A message with what differs from one to the next replaced by what must hold for it."""
    headers, properties = message["headers"], message["properties"]
    assert UUID(headers["id"]) and headers["root_id"] == headers["id"] == properties["correlation_id"]
    assert UUID(properties["delivery_tag"]) and properties["delivery_tag"] != headers["id"]
    left = datetime.fromisoformat(headers["expires"]) - datetime.now(UTC)
    assert timedelta(seconds=20) < left <= timedelta(seconds=30)
    same = dict.fromkeys(("id", "root_id", "expires"), "")
    return {
        **message,
        "headers": headers | same,
        # Where answers would go: nobody waits for one.
        "properties": properties | {"correlation_id": "", "delivery_tag": "", "reply_to": ""},
    }


def test_it_is_the_message_that_celery_would_send(servers: TestServers, broker: redis.Redis) -> None:
    app = make_celery(load_settings({}, broker_url=servers.valkey.url))
    app.send_task(BELL, queue="background", expires=30, retry=False, ignore_result=True)
    app.close()
    (sent,) = broker.lrange("background", 0, -1)
    assert without_names(json.loads(encode(BELL, "background", 30))) == without_names(json.loads(sent))


def test_each_has_names_of_its_own() -> None:
    one, other = (json.loads(encode(BELL, "background", 30)) for _ in range(2))
    assert one["headers"]["id"] != other["headers"]["id"]
    assert one["properties"]["delivery_tag"] != other["properties"]["delivery_tag"]


def test_many_rings_make_few_bells_and_a_queue_keeps_the_newest(servers: TestServers, broker: redis.Redis) -> None:
    broker.lpush("background", *["old"] * (QUEUE_CAP - 1))
    ringer = Ringer(load_settings({}, broker_url=servers.valkey.url))
    for count in (1, 1, 1000):
        before = broker.lindex("background", 0)
        ringer.ring(PriorityClass.BACKGROUND, count)
        until(lambda before=before: broker.lindex("background", 0) != before)
        until(lambda: broker.llen("background") == QUEUE_CAP)
    ringer.close()
    waiting = broker.lrange("background", 0, -1)
    assert len(waiting) == QUEUE_CAP and ringer.dropped == 0
    assert [one != b"old" for one in waiting] == [True] * (BURST + 2) + [False] * (QUEUE_CAP - BURST - 2)
