"""The life of one stream, whatever it tells and however it is sent: read, tell, wait to be woken, until it ends.

No transaction is open between two looks, and a database that is away for a while is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from threading import Event
from typing import Any, Protocol

from app.domain.errors import NotFound, Unavailable
from app.services.watch import Subscription, Watch

HEARTBEAT_S = 15.0
OUTAGE_S = 60.0
OUTAGE_PAUSE_S = 0.5


@dataclass(frozen=True)
class Message:
    """One event as a contract shows it: its name, its data (JSON), and the id after which a client goes on."""

    name: str
    data: Mapping[str, Any]
    id: str | None = None


class Next(Enum):
    """What a feed knows of its future: read again at once, wait for news, or nothing will come any more."""

    MORE = "more"
    WAIT = "wait"
    ENDED = "ended"


class Feed(Protocol):
    """What a stream tells. Used by one thread."""

    def subscribe(self, watch: Watch) -> AbstractContextManager[Subscription]:
        """The bell that rings when there is news."""

    def read(self, version: int) -> tuple[Sequence[Message], Next]:
        """What is new since the last call. Raises Unavailable to be asked again, NotFound to end the stream.

        `version` is the subscription's, taken before the call.
        """


class Beat(Enum):
    """What a stream says besides its events; the last three are its very last word when it is cut."""

    OPEN = "connected"
    HEARTBEAT = "still here"
    EXPIRED = "token expired"
    CLOSING = "server stops"
    AWAY = "database away"


@dataclass(frozen=True)
class Life:
    """What bounds a stream: the server's end, the token's end (unix time), the client's leaving."""

    closing: Event
    expires_at: float | None = None
    left: Callable[[], bool] = bool
    heartbeat_s: float = HEARTBEAT_S

    def over(self) -> Beat | None:
        """Why the stream must be cut now, if it must."""
        if self.closing.is_set():
            return Beat.CLOSING
        if self.expires_at is not None and time.time() >= self.expires_at:
            return Beat.EXPIRED
        return None

    def patience_s(self, beaten: float) -> float:
        """How long the stream may sleep."""
        until_beat = max(0.0, beaten + self.heartbeat_s - time.monotonic())
        until_end = max(0.0, self.expires_at - time.time()) if self.expires_at is not None else until_beat
        return min(until_beat, until_end)


def run(feed: Feed, subscription: Subscription, life: Life) -> Iterator[Message | Beat]:
    """Everything that the stream says, until its feed ends, it is cut, or its client has left."""
    yield Beat.OPEN
    beaten = answered = time.monotonic()
    coming, known = Next.MORE, -1
    while True:
        over = life.over()
        if over is not None:
            yield over
            return
        version, away = subscription.version, False
        if coming is Next.MORE or version != known:
            try:
                messages, coming = feed.read(version)
                answered, known = time.monotonic(), version
                yield from messages
            except Unavailable:
                away, coming = True, Next.MORE
            except NotFound:
                return
        if coming is Next.ENDED:
            return
        if away and time.monotonic() - answered > OUTAGE_S:
            yield Beat.AWAY
            return
        if time.monotonic() - beaten >= life.heartbeat_s:
            beaten = time.monotonic()
            yield Beat.HEARTBEAT
        if coming is Next.WAIT or away:
            subscription.wait(OUTAGE_PAUSE_S if away else life.patience_s(beaten))
            if life.left():
                return
