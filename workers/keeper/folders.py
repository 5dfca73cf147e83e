"""The attempts' folders: made from used ones where that is possible, removed without holding up the keeper.

A job may leave millions of files; those are moved aside and removed by `rm` in a process of its own. Folders of jobs
that left nothing are used again, because making and removing inodes all the time is what a file system is worst at.
"""

from __future__ import annotations

import contextlib
import os

NOTES = "notes.jsonl"
SPOOL = "spool"
WORK = "work"
MOST_SPARE = 64


class Folders:
    """`attempts`, `spare` and `trash` below one directory."""

    def __init__(self, directory: str) -> None:
        """Make what is missing; call `work` to go on removing what an earlier keeper left."""
        self.root = os.path.join(directory, "attempts")
        self._trash = os.path.join(directory, "trash")
        self._spares = os.path.join(directory, "spare")
        self._spare: list[str] = []
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
        if self._spare:
            os.rename(self._spare.pop(), directory)
        else:
            os.mkdir(directory, 0o711)
        work = f"{directory}/{WORK}"
        os.mkdir(work, 0o700)
        if uid is not None:
            os.chown(work, uid, uid)

    def discard(self, directory: str, *, printed: bool) -> None:
        """Remove an attempt's folder: at once when the job left nothing, else in the background.

        The work directory itself is never used again: its job may have changed more of it than can be seen.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{directory}/{WORK}")
            if printed:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{directory}/{SPOOL}")
            if len(self._spare) < MOST_SPARE:
                # Emptied now: a crash must never leave this job's record in the next one's folder.
                os.truncate(f"{directory}/{NOTES}", 0)
                spare = f"{self._spares}/{os.urandom(8).hex()}"
                os.rename(directory, spare)
                self._spare.append(spare)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{directory}/{NOTES}")
                os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
            self._move_aside(directory)
            self.work()

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
