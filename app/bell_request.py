"""How a worker takes a bell: without a word to the broker, which keeps none that was taken."""

from __future__ import annotations

from celery.worker.request import Request


class BellRequest(Request):  # type: ignore[misc]
    """Celery's, for messages of a queue without acknowledgements.

    Celery acknowledges all the same, and on Redis that costs a round trip in the worker's main thread, and the memory
    of each message's tag for as long as the connection lasts.
    """

    def acknowledge(self) -> None:
        """Tells the broker nothing."""
        self.acknowledged = True
