"""Ids of jobs are UUIDs of version 7 that sort as the jobs were made."""

from __future__ import annotations

from uuid import RFC_4122

from hypothesis import given
from hypothesis import strategies as st

from app.domain.identity import uuid7

times = st.integers(0, 2**48 - 1)
places = st.integers(0, 4095)
noise = st.integers(0, 2**62 - 1)


@given(times, places, noise)
def test_an_id_says_its_version_its_variant_and_its_time(unix_ms: int, place: int, bits: int) -> None:
    made = uuid7(unix_ms, place, bits)
    assert made.version == 7
    assert made.variant == RFC_4122
    assert made.int >> 80 == unix_ms


@given(times, places, noise, times, places, noise)
def test_later_ids_sort_later(t1: int, p1: int, n1: int, t2: int, p2: int, n2: int) -> None:
    if (t1, p1) < (t2, p2):
        assert uuid7(t1, p1, n1) < uuid7(t2, p2, n2)
        assert str(uuid7(t1, p1, n1)) < str(uuid7(t2, p2, n2))


@given(times, places, noise, noise)
def test_ids_of_one_moment_differ_by_their_random_bits(t: int, p: int, n1: int, n2: int) -> None:
    assert (uuid7(t, p, n1) == uuid7(t, p, n2)) == (n1 == n2)
