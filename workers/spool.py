"""The framed spool format: what a job printed, in order, with stream and time.

Pure functions shared by the keeper (writes), the agent (ships) and tests; knows nothing of jobs or sockets.
Standard library only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

STDOUT = 1
STDERR = 2

# Stream number, Unix wall time in seconds, payload length in bytes.
FRAME_HEADER = struct.Struct(">BdI")
MAX_PAYLOAD_BYTES = 1 << 20


class SpoolCorrupt(ValueError):
    """The bytes at a frame boundary are not a frame header."""


class Frame(NamedTuple):
    """One piece of output exactly as the keeper read it."""

    stream: int
    wall_time: float
    payload: bytes


def pack_header(stream: int, wall_time: float, length: int) -> bytes:
    """Return the header that precedes a payload of `length` bytes."""
    return FRAME_HEADER.pack(stream, wall_time, length)


def complete_length(data: bytes | memoryview) -> int:
    """Return how many leading bytes of `data` are complete frames.

    A torn frame at the end (the keeper is writing it right now) is left out.
    Raises SpoolCorrupt when a header is impossible.
    """
    offset, size = 0, len(data)
    while offset + FRAME_HEADER.size <= size:
        stream, _, length = FRAME_HEADER.unpack_from(data, offset)
        if stream not in (STDOUT, STDERR) or length > MAX_PAYLOAD_BYTES:
            raise SpoolCorrupt(f"no frame at byte {offset}: stream {stream}, length {length}")
        end = offset + FRAME_HEADER.size + length
        if end > size:
            break
        offset = end
    return offset


def parse_frames(data: bytes) -> Iterator[Frame]:
    """Yield the complete frames of `data`, which begins at a frame boundary."""
    end, offset = complete_length(data), 0
    while offset < end:
        stream, wall_time, length = FRAME_HEADER.unpack_from(data, offset)
        start = offset + FRAME_HEADER.size
        offset = start + length
        yield Frame(stream, wall_time, data[start:offset])


def read_frames(path: str | os.PathLike[str], offset: int, limit: int) -> tuple[bytes, int]:
    """Return complete frames from byte `offset` on, and the offset to go on from.

    At most `limit` bytes, but always at least one frame where a complete one is there, so that a small limit
    cannot stall a reader. A missing file reads as empty: a job that printed nothing has no spool.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b"", offset
    try:
        data = os.pread(fd, limit, offset)
        usable = complete_length(data)
        if usable == 0 and len(data) == limit:
            data = os.pread(fd, FRAME_HEADER.size + MAX_PAYLOAD_BYTES, offset)
            if len(data) >= FRAME_HEADER.size:
                usable = min(complete_length(data), FRAME_HEADER.size + FRAME_HEADER.unpack_from(data)[2])
        return data[:usable], offset + usable
    finally:
        os.close(fd)
