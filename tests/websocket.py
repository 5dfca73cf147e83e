"""The WebSocket client of the tests."""

from __future__ import annotations

import simple_websocket  # type: ignore[import-untyped]
from simple_websocket import ConnectionClosed, ConnectionError

__all__ = ["Client", "ConnectionClosed", "ConnectionError"]


class Client(simple_websocket.Client):  # type: ignore[misc]
    """As the library has it, and keeps what came in one piece with the answer to its handshake, up to the close."""

    def handshake(self) -> None:
        """Connects. Raises ConnectionError when the server refuses."""
        super().handshake()
        self._handle_events()
        # Whether more comes is for the reading thread to find out.
        self.connected = True
