"""The files of the cache: one directory, one read-only file per SHA-256, `*.part` while it is being written.

It knows nothing of URLs. Several threads, and several processes of one user, may use one directory.

A hold is a shared flock on the file, so eviction (which needs an exclusive one) passes over what anybody
holds, and a crash leaves no hold behind. A file's access time is its last use; its modification time is a
seal: a value computed from digest, size and boot. A file that was changed, or that a power loss may have
damaged, does not bear the seal of this boot and is hashed again before its next use. So nothing has to be
fsynced and no index can disagree with the files.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workers.artifacts.artifact import Artifact
from workers.artifacts.errors import CacheUnusable, DiskFull
from workers.artifacts.part import FULL, PART_SUFFIX, Part

_log = logging.getLogger(__name__)

_ENTRY_MODE = 0o555
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}")
_HASH_BYTES = 1024 * 1024


class Store:
    """The cache directory. Holds at most `max_bytes`, except for what is held or being written at the moment.

    Creates `root` with mode 0755 if it is missing and sweeps what crashes left behind. Raises CacheUnusable
    if `root` is not a directory of our own that nobody else can write to.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = os.path.abspath(root)
        self._max_bytes = max_bytes
        self._boot = _boot_id()
        self._trusted: dict[str, tuple[int, int, int, int]] = {}
        self._trim_lock = threading.Lock()
        self._crowded = False
        with _cache_errors(self._root):
            self._prepare_root()
            self._sweep()
            self.trim()

    def hold(self, digest: str) -> Artifact | None:
        """Hold the entry if it is there and known to be intact; else None. Reads no bytes of it."""
        with _cache_errors(self._root):
            opened = self._open(digest)
            if opened is None:
                return None
            fd, found = opened
            if not self._is_trusted(digest, found):
                os.close(fd)
                return None
            os.utime(fd, ns=(time.time_ns(), found.st_mtime_ns))
            return self._artifact(digest, found.st_size, fd, cached=True)

    def verify(self, digest: str, check: Callable[[], None]) -> Artifact | None:
        """Hold the entry if its bytes are right, reading them all where needed; drop it and return None if
        not.

        Calls `check` between pieces, which may raise to end the reading.
        """
        with _cache_errors(self._root):
            held = self.hold(digest)
            if held is not None:
                return held
            opened = self._open(digest)
            if opened is None:
                return None
            fd, found = opened
            try:
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and _hash(fd, check) == digest:
                    self._seal(fd, digest, found.st_size)
                    return self._artifact(digest, found.st_size, fd, cached=True)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            _log.warning("dropped the damaged cache entry %s", digest)
            self._remove(digest)
            return None

    @contextmanager
    def part(self, digest: str) -> Iterator[Part]:
        """A new file to write an entry's bytes to; it is gone at the end unless it was published."""
        with _cache_errors(self._root):
            name = f"{digest}.{secrets.token_hex(8)}{PART_SUFFIX}"
            part = Part(os.path.join(self._root, name), self.make_room)
        try:
            yield part
        finally:
            part.discard()

    def publish(self, part: Part, digest: str) -> Artifact:
        """Make `part`, whose bytes have proved to be `digest`, the entry, and hold it; then evict down to the
        limit.

        An intact entry that appeared in the meantime wins, so that a held path never changes its file.
        """
        with _cache_errors(self._root):
            size_bytes = part.finish(lambda fd, size: self._seal(fd, digest, size))
            fd = part.reopen_locked()
            try:
                held = self._link(part.path, digest)
            except BaseException:
                os.close(fd)
                raise
            if held is not None:
                os.close(fd)
                return held
            part.discard()
            self.trim()
            return self._artifact(digest, size_bytes, fd, cached=False)

    def trim(self) -> None:
        """Evict the entries used least recently, none of them held, until the limit is kept."""
        with self._trim_lock:
            entries, total_bytes = self._scan()
            for _used_at, size_bytes, name in sorted(entries):
                if total_bytes <= self._max_bytes:
                    break
                if self._evict(name):
                    total_bytes -= size_bytes
            self._crowded = total_bytes > self._max_bytes

    def make_room(self) -> bool:
        """Evict the least recently used entry that nobody holds. False if there is none."""
        with self._trim_lock:
            entries, _total = self._scan()
            return any(self._evict(name) for _used_at, _size, name in sorted(entries))

    def _prepare_root(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._root), exist_ok=True)
            os.mkdir(self._root, 0o755)
            os.chmod(self._root, 0o755)
        except FileExistsError:
            pass
        found = os.lstat(self._root)
        if not stat.S_ISDIR(found.st_mode):
            raise CacheUnusable(f"the artifact cache {self._root} is not a directory")
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise CacheUnusable(
                f"the artifact cache {self._root} has uid {found.st_uid}, mode {found.st_mode & 0o7777:04o};"
                f" it must belong to uid {os.geteuid()} and be writable by nobody else"
            )
        if os.statvfs(self._root).f_flag & os.ST_NOEXEC:
            raise CacheUnusable(f"the artifact cache {self._root} is on a noexec mount, where no program runs")

    def _sweep(self) -> None:
        for entry in os.scandir(self._root):
            # A part that is still being written by another process is locked.
            if entry.name.endswith(PART_SUFFIX) and self._evict(entry.name):
                _log.info("swept %s, which a crash left behind", entry.name)

    def _open(self, digest: str) -> tuple[int, os.stat_result] | None:
        path = os.path.join(self._root, digest)
        while True:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                found = os.fstat(fd)
            except BaseException:
                os.close(fd)
                raise
            # It may have been evicted between open and lock; then the path is free or names a newer file.
            if found.st_nlink > 0:
                return fd, found
            os.close(fd)

    def _is_trusted(self, digest: str, found: os.stat_result) -> bool:
        if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) != _ENTRY_MODE:
            return False
        if found.st_uid != os.geteuid():
            return False
        if self._trusted.get(digest) == _identity(found):
            return True
        if found.st_mtime_ns != self._seal_ns(digest, found.st_size):
            return False
        self._trusted[digest] = _identity(found)
        return True

    def _seal(self, fd: int, digest: str, size_bytes: int) -> None:
        os.fchmod(fd, _ENTRY_MODE)
        os.utime(fd, ns=(time.time_ns(), self._seal_ns(digest, size_bytes)))
        # File systems with coarse times round the seal, so remember what they made of it.
        self._trusted[digest] = _identity(os.fstat(fd))

    def _seal_ns(self, digest: str, size_bytes: int) -> int:
        drawn = hashlib.blake2b(f"{digest}:{size_bytes}:{self._boot}".encode(), digest_size=8).digest()
        # Some moment between 1970 and 2001, so that no ordinary write can produce it.
        return int.from_bytes(drawn, "big") % 10**18

    def _link(self, part_path: str, digest: str) -> Artifact | None:
        for _ in range(8):
            try:
                # Unlike rename, link never replaces an entry that somebody holds.
                os.link(part_path, os.path.join(self._root, digest))
                return None
            except FileExistsError:
                held = self.hold(digest)
                if held is not None:
                    held.cached = False
                    return held
                self._remove(digest)
        raise CacheUnusable(f"the cache entry {digest} in {self._root} is being replaced all the time")

    def _scan(self) -> tuple[list[tuple[int, int, str]], int]:
        entries: list[tuple[int, int, str]] = []
        total_bytes = 0
        for entry in os.scandir(self._root):
            is_part = entry.name.endswith(PART_SUFFIX)
            if not is_part and not _ENTRY_NAME.fullmatch(entry.name):
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            total_bytes += found.st_size
            if not is_part:
                entries.append((found.st_atime_ns, found.st_size, entry.name))
        return entries, total_bytes

    def _evict(self, name: str) -> bool:
        try:
            fd = os.open(os.path.join(self._root, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove(name)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    def _remove(self, name: str) -> None:
        self._trusted.pop(name, None)
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._root, name))

    def _artifact(self, digest: str, size_bytes: int, fd: int, cached: bool) -> Artifact:
        return Artifact(Path(self._root, digest), size_bytes, cached, fd, self._released)

    def _released(self) -> None:
        if self._crowded:
            self.trim()


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _hash(fd: int, check: Callable[[], None]) -> str:
    hasher = hashlib.sha256()
    offset = 0
    while piece := os.pread(fd, _HASH_BYTES, offset):
        check()
        hasher.update(piece)
        offset += len(piece)
    return hasher.hexdigest()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Without one every entry is hashed once per process, which is slower and just as safe.
        return uuid.uuid4().hex


@contextmanager
def _cache_errors(root: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in FULL:
            raise DiskFull(f"the disk under the artifact cache {root} is full: {exc}") from exc
        raise CacheUnusable(f"the artifact cache {root} could not be used: {exc}") from exc
