"""A stream over a WebSocket (RFC 6455): one JSON text message an event, pings while nothing happens.

Everything is done by the request's own thread; a second one would race it for the connection's state.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
import time
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

from flask import Request, Response
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.events import Request as UpgradeRequest
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from app.api.errors import HttpRefusal
from app.api.live.feed import Beat, Message
from app.api.live.sockets import bound_sends, socket_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

SILENT_BEATS = 2
"""So many pings without any answer, and the client counts as gone."""
READ_BYTES = 65_536
LINGER_S = 2.0
_CODES = {Beat.EXPIRED: 1008, Beat.CLOSING: 1001, Beat.AWAY: 1013}


class UpgradeRequired(HttpRefusal):
    """This path is for WebSockets; use a client that upgrades the connection, or the same path over plain HTTP."""

    status = 426
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}  # noqa: RUF012


class Connection:
    """The server's side of one WebSocket, before and after the handshake."""

    def __init__(self, request: Request) -> None:
        """Reads the handshake of a request. Raises UpgradeRequired when it is none that can be accepted."""
        self.socket = socket_of(request.environ)
        self._protocol = WSConnection(ConnectionType.SERVER)
        self._silent_beats = 0
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
        try:
            self._protocol.initiate_upgrade_connection(headers, request.full_path)
            asked = list(self._protocol.events())
        except (RemoteProtocolError, LocalProtocolError, UnicodeEncodeError) as exc:
            raise UpgradeRequired(f"This is no WebSocket handshake: {exc}") from exc
        if self.socket is None or not any(isinstance(event, UpgradeRequest) for event in asked):
            raise UpgradeRequired()

    def accept(self, headers: Iterable[tuple[str, str]]) -> None:
        """Answers the handshake; raises OSError when the client is gone already."""
        extra = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
        bound_sends(self._sock)
        self._send(AcceptConnection(extra_headers=extra))

    def tell(self, one: Message | Beat) -> None:
        """Sends an event, a ping, or the last word with its code. Raises OSError when the client is gone."""
        if isinstance(one, Message):
            told = {"id": one.id, "event": one.name, "data": one.data}
            self._send(TextMessage(data=json.dumps(told, separators=(",", ":"))))
        elif one is Beat.HEARTBEAT:
            self._silent_beats += 1
            self._send(Ping())
        elif one in _CODES:
            self.close(_CODES[one], one.value)

    def close(self, code: int, reason: str) -> None:
        """Says goodbye, once; the client answers when it likes, nobody waits for it."""
        if self._protocol.state is not ConnectionState.OPEN:
            return
        self._send(CloseConnection(code=code, reason=reason))

    def linger(self) -> None:
        """Waits a moment for the client's goodbye: closed at once, the socket could drop what it has not read yet."""
        until = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            while (left_s := until - time.monotonic()) > 0 and poll.poll(left_s * 1000):
                if not self._sock.recv(READ_BYTES, socket.MSG_DONTWAIT):
                    return

    def has_left(self) -> bool:
        """Takes what the client has sent, answers pings, and tells whether it has closed or says nothing any more."""
        if self._silent_beats > SILENT_BEATS:
            return True
        while True:
            try:
                data = self._sock.recv(READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not data or self._take(data):
                return True

    def _take(self, data: bytes) -> bool:
        """Whether these bytes end the connection. What a client says is not asked for and not kept."""
        self._silent_beats = 0
        try:
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                if isinstance(event, CloseConnection):
                    self._send(event.response())
                    return True
                if isinstance(event, Ping):
                    self._send(event.response())
                elif isinstance(event, Pong):
                    continue
        except (RemoteProtocolError, LocalProtocolError, OSError) as exc:
            log.debug("a client's WebSocket broke: %s", exc)
            return True
        return False

    @property
    def _sock(self) -> socket.socket:
        assert self.socket is not None
        return self.socket

    def _send(self, event: Event) -> None:
        try:
            self._sock.sendall(self._protocol.send(event))
        except LocalProtocolError as exc:
            raise ConnectionResetError(str(exc)) from exc


class Upgraded(Response):
    """The answer to a handshake: takes the connection over when the application is done with the request."""

    def __init__(self, connection: Connection, told: Callable[[], Generator[Message | Beat, None, None]]) -> None:
        super().__init__(status=101)
        self._connection = connection
        self._told = told

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        """Speaks WebSocket until the stream or the client ends."""
        skipped = {"content-type", "content-length"}
        try:
            self._connection.accept((name, value) for name, value in self.headers if name.lower() not in skipped)
            with contextlib.closing(self._told()) as told:
                for one in told:
                    self._connection.tell(one)
            self._connection.close(1000, "end")
            self._connection.linger()
        except OSError as exc:
            log.debug("a client left its WebSocket: %s", exc)
        finally:
            self.close()
        # The server must not write an answer of its own behind this one; gunicorn then just closes the connection.
        raise StopIteration
