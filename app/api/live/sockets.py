"""Notices clients that go away or speak: one thread for the sockets of all streams of this process."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

SEND_S = 30
"""A client that takes nothing for so long is given up: it holds a thread."""


def socket_of(environ: dict[str, Any]) -> socket.socket | None:
    """The client's socket, where the server tells it."""
    found = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    return found if isinstance(found, socket.socket) else None


def bound_sends(sock: socket.socket) -> None:
    """Makes a send to a client that takes nothing fail after SEND_S, while reads go on to wait as before."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))


def has_left(sock: socket.socket) -> bool:
    """Whether the client has closed its side; what it may have sent stays unread."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


class Sockets:
    """Calls back once when a socket can be read, which also means that its client has closed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._poll: select.epoll | None = None
        self._pid = 0
        self._callbacks: dict[int, Callable[[], None]] = {}

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        """Calls `callback` from another thread the next time that `sock` can be read; call again for the time after."""
        if isinstance(sock, ssl.SSLSocket):
            return  # Readable bytes of TLS need not be bytes of the client's.
        number = sock.fileno()
        events = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
        with self._lock:
            poll = self._start()
            known = number in self._callbacks
            self._callbacks[number] = callback
            with contextlib.suppress(OSError):
                (poll.modify if known else poll.register)(number, events)

    def forget(self, sock: socket.socket) -> None:
        """Stops watching; do this before the socket is closed."""
        with self._lock:
            if self._poll is not None and self._callbacks.pop(sock.fileno(), None) is not None:
                with contextlib.suppress(OSError):
                    self._poll.unregister(sock.fileno())

    def _start(self) -> select.epoll:
        if self._poll is None or self._pid != os.getpid():
            self._poll, self._pid = select.epoll(), os.getpid()
            self._callbacks.clear()
            threading.Thread(target=self._run, args=(self._poll,), name="stream-sockets", daemon=True).start()
        return self._poll

    def _run(self, poll: select.epoll) -> None:
        while True:
            try:
                ready = poll.poll()
            except OSError:
                log.exception("the clients' sockets cannot be watched")
                return
            for number, _events in ready:
                callback = self._callbacks.get(number)
                if callback is not None:
                    callback()
