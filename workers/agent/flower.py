"""Attempts as Celery task events, so that Flower shows one task per attempt. Sent in groups, never waited for.

A thread and a connection of its own: neither the broker nor Flower can ever slow a job.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import Celery
from celery.events import EventDispatcher

from workers.agent.agent import Agent, Notice

log = logging.getLogger(__name__)

GROUP_S = 0.2
KINDS = {
    "completed": "task-succeeded",
    "cancelled": "task-revoked",
    "lost": "task-retried",
    "preempted": "task-retried",
    "drained": "task-retried",
    "node_fault": "task-retried",
}


class TaskEvents:
    """Turns an agent's notices into the worker's task events: uuid = attempt, name = job type, args = job id."""

    def __init__(self, app: Celery, agent: Agent, hostname: str) -> None:
        self._app = app
        self._agent = agent
        self._hostname = hostname
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="task-events", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what has not been sent is dropped."""
        self._stopped.set()
        self._agent.noticed.set()
        self._thread.join(timeout=3)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._serve()
            except Exception as exc:
                self._agent.notices.clear()
                log.info("task events are dropped until the broker answers: %s", exc)
                self._stopped.wait(2.0)

    def _serve(self) -> None:
        with self._app.connection_for_write() as connection:
            dispatcher = self._app.events.Dispatcher(
                connection, hostname=self._hostname, enabled=True, buffer_while_offline=False,
                buffer_group=frozenset({"task"}), buffer_limit=100,
            )  # fmt: skip
            with dispatcher:
                while not self._stopped.is_set():
                    self._agent.noticed.wait(5.0)
                    self._agent.noticed.clear()
                    self._stopped.wait(GROUP_S)
                    self._send(dispatcher)

    def _send(self, dispatcher: EventDispatcher) -> None:
        """Sends what has gathered. An attempt that has ended within the group needs its last event only."""
        waiting: list[Notice] = []
        while self._agent.notices:
            waiting.append(self._agent.notices.popleft())
        over = {notice.attempt_id for notice in waiting if notice.kind == "ended"}
        for notice in waiting:
            if notice.attempt_id in over and notice.kind != "ended":
                continue
            kind, fields = _event(notice)
            dispatcher.send(
                kind, uuid=str(notice.attempt_id), name=notice.type, args=f"('{notice.job_id}',)",
                kwargs=_place(notice),
                timestamp=notice.at, retry=False, **fields,
            )  # fmt: skip
        dispatcher.flush(errors=False, groups=("task",))


def _place(notice: Notice) -> str:
    """Which member of a gang it is; empty for a plain job."""
    gang = notice.gang
    return "{}" if gang is None else f"{{'member': {gang.member}, 'members': {gang.size}}}"


def _event(notice: Notice) -> tuple[str, dict[str, Any]]:
    if notice.kind in {"received", "started"}:
        return f"task-{notice.kind}", {}
    runtime = notice.detail.get("runtime", 0.0)
    fields: dict[str, Any] = {
        "runtime": runtime,
        "received": notice.at - runtime,
        "started": notice.at - runtime,
    }
    outcome = notice.detail.get("outcome", "")
    kind = KINDS.get(outcome, "task-failed")
    message = notice.detail.get("message", "")
    if kind == "task-succeeded":
        fields["result"] = outcome
    else:
        fields |= {"exception": message or outcome, "traceback": "", "terminated": kind == "task-revoked"}
    return kind, fields
