"""The only sender of messages. A bell says "look into PostgreSQL"; losing, doubling or delaying it costs only time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import redis
from celery import Celery

from app.bell_message import encode
from app.domain.priority import PriorityClass
from app.services import hints
from config.celery import celery_config, node_queue
from config.settings import Settings, load_settings

log = logging.getLogger(__name__)

BELL, WAKE = "cfab.bell", "cfab.wake"
BELL_LIFE_S = 30
QUEUE_CAP = 64
"""Bells that may wait in one queue; more would say nothing new."""
BURST = 16

_REQUEST = "app.bell_request:BellRequest"  # By its name: only workers need it.
_listeners: dict[str, list[Callable[[], None]]] = {BELL: [], WAKE: []}


def make_celery(settings: Settings) -> Celery:
    """The Celery application of every role, with the two bell tasks."""
    app = Celery("cfab", set_as_current=True)
    app.conf.update(celery_config(settings))
    for name in (BELL, WAKE):
        _add_bell(app, name)
    return app


def _add_bell(app: Celery, name: str) -> None:
    options = {"ignore_result": True, "max_retries": 0, "send_events": False, "Request": _REQUEST}

    @app.task(name=name, **options)  # type: ignore[untyped-decorator]
    def bell(*_hint: Any) -> None:
        for listener in _listeners[name]:
            listener()


def listen(name: str, listener: Callable[[], None]) -> None:
    """Calls `listener` in this process whenever bell `name` arrives; it must return at once."""
    _listeners[name].append(listener)


def __getattr__(name: str) -> Celery:
    # `celery -A app.bells …` (Flower, inspect) finds the application here; importing this module reads no environment.
    if name in {"celery", "app"}:
        return make_celery(load_settings())
    raise AttributeError(name)


def broker_answers(settings: Settings) -> bool:
    """Whether the broker answers within a second; True where none is set, for then none is needed."""
    if not settings.broker_url:
        return True
    try:
        with redis.Redis.from_url(settings.broker_url, socket_timeout=1, socket_connect_timeout=1) as broker:
            return bool(broker.ping())
    except redis.RedisError:
        return False


class Ringer:
    """Rings bells from one background thread of this process: never slows, never fails its caller.

    What it cannot send it drops: every poll and every sweep finds the job all the same. The thread starts with the
    first ring, so a process may fork before.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._condition = threading.Condition()
        self._rings: Counter[str] = Counter()
        self._wakes: set[str] = set()
        self._news: dict[UUID, bool] = {}
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = False
        self.dropped = 0

    def ring(self, priority_class: PriorityClass, count: int = 1) -> None:
        """A job of this class may be claimed. Call it after the commit."""
        self._hand_over(lambda: self._rings.update({priority_class.word: count}))

    def ring_all(self, classes: Iterable[PriorityClass]) -> None:
        """Rings once for each class."""
        for priority_class in classes:
            self.ring(priority_class)

    def wake_node(self, node: str) -> None:
        """This node should ask at once what it must stop."""
        self._hand_over(lambda: self._wakes.add(node) if len(self._wakes) < 1000 else None)

    def hint(self, job_ids: Iterable[UUID], state: bool = True) -> None:
        """Readers of these jobs may look: output is new, or (`state`) more than that. Call it after the commit."""
        self._hand_over(lambda: self._add_news(job_ids, state))

    def _add_news(self, job_ids: Iterable[UUID], state: bool) -> None:
        for job_id in job_ids:
            if job_id in self._news or len(self._news) < hints.JOBS_AT_A_TIME:
                self._news[job_id] = state or self._news.get(job_id, False)

    def close(self) -> None:
        """Ends the thread; what has not been sent is dropped."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(timeout=3)

    def _hand_over(self, put: Callable[[], object]) -> None:
        if not self._settings.broker_url:
            return
        with self._condition:
            if self._thread is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)
                self._thread.start()
            put()
            self._condition.notify()

    def _run(self) -> None:
        broker = redis.Redis.from_url(self._settings.broker_url, socket_timeout=2, socket_connect_timeout=1)
        while True:
            with self._condition:
                while not (self._rings or self._wakes or self._news or self._closed):
                    self._condition.wait()
                if self._closed:
                    return
                rings, self._rings = self._rings, Counter()
                wakes, self._wakes = self._wakes, set()
                news, self._news = self._news, {}
            try:
                # Bells first: of a job that was just submitted a worker must know before any reader.
                if rings or wakes:
                    self._send(broker, rings, wakes)
                if news:
                    broker.publish(hints.CHANNEL, hints.encode(news, any(news.values())))
            except Exception as exc:
                self.dropped += sum(rings.values()) + len(wakes)
                log.warning("bells dropped, agents will find the jobs by polling: %s", exc)
                # A dead broker must not be asked for every single job.
                time.sleep(0.5)

    @staticmethod
    def _send(broker: redis.Redis, rings: Counter[str], wakes: set[str]) -> None:
        bells = [
            (queue, [encode(BELL, queue, BELL_LIFE_S) for _ in range(min(n, BURST))]) for queue, n in rings.items()
        ]
        bells += [(queue, [encode(WAKE, queue, BELL_LIFE_S)]) for queue in map(node_queue, wakes)]
        for queue, some in bells:
            if int(broker.lpush(queue, *some)) > QUEUE_CAP:
                # The oldest, which is taken first, goes first: it would be dropped for its age, most likely.
                broker.ltrim(queue, 0, QUEUE_CAP - 1)
