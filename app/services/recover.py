"""Recovery: expired leases, backoffs that are due, allocations handed back, counts and keys kept in order.

Every pass is short, bounded and safe to run twice at once: beat, a scheduler without a beat, and as a last resort the
agents all call the same functions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from app.domain.errors import Unavailable
from app.domain.policy import Ending, brake, judge
from app.domain.priority import PriorityClass
from app.domain.states import StopCause
from app.services import samples, statistics
from app.services.endings import Ended, end_attempts
from app.services.events import held_alerts
from app.services.gangs import Roll
from app.services.nodes import Orphan
from app.services.passes import Pass, run_task
from app.services.report import Finished
from app.storage import attempts, elsewhere, jobs, keys, leases, nodes, tracked, upkeep
from app.storage.database import Database, Row, Tx
from config.settings import Settings

log = logging.getLogger(__name__)


def reap(db: Database, settings: Settings, batch: int = 200) -> Pass:
    """Ends attempts whose lease is over: their jobs wait again, or end as cancelled when a cancel was asked.

    Nothing is reaped within one lease of the database's start, nor when so many leases expire at once that the fault
    must be ours: the first such pass only notes it, and one lease later the reaper goes on regardless.
    """
    lost: list[UUID] = []

    def work(tx: Tx, done: Pass) -> None:
        seen = leases.census(tx)
        done.detail |= {"live": seen.live, "expired": seen.expired, "reaped": 0}
        done.detail["offline"] = nodes.mark_offline(tx, settings.lease_s)
        if not seen.expired:
            return
        if seen.up_s < settings.lease_s:
            done.detail["waits"] = "the database has just started"
            return
        if brake(seen.expired, seen.live) and not _brake_is_over(tx, settings, done):
            done.detail["waits"] = "too many leases expired at once"
            return
        lost[:] = [row.attempt_id for row in leases.expired(tx, batch)]
        done.ready = _expire(tx, lost, done)

    try:
        done = run_task(db, "reap", work)
        samples.keep_peaks(db, lost)
        return done
    except Unavailable:
        raise
    except Exception:
        log.exception("a batch of expired leases was refused by the database; taking them one by one")
        return _reap_one_by_one(db, settings, batch)


def _reap_one_by_one(db: Database, settings: Settings, batch: int) -> Pass:
    """Each expired attempt in a transaction of its own, so that one that cannot be ended holds up no other."""
    done = Pass("reap", ran=True, detail={"reaped": 0, "alerts": []})
    with db.transaction("read") as tx:
        seen = leases.census(tx)
        if seen.up_s < settings.lease_s:
            return done
        if brake(seen.expired, seen.live) and not _brake_is_over(tx, settings, done):
            return done
        attempt_ids = [row.attempt_id for row in leases.expired(tx, batch)]
    for attempt_id in attempt_ids:
        one = Pass("reap", detail={key: done.detail[key] for key in ("mass_since",) if key in done.detail})
        try:
            with db.transaction("reap") as tx:
                done.ready |= _expire(tx, [attempt_id], one)
            done.wake |= one.wake
            done.detail["reaped"] += one.detail["reaped"]
        except Unavailable:
            raise
        except Exception as exc:
            done.detail["alerts"].append(f"attempt {attempt_id} cannot be ended: {exc}")
    samples.keep_peaks(db, attempt_ids)
    return done


def _brake_is_over(tx: Tx, settings: Settings, done: Pass) -> bool:
    """Whether the mass expiry was first seen more than one lease ago."""
    before = upkeep.last_detail(tx, "reap")
    now = float(tx.value("SELECT extract(epoch FROM clock_timestamp())"))
    since = float(before.get("mass_since", now))
    done.detail["mass_since"] = since
    return now - since >= settings.lease_s


def _expire(tx: Tx, attempt_ids: Sequence[UUID], done: Pass) -> frozenset[PriorityClass]:
    rows = attempts.lock_for_ending(tx, attempt_ids, skip_locked=True)
    roll = Roll.call(tx, rows)
    over = leases.lock_expired(tx, [row.attempt_id for row in rows if roll.has(row)])
    mass = "mass_since" in done.detail
    verdicts = []
    for row in rows:
        if row.attempt_id not in over:
            continue
        verdicts.append((row, *_lost(row, "its node's lease ran out", count_node=not mass)))
    done.detail["reaped"] = len(verdicts)
    ended = end_attempts(tx, roll, verdicts)
    done.wake |= ended.wake
    return ended.ready


def _lost(row: Row, message: str, count_node: bool = True) -> tuple[Finished, Any]:
    """The end of an attempt whose node tells nothing more: what it printed last may be missing from its log."""
    ending = Ending(lost=True, started=count_node and row.started_at is not None)
    cause = None if row.stop_cause is None else StopCause(row.stop_cause)
    others = len([node for node in row.lost_nodes if node != row.node_id])
    verdict = judge(ending, cause, row.failures, row.max_retries, lost_nodes=others)
    gap = row.started_at is not None
    return Finished(row.attempt_id, row.token, ending, message=message, log_gap=gap), verdict


def hand_back(db: Database, orphans: Sequence[Orphan], message: str, uncharged: bool = True) -> Ended:
    """Ends attempts that their own node says it does not run, at once instead of after the lease; safe to repeat."""
    with db.transaction("hand_back") as tx:
        rows = attempts.lock_for_ending(tx, sorted(o.attempt_id for o in orphans))
        roll = Roll.call(tx, rows)
        tokens = {o.attempt_id: o.token for o in orphans}
        verdicts = [
            (row, *_lost(row, message, count_node=not uncharged))
            for row in rows
            if roll.has(row) and row.token == tokens[row.attempt_id]
        ]
        ended = end_attempts(tx, roll, verdicts)
    samples.keep_peaks(db, [row.attempt_id for row, _end, _verdict in verdicts if row.started_at is not None])
    return ended


def end_drains(db: Database, limit: int = 1000) -> Pass:
    """What still runs on a node after the deadline of its drain is stopped, and waits again uncharged."""

    def work(tx: Tx, done: Pass) -> None:
        done.wake = frozenset(nodes.stop_overdue(tx, None, int(StopCause.DRAIN), limit))

    return run_task(db, "drain", work)


def promote(db: Database, elsewhere_s: float = 0.0, limit: int = 1000) -> Pass:
    """Jobs whose backoff is over become ready, for `elsewhere_s` only for other nodes than those where they failed."""

    def work(tx: Tx, done: Pass) -> None:
        due = jobs.due_jobs(tx, limit)
        heads: dict[int, int] = {}
        for row in due:
            heads[row.key_id] = min(heads.get(row.key_id, row.queue_seq), row.queue_seq)
        keys.revive_keys(tx, heads)
        if due and elsewhere_s:
            done.wake = elsewhere.keep_away(tx, [row.id for row in due], elsewhere_s)
        jobs.make_ready(tx, [row.id for row in due])
        done.detail["promoted"] = len(due)
        done.ready = frozenset(PriorityClass(row[3]) for row in due)

    return run_task(db, "promote", work)


def sweep(db: Database, limit: int = 500) -> Pass:
    """Ends keys without jobs, moves low-water marks on; says in which classes jobs wait, so that bells can ring."""

    def work(tx: Tx, done: Pass) -> None:
        before = upkeep.last_detail(tx, "sweep")
        elsewhere.forget(tx)
        ids = keys.idle_keys(tx, limit, int(before.get("after", 0)))
        ended = keys.settle_keys(tx, ids) if ids else 0
        done.detail |= {"ended": ended, "after": ids[-1] if len(ids) == limit else 0}
        done.ready = frozenset(PriorityClass(c) for c in jobs.ready_by_class(tx))

    return run_task(db, "sweep", work)


def fold_stats(db: Database, limit: int = 50_000) -> Pass:
    """Folds count changes into totals and checks usage against live allocations."""

    def work(tx: Tx, done: Pass) -> None:
        done.detail["folded"] = jobs.fold_counts(tx, limit)
        done.detail["observed"] = tracked.fold(tx, limit)

    return run_task(db, "stats", work)


def sum_up(db: Database) -> Pass:
    """Adds new events to the statistics; the place in the feed is kept with the sums."""

    def work(tx: Tx, done: Pass) -> None:
        done.detail |= statistics.add_events(tx, upkeep.last_detail(tx, "statistics"))

    return run_task(db, "statistics", work)


def check_usage(db: Database) -> list[dict[str, Any]]:
    """Where usage rows and live allocations differ: always nowhere, or there is a fault to report."""
    with db.transaction("read") as tx:
        return [dict(row._mapping) for row in nodes.usage_drift(tx)]


def audit(db: Database) -> Pass:
    """Alerts where usage and live allocations differ (never silently mended), and when the event feed is held back."""

    def work(tx: Tx, done: Pass) -> None:
        done.detail["alerts"] = [
            f"usage of tenant {row.tenant_id} on {row.node_id}: {row.counted_jobs} counted, {row.held_jobs} held"
            for row in nodes.usage_drift(tx)
        ] + held_alerts(tx)

    return run_task(db, "audit", work)


def retain(db: Database, settings: Settings, ahead: int = 14) -> Pass:
    """Makes the coming days' partitions, drops what is older than its retention, in bounded steps.

    A day's logs stay while an attempt that was claimed on it runs, and for the retention after that.
    """

    def work(tx: Tx, done: Pass) -> None:
        before = upkeep.last_detail(tx, "retain").get("kept_logs", {})
        kept = upkeep.days_of_live_logs(tx, settings.retain_days, before)
        done.detail["kept_logs"] = kept
        done.detail["made"] = upkeep.make_partitions(tx, ahead)
        done.detail["dropped"] = upkeep.drop_partitions(tx, settings.retain_days, kept)
        done.detail["samples"] = tracked.drop_old_samples(tx, settings.retain_days)
        statistics.drop_old(tx)
        if upkeep.try_task_lock(tx, "stats"):
            done.detail["counts"] = jobs.drop_empty_counts(tx)

    return run_task(db, "retain", work)


def forget_jobs(db: Database, settings: Settings, limit: int = 5000) -> Pass:
    """Drops jobs that ended before their retention, in bounded steps: often, as jobs end at any rate.

    Each step looks at the next `limit` jobs that are old enough by their ids, which tell when they were submitted, and
    remembers where it stopped; so jobs that are old and go on cost no more than a look in each round.
    """

    def work(tx: Tx, done: Pass) -> None:
        before = upkeep.last_detail(tx, "jobs")
        for table in upkeep.OLD_JOBS:
            step = upkeep.drop_old_jobs(tx, table, settings.retain_jobs_days, limit, before.get(f"after_{table}"))
            done.detail |= {table: step.gone, f"after_{table}": None if step.seen < limit else str(step.last)}

    return run_task(db, "jobs", work)


def forget_keys(db: Database, settings: Settings, limit: int = 200_000) -> Pass:
    """Drops idempotency keys older than their retention, in bounded steps: often, as each submit may bring one."""

    def work(tx: Tx, done: Pass) -> None:
        done.detail["forgotten"] = upkeep.drop_old_keys(tx, settings.retain_keys_hours, limit)

    return run_task(db, "keys", work)


def seconds_since(db: Database, name: str) -> float | None:
    """How long ago task `name` last ran anywhere; None when never."""
    with db.transaction("read") as tx:
        return upkeep.since_run(tx, name)


def task_ages(db: Database) -> dict[str, float]:
    """For each task that ever ran: how many seconds ago."""
    with db.transaction("read") as tx:
        return {run.name: run.age_s for run in upkeep.task_runs(tx)}


def forget_nodes(db: Database, settings: Settings, limit: int = 1000) -> Pass:
    """Drops nodes of which nothing was heard for their retention and that hold nothing."""

    def work(tx: Tx, done: Pass) -> None:
        silent_s = settings.retain_nodes_days * 86_400.0
        done.detail["forgotten"] = nodes.forget(tx, nodes.lock_gone(tx, silent_s, limit))

    return run_task(db, "nodes", work)
