"""A job's live output as server-sent events, across its attempts, until the job ends.

    id: 1:4096.2                                       where to go on (Last-Event-ID), to be read by this module alone
    event: log
    data: {"stream":"stdout","attempt":1,"time":1704110460.25,"text":"…"}

    event: end
    data: {"status":"completed","state_detail":"completed","exit_code":0,"signal":null,"attempt":1}

Comments are sent while nothing happens. No transaction is open between two looks, and a database that is away for a
while is waited for. The `end` comes once; a stream that closes without it was cut and should be asked for again.
"""

from __future__ import annotations

import codecs
import json
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from threading import Event
from uuid import UUID

from app.api.jobs.log_lines import STREAM_WORD, last_lines, only, slices
from app.api.jobs.translate import STATUS
from app.domain.errors import FieldProblem, Invalid, NotFound, Unavailable
from app.domain.states import TERMINAL
from app.services import inspect, logs
from app.services.logs import Frame, LogSlice
from app.services.views import JobView
from app.storage.database import Database

HEARTBEAT_S = 10.0
SHORTEST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5
OUTAGE_S = 30.0

_ID = re.compile(r"([0-9]{1,9}):([0-9]{1,15})(?:\.([0-9]{1,9}))?")


@dataclass
class Place:
    """How far a reader has come: attempt, position in its output, and frames already seen from there on."""

    attempt: int = 0
    position: int = 0
    seen: int = 0

    def __str__(self) -> str:
        return f"{self.attempt}:{self.position}" + (f".{self.seen}" if self.seen else "")


def parse_place(text: str) -> Place:
    """The place that an event's id names. Raises Invalid."""
    match = _ID.fullmatch(text)
    if not match:
        problem = FieldProblem("Last-Event-ID", f"{text[:60]!a} is not the id of an event of this stream")
        raise Invalid(problems=[problem])
    return Place(int(match[1]), int(match[2]), int(match[3] or 0))


@dataclass
class Follower:
    """One reader's stream. `closing` ends it early; `fixed` keeps to the attempt in `place`."""

    db: Database
    tenant_id: UUID
    job_id: UUID
    closing: Event
    place: Place = field(default_factory=Place)
    stream: int | None = None
    tail: int | None = None
    fixed: bool = False
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def events(self) -> Iterator[str]:
        """The stream's text, event by event; the first is sent at once, so that a client sees that it is connected."""
        yield "retry: 1000\n\n"
        commented = answered = self.clock()
        pause_s = SHORTEST_PAUSE_S
        while not self.closing.is_set():
            try:
                sent, job = yield from self._step()
                answered = self.clock()
            except Unavailable:
                sent, job = False, None
                if self.clock() - answered > OUTAGE_S:
                    return
            except NotFound:  # Retention took the job while it was read.
                return
            if job is not None:
                yield _end(job)
                return
            if self.clock() - commented >= HEARTBEAT_S:
                commented = self.clock()
                yield ": still here\n\n"
            if not sent:
                self.closing.wait(pause_s)
            pause_s = SHORTEST_PAUSE_S if sent else min(pause_s * 1.5, LONGEST_PAUSE_S)

    def _step(self) -> Generator[str, None, tuple[bool, JobView | None]]:
        """Sends what is new; returns (whether something was, the job when it has ended and all was sent)."""
        if self.tail is not None:
            yield from self._tail_events(self.tail)
            self.tail = None
        part = self._read()
        new = list(part.frames[self.place.seen :])
        yield from self._log_events(part, new)
        if new:
            return True, None
        if not part.ended:
            return False, None
        job = inspect.get_job(self.db, self.tenant_id, self.job_id)
        if self.place.attempt < job.attempt and not self.fixed:
            self.place = Place(self.place.attempt + 1)
            self._decoders.clear()
            return True, None
        return False, job if job.state in TERMINAL or self.fixed else None

    def _read(self) -> LogSlice:
        """The next stored stretch; decides on an attempt when there is none yet."""
        if self.place.attempt == 0:
            part = logs.read_log(self.db, self.job_id, None, 0)
            self.place = Place(part.attempt)
            return part
        return logs.read_log(self.db, self.job_id, self.place.attempt, self.place.position)

    def _log_events(self, part: LogSlice, new: list[Frame]) -> Iterator[str]:
        start = self.place.position
        for number, frame in enumerate(new, self.place.seen + 1):
            last = number == len(part.frames)
            self.place = Place(part.attempt, part.next_position) if last else Place(part.attempt, start, number)
            if self.stream in {None, frame.stream} and frame.data:
                yield self._event(frame)

    def _event(self, frame: Frame) -> str:
        decoder = self._decoders.get(frame.stream)
        if decoder is None:
            decoder = self._decoders[frame.stream] = codecs.getincrementaldecoder("utf-8")("replace")
        told = {
            "stream": STREAM_WORD.get(frame.stream, "stdout"),
            "attempt": self.place.attempt,
            "time": round(frame.at, 6),
            "text": decoder.decode(frame.data),
        }
        return f"id: {self.place}\nevent: log\ndata: {json.dumps(told, separators=(',', ':'))}\n\n"

    def _tail_events(self, count: int) -> Iterator[str]:
        """The last lines of what there is now; the place moves to its end first, so each event resumes behind it."""
        first = self._read()
        attempt, end = first.attempt, [first.next_position]

        def frames() -> Iterator[Frame]:
            for part in slices(lambda after: logs.read_log(self.db, self.job_id, attempt, after), first):
                end[0] = part.next_position
                yield from only(part.frames, self.stream)

        kept = last_lines(frames(), count)
        self.place = Place(attempt, end[0])
        for frame in kept:
            yield self._event(frame)


def _end(job: JobView) -> str:
    told = {
        "status": STATUS[job.state],
        "state_detail": job.state.word,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "attempt": job.attempt,
    }
    return f"event: end\ndata: {json.dumps(told, separators=(',', ':'))}\n\n"


def check_exists(db: Database, tenant_id: UUID, job_id: UUID, attempt: int | None) -> LogSlice:
    """The beginning of an attempt's output. Raises NotFound for a foreign job and an unknown attempt."""
    job = inspect.get_job(db, tenant_id, job_id)
    if attempt is not None and attempt > job.attempt:
        raise NotFound(f"The job has no attempt {attempt}.", job_id=str(job_id))
    return logs.read_log(db, job_id, attempt, 0)
