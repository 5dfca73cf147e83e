"""The keeper of containers as a server: the same wire as the keeper of processes, a thread or two per client.

A client is a convenience. It may be slow, gone or replaced at any time without effect on a job.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from workers.containers.book import complain
from workers.containers.engine import Engine, EngineError
from workers.containers.jobs import CLOCK_S, Jobs
from workers.containers.leftovers import recover
from workers.containers.recipe import parse_wanted
from workers.keeper import wire
from workers.keeper.wire import Refused

PROTOCOL_VERSION = 3
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_QUEUED = 20_000
RECOVER_AGAIN_S = 1.0
ACCEPT_AGAIN_S = 0.2
LAST_WORDS_S = 2.0
IDLE_CLOCK_S = 0.2


class Config(NamedTuple):
    """What a keeper of containers is started with."""

    directory: str
    engine: str
    max_image_bytes: int
    guard_pid: int


class Client:
    """One connection. What is told it waits in a queue: a client that does not read holds up nobody."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over an accepted socket."""
        self.sock = sock
        self.subscribed = False
        self.queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="client", daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        """Queue a message; a client that is too far behind is cut off, and asks for everything when it is back."""
        if self.queue.qsize() > MAX_QUEUED:
            self.close()
            return
        self.queue.put(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """Cut it off."""
        self.queue.put(None)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (line := self.queue.get()) is not None:
                self.sock.sendall(line)


class Service:
    """Serves one directory until it is told to stop."""

    def __init__(self, config: Config) -> None:
        """Take over what an earlier keeper left, then listen."""
        self._config = config
        self._clients: list[Client] = []
        self._closing = threading.Event()
        self._engine = Engine(config.engine)
        self._jobs = Jobs(config.directory, self._engine, config.max_image_bytes, self._emit)
        self._recover()
        self._listener = wire.listen(config.directory)
        self._commands: dict[str, Callable[[Client, dict[str, Any]], dict[str, Any]]] = {
            "hello": self._hello,
            "start": self._start,
            "stop": self._stop,
            "kill": self._kill,
            "extend": self._extend,
            "list": self._list,
            "forget": self._forget,
            "shutdown": self._shutdown,
        }

    def run(self) -> None:
        """Serve until closing and empty."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._closing.set())
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        while not (self._closing.is_set() and self._jobs.live_count() == 0):
            self._jobs.tick()
            if self._closing.is_set():
                self._jobs.kill_all("keeper_shutdown")
            # Without a live attempt nothing can become due.
            time.sleep(CLOCK_S if self._jobs.live_count() else IDLE_CLOCK_S)
        until = time.monotonic() + LAST_WORDS_S
        while any(not client.queue.empty() for client in self._clients) and time.monotonic() < until:
            time.sleep(CLOCK_S)

    def _recover(self) -> None:
        while True:
            try:
                recover(self._jobs, self._engine)
                return
            except EngineError as exc:
                if not os.path.isdir(self._config.directory):
                    raise
                # Answering now could only be wrong: whoever asks waits, and nothing can be started anyway.
                complain(f"cannot see what an earlier keeper left: {exc}; asking again")
                time.sleep(RECOVER_AGAIN_S)

    # -- connections ---------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock = wire.accept(self._listener)
            except OSError as exc:
                # Too many open files, or a client that gave up: a keeper that hears nobody would lose every job.
                complain(f"a client could not be let in: {exc}; listening on")
                time.sleep(ACCEPT_AGAIN_S)
                continue
            if sock is None:
                continue
            threading.Thread(target=self._serve, args=(sock,), name="client", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        client = Client(sock)
        with self._jobs.lock:
            self._clients.append(client)
        try:
            with contextlib.suppress(OSError), sock.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE_BYTES):
                    # Under the lock, so that no event overtakes an answer that was made before it.
                    with self._jobs.lock:
                        client.tell(wire.answer(self._commands, client, line))
        finally:
            with self._jobs.lock:
                self._clients.remove(client)
            client.close()
            sock.close()

    def _emit(self, event: dict[str, Any]) -> None:
        for client in self._clients:
            if client.subscribed:
                client.tell(event)

    # -- commands, with the lock held ------------------------------------------------------------------------

    def _hello(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        client.subscribed = bool(request.get("events", True))
        return {
            "version": PROTOCOL_VERSION,
            "pid": os.getpid(),
            "guard_pid": self._config.guard_pid,
            "boot_id": self._jobs.boot,
            "engine": self._config.engine,
            "name": self._jobs.name,
        }

    def _start(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        if self._closing.is_set():
            raise Refused("closing", "the keeper is shutting down")
        return {"existing": not self._jobs.start(parse_wanted(request["spec"]))}

    def _stop(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        self._jobs.stop(request["attempt_id"], float(request.get("grace_s", 10.0)), str(request.get("cause", "stop")))
        return {}

    def _kill(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        self._jobs.kill(request["attempt_id"], str(request.get("cause", "kill")))
        return {}

    def _extend(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        wanted = {str(name): float(deadline) for name, deadline in request["deadlines"].items()}
        return {"unknown": self._jobs.extend(wanted)}

    def _list(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        return {"attempts": self._jobs.list()}

    def _forget(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        for attempt_id in request["attempt_ids"]:
            self._jobs.forget(attempt_id)
        return {}

    def _shutdown(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        live = self._jobs.live_count()
        if live and not request.get("kill"):
            raise Refused("busy", f"{live} attempts are running: wait for them, or shut down with kill")
        self._closing.set()
        return {"killed": live}
