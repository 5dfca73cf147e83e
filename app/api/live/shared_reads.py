"""Many followers at one place read once: what the first of them reads from the database is handed to all."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

T = TypeVar("T")

KEPT = 64


class SharedReads:
    """At most `parallel` reads at a time, so that streams leave database connections to requests."""

    def __init__(self, parallel: int) -> None:
        self._room = threading.BoundedSemaphore(parallel)
        self._lock = threading.Lock()
        self._results: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """`read()`, or what it gave to whoever asked with this key a moment ago.

        A key must name the version of what it reads. An exception goes to those who wait for it, and is not kept.
        """
        with self._lock:
            future = self._results.get(key)
            ours = future is None
            if future is None:
                future = self._results[key] = Future()
                while len(self._results) > KEPT:
                    self._results.popitem(last=False)
        if ours:
            self._fill(key, future, read)
        return cast(T, future.result())

    def _fill(self, key: Hashable, future: Future[Any], read: Callable[[], Any]) -> None:
        try:
            with self._room:
                result = read()
        except BaseException as exc:
            with self._lock:
                if self._results.get(key) is future:
                    del self._results[key]
            future.set_exception(exc)
        else:
            future.set_result(result)
