"""A program in the cache, held so that it cannot be evicted. It knows nothing of where it came from."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class Artifact:
    """A verified, read-only (0555) file at `path` of `size` bytes; it stays there until `release`.

    `cached` tells that no byte had to be downloaded. The hold is a shared file lock: other processes that use
    the same directory respect it, and the kernel drops it when this process dies. Use it as a context
    manager.
    """

    __slots__ = ("_fd", "_lock", "_on_release", "cached", "path", "size")

    def __init__(self, path: Path, size: int, cached: bool, locked_fd: int, on_release: Callable[[], None]) -> None:
        self.path = path
        self.size = size
        self.cached = cached
        self._fd = locked_fd
        self._lock = threading.Lock()
        self._on_release = on_release

    def release(self) -> None:
        """Allow eviction. Safe to repeat, and from any thread."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._on_release()

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Artifact(path={str(self.path)!r}, size={self.size}, cached={self.cached})"
