"""A job's output on this process's own streams: the very bytes, or, on a terminal, only what does no harm there."""

from __future__ import annotations

import codecs
import sys
from typing import BinaryIO

from app.services.plain_text import Plain, stamp_of


class LogOutput:
    """Where one of the job's streams goes. `raw` shows the bytes as they are on a terminal too."""

    def __init__(self, out: BinaryIO, terminal: bool, raw: bool, timestamps: bool) -> None:
        self._out = out
        self._plain = Plain() if terminal and not raw else None
        self._timestamps = timestamps
        self._decode = codecs.getincrementaldecoder("utf-8")("replace")
        self._line_begins = True

    def write(self, data: bytes, at: float = 0.0) -> None:
        """Shows output that came at `at`, at once."""
        if not data:
            return
        if self._timestamps:
            data = self._stamped(data, stamp_of(at).encode())
        if self._plain is not None:
            data = self._plain.feed(self._decode.decode(data)).encode("utf-8", "replace")
        self._out.write(data)
        self._out.flush()

    def close(self) -> None:
        """Shows what was held back in the hope of more."""
        if self._plain is not None:
            rest = self._plain.feed(self._decode.decode(b"", final=True)) + self._plain.rest()
            self._out.write(rest.encode("utf-8", "replace"))
        self._out.flush()

    def _stamped(self, data: bytes, stamp: bytes) -> bytes:
        ends = data.endswith(b"\n")
        body = data[:-1] if ends else data
        told = (stamp if self._line_begins else b"") + body.replace(b"\n", b"\n" + stamp) + (b"\n" if ends else b"")
        self._line_begins = ends
        return told


def outputs(raw: bool, timestamps: bool) -> dict[str, LogOutput]:
    """An output for each of the job's streams, by their names."""
    return {
        "stdout": LogOutput(sys.stdout.buffer, sys.stdout.isatty(), raw, timestamps),
        "stderr": LogOutput(sys.stderr.buffer, sys.stderr.isatty(), raw, timestamps),
    }
