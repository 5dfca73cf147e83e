"""Server-sent events from bytes as they arrive (WHATWG HTML, section 9.2.6). Knows nothing of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event: its name (`message` when the server named none), its data, and the last id seen so far."""

    name: str
    data: str
    id: str | None


def parse(chunks: Iterable[bytes]) -> Iterator[Event | None]:
    """Events in order, however the bytes are cut; None for each comment, the sign that a server lives.

    An event cut off by the stream's end is dropped, as specified: a reconnect brings it again.
    """
    name, last_id = "", None
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield Event(name or "message", "\n".join(data), last_id)
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "":
            yield None
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            last_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Complete lines without their ends, which may be LF, CRLF or CR; the unfinished last one is dropped.

    A CR that ends a chunk ends its line at once, so no event waits; an LF that follows is skipped.
    """
    held: list[bytes] = []
    after_cr = False
    for chunk in chunks:
        if after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            after_cr = False
        if not chunk:
            continue
        after_cr = chunk.endswith(b"\r")
        *ended, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in ended:
            yield b"".join((*held, line)).decode("utf-8", "replace")
            held.clear()
        if rest:
            held.append(rest)
