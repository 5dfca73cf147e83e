"""The agent as a bootstep of an ordinary Celery worker: bells come in, task events go out, remote control stops jobs.

The Celery half is ears and mouth only. When it dies, jobs go on, and the next worker adopts them.
"""

from __future__ import annotations

import logging
import threading
from typing import Any
from uuid import UUID

from celery import Celery, bootsteps
from celery.signals import worker_shutting_down
from celery.worker.control import Panel
from celery.worker.state import revoked

from app import bells
from config.celery import CLASS_QUEUES
from workers.agent.agent import Agent
from workers.agent.flower import TaskEvents

log = logging.getLogger(__name__)

FULL_FOR_S = 0.5


def install(app: Celery, agent: Agent, drain_limit_s: float | None = None) -> None:
    """Makes `app`'s worker carry `agent`: started with it, detached with it, or drained first for `drain_limit_s`."""

    class AgentStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Starts the agent when the pool is up; a broker fault does not stop it."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker: Any, **options: Any) -> None:
            super().__init__(worker, **options)
            self._events = TaskEvents(app, agent, worker.hostname)
            self._appetite = Appetite(agent, worker)
            self._serves = False

        def start(self, worker: Any) -> None:
            self._serves = agent.start()
            if self._serves:
                self._events.start()
                self._appetite.start()

        def stop(self, worker: Any) -> None:
            self._appetite.stop()
            if self._serves and drain_limit_s is not None:
                agent.drain(drain_limit_s)
            agent.stop()
            if self._serves:
                self._events.stop()

        terminate = stop

    def give_up(**_told: Any) -> None:
        # Till the agent has started no loop of Celery's looks whether the worker is to end.
        agent.give_up()

    worker_shutting_down.connect(give_up, weak=False)
    app.steps["worker"].add(AgentStep)
    bells.listen(bells.BELL, agent.bell)
    bells.listen(bells.WAKE, agent.wake)
    _let_revoke_stop_jobs(agent)


class Appetite:
    """Takes this worker off the bell queues while it has been full for a while, so that bells reach idle nodes."""

    def __init__(self, agent: Agent, worker: Any) -> None:
        self._agent = agent
        self._worker = worker
        self._listening = True
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="appetite", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def _run(self) -> None:
        full_since = 0
        while not self._stopped.wait(FULL_FOR_S / 5):
            full_since = full_since + 1 if self._agent.full else 0
            if self._listening and full_since >= 5:
                self._switch(False)
            elif not self._listening and not self._agent.full:
                self._switch(True)
                self._agent.bell()

    def _switch(self, listen: bool) -> None:
        consumer = getattr(self._worker, "consumer", None)
        if consumer is None or getattr(consumer, "task_consumer", None) is None:
            return
        change = consumer.add_task_queue if listen else consumer.cancel_task_queue
        # Only the consumer's own loop may touch its channels.
        for queue in CLASS_QUEUES:
            consumer.call_soon(change, queue)
        self._listening = listen


def _let_revoke_stop_jobs(agent: Agent) -> None:
    """Flower's terminate names an attempt: its job is stopped through the database, like any other stop."""
    plain = Panel.data["revoke"]

    def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> Any:
        ids = task_id if isinstance(task_id, list | tuple | set) else [task_id]
        ours = [attempt for attempt in map(_uuid, ids) if attempt is not None and agent.registry.get(attempt)]
        for attempt in ours:
            threading.Thread(target=agent.terminate, args=(attempt, "operator"), daemon=True).start()
        rest = [one for one in ids if _uuid(one) not in ours]
        if not ours or rest:
            return plain(state, rest, terminate=False, signal=signal, **options)
        return {"ok": f"stopping {len(ours)} jobs"}

    Panel.data["revoke"] = revoke
    revoked.clear()


def _uuid(text: Any) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None
