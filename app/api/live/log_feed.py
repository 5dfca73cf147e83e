"""A job's output across its attempts until the job ends, as pieces that a contract renders.

Only what is contiguous is told, each byte once and in order; each piece has an id behind which a client can go on.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from uuid import UUID

from app.api.live.feed import Message, Next
from app.api.live.lines import STREAM_WORD, last_lines, only, slices
from app.api.live.place import Place
from app.api.live.shared_reads import SharedReads
from app.domain.states import TERMINAL
from app.services import inspect, logs
from app.services.logs import FABRIC, Frame, LogSlice
from app.services.views import JobView
from app.services.watch import Subscription, Watch
from app.storage.database import Database

CHUNKS_AT_A_TIME = 16
"""Fewer than a reader of text takes: hundreds of followers may hold so much at a time."""


@dataclass(frozen=True)
class LogPiece:
    """One piece of output; `stream` is stdout, stderr, or fabric, which tells in words what is missing there."""

    id: str
    stream: str
    attempt: int
    at: float
    data: bytes
    text: str
    """`data` decoded; characters that are cut between two pieces are whole in the second."""


@dataclass(frozen=True)
class _Placed(Frame):
    """A frame with the place behind it: a position, and how many frames from there on have been seen."""

    position: int
    seen: int


Render = Callable[[LogPiece | JobView], Message]
"""A contract's form of a piece of output, and of the job as it was when it had ended."""


@dataclass(frozen=True)
class LogAsked:
    """Which output: from `place` on, one stream or all, `tail` lines of the past, (`fixed`) one attempt only, and of
    which member of a gang."""

    place: Place = Place()
    stream: int | None = None
    tail: int | None = None
    fixed: bool = False
    member: int = 0


class LogFeed:
    """The feed of one follower. Make it after `check_readable`."""

    def __init__(
        self, db: Database, reads: SharedReads, tenant_id: UUID, job_id: UUID, asked: LogAsked, render: Render
    ) -> None:
        self._db = db
        self._reads = reads
        self._tenant_id = tenant_id
        self._job_id = job_id
        self._place = asked.place
        self._stream = asked.stream
        self._tail = asked.tail
        self._fixed = asked.fixed
        self._member = asked.member
        self._render = render
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}
        self._waited = False
        self._primed = asked.place.position == 0 and asked.place.seen == 0

    def subscribe(self, watch: Watch) -> AbstractContextManager[Subscription]:
        """Woken by the job."""
        return watch.job(self._job_id)

    def read(self, version: int) -> tuple[Sequence[Message], Next]:
        """The next stretch of output, or the end of the job."""
        if self._tail is not None:
            pieces = [self._render(piece) for piece in self._last(self._tail)]
            self._tail = None
            return pieces, Next.MORE
        part = self._slice(version)
        if not self._primed:
            self._prime(part)
        messages = [self._render(piece) for piece in self._pieces(part)]
        if not part.ended:
            return messages, Next.MORE if part.more else Next.WAIT
        job = self._reads.get(
            ("job", self._job_id, version), lambda: inspect.get_job(self._db, self._tenant_id, self._job_id)
        )
        if self._place.attempt < job.attempt and not self._fixed:
            self._place = Place(self._place.attempt + 1)
            self._decoders.clear()
            return messages, Next.MORE
        if job.state in TERMINAL or self._fixed:
            return [*messages, self._render(job)], Next.ENDED
        return messages, Next.WAIT

    def _slice(self, version: int) -> LogSlice:
        """The stored stretch at the place; decides on an attempt when there is none yet."""
        place = self._place
        part = self._reads.get(
            ("log", self._job_id, self._member, place.attempt, place.position, version),
            lambda: self._read(place.attempt, place.position),
        )
        if place.attempt == 0 and part.attempt:
            # Who waited for the first attempt gets it, also when it is over already; who comes later gets the latest.
            self._place = Place(1 if self._waited else part.attempt)
            if part.attempt != self._place.attempt:
                return self._slice(version)
        self._waited = self._place.attempt == 0
        return part

    def _pieces(self, part: LogSlice) -> Iterator[LogPiece]:
        start = self._place.position
        for number, frame in enumerate(part.frames[self._place.seen :], self._place.seen + 1):
            # Words on what is missing behind the last byte take no position: uncounted they would come again.
            done = number == len(part.frames) and part.next_position > start
            self._place = Place(part.attempt, part.next_position) if done else Place(part.attempt, start, number)
            if frame.data and (self._stream in {None, frame.stream} or frame.stream == FABRIC):
                yield self._piece(frame)

    def _piece(self, frame: Frame) -> LogPiece:
        word = STREAM_WORD.get(frame.stream, "stdout")
        text = self._decoder(frame.stream).decode(frame.data)
        return LogPiece(str(self._place), word, self._place.attempt, frame.at, frame.data, text)

    def _decoder(self, stream: int) -> codecs.IncrementalDecoder:
        if stream not in self._decoders:
            self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        return self._decoders[stream]

    def _prime(self, part: LogSlice) -> None:
        """Gives the decoders the bytes before the place: a client may go on in the middle of a character."""
        self._primed = True
        before: list[Frame] = []
        if self._place.position:
            before += logs.read_before(
                self._db, self._tenant_id, self._job_id, self._place.attempt, self._place.position, self._member
            )
        for frame in [*before, *part.frames[: self._place.seen]]:
            self._decoder(frame.stream).decode(frame.data)

    def _last(self, count: int) -> Iterator[LogPiece]:
        """The last lines of what there is now; a client can go on behind each piece."""
        first = self._read(self._place.attempt, 0)
        position, seen = 0, 0

        def frames() -> Iterator[_Placed]:
            nonlocal position, seen
            for part in slices(self._read_on(first.attempt), first):
                start = position
                for number, frame in enumerate(part.frames, 1):
                    done = number == len(part.frames) and part.next_position > start
                    position, seen = (part.next_position, 0) if done else (start, number)
                    yield _Placed(frame.stream, frame.at, frame.data, position, seen)

        for frame in last_lines(only(frames(), self._stream), count):
            assert isinstance(frame, _Placed)
            self._place = Place(first.attempt, frame.position, frame.seen)
            yield self._piece(frame)
        self._place = Place(first.attempt, position, seen)

    def _read_on(self, attempt: int) -> Callable[[int], LogSlice]:
        return lambda after: self._read(attempt, after)

    def _read(self, attempt: int, after: int) -> LogSlice:
        return logs.read_log(
            self._db, self._tenant_id, self._job_id, attempt or None, after, CHUNKS_AT_A_TIME, self._member
        )


def check_readable(db: Database, tenant_id: UUID, job_id: UUID, attempt: int | None, member: int = 0) -> LogSlice:
    """The beginning of an attempt's output. Raises NotFound for a foreign job, an unknown attempt or member."""
    return logs.read_log(db, tenant_id, job_id, attempt, 0, CHUNKS_AT_A_TIME, member)
