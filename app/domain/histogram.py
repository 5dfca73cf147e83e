"""Histograms of durations in buckets that grow by a constant factor, so that a few counts give every percentile.

Storage puts durations into the same buckets in SQL; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

GROWTH = 1.2
LEAST_S = 0.001


def bucket_of(seconds: float) -> int:
    """The bucket of a duration: 0 holds all up to LEAST_S, bucket n those up to LEAST_S * GROWTH**n."""
    return 0 if seconds <= LEAST_S else math.ceil(math.log(seconds / LEAST_S) / math.log(GROWTH))


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The duration below which `share` (0 to 1) of all lie, to within a bucket; None when there are none."""
    total = sum(counts.values())
    if total == 0:
        return None
    rank, seen = share * total, 0
    for bucket in sorted(counts):
        within = counts[bucket]
        if within and seen + within >= rank:
            low = 0.0 if bucket == 0 else LEAST_S * GROWTH ** (bucket - 1)
            high = LEAST_S * GROWTH**bucket
            return low + (high - low) * max(0.0, rank - seen) / within
        seen += within
    return LEAST_S * GROWTH ** max(counts)
