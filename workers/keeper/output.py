"""One attempt's output: from its two pipes into a capped spool file.

Never blocks and never grows: what does not fit the cap or the disk is read, counted and dropped.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from workers.spool import FRAME_HEADER, STDERR, STDOUT, pack_header

READ_BYTES = 64 * 1024
NEWS_EVERY_S = 0.05
# An unprivileged process can enlarge a pipe to 1 MiB, so this much is all that can be left in one.
DRAIN_BYTES = (1 << 20) + READ_BYTES


class Output:
    """Owns the read ends of an attempt's pipes and its spool file."""

    __slots__ = ("_cap", "_fd", "_path", "payload_bytes", "pipes", "spool_bytes", "truncated_bytes")

    def __init__(self, spool_path: str, cap_bytes: int) -> None:
        """Prepare; the file is made by the first output, since most short jobs print nothing."""
        self._path = spool_path
        self._cap = cap_bytes
        self._fd = -1
        self.pipes: dict[int, int] = {}
        self.spool_bytes = 0
        self.payload_bytes = 0
        self.truncated_bytes = 0

    def open_pipes(self) -> tuple[int, int]:
        """Make both pipes; return the write ends for the child, which the caller closes."""
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(out_read, False)
        os.set_blocking(err_read, False)
        self.pipes = {out_read: STDOUT, err_read: STDERR}
        return out_write, err_write

    def pump(self, fd: int) -> int | None:
        """Move what one read returns into the spool.

        Returns the number of bytes taken, 0 at end of file (the pipe is then to be closed), None when nothing
        is there now.
        """
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return None
        if data:
            self._append(self.pipes[fd], data)
        return len(data)

    def drain(self) -> None:
        """Take what the pipes still hold, bounded, and close them.

        A holder that escaped through a passed descriptor may keep writing; the bound ends its influence.
        """
        for fd in list(self.pipes):
            left = DRAIN_BYTES
            while left > 0:
                taken = self.pump(fd)
                if not taken:
                    break
                left -= taken
            self.close_pipe(fd)

    def close_pipe(self, fd: int) -> None:
        """Close one read end."""
        del self.pipes[fd]
        os.close(fd)

    def close(self) -> None:
        """Close the pipes and the spool file; the counters stay readable."""
        for fd in list(self.pipes):
            self.close_pipe(fd)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, stream: int, data: bytes) -> None:
        room = self._cap - self.payload_bytes
        kept = data if len(data) <= room else data[: max(room, 0)]
        self.truncated_bytes += len(data) - len(kept)
        if not kept:
            return
        frame_bytes = FRAME_HEADER.size + len(kept)
        try:
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            written = os.writev(self._fd, [pack_header(stream, time.time(), len(kept)), kept])
        except OSError:
            written = 0
        if written == frame_bytes:
            self.spool_bytes += frame_bytes
            self.payload_bytes += len(kept)
            return
        # The disk is full: cut a torn frame off, so that later frames stay readable, and count the loss.
        self.truncated_bytes += len(kept)
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.spool_bytes)


class OutputNews:
    """Tells clients that spools have grown: each at most once in 50 ms, however often a job writes."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        """Tell through `emit`."""
        self._emit = emit
        self._told_at = 0.0
        self.grown: dict[str, Output] = {}

    def tell(self, now: float) -> float | None:
        """Tell what has grown if it is time; return the seconds until it is, None when there is nothing to tell."""
        if not self.grown:
            return None
        wait_s = self._told_at + NEWS_EVERY_S - now
        if wait_s > 0:
            return wait_s
        for attempt_id, output in self.grown.items():
            self._emit({"event": "output", "attempt_id": attempt_id, "size": output.spool_bytes})
        self.grown.clear()
        self._told_at = now
        return None
