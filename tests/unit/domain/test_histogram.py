"""Percentiles from buckets stay within a bucket of the true ones."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.domain.histogram import GROWTH, LEAST_S, bucket_of, percentile

DURATIONS = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(DURATIONS, st.floats(0.01, 1))
def test_a_percentile_is_within_a_bucket_of_the_true_one(durations: list[float], share: float) -> None:
    found = percentile(Counter(map(bucket_of, durations)), share)
    ordered = sorted(durations)
    true = ordered[min(len(ordered) - 1, max(0, -(-int(share * len(ordered) * 1e9) // 10**9) - 1))]
    assert found is not None
    near = [d for d in ordered if abs(ordered.index(d) - ordered.index(true)) <= 1]
    assert any(found <= max(LEAST_S, d) * GROWTH * 1.0001 and found >= d / GROWTH / 1.0001 - LEAST_S for d in near)


@given(st.floats(LEAST_S, 1e6))
def test_a_duration_lies_in_its_bucket(seconds: float) -> None:
    bucket = bucket_of(seconds)
    assert seconds <= LEAST_S * GROWTH**bucket * 1.000001
    assert bucket == 0 or seconds >= LEAST_S * GROWTH ** (bucket - 1) / 1.000001


def test_nothing_measured_has_no_percentile() -> None:
    assert percentile({}, 0.5) is None
    assert percentile({3: 0}, 0.5) is None
