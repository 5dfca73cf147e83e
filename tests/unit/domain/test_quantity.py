"""Kubernetes quantities, exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.quantity import cpu_text, memory_text, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2), ("0.5", Fraction(1, 2)), (".5", Fraction(1, 2)), ("500m", Fraction(1, 2)), ("8Gi", 8 * 2**30),
        ("512Mi", 512 * 2**20), ("1.5G", 1_500_000_000), ("1e9", 10**9), ("1E", 10**18), ("2E3", 2000), ("5.", 5),
    ],
)  # fmt: skip
def test_forms(text: str, value: Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "+1", "1 Gi", "1gi", "1KiB", "0x10", "1e", "1e999", "\u0661", "1" * 19, "1\n"]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


@given(st.integers(0, 10**9))
def test_cpus_come_back(milli: int) -> None:
    assert parse_quantity(cpu_text(milli)) * 1000 == milli


@given(st.integers(0, 2**50))
def test_memory_comes_back_within_a_mebibyte(size: int) -> None:
    assert 0 <= size - parse_quantity(memory_text(size)) < 2**20


def test_memory_is_shown_in_the_largest_unit() -> None:
    assert [memory_text(size) for size in (0, 256 * 2**30, 2**40, 3 * 2**20)] == ["0", "256Gi", "1Ti", "3Mi"]
