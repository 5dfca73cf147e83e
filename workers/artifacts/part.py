"""A file of the cache while it is being written. It knows nothing of digests."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress

from workers.artifacts.errors import CacheUnusable, DiskFull

PART_SUFFIX = ".part"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Part:
    """A file on its way into the store, private to us (0600) until its bytes have proved right."""

    def __init__(self, path: str, make_room: Callable[[], bool]) -> None:
        self.path = path
        self._make_room = make_room
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def write(self, piece: bytes) -> None:
        """Append `piece`, evicting entries while the disk is full. Raises DiskFull if that does not help."""
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except OSError as exc:
                if exc.errno not in FULL:
                    raise CacheUnusable(f"the artifact cache could not be written: {exc}") from exc
                if not self._make_room():
                    raise DiskFull(f"the artifact cache's disk is full: {exc}; free space or lower the limit") from exc

    def finish(self, seal: Callable[[int, int], None]) -> int:
        """Pass descriptor and size to `seal`, then close it so that it can be executed. Returns the size."""
        size_bytes = os.fstat(self._fd).st_size
        seal(self._fd, size_bytes)
        fd, self._fd = self._fd, -1
        os.close(fd)
        return size_bytes

    def reopen_locked(self) -> int:
        """A new descriptor for reading that holds the file."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    def discard(self) -> None:
        """Remove the part's own name. Safe to repeat; a published entry keeps its bytes."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        with suppress(FileNotFoundError):
            os.unlink(self.path)
