"""The reporting loop: starts, output and ends go to the database in batches, output always before its end.

An end is told until the database has answered; only then does the runner forget the attempt.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from app.domain.errors import FabricError, Unavailable
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from app.services.report import (
    Answer,
    Chunk,
    Finished,
    FinishResult,
    Started,
    append_output,
    report_started,
)
from app.services.samples import keep_peaks
from app.storage.database import Database
from workers.agent.outcome import ending_of, message_of, peak_cpu_cores
from workers.agent.overuse import overused
from workers.agent.registry import Entry, Registry
from workers.spool import read_frames

log = logging.getLogger(__name__)

ENDS_AT_A_TIME = 64
CHUNK_BYTES = 256 * 1024
TURN_BYTES = 2 * 2**20
"""Output shipped in one turn at most, so that a flood delays other jobs' ends by milliseconds only."""
GATHER_S = 0.004
"""How long ends wait for more of them while jobs wait for slots: a report of many costs little more than of one."""
START_DELAY_S = 0.02
"""A start is told this late, so that the start of a job that ends at once needs no transaction of its own."""

End = tuple[UUID, Finished | None]
"""An attempt that is over, and its report where there is no exit record to make it from."""


class Reporter:
    """Tells the core what happens on this node, in one thread."""

    def __init__(
        self,
        db: Database,
        registry: Registry,
        flush_s: float,
        spool_path: Callable[[Entry], str],
        ended: Callable[[list[tuple[Entry, Finished, Answer, str]]], None],
        lost: Callable[[Entry], None],
        ready_again: Callable[[frozenset[PriorityClass]], None],
        finish: Callable[[Sequence[Finished], Callable[[FinishResult], None]], None],
        batch: Callable[[], int],
        hint: Callable[[Sequence[UUID], bool], None] = lambda job_ids, state: None,
        wake: Callable[[Iterable[str]], None] = lambda nodes: None,
    ) -> None:
        self._db = db
        self._registry = registry
        self._flush_s = flush_s
        self._spool_path = spool_path
        self._ended = ended
        self._lost = lost
        self._ready_again = ready_again
        self._finish = finish
        self._batch = batch
        self._wanted = 1
        self._hint = hint
        self._wake = wake
        self._condition = threading.Condition()
        self._ends: dict[UUID, Finished | None] = {}
        self._starts: dict[UUID, float] = {}
        self._grown: set[UUID] = set()
        self._poison: dict[UUID, tuple[float, float, Finished | None]] = {}
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Begins to report."""
        self._thread.start()

    def tell_started(self, entry: Entry) -> None:
        """The attempt's process runs."""
        with self._condition:
            self._starts[entry.attempt_id] = time.monotonic() + START_DELAY_S
            self._condition.notify()

    def tell_output(self, entry: Entry) -> None:
        """There is output to ship; it goes with the next flush."""
        with self._condition:
            first = not self._grown
            self._grown.add(entry.attempt_id)
            if first:
                self._condition.notify()

    def tell_ended(self, entry: Entry, finished: Finished | None = None) -> None:
        """The attempt is over: by its exit record, or (`finished`) without ever having had a process."""
        with self._condition:
            self._ends.setdefault(entry.attempt_id, finished)
            if len(self._ends) in (1, self._wanted):
                self._condition.notify()

    def stop(self) -> None:
        """Ships what can be shipped now and ends; what is left stays with the keeper for the next agent."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        flushed = 0.0
        pause = 0.0
        while True:
            with self._condition:
                if not self._stopped:
                    self._wait(flushed, pause)
                stopping = self._stopped
                self._try_poison_again()
                ends = [(key, self._ends.pop(key)) for key in list(self._ends)[:ENDS_AT_A_TIME]]
                now = time.monotonic()
                starts = [k for k, due in self._starts.items() if due <= now or stopping]
                grown: list[UUID] = []
                if now - flushed >= self._flush_s or stopping:
                    grown, self._grown, flushed = list(self._grown), set(), now
            try:
                self._turn(ends, starts, grown)
                pause = 0.0
            except Exception as exc:
                level = logging.WARNING if isinstance(exc, FabricError) else logging.ERROR
                log.log(
                    level,
                    "report failed, it will be told again: %s",
                    exc,
                    exc_info=not isinstance(exc, FabricError),
                )
                pause = min(2.0, (pause or 0.05) * 2)
                with self._condition:
                    for key, finished in ends:
                        self._ends.setdefault(key, finished)
                    self._grown |= set(grown)
            if stopping and (pause or not (self._ends or self._grown)):
                return

    def _wait(self, flushed: float, pause: float) -> None:
        """Sleeps until there is something to tell, or something told late is due."""
        if pause:
            self._condition.wait_for(lambda: self._stopped, timeout=pause)
            return
        while not (self._stopped or self._ends):
            now = time.monotonic()
            due = [when - now for when in self._starts.values()]
            due += [when - now for when, _pause, _finished in self._poison.values()]
            if self._grown:
                due.append(flushed + self._flush_s - now)
            if due and min(due) <= 0:
                return
            self._condition.wait(min(due) if due else None)
        self._wanted = self._batch()
        self._condition.wait_for(lambda: self._stopped or len(self._ends) >= self._wanted, GATHER_S)

    def _turn(self, ends: Sequence[End], starts: Sequence[UUID], grown: Sequence[UUID]) -> None:
        ending = {key for key, _finished in ends}
        self._tell_starts([key for key in starts if key not in ending])
        with self._condition:
            for key in ending:
                self._starts.pop(key, None)
        self._ship([key for key in grown if key not in ending])
        self._tell_ends(ends)

    def _tell_starts(self, keys: Sequence[UUID]) -> None:
        entries = [entry for entry in map(self._registry.get, keys) if entry is not None and not entry.started_told]
        told = [Started(e.attempt_id, e.token, e.started_at) for e in entries if e.started_at is not None]
        if told:
            known = report_started(self._db, told)
            self._hint([entry.job_id for entry in entries], True)
            for entry in entries:
                entry.started_told = True
                if entry.attempt_id not in known:
                    self._lost(entry)
        with self._condition:
            for key in keys:
                self._starts.pop(key, None)

    def _ship(self, keys: Sequence[UUID]) -> None:
        budget = TURN_BYTES
        chunks: list[tuple[Entry, Chunk]] = []
        again: set[UUID] = set()
        for key in keys:
            entry = self._registry.get(key)
            if entry is None:
                continue
            if budget <= 0:
                again.add(key)
                continue
            chunk = self._readable(entry)
            if chunk is not None:
                chunks.append((entry, chunk))
                budget -= chunk.length
                if chunk.position + chunk.length < entry.spool_bytes:
                    again.add(key)
        if chunks:
            self._store(chunks)
        with self._condition:
            self._grown |= again

    def _readable(self, entry: Entry) -> Chunk | None:
        """The next chunk of an attempt; None also for output that cannot be read: its end will tell of the gap."""
        if entry.log_broken:
            return None
        try:
            return self._next_chunk(entry)
        except Exception as exc:
            self._break_log(entry, exc)
            return None

    def _store(self, chunks: Sequence[tuple[Entry, Chunk]]) -> None:
        """Stores chunks together, or, when PostgreSQL refuses that, one by one: no output holds up another's."""
        try:
            append_output(self._db, [chunk for _entry, chunk in chunks])
        except Unavailable:
            raise
        except Exception as exc:
            if len(chunks) > 1:
                for one in chunks:
                    self._store([one])
            else:
                self._break_log(chunks[0][0], exc)
            return
        for entry, chunk in chunks:
            entry.stored, entry.unsure = chunk.position + chunk.length, None
        self._hint([entry.job_id for entry, _chunk in chunks], False)

    @staticmethod
    def _break_log(entry: Entry, exc: Exception) -> None:
        log.error("output of attempt %s is lost from byte %d on: %s", entry.attempt_id, entry.stored, exc)
        entry.log_broken = True

    def _next_chunk(self, entry: Entry) -> Chunk | None:
        """The next stretch of an attempt's output; the very same one again until it is known to be stored.

        A chunk whose commit is unknown must not come back longer: the database would keep the shorter one.
        """
        if entry.unsure is not None:
            return entry.unsure
        data, after = read_frames(self._spool_path(entry), entry.stored, CHUNK_BYTES)
        if not data:
            return None
        packed = zlib.compress(data, 1) if len(data) > 512 else data
        codec = 1 if len(packed) < len(data) else 0
        entry.unsure = Chunk(
            entry.attempt_id,
            entry.log_day,
            entry.stored,
            after - entry.stored,
            codec,
            packed if codec else data,
        )
        return entry.unsure

    def _tell_ends(self, ends: Sequence[End]) -> None:
        told: list[tuple[Entry, Finished]] = []
        later: list[UUID] = []
        for key, finished in ends:
            entry = self._registry.get(key)
            if entry is None:
                continue
            if finished is None:
                finished = self._finished(entry)
                if finished is None:
                    later.append(key)
                    continue
            told.append((entry, finished))
        if told:
            self._finish([finished for _entry, finished in told], partial(self._settle, told))
        if later:
            with self._condition:
                for key in later:
                    self._ends.setdefault(key, None)

    def _settle(self, told: Sequence[tuple[Entry, Finished]], result: FinishResult) -> None:
        self._hint([entry.job_id for entry, _end in told], True)
        # What an attempt's keeper knew of its peaks went with it.
        keep_peaks(self._db, [end.attempt_id for _entry, end in told if end.ending.lost])
        self._ended(
            [
                (entry, end, result.answers[entry.attempt_id], result.outcomes.get(entry.attempt_id, ""))
                for entry, end in told
                if entry.attempt_id in result.answers
            ]
        )
        if result.ready_again:
            self._ready_again(result.ready_again)
        self._wake(result.wake)
        self._defer([(entry, finished) for entry, finished in told if entry.attempt_id not in result.answers])

    def _defer(self, refused_ends: Sequence[tuple[Entry, Finished]]) -> None:
        """Ends that PostgreSQL refuses stand alone: told again later and later, while all others go their way."""
        for entry, finished in refused_ends:
            _due, pause, _finished = self._poison.pop(entry.attempt_id, (0.0, 0.5, None))
            log.error("the end of attempt %s is refused by the database and is told again", entry.attempt_id)
            again = None if entry.record is not None else finished
            with self._condition:
                self._poison[entry.attempt_id] = (time.monotonic() + pause * 2, min(60.0, pause * 2), again)

    def _try_poison_again(self) -> None:
        now = time.monotonic()
        for key, (due, pause, finished) in list(self._poison.items()):
            if due <= now and self._registry.get(key) is None:
                del self._poison[key]
            elif due <= now:
                self._poison[key] = (now + 2 * pause, pause, finished)
                self._ends.setdefault(key, finished)

    def _finished(self, entry: Entry) -> Finished | None:
        """The report of an ended attempt with the rest of its output, or None while much output is still to ship."""
        record = entry.record
        assert record is not None
        chunks, gap = self._rest(entry, record.spool_bytes)
        if chunks is None:
            return None
        return Finished(
            attempt_id=entry.attempt_id,
            token=entry.token,
            ending=ending_of(record),
            message="; ".join(filter(None, (message_of(record), overused(entry)))),
            started_at=_time(record.started_wall),
            ended_at=_time(record.ended_wall),
            peak_memory_bytes=max(record.peak_memory_bytes or 0, entry.peak_memory_bytes or 0) or None,
            cpu_seconds=record.cpu_seconds,
            peak_cpu_cores=peak_cpu_cores(record, entry.peak_cpu_cores),
            peak_gpu_memory_bytes=entry.peak_gpu_memory_bytes,
            output_bytes=record.spool_bytes,
            truncated_bytes=record.truncated_bytes,
            image_digest=record.image_digest,
            log_gap=gap,
            chunks=chunks,
        )

    def _rest(self, entry: Entry, size: int) -> tuple[Sequence[Chunk] | None, bool]:
        """What is left of an ended attempt's output as (chunks, gap); (None, _) while more than one chunk is left."""
        if entry.stored >= size:
            return (), False
        if entry.log_broken:
            return (), True
        try:
            chunk = self._next_chunk(entry)
            if chunk is None:
                return (), True
            if chunk.position + chunk.length >= size:
                return (chunk,), False
            append_output(self._db, [chunk])
            entry.stored, entry.unsure = chunk.position + chunk.length, None
            return None, False
        except Unavailable:
            raise
        except Exception as exc:
            # The log can never hold up the end: what cannot be read or stored is left out, and said so.
            self._break_log(entry, exc)
            return (), True


def refused(entry: Entry, ending: Ending, message: str) -> Finished:
    """The report of an attempt that never had a process."""
    clean = message[:4000].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return Finished(entry.attempt_id, entry.token, ending, message=clean, ended_at=datetime.now(UTC))


def _time(wall: float | None) -> datetime | None:
    return None if wall is None else datetime.fromtimestamp(wall, UTC)
