"""What the keeper writes down about an attempt, for itself after a restart and for a later keeper.

One file, a JSON object a line, each written at once: how to find its processes, the main one, and the exit record.
A torn line (the disk was full) is skipped by readers.
"""

from __future__ import annotations

import json
import os
from typing import Any

from workers.keeper.folders import NO_NOTES, NOTES


class Notes:
    """The open file of one attempt."""

    __slots__ = ("_fd", "_path", "_size")

    def __init__(self, directory: str) -> None:
        """Describe it; `begin` opens it."""
        self._path = f"{directory}/{NOTES}"
        self._fd = -1
        self._size = 0

    def begin(self, state: dict[str, Any]) -> None:
        """Start the file over with the attempt's state. Raises OSError."""
        self._open()
        if self._size > NO_NOTES:
            os.ftruncate(self._fd, NO_NOTES)
            self._size = NO_NOTES
        self._write({"state": state})

    def add_process(self, pid: int, ticks: int | None) -> None:
        """Add the main process. Raises OSError."""
        self._write({"pid": pid, "ticks": ticks})

    def add_record(self, record: dict[str, Any]) -> bool:
        """Add the exit record and close; False when the disk does not take it now. Can be repeated."""
        try:
            if self._fd < 0:
                self._open()
            self._write({"record": record})
        except OSError:
            return False
        finally:
            self.close()
        return True

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, entry: dict[str, Any]) -> None:
        # The line begins with a newline, so that one torn before it does no harm.
        line = b"\n" + json.dumps(entry).encode() + b"\n"
        written = os.write(self._fd, line)
        if written != len(line):
            os.ftruncate(self._fd, self._size)
            raise OSError(28, os.strerror(28), self._path)
        self._size += written


def read_notes(directory: str) -> dict[str, Any]:
    """Return what was noted, with the keys state, pid, ticks and record as far as they are there."""
    found: dict[str, Any] = {}
    try:
        with open(f"{directory}/{NOTES}", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            entry = json.loads(line) if line else {}
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.update(entry)
    return found
