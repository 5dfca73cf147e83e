"""The task `plan`: reads the fabric, asks the planner, and applies what it decided, each step guarded anew.

A scheduler that dies between any two steps leaves a fabric in order: a placement or a set of reservations is whole or
not there, and what was reserved ends by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from uuid import UUID

from app.domain.errors import Unavailable
from app.domain.planned import sentence_of
from app.domain.priority import PriorityClass
from app.services.passes import Pass, run_task
from app.services.place import Spot, place
from app.services.planning import Told, Victim, Wanted, WantedQuota, age_shares, keep, note
from app.services.plans import carry_on
from app.storage import upkeep
from app.storage.database import Database, Tx
from config.settings import Settings
from scheduler.loading import Loaded, load
from scheduler.planner import Note, Placement, Plan, Rules, plan
from scheduler.planner.host import end_of

log = logging.getLogger(__name__)

LEAST_LASTS_S = 60.0
"""A reservation of a scheduler that died holds its capacity for so long at most, unless cycles are slower still."""
PART_OF_TIME = 0.1
"""A planner that reads and thinks for long plans less often: it never does so for more than this part of the time."""
APPLY_S = 10.0
"""After so long the rest of a plan is left to the next cycle, which plans on what is true then."""
LONGEST_S = 600.0
"""A cycle that takes longer has hung: its lock is another planner's then."""
TOLD_REASONS = frozenset({"reserved", "preempting"})


def run_plan(db: Database, settings: Settings) -> Pass:
    """One cycle under the planner's lock; does nothing while another planner works, or when it is not time yet."""

    def work(tx: Tx, done: Pass) -> None:
        before = upkeep.last_detail(tx, "plan")
        now = float(tx.value("SELECT extract(epoch FROM clock_timestamp())"))
        began = time.monotonic()
        # Since the last cycle, not since the last look: a look that finds it too early is a run of the task, too.
        worked_s = float(before.get("load_s", 0.0)) + float(before.get("plan_s", 0.0))
        if 0 <= now - float(before.get("at", 0.0)) < worked_s * (1 / PART_OF_TIME - 1):
            done.detail |= before
            return
        # The lock's transaction only waits meanwhile; all work is done in short ones beside it.
        upkeep.may_idle(tx, LONGEST_S)
        cycle(db, settings, done)
        took_s = time.monotonic() - began
        done.detail |= {"took_s": round(took_s, 4), "at": now + took_s}
        done.detail |= carry_on(tx, before, done.detail)

    return run_task(db, "plan", work)


def cycle(db: Database, settings: Settings, done: Pass) -> None:
    """Load, plan, apply. `done` tells how much there was, how long it took, and which nodes to wake."""
    began = time.monotonic()
    loaded = load(db, settings.lease_s)
    age_shares(db, loaded.tenants, settings.fair_share_half_life_s)
    read = time.monotonic()
    decided = plan(loaded.snapshot, loaded.now, rules_of(settings))
    thought = time.monotonic()
    done.detail |= {
        "nodes": len(loaded.snapshot.nodes),
        "running": len(loaded.snapshot.running),
        "waiting": len(loaded.snapshot.waiting),
        "load_s": round(read - began, 4),
        "plan_s": round(thought - read, 4),
    }
    _apply(db, settings, loaded, decided, lasts_s(settings, thought - began), done)


def lasts_s(settings: Settings, worked_s: float) -> float:
    """How long what a cycle reserves lasts: well beyond the next one, which the rest after this one puts off."""
    return max(LEAST_LASTS_S, 10 * settings.plan_s) + 2 * worked_s / PART_OF_TIME


def rules_of(settings: Settings) -> Rules:
    """What operators decided about planning."""
    return Rules(
        reserve_after_s=settings.reserve_after_s,
        starvation_s=settings.starvation_s,
        max_reservations=settings.max_reservations,
        min_runtime_s=settings.min_runtime_s,
    )


def _apply(db: Database, settings: Settings, loaded: Loaded, decided: Plan, lasts: float, done: Pass) -> None:
    began = time.monotonic()
    victims = [Victim(one.victim_attempt, one.for_job, one.why) for one in decided.preemptions]
    # Also when nothing is wanted: what was reserved for jobs that wait no more goes then.
    starting = [one.job_id for one in decided.placements]
    quotas = [WantedQuota(one.tenant_id, one.job_id, one.needs) for one in decided.quota_holds]
    kept = keep(db, list(_wanted(loaded, decided)), victims, lasts, starting, quotas)
    wake = set(kept.nodes)
    done.detail |= {"reserved": len(decided.reservations), "preempted": len(kept.preempted)}
    told = [one for one in decided.preemptions if one.victim_job in kept.preempted]
    done.detail["told"] = [[str(one.victim_attempt), str(one.for_job)] for one in told]
    for one in told:
        log.info("job %s %s (job %s)", one.victim_job, one.why, one.for_job)
    # What is reserved now is what this plan reserved, for jobs that come before and after those that it places, and
    # what those had before that it places: it knew of all.
    planned_with = frozenset(one.job_id for one in decided.reservations).union(starting)
    refused: dict[UUID, str] = {}
    placed = 0
    for placement in decided.placements:
        if time.monotonic() - began > APPLY_S:
            break
        answer = _place(db, settings, loaded, placement, planned_with)
        if answer is None:
            continue
        wake |= answer[0]
        placed += bool(answer[0])
        if answer[1]:
            refused[placement.job_id] = answer[1]
    done.detail |= {"placed": placed, "refused": len(refused), "apply_s": round(time.monotonic() - began, 4)}
    done.wake = frozenset(wake)
    note(db, list(_told(loaded, decided, refused)))


def _place(
    db: Database, settings: Settings, loaded: Loaded, placement: Placement, planned_with: frozenset[UUID]
) -> tuple[frozenset[str], str] | None:
    """The nodes that have something to fetch, or why not; None when nobody knows."""
    spots = [Spot(seat.node_id, tuple(seat.gpu_uuids)) for seat in placement.members]
    job = next(job for job in loaded.snapshot.waiting if job.job_id == placement.job_id)
    counts_as = PriorityClass.FOREGROUND if placement.why == "starved" else job.priority_class
    try:
        answer = place(db, placement.job_id, spots, counts_as, settings.lease_s, planned_with)
    except Unavailable:
        raise
    except Exception:
        # One job that cannot be placed holds up no other.
        log.exception("job %s cannot be placed", placement.job_id)
        return None
    return answer.nodes, answer.refusal


def _wanted(loaded: Loaded, decided: Plan) -> Iterator[Wanted]:
    victims = {one.victim_attempt for one in decided.preemptions}
    on_node: dict[str, list[tuple[float, UUID]]] = {}
    for run in loaded.snapshot.running:
        told = (run.leader or run.attempt_id) in victims
        end = loaded.now + run.grace_s if told else end_of(run, loaded.now)
        on_node.setdefault(run.node_id, []).append((end, run.attempt_id))
    for held in decided.reservations:
        by = held.starts_at
        ends = on_node.get(held.node_id, ())
        yield Wanted(
            job_id=held.job_id,
            member=held.member,
            node_id=held.node_id,
            priority_class=held.priority_class,
            slots=held.slots,
            cpus_milli=held.cpus_milli,
            memory_bytes=held.memory_bytes,
            gpu_uuids=tuple(held.gpu_uuids),
            starts_at=by,
            awaited=() if by is None else tuple(attempt for end, attempt in ends if end <= by + 0.001),
            why=held.why,
        )


def _told(loaded: Loaded, decided: Plan, refused: dict[UUID, str]) -> Iterator[Told]:
    """What explanations cannot find out by themselves: of jobs of several members, reservations, preemptions."""
    gangs = {job.job_id for job in loaded.snapshot.waiting if job.members > 1}
    for job_id, one in decided.notes.items():
        if job_id in gangs or one.reason in TOLD_REASONS:
            yield _tell(job_id, one)
    for job_id, refusal in refused.items():
        yield Told(job_id, "changed", f"It was to start, but {refusal}; the next plan looks again.", {})


def _tell(job_id: UUID, one: Note) -> Told:
    numbers = dict(one.numbers)
    return Told(job_id, one.reason, sentence_of(one.reason, numbers), numbers)
