"""The attempts' folders: made from used ones where that is possible, removed without holding up the keeper.

A job may leave millions of files; those are moved aside and removed by `rm` in a process of its own. Folders of jobs
that left nothing are used again, because making and removing inodes all the time is what a file system is worst at. A
work directory is used again only by the same user, and only if its change time proves that nobody touched it.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from workers.keeper.files import remove_files

NOTES = "notes.jsonl"
NO_NOTES = 1
"""The size of a notes file that says nothing: one byte, which begins a line.

Not 0: what is written to a file that was cut to nothing, ext4 sends to the disk at its close (`auto_da_alloc`), and who
cuts it next waits for the disk.
"""
SPOOL = "spool"
WORK = "work"
MOST_SPARE = 64
# A change time is as coarse as the kernel's clock tick: within one, a change may leave it as it was.
SETTLED_NS = 20_000_000


class Work(NamedTuple):
    """A work directory as it was made: whose, its change time, and whether a later change is sure to show in that."""

    uid: int | None
    changed_ns: int
    settled: bool


class Spare(NamedTuple):
    """A folder to be used again, with the work directory in it, if there is one."""

    path: str
    work: Work | None


class Folders:
    """`attempts`, `spare` and `trash` below one directory."""

    def __init__(self, directory: str) -> None:
        """Make what is missing; call `work` to go on removing what an earlier keeper left."""
        self.root = os.path.join(directory, "attempts")
        self._trash = os.path.join(directory, "trash")
        self._spares = os.path.join(directory, "spare")
        self._spare: list[Spare] = []
        self._works: dict[str, Work] = {}
        self._made = 0
        os.makedirs(self.root, 0o711, exist_ok=True)
        os.makedirs(self._trash, 0o700, exist_ok=True)
        self._waiting = [os.path.join(self._trash, name) for name in os.listdir(self._trash)]
        if os.path.isdir(self._spares):
            self._move_aside(self._spares)
        os.mkdir(self._spares, 0o700)
        self.pids: set[int] = set()

    def path(self, attempt_id: str) -> str:
        """Return where an attempt's folder is."""
        return f"{self.root}/{attempt_id}"

    def make(self, directory: str, uid: int | None) -> None:
        """Make an attempt's folder with an empty work directory that belongs to `uid`."""
        if os.path.lexists(directory):
            raise FileExistsError(17, "an attempt of this name has left its folder", directory)
        spare = self._take_spare(uid)
        if spare is None:
            os.mkdir(directory, 0o711)
        else:
            os.rename(spare.path, directory)
        if spare is None or spare.work is None:
            self._works[directory] = _make_work(f"{directory}/{WORK}", uid)
        else:
            age_ns = time.time_ns() - spare.work.changed_ns
            self._works[directory] = spare.work._replace(settled=spare.work.settled or age_ns > SETTLED_NS)

    def _take_spare(self, uid: int | None) -> Spare | None:
        """Return a spare folder, with a work directory of this user if one is untouched, else without any."""
        for at in range(len(self._spare) - 1, -1, -1):
            spare = self._spare[at]
            if spare.work is not None and spare.work.uid == uid:
                del self._spare[at]
                work = f"{spare.path}/{WORK}"
                if _changed_ns(work) == spare.work.changed_ns:
                    return spare
                self._move_aside(spare.path)
                return None
        for at, spare in enumerate(self._spare):
            if spare.work is None:
                del self._spare[at]
                return spare
        return None

    def discard(self, directory: str, *, printed: bool, survived: bool = False) -> None:
        """Remove an attempt's folder: at once when the job left nothing, else in the background.

        `survived` says that a process of the job may be left, and nothing may be used again.
        """
        work = self._works.pop(directory, None)
        try:
            keep = not survived and len(self._spare) < MOST_SPARE
            kept = self._empty(f"{directory}/{WORK}", work if keep else None)
            remove_files(directory)
            if printed:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{directory}/{SPOOL}")
            if keep:
                # Emptied now: a crash must never leave this job's record in the next one's folder.
                os.truncate(f"{directory}/{NOTES}", NO_NOTES)
                self._made += 1
                spare = f"{self._spares}/{self._made}"
                os.rename(directory, spare)
                self._spare.append(Spare(spare, kept))
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{directory}/{NOTES}")
                os.rmdir(directory)
        except OSError:
            # Also when it was not made to its end: whatever is there must not be taken for an attempt.
            if os.path.lexists(directory):
                self._move_aside(directory)
                self.work()

    def _empty(self, path: str, work: Work | None) -> Work | None:
        """Leave the work directory if it is untouched, else replace it by a new one; without `work` remove it."""
        if work is not None and work.settled and _changed_ns(path) == work.changed_ns:
            return work
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)
        # Made now and not when a job waits for it; by then its change time has settled, most likely.
        return None if work is None else _make_work(path, work.uid)

    def work(self) -> None:
        """Start removing what waits; one process at a time."""
        if self.pids or not self._waiting:
            return
        batch, self._waiting = self._waiting[:100], self._waiting[100:]
        with contextlib.suppress(OSError):
            path = os.environ.get("PATH") or os.defpath
            self.pids.add(os.posix_spawnp("rm", ["rm", "-rf", "--", *batch], {"PATH": path}, setsigmask=()))

    def reaped(self, pid: int) -> None:
        """Note that one of ours ended, and go on."""
        if pid in self.pids:
            self.pids.discard(pid)
            self.work()

    def _move_aside(self, directory: str) -> None:
        aside = f"{self._trash}/{os.urandom(8).hex()}"
        with contextlib.suppress(OSError):
            os.rename(directory, aside)
            self._waiting.append(aside)


def _make_work(path: str, uid: int | None) -> Work:
    os.mkdir(path, 0o700)
    if uid is not None:
        os.chown(path, uid, uid)
    return Work(uid, _changed_ns(path), settled=False)


def _changed_ns(path: str) -> int:
    """Return when the directory itself was changed: entries, owner, mode, attributes. Nobody can set that back."""
    try:
        return os.stat(path, follow_symlinks=False).st_ctime_ns
    except FileNotFoundError:
        return -1
