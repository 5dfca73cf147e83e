"""The end of an output, against the plain way to cut it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.api.jobs.log_lines import MAX_LINES_BYTES, as_lines, last_lines
from app.services.logs import Frame

pieces = st.lists(st.text(alphabet="a\n", max_size=5).map(str.encode), max_size=8)


def framed(data: list[bytes]) -> list[Frame]:
    return [Frame(1, 0.0, piece) for piece in data]


def plain(data: list[bytes]) -> list[bytes]:
    lines = b"".join(data).split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


@given(pieces, st.integers(0, 6))
def test_last_lines_are_the_end_of_the_output(data: list[bytes], count: int) -> None:
    kept = b"".join(frame.data for frame in last_lines(framed(data), count))
    expected = plain(data)[-count:] if count else []
    assert plain([kept]) == expected
    assert b"".join(data).endswith(kept)


@given(pieces, st.integers(0, 6))
def test_lines_say_whether_there_is_more(data: list[bytes], tail: int) -> None:
    lines, truncated = as_lines(framed(data), tail)
    assert lines == [line.decode() for line in (plain(data)[-tail:] if tail else [])]
    assert truncated == (len(plain(data)) > tail)


def test_lines_are_cut_by_bytes_too() -> None:
    lines, truncated = as_lines(framed([b"x" * 2**20 + b"\n"] * 10), None)
    assert truncated
    assert sum(len(line) + 1 for line in lines) <= MAX_LINES_BYTES
    assert len(lines) == 7
