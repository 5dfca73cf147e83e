"""Event streams are understood however the bytes arrive."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.cli.sse import Event, parse

STREAM = (
    'retry: 1000\nid: 1:0\nevent: log\ndata: {"a": 1}\n\n: beat\n\ndata: zwei\ndata:3 é\nid: 1:9\n\ndata: cut'
).encode()
EVENTS = [Event("log", '{"a": 1}', "1:0"), None, Event("message", "zwei\n3 é", "1:9")]


@given(cuts=st.lists(st.integers(0, len(STREAM) + 10)), end=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_do_not_depend_on_cuts_or_line_ends(cuts: list[int], end: bytes) -> None:
    stream = STREAM.replace(b"\n", end)
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(places)]
    assert list(parse(chunks)) == EVENTS


def test_an_event_is_given_before_the_next_chunk_is_asked_for() -> None:
    def chunks() -> object:
        yield b"data: now\r\n\r"
        raise AssertionError("the event was held back")

    assert next(parse(chunks())) == Event("message", "now", None)  # type: ignore[arg-type]


def test_an_event_that_the_end_cuts_off_is_dropped() -> None:
    assert list(parse([b"id: 5\ndata: whole\n\nid: 6\ndata: half\n"])) == [Event("message", "whole", "5")]
