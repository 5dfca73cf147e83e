"""The life of a stream: it outlasts outages, says that it lives, and ends when it must."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event

from app.api.live import sse
from app.api.live.feed import Beat, Life, Message, Next, run
from app.api.live.shared_reads import SharedReads
from app.domain.errors import NotFound, Unavailable
from app.services.watch import Subscription, Watch
from tests.factories import at_once

Step = tuple[Sequence[Message], Next] | Exception


class Scripted:
    """A feed that does what it is told, step by step."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)
        self.reads = 0

    @contextmanager
    def subscribe(self, watch: Watch) -> Iterator[Subscription]:
        yield Subscription()

    def read(self, version: int) -> tuple[Sequence[Message], Next]:
        self.reads += 1
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


def message(number: int) -> Message:
    return Message("log", {"n": number}, str(number))


def said(feed: Scripted, life: Life | None = None, subscription: Subscription | None = None) -> list[Message | Beat]:
    return list(run(feed, subscription or Subscription(), life or Life(Event())))


def test_everything_is_told_until_the_feed_ends() -> None:
    feed = Scripted(([message(1)], Next.MORE), ([message(2), message(3)], Next.ENDED))
    assert said(feed) == [Beat.OPEN, message(1), message(2), message(3)]


def test_a_database_that_is_away_is_asked_again() -> None:
    subscription = Subscription()
    subscription.wake()
    assert said(Scripted(Unavailable(), ([message(1)], Next.ENDED)), subscription=subscription) == [
        Beat.OPEN,
        message(1),
    ]


def test_a_thing_that_is_gone_ends_the_stream() -> None:
    assert said(Scripted(NotFound())) == [Beat.OPEN]


def test_nothing_is_read_again_without_news() -> None:
    feed, woken = Scripted(([], Next.WAIT), ([], Next.ENDED)), [0]
    subscription = Subscription()

    def left() -> bool:
        woken[0] += 1
        if woken[0] < 3:
            subscription.wake()
        else:
            subscription.version += 1
        return False

    subscription.wake()
    assert said(feed, Life(Event(), left=left), subscription) == [Beat.OPEN]
    assert (feed.reads, woken[0]) == (2, 3)


def test_a_silent_stream_says_that_it_lives() -> None:
    told = run(Scripted(([], Next.WAIT)), Subscription(), Life(Event(), heartbeat_s=0.01))
    assert [next(told) for _ in range(3)] == [Beat.OPEN, Beat.HEARTBEAT, Beat.HEARTBEAT]


def test_the_end_of_the_token_ends_it() -> None:
    assert said(Scripted(([], Next.WAIT)), Life(Event(), expires_at=time.time() + 0.02)) == [Beat.OPEN, Beat.EXPIRED]


def test_the_end_of_the_server_ends_it() -> None:
    closing = Event()
    closing.set()
    assert said(Scripted(), Life(closing)) == [Beat.OPEN, Beat.CLOSING]


def test_the_client_that_leaves_ends_it() -> None:
    subscription = Subscription()
    subscription.wake()
    assert said(Scripted(([], Next.WAIT)), Life(Event(), left=lambda: True), subscription) == [Beat.OPEN]


def test_events_are_one_line_of_ascii_whatever_they_say() -> None:
    told = sse.encode(Message("log", {"text": "a\r\n\u2028\x1b€"}, "1:2"))
    assert told == 'id: 1:2\nevent: log\ndata: {"text":"a\\r\\n\\u2028\\u001b\\u20ac"}\n\n'


def test_many_readers_of_one_place_read_once() -> None:
    reads, began = SharedReads(4), Event()
    count: list[int] = []

    def read() -> int:
        count.append(1)
        began.wait(0.05)
        return 7

    assert at_once(20, lambda _: reads.get("place", read)) == [7] * 20
    assert len(count) == 1


def test_what_fails_is_read_again() -> None:
    reads = SharedReads(1)

    def fail() -> int:
        raise Unavailable

    for read, expected in ((fail, None), (lambda: 1, 1), (fail, 1)):
        assert _or_none(reads, read) == expected


def _or_none(reads: SharedReads, read: Callable[[], int]) -> int | None:
    try:
        return reads.get("place", read)
    except Unavailable:
        return None
