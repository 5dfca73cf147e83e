"""A door before a real engine's socket, behind which the engine looks like one of another version."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from pathlib import Path

NEWEST_HERE = "1.41"
_PREFIX = re.compile(rb"(?<= )/v([0-9.]+)(?=/)")


class Door:
    """Takes the versions of the API from `least` to `newest` alone, as an engine would, and passes on what it takes."""

    def __init__(self, folder: Path, engine: str, least: str, newest: str) -> None:
        self.socket = str(folder / "door.sock")
        self.least, self.newest = least, newest
        self.asked: set[str] = set()
        self._engine = engine
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.socket)
        self._listener.listen(64)
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        with client, contextlib.suppress(OSError):
            while b"\r\n" not in head:
                head += client.recv(65536)
            found = _PREFIX.search(head.partition(b"\r\n")[0])
            if found is None and b" /version " in head:
                told = {"Version": "29.0.1", "ApiVersion": self.newest, "MinAPIVersion": self.least}
                client.sendall(_answer(200, told))
                return
            asked = found[1].decode() if found is not None else self.newest
            self.asked.add(asked)
            if not _numbers(self.least) <= _numbers(asked) <= _numbers(self.newest):
                old = f"client version {asked} is too old. Minimum supported API version is {self.least}"
                client.sendall(_answer(400, {"message": old}))
                return
            self._pass_on(client, _PREFIX.sub(f"/v{NEWEST_HERE}".encode(), head, count=1))

    def _pass_on(self, client: socket.socket, head: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
            engine.connect(self._engine)
            engine.sendall(head)
            threading.Thread(target=_pump, args=(client, engine), daemon=True).start()
            _pump(engine, client)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _answer(status: int, body: dict[str, str]) -> bytes:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
