"""The follow service of one API process: streams of any feed, as server-sent events or over a WebSocket."""

from __future__ import annotations

from collections.abc import Callable, Generator
from socket import socket
from threading import Event

from flask import Response, request

from app.api.live import sse
from app.api.live.feed import HEARTBEAT_S, Beat, Feed, Life, Message, run
from app.api.live.shared_reads import SharedReads
from app.api.live.sockets import Sockets, bound_sends, has_left, socket_of
from app.api.live.websocket import Connection, Upgraded
from app.api.stream_budget import StreamBudget
from app.services.watch import Watch

MIMETYPE = "text/event-stream"


class LiveService:
    """Made once per process; `reads` is for feeds, so that many followers of one thing read it once."""

    def __init__(self, watch: Watch, budget: StreamBudget, closing: Event, parallel_reads: int) -> None:
        self.watch = watch
        self.reads = SharedReads(parallel_reads)
        self.heartbeat_s = HEARTBEAT_S
        self._budget = budget
        self._closing = closing
        self._sockets = Sockets()

    def sse(self, feed: Feed, expires_at: float | None) -> Response:
        """The current request's answer as an event stream. `expires_at` (unix time) ends it; None: never.

        Raises Busy (503) when no more streams are served.
        """
        self._budget.take()
        response = Response(sse.text(self._followed(feed, expires_at)), mimetype=MIMETYPE)
        response.call_on_close(self._budget.give_back)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def text(self, feed: Feed, expires_at: float | None, show: Callable[[Message], str]) -> Response:
        """The current request's answer as text that grows until the feed ends. Nothing is said while nothing happens.

        Raises Busy (503) when no more streams are served.
        """
        self._budget.take()
        told = self._followed(feed, expires_at)
        response = Response((show(one) for one in told if isinstance(one, Message)), mimetype="text/plain")
        response.call_on_close(self._budget.give_back)
        response.call_on_close(told.close)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def websocket(self, feed: Feed, expires_at: float | None) -> Response:
        """The current request's answer as a WebSocket. Raises UpgradeRequired, and Busy as `sse` does."""
        connection = Connection(request)
        self._budget.take()
        response = Upgraded(
            connection, lambda: self._told(feed, expires_at, connection.socket, connection.has_left, speaks=True)
        )
        response.call_on_close(self._budget.give_back)
        return response

    def _followed(self, feed: Feed, expires_at: float | None) -> Generator[Message | Beat, None, None]:
        sock = socket_of(request.environ)
        if sock is not None:
            bound_sends(sock)
        return self._told(feed, expires_at, sock, lambda: sock is not None and has_left(sock), speaks=False)

    def _told(
        self, feed: Feed, expires_at: float | None, sock: socket | None, left: Callable[[], bool], speaks: bool
    ) -> Generator[Message | Beat, None, None]:
        """The stream; its sleep ends also when the client leaves, or (`speaks`) says something."""
        with feed.subscribe(self.watch) as subscription:

            def has_left_now() -> bool:
                gone = left()
                if speaks and not gone and sock is not None:
                    self._sockets.watch(sock, subscription.wake)
                return gone

            life = Life(self._closing, expires_at, has_left_now, self.heartbeat_s)
            if sock is not None:
                self._sockets.watch(sock, subscription.wake)
            try:
                yield from run(feed, subscription, life)
            finally:
                if sock is not None:
                    self._sockets.forget(sock)
