"""The scheduler without a broker, with two beats, and with a beat that has stopped: the row decides, nobody else."""

from __future__ import annotations

import threading
from dataclasses import replace

from app.bells import Ringer
from app.domain.job import DEFAULT_TENANT, JobRequest
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.services import inspect
from app.services.claim import Claimer, claim
from app.services.nodes import NodeOffer, register
from app.services.recover import Pass, promote
from app.services.report import Finished, finish
from app.services.submit import submit
from app.storage import upkeep
from app.storage.database import Database
from config.settings import Settings
from scheduler.tasks import Task, make_tasks, perform
from scheduler.ticker import Ticker

GIB = 2**30


def _backed_off(db: Database, settings: Settings) -> JobRequest:
    """A job that has failed once and whose backoff is over; its request."""
    request = JobRequest(
        "t", PriorityClass.BACKGROUND, binary_url="http://127.0.0.1/x", binary_sha256="0" * 64, max_retries=1
    )
    submit(db, settings, DEFAULT_TENANT, [request])
    incarnation = register(db, NodeOffer("n1", 4, 4000, GIB), 60).incarnation
    one = claim(db, Claimer("n1", incarnation), 1)[0]
    finish(db, [Finished(one.attempt_id, one.token, Ending(exit_code=1))])
    with db.transaction() as tx:
        tx.run("UPDATE job SET not_before = now() - interval '1 second' WHERE state = 0")
    return request


def test_the_ticker_alone_runs_every_task_and_then_leaves_them_in_peace(db: Database, settings: Settings) -> None:
    ticker = Ticker(db, make_tasks(db, settings), Ringer(settings), settings.tick_s)
    names = {"arrays", "audit", "drain", "forget_arrays", "jobs", "keys", "nodes", "plan", "promote", "reap",
             "release", "retain", "statistics", "stats", "sweep", "unrunnable"}  # fmt: skip
    assert set(ticker.tick()) == names
    assert ticker.tick() == []


def test_the_ticker_stands_in_for_a_beat_that_has_stopped(db: Database, settings: Settings) -> None:
    ticker = Ticker(db, make_tasks(db, settings), Ringer(settings), settings.tick_s)
    ticker.tick()
    _backed_off(db, settings)
    with db.transaction() as tx:
        tx.run("UPDATE task_run SET last_run_at = now() - interval '1 minute' WHERE name = 'promote'")
    assert ticker.tick() == ["promote"]
    listed, _total = inspect.list_jobs(db, DEFAULT_TENANT, inspect.JobFilter(), 10, 0)
    assert [(job.state, job.ready) for job in listed] == [(JobState.PENDING, True)]


def test_a_task_that_another_runs_just_now_does_nothing(db: Database, settings: Settings) -> None:
    _backed_off(db, settings)
    with db.transaction() as tx:
        assert upkeep.try_task_lock(tx, "promote")
        assert not promote(db).ran
    assert promote(db).detail == {"promoted": 1}


def test_two_beats_at_once_promote_each_job_once(db: Database, settings: Settings) -> None:
    _backed_off(db, settings)
    gate = threading.Barrier(4)
    done: list[Pass] = []

    def beat() -> None:
        gate.wait()
        done.append(promote(db))

    threads = [threading.Thread(target=beat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.detail.get("promoted", 0) for one in done) == 1
    with db.transaction() as tx:
        assert tx.value("SELECT count(*) FROM event WHERE state = 0 AND ready AND attempt = 1") == 1


def test_a_failing_task_does_not_hold_up_the_others(db: Database, settings: Settings) -> None:
    def fail() -> Pass:
        raise RuntimeError("on purpose")

    tasks = make_tasks(db, settings)
    tasks["reap"] = replace(tasks["reap"], run=fail)
    ran = Ticker(db, tasks, Ringer(settings), settings.tick_s).tick()
    assert "reap" not in ran
    assert {"promote", "sweep", "stats"} <= set(ran)


def test_what_a_task_makes_ready_is_rung(db: Database, settings: Settings) -> None:
    class Heard(Ringer):
        rung: list[PriorityClass]

        def ring(self, priority_class: PriorityClass, count: int = 1) -> None:
            self.rung.append(priority_class)

    _backed_off(db, settings)
    heard = Heard(settings)
    heard.rung = []
    task: Task = make_tasks(db, settings)["promote"]
    assert perform(task, heard).ran
    assert heard.rung == [PriorityClass.BACKGROUND]
