"""Hints over Redis that a job has news: they only hurry a look into PostgreSQL, so any of them may be lost.

A message is a JSON object: `jobs`, the ids, and `state`, whether more than output is new.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from uuid import UUID

import redis

log = logging.getLogger(__name__)

CHANNEL = "cfab.live"
JOBS_AT_A_TIME = 500
HEAR_S = 1.0


def encode(job_ids: Iterable[UUID], state: bool) -> str:
    """The message for these jobs."""
    return json.dumps({"jobs": [job_id.hex for job_id in job_ids], "state": state}, separators=(",", ":"))


def decode(data: bytes) -> tuple[frozenset[UUID], bool]:
    """The jobs of a message and whether a state is new. Raises ValueError for what is no such message."""
    message = json.loads(data)
    try:
        jobs = frozenset(UUID(hex=text) for text in message["jobs"][:JOBS_AT_A_TIME])
        return jobs, bool(message["state"])
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"{data[:80]!r} is no hint") from exc


def hear(broker_url: str, wanted: Callable[[], bool]) -> Iterator[tuple[frozenset[UUID], bool] | None]:
    """Hints as they come, as long as `wanted`; None once connected, and every HEAR_S without one.

    Raises redis.RedisError or OSError when the broker is away. Whoever could publish nonsense is not believed: what
    is no hint is skipped.
    """
    client = redis.Redis.from_url(broker_url, socket_connect_timeout=1, socket_timeout=5, health_check_interval=10)
    listener = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    try:
        listener.subscribe(CHANNEL)
        yield None
        while wanted():
            message = listener.get_message(timeout=HEAR_S)
            if message is None:
                yield None
                continue
            try:
                yield decode(message["data"])
            except ValueError as exc:
                log.debug("hint skipped: %s", exc)
    finally:
        listener.close()
        client.close()
