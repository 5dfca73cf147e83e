"""Output as a reader asks for it: one stream or both, the last lines, as bytes or as text. Pure but for reading on."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from app.services.logs import FABRIC, STDERR, STDOUT, Frame, LogSlice
from app.services.plain_text import Plain, stamp_of

STREAMS = {"stdout": STDOUT, "stderr": STDERR, "fabric": FABRIC}
STREAM_WORD = {number: word for word, number in STREAMS.items()}

MAX_LINES = 10_000
MAX_LINES_BYTES = 8 * 2**20

Read = Callable[[int], LogSlice]
"""Reads an attempt's output from a position on."""


def slices(read: Read, first: LogSlice) -> Iterator[LogSlice]:
    """`first` and what is stored behind it now."""
    part = first
    while part.frames:
        yield part
        if part.ended:
            return
        part = read(part.next_position)


def only(frames: Iterable[Frame], stream: int | None) -> Iterator[Frame]:
    """The frames of one stream, or all; and always what says that something is missing."""
    return (frame for frame in frames if stream is None or frame.stream in {stream, FABRIC})


def own_lines(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frames, with the fabric's words on lines of their own."""
    last = b"\n"
    for frame in frames:
        if frame.stream == FABRIC and not last.endswith(b"\n"):
            frame = replace(frame, data=b"\n" + frame.data)
        last = frame.data or last
        yield frame


def stamped(frames: Iterable[Frame], stamp_of: Callable[[float], str] = stamp_of) -> Iterator[Frame]:
    """Each line with the time at which its first byte came, as `stamp_of` writes it, before it."""
    begins = True
    for frame in frames:
        if not frame.data:
            continue
        stamp = stamp_of(frame.at).encode()
        ends = frame.data.endswith(b"\n")
        body = frame.data[:-1] if ends else frame.data
        told = (stamp if begins else b"") + body.replace(b"\n", b"\n" + stamp) + (b"\n" if ends else b"")
        begins = ends
        yield replace(frame, data=told)


def as_text(frames: Iterable[Frame]) -> Iterator[str]:
    """Text that is safe to show in a terminal: invalid UTF-8 is U+FFFD, control sequences are gone."""
    decode = codecs.getincrementaldecoder("utf-8")("replace")
    plain = Plain()
    for frame in frames:
        text = plain.feed(decode.decode(frame.data))
        if text:
            yield text
    yield plain.feed(decode.decode(b"", final=True)) + plain.rest()


def last_lines(frames: Iterable[Frame], count: int) -> list[Frame]:
    """The last `count` lines, of which the last may be unfinished; holds little more than those in memory."""
    kept: deque[tuple[Frame, int]] = deque()
    ends = 0
    for frame in frames:
        if not frame.data:
            continue
        found = frame.data.count(b"\n")
        kept.append((frame, found))
        ends += found
        # What stays must still hold `count` line ends before its own last byte, whatever comes.
        while len(kept) > 1 and ends - kept[0][1] > count:
            ends -= kept.popleft()[1]
    if not kept:
        return []
    skip = ends + (0 if kept[-1][0].data.endswith(b"\n") else 1) - count
    while kept and skip > 0:
        frame, found = kept.popleft()
        if found >= skip:
            rest = frame.data.split(b"\n", skip)[skip]
            if rest:
                kept.appendleft((replace(frame, data=rest), found - skip))
        skip -= found
    return [frame for frame, _ in kept]


def as_lines(frames: Iterable[Frame], tail: int | None) -> tuple[list[str], bool]:
    """At most MAX_LINES lines and MAX_LINES_BYTES from the end, and whether the output has more than was given."""
    wanted = MAX_LINES if tail is None else min(tail, MAX_LINES)
    counter = _Counter()
    kept = last_lines(counter.over(frames), wanted)
    lines = b"".join(frame.data for frame in kept).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    kept_lines = _within_bytes(lines)
    truncated = counter.lines > len(kept_lines) or kept_lines[-1:] != lines[-1:]
    return [line.decode("utf-8", "replace") for line in kept_lines], truncated


def _within_bytes(lines: list[bytes]) -> list[bytes]:
    """As many of the last lines as MAX_LINES_BYTES hold; of a last line that is longer, its end."""
    size = 0
    for place in range(len(lines) - 1, -1, -1):
        size += len(lines[place]) + 1
        if size > MAX_LINES_BYTES:
            return lines[place + 1 :] or [lines[place][1 - MAX_LINES_BYTES :]]
    return lines


class _Counter:
    """Counts the lines of frames that pass."""

    def __init__(self) -> None:
        self._ends = 0
        self._last = b"\n"

    def over(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self._ends += frame.data.count(b"\n")
            self._last = frame.data or self._last
            yield frame

    @property
    def lines(self) -> int:
        return self._ends + (0 if self._last.endswith(b"\n") else 1)
