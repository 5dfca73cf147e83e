"""Output that comes again goes on where it stopped, whatever the engine has dropped of it meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.containers.spool import HEAD_BYTES, Spool
from workers.spool import STDERR, STDOUT, parse_frames

LINES = b"".join(b"%d\n" % number for number in range(20_000))


def text(path: Path, stream: int = STDOUT) -> bytes:
    return b"".join(frame.payload for frame in parse_frames(path.read_bytes()) if frame.stream == stream)


def come_again(spool: Spool, stream: int, data: bytes) -> None:
    spool.again({stream: data[:HEAD_BYTES]})
    for at in range(0, len(data), 1000):
        spool.take(stream, data[at : at + 1000])


@pytest.mark.parametrize("reopened", [False, True], ids=["same-keeper", "next-keeper"])
@pytest.mark.parametrize("dropped", [0, 1, 5_000, 40_000, 59_900, 60_000])
@pytest.mark.parametrize("stream", [STDOUT, STDERR])
def test_output_goes_on_where_it_stopped(tmp_path: Path, stream: int, dropped: int, reopened: bool) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), 1 << 20)
    spool.say("pulling image")
    spool.take(stream, LINES[:60_000])
    if reopened:
        said = spool.said
        spool = Spool(str(path), 1 << 20)
        spool.resume(said)
    come_again(spool, stream, LINES[dropped:])
    told = b"[cfab] pulling image\n" if stream == STDERR else b""
    assert text(path, stream) == told + LINES
    # And once more.
    come_again(spool, stream, LINES[dropped:] + b"end\n")
    assert text(path, stream) == told + LINES + b"end\n"


def test_what_was_dropped_unseen_is_missing_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), 1 << 20)
    spool.take(STDOUT, LINES[:60_000])
    come_again(spool, STDOUT, LINES[70_000:])
    assert text(path) == LINES[:60_000] + LINES[70_000:]


def test_nothing_is_taken_beyond_the_cap(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), 50_000)
    spool.take(STDOUT, LINES[:60_000])
    come_again(spool, STDOUT, LINES)
    assert text(path) == LINES[:50_000] and spool.truncated_bytes == len(LINES) - 50_000


def test_short_output_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), 1 << 20)
    come_again(spool, STDOUT, b"one\n")
    come_again(spool, STDOUT, b"one\ntwo\n")
    come_again(spool, STDOUT, b"one\ntwo\n")
    assert text(path) == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("before", "comes", "whole"),
    [
        (b"first\n", b"end\n", b"first\nend\n"),
        (b"first\nsec", b"second\n", b"first\nsecond\n"),
        (b"first\nsec", b"third\n", b"first\nsecthird\n"),
        (b"", b"first\n", b"first\n"),
    ],
    ids=["all was dropped", "a line had begun", "and was lost with the engine", "nothing yet"],
)
def test_what_comes_when_the_engine_has_nothing_is_new_but_for_a_line_that_had_begun(
    tmp_path: Path, before: bytes, comes: bytes, whole: bytes
) -> None:
    path = tmp_path / "spool"
    spool = Spool(str(path), 1 << 20)
    if before:
        spool.take(STDERR, before)
    spool.again({STDOUT: b"", STDERR: b""})
    spool.take(STDERR, comes)
    assert text(path, STDERR) == whole
