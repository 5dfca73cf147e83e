"""Removing what jobs left on disk, without holding up the keeper's single thread.

A job may leave millions of files; those are moved aside and removed by `rm` in a process of its own.
"""

from __future__ import annotations

import contextlib
import os

OWN_FILES = ("exit.json", "exit.json.new", "state.json", "spool")


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
        for name in OWN_FILES:
            with contextlib.suppress(OSError):
                os.unlink(f"{directory}/{name}")
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{directory}/work")
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
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
