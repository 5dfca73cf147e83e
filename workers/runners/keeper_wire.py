"""What goes over the keeper's socket, as its client sees it: messages that arrive, replies that are waited for."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

READ_BYTES = 256 * 1024

Message = dict[str, Any]


class Waiting:
    """Replies of one exchange, as they arrive."""

    __slots__ = ("_left", "done", "failed", "replies")

    def __init__(self, count: int) -> None:
        """Wait for so many."""
        self.replies: list[Message | None] = [None] * count
        self._left = count
        self.done = threading.Event()
        self.failed = False

    def put(self, index: int, reply: Message) -> None:
        """Take one reply; with the last of them all are there."""
        self.replies[index] = reply
        self._left -= 1
        if self._left == 0:
            self.done.set()

    def fail(self) -> None:
        """Wait no longer: the connection is broken."""
        self.failed = True
        self.done.set()


class Lines:
    """Messages from a socket, one JSON object a line."""

    def __init__(self, sock: socket.socket) -> None:
        """Read from `sock`."""
        self._sock = sock
        self._rest = b""
        self._messages: list[Message] = []

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> Message:
        while not self._messages:
            data = self._sock.recv(READ_BYTES)
            if not data:
                raise StopIteration
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._messages = [json.loads(line) for line in reversed(lines)]
        return self._messages.pop()

    def reply(self) -> tuple[Message, list[Message]]:
        """Return the next reply, and the events that came before it."""
        events: list[Message] = []
        for message in self:
            if "event" not in message:
                return message, events
            events.append(message)
        raise ConnectionResetError("closed before the hello was answered")
