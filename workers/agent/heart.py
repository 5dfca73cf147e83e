"""The heartbeat by which Flower sees a worker: it counts attempts, and never holds up the worker's main thread."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.utils.sysinfo import load_average
from celery.worker import heartbeat
from celery.worker.consumer import Consumer
from celery.worker.consumer.heart import Heart
from celery.worker.state import SOFTWARE_INFO

from workers.agent.registry import Registry


def install(app: Celery, registry: Registry) -> None:
    """Gives `app`'s worker this heartbeat, with the attempts in `registry`."""
    app.fabric_registry = registry
    app.conf.worker_consumer = f"{__name__}:PatientConsumer"


class _PatientHeart(heartbeat.Heart):  # type: ignore[misc]
    """Celery's own counts bells, and tries in the main thread until a silent broker answers, deaf to SIGTERM.

    This one counts attempts, and tries once a beat.
    """

    def __init__(self, timer: Any, eventer: Any, interval: float | None, registry: Registry) -> None:
        super().__init__(timer, eventer, interval)
        self._registry = registry

    def _send(self, event: str, retry: bool = False) -> Any:
        return self.eventer.send(
            event, freq=self.interval, active=len(self._registry), processed=self._registry.taken,
            loadavg=load_average(), retry=False, **SOFTWARE_INFO,
        )  # fmt: skip


class HeartStep(Heart):  # type: ignore[misc]
    """The step of Celery's consumer with the other heart."""

    def start(self, c: Any) -> None:
        """Begins to beat."""
        c.heart = _PatientHeart(c.timer, c.event_dispatcher, self.heartbeat_interval, c.app.fabric_registry)
        c.heart.start()


class PatientConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer with that step in the place of its own."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """As Celery's."""

        default_steps = tuple(
            f"{__name__}:HeartStep" if step == "celery.worker.consumer.heart:Heart" else step
            for step in Consumer.Blueprint.default_steps
        )
