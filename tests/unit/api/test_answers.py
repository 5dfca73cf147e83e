"""Times in answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.api.answers import json_answer, utc


def test_times_are_whole_seconds_of_utc() -> None:
    assert utc(datetime(2024, 1, 1, 12, 0, 0, 999_999, UTC)) == "2024-01-01T12:00:00Z"
    assert utc(datetime(2024, 1, 1, 14, 30, tzinfo=timezone(timedelta(hours=2, minutes=30)))) == "2024-01-01T12:00:00Z"
    assert utc(None) is None


def test_nan_is_never_sent() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_answer({"a": float("nan")})
