"""Removing what jobs left on disk, without holding up the keeper's single thread.

A job may leave millions of files; those are moved aside and removed by `rm` in a process of its own.
"""

from __future__ import annotations

import contextlib
import os

USUAL_FILES = ("exit.json", "state.json")
RARE_FILES = ("spool", "exit.json.new")


class Trash:
    """A folder beside the attempts whose content is on its way out."""

    def __init__(self, folder: str) -> None:
        """Take over what an earlier keeper left there; call `work` to go on with it."""
        self._folder = folder
        os.makedirs(folder, 0o700, exist_ok=True)
        self._waiting = [os.path.join(folder, name) for name in os.listdir(folder)]
        self.pids: set[int] = set()

    def discard(self, directory: str) -> None:
        """Remove an attempt's folder: at once when the job left nothing, else in the background."""
        _unlink(directory, USUAL_FILES)
        if _remove(directory):
            return
        _unlink(directory, RARE_FILES)
        if _remove(directory):
            return
        aside = os.path.join(self._folder, os.urandom(8).hex())
        with contextlib.suppress(OSError):
            os.rename(directory, aside)
            self._waiting.append(aside)
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


def _unlink(directory: str, names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(f"{directory}/{name}")


def _remove(directory: str) -> bool:
    """Remove an attempt's folder when nothing but an empty work directory is in it."""
    with contextlib.suppress(OSError):
        os.rmdir(f"{directory}/work")
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
