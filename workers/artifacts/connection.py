"""One HTTP connection to an address that was checked, under the name that was asked for.

Only the standard library's client is used: it reads no proxy settings, no .netrc and no cookies, follows no
redirect and decodes no body. It must not know policies or files.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from workers.artifacts.addresses import Endpoint
from workers.artifacts.targets import Target

_HEADERS = {
    "User-Agent": "compute-fabric",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Hangup:
    """Lets another thread end a connection at once, whatever it is waiting for. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._called = False

    @property
    def called(self) -> bool:
        return self._called

    def watch(self, connected: socket.socket) -> None:
        """Remember `connected` until the next `watch` or `forget`; end it now if `call` came first."""
        # A duplicate stays valid when TLS takes the original socket object over.
        duplicate = connected.dup()
        with self._lock:
            previous, self._socket = self._socket, duplicate
            called = self._called
        if previous is not None:
            previous.close()
        if called:
            self._shutdown()

    def forget(self) -> None:
        """Let go of the watched connection without ending it."""
        with self._lock:
            previous, self._socket = self._socket, None
        if previous is not None:
            previous.close()

    def call(self) -> None:
        """End the watched connection, and every later one at its start: blocked reads return at once."""
        self._called = True
        self._shutdown()

    def _shutdown(self) -> None:
        with self._lock:
            if self._socket is not None:
                # It fails when the peer was faster.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


class PinnedConnection(http.client.HTTPConnection):
    """A connection that dials the given endpoints and never looks the name up.

    Host header, SNI and certificate check use the target's name. `deadline` is on the monotonic clock.
    """

    def __init__(
        self,
        target: Target,
        endpoints: Sequence[Endpoint],
        tls: ssl.SSLContext | None,
        connect_timeout_s: float,
        read_timeout_s: float,
        deadline: float,
        hangup: Hangup,
    ) -> None:
        self.default_port = 443 if target.scheme == "https" else 80
        super().__init__(target.host, target.port)
        self._target = target
        self._endpoints = endpoints
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._deadline = deadline
        self._hangup = hangup

    def connect(self) -> None:
        """Connect to the first endpoint that answers, with TLS if the target asks for it. Raises OSError."""
        sock = self._dial()
        try:
            self._hangup.watch(sock)
            sock.settimeout(self._read_timeout_s)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._target.host)
        except BaseException:
            sock.close()
            raise
        self.sock = sock

    def get(self) -> http.client.HTTPResponse:
        """Send the request and return the answer with its body still to be read."""
        self.request("GET", self._target.path, headers=_HEADERS)
        return self.getresponse()

    def _dial(self) -> socket.socket:
        failure: OSError = TimeoutError("no time was left to connect")
        for endpoint in self._endpoints:
            left_s = min(self._connect_timeout_s, self._deadline - time.monotonic())
            if left_s <= 0 or self._hangup.called:
                break
            sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
            try:
                sock.settimeout(left_s)
                sock.connect(endpoint.sockaddr)
                return sock
            except OSError as exc:
                sock.close()
                failure = exc
        raise failure
