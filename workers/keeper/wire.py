"""The wire that keepers serve: their socket, who may speak, and a JSON line answered by another. Knows no loop."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from workers.keeper.spec import BadSpec

SOCKET_NAME = "keeper.sock"
WAITING_CLIENTS = 16

ClientT = TypeVar("ClientT")
Commands = Mapping[str, Callable[[ClientT, dict[str, Any]], dict[str, Any]]]
"""What may be asked, by name: from the client and the request to the reply."""


class Refused(Exception):
    """A command that is understood but not carried out; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.code = code


def listen(directory: str) -> socket.socket:
    """Return a blocking socket that listens in `directory`, in place of one that was left there. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Through the descriptor: a socket's path is limited to 107 bytes, a data directory's is not.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=folder)
        previous = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        finally:
            os.umask(previous)
    finally:
        os.close(folder)
    listener.listen(WAITING_CLIENTS)
    return listener


def accept(listener: socket.socket) -> socket.socket | None:
    """Return the next client that may speak: root or the keeper's own user; None for another. Raises OSError."""
    sock, _ = listener.accept()
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in (0, os.geteuid()):
        return sock
    sock.close()
    return None


def answer(commands: Commands[ClientT], client: ClientT, line: bytes) -> dict[str, Any]:
    """Carry out one line of a client; the reply, which says under `error` and `code` what was wrong with it."""
    number: Any = None
    try:
        request = json.loads(line)
        number = request.get("id")
        command = commands.get(request.get("cmd"))
        if command is None:
            raise Refused("unknown_command", f"no command {request.get('cmd')!r}: use {sorted(commands)}")
        reply = command(client, request)
    except Refused as exc:
        reply = {"error": str(exc), "code": exc.code}
    except BadSpec as exc:
        reply = {"error": str(exc), "code": "invalid"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        reply = {"error": f"bad request: {exc!r}", "code": "invalid"}
    reply["id"] = number
    return reply
