"""The data directory of the one-machine stack: its lock, its version, its secrets, and where each part keeps what.

DATA/VERSION    format of this directory and major version of PostgreSQL
DATA/secrets/   tokens, passwords and URLs, mode 0600
DATA/postgres/  DATA/valkey/  DATA/work/   the servers' and the workers' own
DATA/logs/      output of each part      DATA/run/   records of running processes
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path

from app.local.failure import AnotherVersion, StackError
from app.local.postgres import MAJOR

FORMAT = 1
NEEDED_BYTES = 256 * 2**20
_VERSION = f"format {FORMAT}\npostgres {MAJOR}\n"


class DataDirectory:
    """One stack's data; `open` takes it for this process until `close` or the process's end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None

    @property
    def token_file(self) -> Path:
        """Where the API's token is."""
        return self.root / "secrets" / "api_token"

    @property
    def records(self) -> Path:
        """Records of running processes."""
        return self.root / "run"

    def log(self, name: str) -> Path:
        """The log of one part."""
        return self.root / "logs" / f"{name}.log"

    def open(self) -> None:
        """Makes what is missing and takes the lock.

        Raises StackError when another stack uses it, another version or somebody else made it, the disk is full, or
        it cannot be used for another reason.
        """
        try:
            self._open()
        except OSError as exc:
            self.close()
            raise self.failure(exc) from exc
        except StackError:
            self.close()
            raise

    def close(self) -> None:
        """Gives the lock back; harmless to repeat."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def secret(self, name: str) -> str:
        """A random word of URL-safe characters, made when first asked for and kept."""
        path = self.root / "secrets" / name
        if not path.exists():
            self.write_secret(name, secrets.token_urlsafe(32))
        return path.read_text(encoding="ascii").strip()

    def write_secret(self, name: str, text: str) -> Path:
        """Keeps `text` where only this user can read it; a crash leaves the old or the new one."""
        path = self.root / "secrets" / name
        unfinished = path.with_name(f".{name}.new")
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            if os.geteuid() == 0:
                # Root may look after another user's stack, whose parts must go on reading it.
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        return path

    def failure(self, exc: OSError) -> StackError:
        """What an error of the file system means to a user."""
        place = exc.filename or self.root
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StackError(f"the disk of {self.root} is full; free some space, or choose another --data")
        if exc.errno in {errno.EACCES, errno.EPERM}:
            return StackError(f"{place} may not be used by this user; choose another --data, or change its owner")
        return StackError(f"{place}: {exc.strerror or exc}")

    def _open(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise StackError(f"{self.root} is no directory; choose another --data")
        # Others may pass through to what is theirs (the database's user, the jobs' users), but not list it.
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._take_lock(self._lock)
        self._check_version()
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < NEEDED_BYTES:
            mebibytes = free_bytes // 2**20
            raise StackError(
                f"the disk of {self.root} is full: {mebibytes} MiB are left, {NEEDED_BYTES // 2**20} MiB are needed; "
                "free some space, or choose another --data"
            )
        for name, mode in (("secrets", 0o700), ("logs", 0o700), ("run", 0o700), ("work", 0o711)):
            (self.root / name).mkdir(mode=mode, exist_ok=True)
        if not (self.root / "VERSION").exists():
            (self.root / "VERSION").write_text(_VERSION, encoding="ascii")

    def _take_lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise StackError(
                f"another `cfab up` (process {holder}) uses {self.root}; stop it, or choose another --data"
            ) from exc
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _check_version(self) -> None:
        path = self.root / "VERSION"
        try:
            found = path.read_text(encoding="ascii")
        except FileNotFoundError:
            foreign = sorted(entry.name for entry in self.root.iterdir() if entry.name not in {"lock", *_OURS})
            if foreign:
                raise StackError(
                    f"{self.root} holds other files ({foreign[0]}, …) and was not made by `cfab up`; "
                    "choose an empty or a new directory with --data"
                ) from None
            return
        except UnicodeDecodeError:
            found = "unreadable"
        if found != _VERSION:
            theirs, ours = (", ".join(text.split("\n")[:2]) for text in (found, _VERSION))
            raise AnotherVersion(
                f"{self.root} was made by another version of cfab ({theirs}; this one needs {ours}); "
                "use that version, or choose another --data"
            )


# What a start that was cut short before it wrote VERSION may have left.
_OURS = frozenset({"secrets", "logs", "run", "work"})
