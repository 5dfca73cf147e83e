"""The framed spool: what a reader may rely on while the keeper is still writing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.spool import STDERR, STDOUT, Frame, SpoolCorrupt, complete_length, pack_header, parse_frames, read_frames

FRAMES = st.lists(
    st.tuples(st.sampled_from([STDOUT, STDERR]), st.floats(0, 4e9), st.binary(min_size=1, max_size=50)), max_size=8
)


def packed(frames: list[tuple[int, float, bytes]]) -> bytes:
    return b"".join(pack_header(stream, wall, len(data)) + data for stream, wall, data in frames)


@given(FRAMES)
def test_what_is_packed_is_parsed(frames: list[tuple[int, float, bytes]]) -> None:
    assert list(parse_frames(packed(frames))) == [Frame(*frame) for frame in frames]


@given(FRAMES, st.data())
def test_torn_end_is_left_for_later(frames: list[tuple[int, float, bytes]], data: st.DataObject) -> None:
    whole = packed(frames)
    cut = data.draw(st.integers(0, len(whole)))
    usable = complete_length(whole[:cut])
    assert usable <= cut
    assert list(parse_frames(whole[:usable])) + list(parse_frames(whole[usable:])) == list(parse_frames(whole))


def test_reading_in_small_steps_gives_everything_once(tmp_path: Path) -> None:
    frames = [(STDOUT, 1.0, b"a" * 100), (STDERR, 2.0, b"b"), (STDOUT, 3.0, b"c" * 5000)]
    spool = tmp_path / "spool"
    spool.write_bytes(packed(frames))
    offset, pieces = 0, []
    while True:
        data, following = read_frames(spool, offset, 20)
        if following == offset:
            break
        pieces.append(data)
        offset = following
    assert b"".join(pieces) == packed(frames)
    assert offset == spool.stat().st_size


def test_missing_spool_reads_as_empty(tmp_path: Path) -> None:
    assert read_frames(tmp_path / "none", 0, 100) == (b"", 0)


def test_offset_that_is_no_boundary_is_told() -> None:
    with pytest.raises(SpoolCorrupt, match="stream 255"):
        complete_length(b"\xff" * 40)
