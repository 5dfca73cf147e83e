"""Reading an attempt's output from its stored chunks. A frame is (stream, time, length) and bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.errors import NotFound
from app.storage import jobs, logs
from app.storage.database import Database, Row, Tx

FRAME = struct.Struct(">BdI")
"""A frame's head: stream (1 stdout, 2 stderr), unix time as float64, number of bytes that follow."""
STDOUT, STDERR = 1, 2
PLAIN, ZLIB = 0, 1
CHUNKS_AT_A_TIME = 64


@dataclass(frozen=True)
class Frame:
    """One piece of output as it was read from the job's pipe."""

    stream: int
    at: float
    data: bytes


@dataclass(frozen=True)
class LogSlice:
    """Frames in order; read on from `next_position`. `ended`: the attempt is over and this was the last of it."""

    frames: Sequence[Frame]
    next_position: int
    attempt: int
    ended: bool


@dataclass(frozen=True)
class Output:
    """The beginning of both streams, cut at a cap of bytes."""

    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool


def read_log(
    db: Database, job_id: UUID, attempt: int | None = None, after: int = 0, chunks: int = CHUNKS_AT_A_TIME
) -> LogSlice:
    """Output of an attempt (default: the latest) from byte position `after` on; only what is contiguous from there.

    Raises NotFound for an attempt that does not exist. A job that has not been tried has an empty, open log.
    """
    with db.transaction("read") as tx:
        tried = jobs.job_attempts(tx, job_id)
        job = jobs.job_view(tx, job_id)
        if job is None:
            raise NotFound("Job not found", job_id=str(job_id))
        if not tried:
            return LogSlice((), 0, 0, job.state > 3)
        row = tried[-1] if attempt is None else next((a for a in tried if a.number == attempt), None)
        if row is None:
            raise NotFound(f"The job has no attempt {attempt}.", job_id=str(job_id))
        frames, position, complete = _frames(tx, row, after, chunks)
    return LogSlice(frames, position, row.number, row.outcome is not None and complete)


def split_output(tx: Tx, attempt: Row, cap: int) -> Output:
    """The first `cap` bytes of stdout and of stderr."""
    kept = {STDOUT: bytearray(), STDERR: bytearray()}
    cut = {STDOUT: False, STDERR: False}
    position, complete = 0, False
    while not complete and not all(cut.values()) and position < 16 * cap + 2**20:
        frames, position, complete = _frames(tx, attempt, position, CHUNKS_AT_A_TIME)
        for frame in frames:
            room = cap - len(kept[frame.stream])
            kept[frame.stream] += frame.data[:room]
            cut[frame.stream] = cut[frame.stream] or len(frame.data) > room
    return Output(bytes(kept[STDOUT]), bytes(kept[STDERR]), cut[STDOUT], cut[STDERR])


def _frames(tx: Tx, attempt: Row, after: int, limit: int) -> tuple[list[Frame], int, bool]:
    """Frames from `after` on, the position after them, and whether nothing more is stored."""
    rows = logs.read_chunks(tx, attempt.log_day, attempt.id, after, limit)
    frames: list[Frame] = []
    position = after
    for row in rows:
        # A gap would mean that a chunk is still on its way; what lies behind it must wait.
        if row.position > position and attempt.outcome is None:
            return frames, position, True
        frames += parse_frames(unpack(row.codec, bytes(row.data)))
        position = row.position + row.length
    return frames, position, len(rows) < limit


def unpack(codec: int, data: bytes) -> bytes:
    """A chunk's bytes as they were framed."""
    return zlib.decompress(data) if codec == ZLIB else data


def parse_frames(data: bytes) -> list[Frame]:
    """All whole frames in `data`."""
    frames, place = [], 0
    while place + FRAME.size <= len(data):
        stream, at, length = FRAME.unpack_from(data, place)
        place += FRAME.size
        frames.append(Frame(stream, at, data[place : place + length]))
        place += length
    return frames


def frame(stream: int, at: float, data: bytes) -> bytes:
    """One frame's bytes."""
    return FRAME.pack(stream, at, len(data)) + data
