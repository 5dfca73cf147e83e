"""Reading an attempt's output from its stored chunks. A frame is (stream, time, length) and bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.errors import NotFound
from app.storage import logs
from app.storage.database import Database, Row, Tx

FRAME = struct.Struct(">BdI")
"""A frame's head: stream (1 stdout, 2 stderr), unix time as float64, number of bytes that follow."""
FABRIC, STDOUT, STDERR = 0, 1, 2
"""Streams of frames; FABRIC says in the log's own words what is missing from it."""
PLAIN, ZLIB = 0, 1
CHUNKS_AT_A_TIME = 64


@dataclass(frozen=True)
class Frame:
    """One piece of output as it was read from the job's pipe, or (FABRIC) a line on what is missing there."""

    stream: int
    at: float
    data: bytes


@dataclass(frozen=True)
class LogSlice:
    """Frames in order; read on from `next_position`. `ended`: the attempt is over and this was the last of it.

    What is read from one position again has the same frames first: more may follow, nothing comes between.
    """

    frames: Sequence[Frame]
    next_position: int
    attempt: int
    ended: bool
    truncated_bytes: int = 0
    log_gap: bool = False
    more: bool = False
    """Whether there is more to read already now."""


@dataclass(frozen=True)
class Output:
    """The beginning of both streams, cut at a cap of bytes."""

    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool


def read_log(
    db: Database,
    tenant_id: UUID,
    job_id: UUID,
    attempt: int | None = None,
    after: int = 0,
    chunks: int = CHUNKS_AT_A_TIME,
    member: int = 0,
) -> LogSlice:
    """Output of an attempt (default: the latest) from byte position `after` on; only what is contiguous from there.

    Of a gang's attempt it is one member's.

    An ended attempt's log says where something is missing: beyond the cap on output, or lost with its node. Raises
    NotFound for another tenant's job and for an attempt that does not exist. A job that has not been tried has an
    empty, open log.
    """
    with db.transaction("read") as tx:
        row = _attempt(tx, tenant_id, job_id, attempt, member)
        if row.id is None:
            return LogSlice((), 0, 0, row.state > 3)
        frames, position, complete = _frames(tx, row, after, chunks)
    ended = row.outcome is not None and complete
    if ended:
        missing = list(_missing(row, position))
        if not frames:
            frames = missing
        elif missing:
            # They stand behind the last byte, at a position of their own, so that a reader can go on between.
            ended, complete = False, False
    return LogSlice(frames, position, row.number, ended, row.truncated_bytes, row.log_gap, more=not complete)


def read_before(
    db: Database, tenant_id: UUID, job_id: UUID, attempt: int, before: int, member: int = 0
) -> Sequence[Frame]:
    """The frames of the last stored chunk that ends at position `before` or earlier."""
    with db.transaction("read") as tx:
        row = _attempt(tx, tenant_id, job_id, attempt, member)
        chunk = None if row.id is None else logs.read_chunk_before(tx, row.log_day, row.id, before)
    return () if chunk is None else parse_frames(unpack(chunk.codec, bytes(chunk.data)))


def _attempt(tx: Tx, tenant_id: UUID, job_id: UUID, attempt: int | None, member: int) -> Row:
    row = logs.logged_attempt(tx, job_id, attempt, member)
    if row is None or row.tenant_id != tenant_id:
        raise NotFound("Job not found", job_id=str(job_id))
    if row.id is None and attempt is not None:
        which = f"attempt {attempt}" if not member else f"member {member} in attempt {attempt}"
        raise NotFound(f"The job has no {which}.", job_id=str(job_id))
    if row.id is None and member and not 0 < member < logs.members_of(tx, job_id):
        raise NotFound(f"The job has no member {member}.", job_id=str(job_id))
    return row


def _missing(row: Row, position: int) -> Iterator[Frame]:
    """What an ended attempt's log lacks behind its last stored byte."""
    at = row.ended_at.timestamp() if row.ended_at is not None else 0.0
    if row.output_bytes > position:
        yield Frame(FABRIC, at, _gap(row.output_bytes - position))
    elif row.log_gap and row.output_bytes == 0:
        yield Frame(FABRIC, at, b"[log gap: output may be missing here]\n")
    if row.truncated_bytes:
        yield Frame(FABRIC, at, b"[truncated: %d bytes were dropped]\n" % row.truncated_bytes)


def _gap(length: int) -> bytes:
    return b"[log gap: about %d bytes are missing here]\n" % length


def split_output(tx: Tx, attempt: Row, cap: int) -> Output:
    """The first `cap` bytes of stdout and of stderr."""
    kept = {STDOUT: bytearray(), STDERR: bytearray()}
    cut = {STDOUT: False, STDERR: False}
    position, complete = 0, False
    while not complete and not all(cut.values()) and position < 16 * cap + 2**20:
        frames, position, complete = _frames(tx, attempt, position, CHUNKS_AT_A_TIME)
        for frame in frames:
            if frame.stream not in kept:
                continue
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
        if row.position > position:
            frames.append(Frame(FABRIC, row.at.timestamp(), _gap(row.position - position)))
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
