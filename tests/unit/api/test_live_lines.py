"""The end of an output, against the plain way to cut it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.api.live.lines import MAX_LINES_BYTES, as_lines, as_text, last_lines, own_lines, stamped
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


def text_of(frames: list[Frame]) -> str:
    return b"".join(frame.data for frame in frames).decode()


def test_each_line_has_the_time_of_its_first_byte() -> None:
    frames = [Frame(1, 0.0, b"a\nb"), Frame(2, 1.5, b"c\nd\n"), Frame(1, 2.0, b""), Frame(1, 3.0, b"e")]
    assert text_of(list(stamped(frames))) == (
        "1970-01-01T00:00:00.000Z a\n1970-01-01T00:00:00.000Z bc\n1970-01-01T00:00:01.500Z d\n"
        "1970-01-01T00:00:03.000Z e"
    )


@given(pieces)
def test_stamps_are_all_that_is_added(data: list[bytes]) -> None:
    told = text_of(list(stamped(framed(data)))).encode()
    assert told.replace(b"1970-01-01T00:00:00.000Z ", b"") == b"".join(data)
    assert told.count(b"Z ") == len(plain(data))


def test_the_fabrics_words_stand_on_lines_of_their_own() -> None:
    frames = [Frame(1, 0.0, b"half"), Frame(0, 0.0, b"[gap]\n"), Frame(0, 0.0, b"[cut]\n")]
    assert text_of(list(own_lines(frames))) == "half\n[gap]\n[cut]\n"


@given(st.text(), st.integers(1, 5))
def test_characters_cut_between_frames_arrive_whole(text: str, size: int) -> None:
    data = text.encode("utf-8", "replace")
    frames = framed([data[n : n + size] for n in range(0, len(data), size)])
    assert "".join(as_text(frames)) == "".join(as_text(framed([data])))


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert "".join(as_text(framed([b"a\xff", b"\xe2\x82", b"\xac \xe2\x82"]))) == "a\ufffd\u20ac \ufffd"
