"""Arrays: one request for many jobs that differ in their index only. What is asked, counted and told of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.errors import Invalid

MAX_RANGES = 1000
"""Ranges that one text of indices may name."""
_RANGE = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")


@dataclass(frozen=True)
class ArrayAsked:
    """`count` jobs with indices from 0; at most `max_parallel` of them start or run at a time (None: any number)."""

    count: int
    max_parallel: int | None = None


@dataclass(frozen=True)
class ArrayCounts:
    """Indices of an array by what became of the latest job of each; `unmade` of the pending ones are no jobs yet."""

    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int
    unmade: int = 0

    @property
    def ended(self) -> int:
        """Indices that have ended."""
        return self.completed + self.failed + self.cancelled

    @property
    def size(self) -> int:
        """All indices."""
        return self.ended + self.pending + self.running

    @property
    def progress(self) -> float:
        """The share of indices that have ended, from 0 to 1."""
        return self.ended / self.size


def status_of(counts: ArrayCounts, finished: bool) -> str:
    """The array's state in one word: pending until anything started; failed if any index failed, else cancelled if any
    was; completed when all did."""
    if not finished:
        return "running" if counts.running or counts.completed or counts.failed else "pending"
    if counts.failed:
        return "failed"
    return "cancelled" if counts.cancelled else "completed"


def parse_indices(text: str, count: int) -> list[tuple[int, int]]:
    """`0-9,20` as half-open ranges inside an array of `count`. Raises Invalid, which names what is wrong."""
    parts = text.split(",")
    if len(parts) > MAX_RANGES:
        raise Invalid(f"indices: names {len(parts)} ranges; at most {MAX_RANGES} are allowed", field="indices")
    ranges = []
    for part in parts:
        match = _RANGE.fullmatch(part)
        if match is None:
            message = f"indices: {part.strip()[:50]!r} is no index and no range; write them such as 0-9,20"
            raise Invalid(message, field="indices")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise Invalid(f"indices: the range {part.strip()} ends before it begins", field="indices")
        if last >= count:
            message = f"indices: the array has no index {last}; it has 0 to {count - 1}"
            raise Invalid(message, field="indices")
        ranges.append((first, last + 1))
    return ranges


def multirange(ranges: Sequence[tuple[int, int]]) -> str:
    """Ranges as the text of an int4multirange."""
    return "{" + ",".join(f"[{first},{end})" for first, end in ranges) + "}"
