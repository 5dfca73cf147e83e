"""What Celery gives the fabric: bells that wake workers, remote control, and one task per attempt for Flower."""

from __future__ import annotations

import os
import signal
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from pytest_celery import CeleryTestSetup

from app.bells import Ringer
from app.domain.job import DEFAULT_TENANT
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.local.ports import free_port
from app.local.valkey import ValkeyServer
from app.services.inspect import job_detail
from config.celery import CLASS_QUEUES, node_queue
from config.settings import Settings
from tests.factories import Fabric, until
from tests.integration.celery.conftest import NAMES
from tests.integration.celery.local_nodes import LocalWorker

LONG = "sleep 60"
WAIT_S = 60.0


def state(fabric: Fabric, job: UUID) -> JobState:
    """The job's state now."""
    return job_detail(fabric.db, DEFAULT_TENANT, job).job.state


def attempts(fabric: Fabric, job: UUID) -> list[Any]:
    """The job's attempts, in order."""
    return list(job_detail(fabric.db, DEFAULT_TENANT, job).attempts)


def start(fabric: Fabric, ringer: Ringer, script: str = LONG) -> UUID:
    """A job of which the process runs."""
    job = fabric.submit_one(script=script)
    ringer.ring(PriorityClass.BACKGROUND)
    until(lambda: state(fabric, job) == JobState.RUNNING, WAIT_S)
    return job


@pytest.mark.parametrize("priority_class", list(PriorityClass))
def test_a_bell_of_each_class_wakes_a_worker(fabric: Fabric, ringer: Ringer, priority_class: PriorityClass) -> None:
    job = fabric.submit_one(priority_class=priority_class)
    ringer.ring(priority_class)
    until(lambda: state(fabric, job) == JobState.COMPLETED, WAIT_S)


def test_bells_are_taken_without_a_word_to_the_broker(
    celery_setup: CeleryTestSetup, settings: Settings, ringer: Ringer
) -> None:
    queues = (*CLASS_QUEUES, node_queue(NAMES[0]))

    def said(broker: redis.Redis) -> list[int]:
        """Calls of what Kombu does for messages that are taken, acknowledged, or neither; all before are over."""
        assert len(celery_setup.app.control.ping(timeout=10, limit=len(NAMES))) == len(NAMES)
        stats = broker.info("commandstats")
        return [stats.get(f"cmdstat_{word}", {"calls": 0})["calls"] for word in ("hset", "zrem", "hdel")]

    with redis.Redis.from_url(settings.broker_url) as broker:
        before = said(broker)
        for _ in range(10):
            for priority_class in PriorityClass:
                ringer.ring(priority_class)
            ringer.wake_node(NAMES[0])
            until(lambda: not any(map(broker.llen, queues)), WAIT_S)
        assert said(broker) == before


def test_operators_see_every_worker_with_its_queues(celery_setup: CeleryTestSetup) -> None:
    inspect = celery_setup.app.control.inspect(timeout=10, limit=len(NAMES))
    queues = inspect.active_queues()
    seen = {name.split("@")[0]: {queue["name"] for queue in known} for name, known in queues.items()}
    assert seen == {name: {*CLASS_QUEUES, node_queue(name)} for name in NAMES}
    assert {worker.hostname() for worker in celery_setup.worker_cluster} == set(queues)


def test_terminating_a_task_stops_that_job_and_no_other(
    celery_setup: CeleryTestSetup, fabric: Fabric, ringer: Ringer
) -> None:
    stopped, other = start(fabric, ringer), start(fabric, ringer)
    celery_setup.app.control.revoke(str(attempts(fabric, stopped)[-1].id), terminate=True, signal="SIGKILL")
    until(lambda: state(fabric, stopped) == JobState.CANCELLED, WAIT_S)
    assert attempts(fabric, stopped)[-1].stopped_by == "operator"
    assert state(fabric, other) == JobState.RUNNING


def test_a_broker_that_is_killed_disturbs_no_job_and_is_heard_again(
    celery_setup: CeleryTestSetup, fabric: Fabric, ringer: Ringer
) -> None:
    running = start(fabric, ringer)
    before = attempts(fabric, running)
    celery_setup.broker.kill()
    celery_setup.broker.restart()
    late = fabric.submit_one()

    def heard() -> bool:
        # A bell may be lost while workers still look for the broker; the sweep of a scheduler would ring again.
        ringer.ring(PriorityClass.BACKGROUND)
        return state(fabric, late) == JobState.COMPLETED

    until(heard, WAIT_S)
    assert state(fabric, running) == JobState.RUNNING
    assert [one.id for one in attempts(fabric, running)] == [one.id for one in before]


def test_a_worker_that_is_killed_finds_its_job_again_and_still_obeys(
    celery_setup: CeleryTestSetup, fabric: Fabric, ringer: Ringer
) -> None:
    job = start(fabric, ringer)
    attempt = attempts(fabric, job)[-1]
    worker = next(one for one in celery_setup.worker_cluster if one.worker_name == attempt.executor_id)
    worker.kill()
    worker.restart()
    worker.ready()
    assert [one.id for one in attempts(fabric, job)] == [attempt.id]

    def obeyed() -> bool:
        celery_setup.app.control.revoke(str(attempt.id), terminate=True)
        return state(fabric, job) == JobState.CANCELLED

    until(obeyed, WAIT_S)


def test_flower_gets_one_task_per_attempt(celery_setup: CeleryTestSetup, fabric: Fabric, ringer: Ringer) -> None:
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    beats: dict[str, dict[str, Any]] = {}
    listening, over = threading.Event(), threading.Event()

    def listen() -> None:
        with celery_setup.app.connection_for_read() as connection:
            receiver = celery_setup.app.events.Receiver(connection, handlers={"*": note})
            with receiver.consumer_context() as (used, _channel, _consumers):
                listening.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        used.drain_events(timeout=0.5)

    def note(event: dict[str, Any]) -> None:
        if event["type"].startswith("task-"):
            told[event["uuid"]].append(event)
        elif event["type"] == "worker-heartbeat":
            beats[event["hostname"]] = event

    def processed() -> int:
        return sum(beat["processed"] for beat in beats.values())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    assert listening.wait(WAIT_S)
    until(lambda: len(beats) == 2, WAIT_S)
    before = processed()
    good, bad = start(fabric, ringer, "sleep 0.5"), start(fabric, ringer, "sleep 0.5; exit 3")
    good_attempt, bad_attempt = (str(attempts(fabric, job)[-1].id) for job in (good, bad))
    until(lambda: told[good_attempt][-1:] and told[good_attempt][-1]["type"] == "task-succeeded", WAIT_S)
    until(lambda: told[bad_attempt][-1:] and told[bad_attempt][-1]["type"] == "task-failed", WAIT_S)
    # Attempts, not bells.
    until(lambda: processed() == before + 2, WAIT_S)
    over.set()
    listener.join()
    for job, attempt in ((good, good_attempt), (bad, bad_attempt)):
        assert {(event["name"], event["args"]) for event in told[attempt]} == {("test", f"('{job}',)")}
        assert told[attempt][-1]["runtime"] >= 0.4


def test_a_worker_ends_while_its_broker_is_silent(
    celery_setup: CeleryTestSetup, directory: Path, settings: Settings
) -> None:
    """As when its network is cut: connections stay, or are even made, and nothing ever answers."""
    server = ValkeyServer(directory / "silent", free_port(), "only-for-tests")
    server.create()
    server.start()
    worker = LocalWorker(
        "east", directory,
        {"CFAB_DATABASE_URL": settings.database_url, "CFAB_BROKER_URL": server.url, "CFAB_CONTAINER_RUNTIME": "off",
         "CFAB_JOB_UID_BASE": "530000", "CFAB_LOG_LEVEL": "debug"},
    )  # fmt: skip
    worker.process.start()
    try:
        assert worker.ready()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        # Its consumer tries to connect anew: then the heart has beaten into the silence.
        until(lambda: "Trying again" in worker.logs(), 60)
        worker.process.ask_to_end()
        until(lambda: not worker.process.alive, 30)
    finally:
        os.kill(server.pid, signal.SIGCONT)
        worker.teardown()
        server.stop()
