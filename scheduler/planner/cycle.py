"""One cycle: from a snapshot to a plan. `plan` walks the line of waiting jobs once and settles each in its turn."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from app.domain.tenant import Tier
from scheduler.planner import why
from scheduler.planner.ask import Ask
from scheduler.planner.crowd import Crowd
from scheduler.planner.horizon import Horizon, Start
from scheduler.planner.hosts import Hosts
from scheduler.planner.line import Line, Turn
from scheduler.planner.outcome import Note, Placement, Plan, Preemption
from scheduler.planner.preempt import Eviction, evict
from scheduler.planner.quotas import Quotas
from scheduler.planner.seats import Offer, Seats, ends_at
from scheduler.planner.snapshot import PREEMPTING, Reserved, Rules, Snapshot, Waiting
from scheduler.planner.victims import Victims

_LASTING = frozenset({"quota", "quota_behind", "undecided", "too_large", "no_room", "reservations_used", "behind"})
"""What does not change within a cycle."""


def plan(snapshot: Snapshot, now: float, rules: Rules) -> Plan:
    """What should happen now: who starts, what is held for whom, who makes room; a note on every other job.

    Promises: no node, GPU or quota is given twice; a gang gets all its seats or none; only jobs that policy allows
    are preempted; no job's turn changes what those before it in line got; the same snapshot gives the same plan. Plain
    jobs that fit beside all reservations are left to the claims, unless they were promised their turn.
    """
    with _uncollected():
        return _Cycle(snapshot, now, rules).run()


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles of objects meanwhile: a plan leaves none, and searches took up to a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Cycle:
    def __init__(self, snapshot: Snapshot, now: float, rules: Rules) -> None:
        self._snapshot, self._now, self._rules = snapshot, now, rules
        self._hosts = Hosts(snapshot, now)
        self._seats = Seats(self._hosts, now)
        self._horizon = Horizon(self._hosts)
        self._victims = Victims(snapshot, now, rules)
        self._crowd = Crowd(snapshot, rules)
        self._asks: dict[Resources, Ask] = {}
        self._could: dict[tuple[Ask, str, int | None], int] = {}
        self._quotas = Quotas(snapshot, now, rules, self._fits_empty)
        self._line = Line(snapshot, now, rules, self._quotas, self._fits_empty)
        # What was found once to be in vain stays so: within a cycle room only shrinks.
        self._no_victims: dict[tuple[Ask, str, Tier, PriorityClass, int], int] = {}
        self._stuck: dict[int, tuple[float, Note]] = {}
        self._never: dict[tuple[Ask, str, int | None], int] = {}
        self._made_at = {held.job_id: held.made_at for held in snapshot.reserved}
        self._kept_on: dict[UUID, set[str]] = {}
        for held in snapshot.reserved:
            self._kept_on.setdefault(held.job_id, set()).add(held.node_id)
        self._placements: list[Placement] = []
        self._reservations: list[Reserved] = []
        self._preemptions: list[Preemption] = []
        self._notes: dict[UUID, Note] = {}

    def run(self) -> Plan:
        """Settles every job in its turn."""
        for turn in self._line:
            note = self._settle(turn)
            if note is not None:
                self._notes[turn.job.job_id] = note
        holds = self._quotas.holds
        # It asks this object what could start: as long as each holds the other, only the collector of cycles ends both.
        del self._line
        return Plan(tuple(self._placements), tuple(self._reservations), tuple(self._preemptions), self._notes, holds)

    def _settle(self, turn: Turn) -> Note | None:
        """What happens to one job; None when it starts."""
        job = turn.job
        # What keeps one job of a key waiting keeps the next as well, unless that is shorter or has a claim of its own.
        stuck = self._stuck.get(job.key_id)
        usual = not (turn.starved or turn.kept or job.avoid or job.max_per_node or self._quotas.is_kept_for(job))
        if usual and stuck is not None and (job.limit_s is None or job.limit_s >= stuck[0]):
            return stuck[1]
        note = self._decide(turn, self._ask(job))
        if usual and note is not None and note.reason in _LASTING:
            self._stuck[job.key_id] = (math.inf if job.limit_s is None else job.limit_s, note)
        return note

    def _decide(self, turn: Turn, ask: Ask) -> Note | None:
        job = turn.job
        # 1. The empty fabric would hold all of it, and its tenant's quota has room.
        bar = self._bar(job)
        if bar is not None:
            return bar
        # 2. It starts now: on what nobody else is promised, or in a hole that it leaves in time.
        offer = self._seats.offer(job, ask)
        if offer.seats:
            return self._start(turn, ask, offer)
        # 3. Otherwise others make room for it, if its tenant may ask for that,
        has_place = self._crowd.has_place()
        made = self._evict(job, ask) if self._crowd.may_preempt(job) else None
        if made is None and not has_place:
            return why.full(job, self._rules)
        promised = turn.starved or self._crowd.deserves(job, self._now, turn.kept)
        if made is None and not promised:
            return why.no_room(job, ask, self._hosts, offer.fits, self._now)
        # or room is held for it as it comes free. Victims take their grace: what ends by then anyway costs nothing.
        start = self._earliest(job, ask)
        if made is not None and (start is None or made.free_at < start.at):
            return self._make_room(turn, ask, made)
        if start is None:
            return why.behind(job, self._hosts)
        if not has_place and not turn.preempts:
            return why.full(job, self._rules)
        # Those who were told are ending: what they leave is still the job's alone.
        reason = PREEMPTING if turn.preempts and made is not None else "gang" if job.members > 1 else "large"
        self._reserve(turn, ask, start, "starved" if turn.starved else reason)
        return why.reserved(start, offer.fits, self._now)

    def _bar(self, job: Waiting) -> Note | None:
        could = self._could_hold(job)
        return why.too_large(job, could) if could < job.members else self._quotas.bar(job)

    def _start(self, turn: Turn, ask: Ask, offer: Offer) -> Note | None:
        """Takes the seats; of plain jobs that have to wait for nobody the claims do it."""
        job = turn.job
        for host, seat in offer.seats:
            self._hosts.take(host, ask, seat.gpu_uuids, ends_at(job, self._now))
        self._charge(job)
        kept = PREEMPTING if turn.preempts else "reserved" if turn.kept else None
        promised = "starved" if turn.starved else kept
        if offer.way == "claim" and promised is None and self._quotas.is_kept_for(job):
            # Claims of its tenant leave alone what is kept for it, and so does its own.
            promised = "quota_kept"
        if offer.way == "claim" and promised is None:
            return why.claim(offer.seats[0][0])
        reason = promised or offer.way
        self._placements.append(Placement(job.job_id, tuple(seat for _host, seat in offer.seats), reason))
        return None

    def _evict(self, job: Waiting, ask: Ask) -> Eviction | None:
        key = (ask, job.runner, job.tier, job.priority_class, job.priority)
        if self._no_victims.get(key, job.members + 1) <= job.members:
            return None
        made = evict(job, ask, self._hosts, self._victims, self._now)
        if made is None and not job.avoid and job.max_per_node is None:
            self._no_victims[key] = job.members
        return made

    def _earliest(self, job: Waiting, ask: Ask) -> Start | None:
        key = (ask, job.runner, job.max_per_node)
        if self._never.get(key, job.members + 1) <= job.members:
            return None
        start = self._horizon.earliest(job, ask, self._kept_on.get(job.job_id, ()))
        if start is None:
            self._never[key] = job.members
        return start

    def _make_room(self, turn: Turn, ask: Ask, made: Eviction) -> Note:
        job = turn.job
        self._victims.tell(made.victims)
        for victim in made.victims:
            reason = (
                f"makes room for a job of tier {job.tier}, class {job.priority_class.word}, priority {job.priority}"
            )
            self._preemptions.append(Preemption(victim.job_id, victim.id, job.job_id, victim.lost_gpu_s, reason))
        self._reserve(turn, ask, Start(made.free_at, made.seats), PREEMPTING)
        return why.preempting(made, self._now)

    def _reserve(self, turn: Turn, ask: Ask, start: Start, reason: str) -> None:
        job = turn.job
        starts_at = None if start.at == math.inf else start.at
        # What others give back for it nobody else may have, of whatever class: else they were put back in vain.
        counts_as = PriorityClass.FOREGROUND if reason == PREEMPTING else turn.counts_as
        for member, (host, seat) in enumerate(start.seats):
            held = Reserved(
                job.job_id, member, host.view.id, counts_as, 1, ask.cpus_milli, ask.memory_bytes,
                seat.gpu_uuids, starts_at, self._made_at.get(job.job_id, self._now), reason,
            )  # fmt: skip
            self._hosts.reserve(host, held)
            self._reservations.append(held)
        self._crowd.add(job, reason == PREEMPTING)
        self._charge(job)

    def _charge(self, job: Waiting) -> None:
        self._line.charge(job)
        self._quotas.charge(job)

    def _ask(self, job: Waiting) -> Ask:
        ask = self._asks.get(job.shape)
        if ask is None:
            ask = self._asks[job.shape] = Ask(job.shape)
        return ask

    def _could_hold(self, job: Waiting) -> int:
        """How many members the fabric would hold if it were empty."""
        ask = self._ask(job)
        key = (ask, job.runner, job.max_per_node)
        if key not in self._could:
            able = [(host, count) for host, count in self._hosts.makes if job.runner in host.view.runners]
            times = ((host.could_ever(ask), count) for host, count in able)
            self._could[key] = sum(count * min(n, job.max_per_node or n) for n, count in times)
        return self._could[key]

    def _fits_empty(self, job: Waiting) -> bool:
        return self._could_hold(job) >= job.members
