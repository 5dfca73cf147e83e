"""The server of the keeper of containers: it hears whoever comes after one whom it could not let in."""

from __future__ import annotations

import errno
import socket
import threading

import pytest

from workers.containers import service as module
from workers.containers.service import Service
from workers.keeper import wire


def test_a_client_that_cannot_be_let_in_ends_no_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    served, came = threading.Event(), iter((OSError(errno.EMFILE, "too many open files"), None, ours))

    def accept(_listener: object) -> socket.socket | None:
        one = next(came, None)
        if isinstance(one, OSError):
            raise one
        if one is None and served.is_set():
            raise SystemExit
        return one

    monkeypatch.setattr(module, "ACCEPT_AGAIN_S", 0.0)
    monkeypatch.setattr(wire, "accept", accept)
    keeper = Service.__new__(Service)
    keeper._listener = theirs
    monkeypatch.setattr(keeper, "_serve", lambda sock: served.set() if sock is ours else None)
    with ours, theirs:
        with pytest.raises(SystemExit):
            keeper._accept()
        assert served.is_set()
