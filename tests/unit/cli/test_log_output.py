"""What `cfab logs` writes: bytes to files, text without tricks to terminals, times before lines."""

from __future__ import annotations

import io

import pytest

from app.cli.log_output import LogOutput

HOSTILE = b"\x1b[31mred\x1b[0m\rover \xe2\x82\xac\xff\n"


def shown(*pieces: bytes, terminal: bool, raw: bool = False, timestamps: bool = False) -> bytes:
    out = io.BytesIO()
    output = LogOutput(out, terminal, raw, timestamps)
    for second, piece in enumerate(pieces):
        output.write(piece, float(second))
    output.close()
    return out.getvalue()


def test_a_file_gets_the_very_bytes() -> None:
    assert shown(HOSTILE, terminal=False) == HOSTILE


def test_a_terminal_gets_them_if_asked() -> None:
    assert shown(HOSTILE, terminal=True, raw=True) == HOSTILE


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_terminal_gets_text_that_drives_nothing(size: int) -> None:
    pieces = [HOSTILE[n : n + size] for n in range(0, len(HOSTILE), size)]
    assert shown(*pieces, terminal=True).decode() == "red\nover €\ufffd\n"


def test_what_is_held_back_is_shown_at_the_end() -> None:
    assert shown(b"half \xe2\x82", terminal=True).decode() == "half \ufffd"
    assert shown(b"bar\r", terminal=True) == b"bar\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_each_line_has_the_time_of_its_first_byte(terminal: bool) -> None:
    assert shown(b"a", b"b\nc", b"\nd\n", terminal=terminal, timestamps=True) == (
        b"1970-01-01T00:00:00.000Z ab\n1970-01-01T00:00:01.000Z c\n1970-01-01T00:00:02.000Z d\n"
    )
