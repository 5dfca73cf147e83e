"""The WSGI application for a server: `gunicorn app.api.wsgi:app`. Built from the environment when first asked for.

Each server process builds its own, after the fork, so that pool, ringer and counters belong to one process.
"""

from __future__ import annotations

import signal
import threading
from functools import cache
from types import FrameType
from typing import Any, cast

from flask import Flask

from app.api.factory import create_app
from app.api.hub import Hub
from config.settings import load_settings


@cache
def _application() -> Flask:
    application = create_app(load_settings())
    shared = cast(Hub, application.extensions["cfab"])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        _end_streams_on(number, shared)
    return application


def _end_streams_on(number: int, shared: Hub) -> None:
    """Open streams end when the process is told to end; otherwise a server waits for them until it gives up."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(number)

    def end(signum: int, frame: FrameType | None) -> Any:
        shared.closing.set()
        # Only threads of requests hold the watch's lock, never this one that the signal interrupts.
        shared.watch.wake_all()
        if callable(before):
            return before(signum, frame)
        signal.signal(signum, signal.SIG_DFL if before is None else before)
        return signal.raise_signal(signum)

    signal.signal(number, end)


def __getattr__(name: str) -> Flask:
    if name == "app":
        return _application()
    raise AttributeError(name)
