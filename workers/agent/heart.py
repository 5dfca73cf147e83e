"""The heartbeat by which Flower sees a worker: one that never holds up the worker's main thread."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.worker import heartbeat
from celery.worker.consumer import Consumer
from celery.worker.consumer.heart import Heart


def install(app: Celery) -> None:
    """Gives `app`'s worker this heartbeat."""
    app.conf.worker_consumer = f"{__name__}:PatientConsumer"


class _PatientHeart(heartbeat.Heart):  # type: ignore[misc]
    """Celery's own tries in the main thread until a silent broker answers, deaf to SIGTERM; this one once a beat."""

    def _send(self, event: str, retry: bool = False) -> Any:
        return super()._send(event, retry=False)


class HeartStep(Heart):  # type: ignore[misc]
    """The step of Celery's consumer with the other heart."""

    def start(self, c: Any) -> None:
        """Begins to beat."""
        c.heart = _PatientHeart(c.timer, c.event_dispatcher, self.heartbeat_interval)
        c.heart.start()


class PatientConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer with that step in the place of its own."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """As Celery's."""

        default_steps = tuple(
            f"{__name__}:HeartStep" if step == "celery.worker.consumer.heart:Heart" else step
            for step in Consumer.Blueprint.default_steps
        )
