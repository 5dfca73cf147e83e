"""A stream as server-sent events (WHATWG HTML, section 9.2). Comments are sent while nothing happens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from app.api.live.feed import Beat, Message

RETRY_MS = 1000


def encode(message: Message) -> str:
    """One event's text."""
    head = f"id: {message.id}\n" if message.id is not None else ""
    return f"{head}event: {message.name}\ndata: {json.dumps(message.data, separators=(',', ':'))}\n\n"


def text(told: Iterable[Message | Beat]) -> Iterator[str]:
    """The stream's text, event by event; the first is sent at once, so that a client sees that it is connected."""
    for one in told:
        if isinstance(one, Message):
            yield encode(one)
        elif one is Beat.OPEN:
            yield f"retry: {RETRY_MS}\n\n"
        else:
            yield f": {one.value}\n\n"
