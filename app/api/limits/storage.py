"""The counters as a storage of the `limits` library, which flask-limiter counts in."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from flask import g
from limits.storage import Storage

from app.api.limits.counters import Count, SharedCounters

SCHEME = "cfab-counters"


class CounterStorage(Storage):
    """Fixed windows that begin at multiples of their length. Never raises: the counters fall back by themselves.

    What a request has counted is kept until its end, so that its headers cost no second question.
    """

    STORAGE_SCHEME: ClassVar[list[str]] = [SCHEME]  # type: ignore[misc]

    def __init__(self, uri: str | None = None, *, counters: SharedCounters, **options: Any) -> None:
        super().__init__(uri, **options)
        self._counters = counters

    @property
    def base_exceptions(self) -> type[Exception]:
        """What a broken storage would raise: nothing of ours."""
        return OSError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Counts a request; the window's number so far."""
        counted = _counted()[key] = self._counters.add(key, expiry, amount)
        return counted.number

    def get(self, key: str) -> int:
        """What this request found when it was counted."""
        return _counted()[key].number

    def get_expiry(self, key: str) -> float:
        """When the window in which this request was counted ends, in Unix seconds."""
        return _counted()[key].ends_at

    def check(self) -> bool:
        """Always well."""
        return True

    def reset(self) -> int | None:
        """Counts end with their windows; nothing is reset."""
        raise NotImplementedError

    def clear(self, key: str) -> None:
        """Counts end with their windows; nothing is cleared."""
        raise NotImplementedError


def _counted() -> dict[str, Count]:
    return cast(dict[str, Count], g.setdefault("limits_counted", {}))
