"""Hostile output: nothing of it may drive the reader's terminal, however it is cut into pieces."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services.plain_text import LONGEST_HELD, Plain, clean

HOSTILE = {
    "\x1b[31mred\x1b[0m": "red",
    "\x1b]0;owned\x07title": "title",
    "\x1b]8;;http://example.com\x1b\\link\x1b]8;;\x1b\\": "link",
    "\x1bP1$r0m\x1b\\dcs": "dcs",
    "\x9b2Jclear": "clear",
    "\x9d0;t\x9cosc": "osc",
    "\x1bcreset": "reset",
    "\x1b(0line": "line",
    "a\rb": "a\nb",
    "a\r\nb": "a\nb",
    "a\r\r\nb": "a\nb",
    "pass\b\b\b\bfail": "passfail",
    "nul\0 bell\a del\x7f": "nul bell del",
    "tab\tstays\n": "tab\tstays\n",
    "\u202eevil\u2066": "\ufffdevil\ufffd",
    "grüße €": "grüße €",
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_shown_is_what_does_no_harm(text: str, shown: str) -> None:
    assert clean(text) == shown
    plain = Plain()
    assert "".join(plain.feed(character) for character in text) + plain.rest() == shown


hostile = st.lists(
    st.sampled_from(["\x1b", "[", "]", "m", "1", ";", "\x07", "\\", "\x9b", "\x9c", "P", "\r", "\n", "a", "\u202e"])
)


@given(hostile, st.integers(1, 4))
def test_nothing_that_drives_a_terminal_gets_through(characters: list[str], size: int) -> None:
    text = "".join(characters)
    plain = Plain()
    shown = "".join(plain.feed(text[n : n + size]) for n in range(0, len(text), size)) + plain.rest()
    for character in shown:
        assert character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf"}, repr(shown)


def test_a_sequence_without_an_end_hides_no_more_than_a_little() -> None:
    plain = Plain()
    told = plain.feed("\x1b]0;") + "".join(plain.feed("x" * 100) for _ in range(100))
    assert told.count("x") >= 100 * 100 - LONGEST_HELD
