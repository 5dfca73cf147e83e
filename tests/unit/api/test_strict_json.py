"""Strict JSON: equal to the standard parser on clean input, Invalid on every other, and nothing else ever."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.strict_json import MAX_DEPTH, loads
from app.domain.errors import Invalid

clean_text = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | clean_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(clean_text, inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_what_json_can_hold_is_read_as_it_is(value: Any, ascii_only: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\ud80019eE.-NaInfity \n', max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for lenient in (False, True):
        try:
            json.dumps(loads(raw, lenient=lenient), allow_nan=False).encode()
        except Invalid as refusal:
            json.dumps([refusal.message, dict(refusal.context)]).encode("ascii")
            refusal.message.encode()


@given(st.text(alphabet=st.characters(), max_size=30) | st.text(alphabet="a\0\ud83d\ude00\udc00é", max_size=10))
def test_lenient_reading_mends_exactly_the_bad_characters(text: str) -> None:
    # Two halves of a pair that stand side by side are one character in JSON.
    joined = json.loads(json.dumps(text))
    mended = "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in joined)
    assert loads(json.dumps({"a": text}).encode(), lenient=True) == {"a": mended}


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_is_counted_in_levels(opening: str) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]
    loads((opening * (MAX_DEPTH - 1) + "[]" + closing * (MAX_DEPTH - 1)).encode())
    with pytest.raises(Invalid, match="32 levels"):
        loads((opening * MAX_DEPTH + "[]" + closing * MAX_DEPTH).encode())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1, "a": 2}', "twice"), (b"NaN", "NaN"), (b"[1e999]", "too large"), (b'"\xff"', "byte 1"),
        (b'"\\u0000"', "NUL"), (b'"\\udc00"', "surrogate"), (b"{", "line 1, column 2"), (b"9" * 5000, "digits"),
    ],
)  # fmt: skip
def test_messages_say_what_and_where(raw: bytes, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        loads(raw)
