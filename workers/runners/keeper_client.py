"""The agent's end of the keeper's socket: starts a keeper when none serves, keeps a connection, delivers events.

Knows the wire and nothing of what specs and records mean.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from workers.keeper.service import PROTOCOL_VERSION
from workers.keeper.uid_range import RANGE, RANGES
from workers.runners.base import RunnerError, RunnerUnavailable
from workers.runners.keeper_wire import Lines, Message, Waiting

log = logging.getLogger(__name__)

KEEPER_SCRIPT = Path(__file__).resolve().parents[1] / "keeper" / "main.py"
ALREADY_SERVED = 3
START_TIMEOUT_S = 30.0
RETRY_S = 0.2
SEND_TIMEOUT_S = 5.0
"""How long a keeper may read nothing of what it is sent before the connection counts as broken."""


class CommandFailed(RunnerError):
    """The keeper understood and declined; `code` is the keeper's."""

    def __init__(self, code: str, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """How to start a keeper where none serves the directory; `births` other than auto is for tests."""

    protocol: ClassVar[int] = PROTOCOL_VERSION
    """The version of the keeper's protocol that is started by these."""

    directory: Path
    uid_base: int | None = None
    cgroups: str = "auto"
    bwrap: str | None = None
    births: str = "auto"
    idle_exit_s: float | None = None

    def command(self) -> list[str]:
        """Return the command line; isolated mode keeps the process small and deaf to the environment."""
        argv = [sys.executable, "-I", "-S", str(KEEPER_SCRIPT), "--dir", str(self.directory), "--cgroups", self.cgroups]
        if self.uid_base is not None:
            argv += ["--uid-base", str(self.uid_base)]
        if self.bwrap is not None:
            argv += ["--bwrap", self.bwrap]
        if self.births != "auto":
            argv += ["--births", self.births]
        if self.idle_exit_s is not None:
            argv += ["--idle-exit-s", str(self.idle_exit_s)]
        return argv

    def differences(self, hello: Mapping[str, Any]) -> list[str]:
        """Say in which settings the keeper that answered `hello` was started otherwise; empty when in none."""
        found = []
        if hello.get("bubblewrap") != self.bwrap:
            found.append(f"bubblewrap is {hello.get('bubblewrap') or 'off'}, not {self.bwrap or 'off'}")
        first = hello.get("uid_base")
        if not self._has_users_from(first):
            found.append(f"jobs run as {_users(first)}, not as {_users(self.uid_base)}")
        if self.cgroups == "off" and hello.get("cgroups"):
            found.append("control groups are on, not off")
        elif self.cgroups == "auto" and hello.get("cgroups_mode") == "off":
            found.append("control groups are off, not on")
        return found

    def _has_users_from(self, first: int | None) -> bool:
        """Whether `first` begins one of the ranges that a keeper takes when it is told `uid_base`."""
        if first is None or self.uid_base is None:
            return first == self.uid_base
        return first in range(self.uid_base, self.uid_base + RANGE * RANGES, RANGE)


def _users(first: int | None) -> str:
    return "the worker's own user" if first is None else f"users from {first} on"


def start_keeper(options: KeeperOptions) -> None:
    """Start a keeper that outlives this process; one that serves already is fine. Raises RunnerUnavailable."""
    options.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            options.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=START_TIMEOUT_S, check=False, env={}, start_new_session=True,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise RunnerUnavailable(f"the keeper of {options.directory} did not start: {exc}") from exc
    if done.returncode not in (0, ALREADY_SERVED):
        said = done.stderr.decode(errors="replace").strip()
        raise RunnerUnavailable(f"the keeper of {options.directory} did not start (exit {done.returncode}): {said}")


def connect(directory: Path) -> socket.socket:
    """Connect to the directory's keeper. Raises OSError when none serves."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # For sends alone: whoever sends holds the lock that all others need.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_TIMEOUT_S))
    try:
        # Through a descriptor: a socket's path is limited to 107 bytes, a data directory's is not.
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{folder}/keeper.sock")
        finally:
            os.close(folder)
    except OSError:
        sock.close()
        raise
    return sock


def _timeval(seconds: float) -> bytes:
    """Return C's struct timeval."""
    return struct.pack("@ll", int(seconds), round(seconds % 1 * 1e6))


class KeeperClient:
    """A lasting conversation with the keeper of one directory.

    One thread reads: replies go to their callers, events to `on_event`. When the connection breaks it starts a new
    keeper if need be, reconnects, and calls `on_connected` with the fresh hello, before any later event.
    """

    def __init__(
        self,
        options: KeeperOptions,
        on_event: Callable[[Message], None],
        on_connected: Callable[[Message, list[Message]], None],
    ) -> None:
        """Connect (starting a keeper when there is none). Raises RunnerUnavailable."""
        self._options = options
        self._on_event = on_event
        self._on_connected = on_connected
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._connected = threading.Condition(self._lock)
        self._waiting: dict[int, tuple[Waiting, int]] = {}
        self._sock: socket.socket | None = None
        self._closed = False
        self._last = False
        self._trouble = ""
        self.hello: Message = {}
        self._wake = threading.Event()
        opened = self._open()
        self._thread = threading.Thread(target=self._read_forever, args=(opened,), name="keeper-client", daemon=True)
        self._thread.start()
        with self._lock:
            if not self._connected.wait_for(lambda: self._sock is not None, START_TIMEOUT_S):
                raise RunnerUnavailable(f"the keeper of {options.directory} did not answer its hello")

    def call(self, cmd: str, timeout_s: float = 15.0, **arguments: Any) -> Message:
        """Send one command and return its reply. Raises CommandFailed or RunnerUnavailable."""
        reply = self.call_many([{"cmd": cmd, **arguments}], timeout_s)[0]
        if "error" in reply:
            raise CommandFailed(str(reply.get("code")), str(reply["error"]))
        return reply

    def call_many(self, requests: Sequence[Message], timeout_s: float = 15.0) -> list[Message]:
        """Send commands in one write and return their replies in order, errors as they are.

        Sent again after a reconnect, which is safe: every command of the keeper may be repeated.
        """
        give_up_at = time.monotonic() + timeout_s
        while True:
            replies = self._exchange(requests, give_up_at)
            if replies is not None:
                return replies

    def _exchange(self, requests: Sequence[Message], give_up_at: float) -> list[Message] | None:
        """Send commands and return their replies; None when the connection broke before all of them were there."""
        waiting = Waiting(len(requests))
        numbers = [next(self._numbers) for _ in requests]
        lines = b"".join(
            json.dumps({**request, "id": number}).encode() + b"\n"
            for request, number in zip(requests, numbers, strict=True)
        )
        try:
            self._send(lines, numbers, waiting, give_up_at)
            if not waiting.done.wait(max(0.0, give_up_at - time.monotonic())):
                raise RunnerUnavailable(f"the keeper of {self._options.directory} did not answer in time")
        finally:
            with self._lock:
                for number in numbers:
                    self._waiting.pop(number, None)
        return None if waiting.failed else [reply for reply in waiting.replies if reply is not None]

    def tell(self, cmd: str, **arguments: Any) -> None:
        """Send one command without waiting for its reply. What is sent later is done later.

        It is lost when the connection breaks just now. Raises RunnerUnavailable when there is none.
        """
        line = json.dumps({"cmd": cmd, **arguments, "id": next(self._numbers)}).encode() + b"\n"
        self._send(line, [], Waiting(0), time.monotonic())

    def shut_down(self, *, kill: bool) -> None:
        """End the keeper, and do not start another. Raises CommandFailed when it is busy and not to kill."""
        with self._lock:
            # A reconnect that is under way comes first: from then on a broken connection is the end.
            self._connected.wait_for(lambda: self._sock is not None or self._closed, START_TIMEOUT_S)
            self._last = True
        try:
            self.call("shutdown", kill=kill)
        except CommandFailed:
            self._last = False
            raise
        except RunnerUnavailable:
            log.info("the keeper of %s ended before it was told to", self._options.directory)
        self._thread.join(START_TIMEOUT_S)

    def replace(self) -> None:
        """End a keeper that runs nothing and wait for the one that is started in its place.

        Raises CommandFailed when it is busy, and RunnerUnavailable when none serves in its place in time.
        """
        give_up_at = time.monotonic() + START_TIMEOUT_S
        before = self.hello.get("pid")
        # Said once: said again after a reconnect it would end the new one.
        replies = self._exchange([{"cmd": "shutdown", "kill": False}], give_up_at)
        if replies and "error" in replies[0]:
            raise CommandFailed(str(replies[0].get("code")), str(replies[0]["error"]))
        with self._lock:
            self._connected.wait_for(
                lambda: self._closed or (self._sock is not None and self.hello.get("pid") != before),
                max(0.0, give_up_at - time.monotonic()),
            )
            if self._sock is None or self.hello.get("pid") == before:
                raise RunnerUnavailable(self._trouble or f"no new keeper of {self._options.directory} serves")

    def close(self) -> None:
        """Disconnect; the keeper and its jobs go on."""
        with self._lock:
            self._closed = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
            self._connected.notify_all()
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _send(self, lines: bytes, numbers: list[int], waiting: Waiting, give_up_at: float) -> None:
        with self._lock:
            self._connected.wait_for(
                lambda: self._sock is not None or self._closed, max(0.0, give_up_at - time.monotonic())
            )
            if self._sock is None or self._closed:
                raise RunnerUnavailable(f"no connection to the keeper of {self._options.directory}")
            for index, number in enumerate(numbers):
                self._waiting[number] = (waiting, index)
            try:
                self._sock.sendall(lines)
            except OSError:
                # Broken, or full for long and cut in the middle of a line. The reader sees it, fails this exchange and
                # reconnects.
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)

    # -- the reader's thread -------------------------------------------------------------------------------

    def _open(self) -> socket.socket:
        try:
            return connect(self._options.directory)
        except OSError:
            start_keeper(self._options)
        try:
            return connect(self._options.directory)
        except OSError as exc:
            raise RunnerUnavailable(f"the keeper of {self._options.directory} does not listen: {exc}") from exc

    def _read_forever(self, sock: socket.socket | None) -> None:
        while not self._closed and not (self._last and sock is None):
            if sock is None:
                try:
                    sock = self._open()
                except RunnerUnavailable as exc:
                    self._trouble = str(exc)
                    log.warning("%s; trying again", exc)
                    self._wake.wait(RETRY_S)
                    continue
            try:
                self._converse(sock)
            except OSError as exc:
                log.info("connection to the keeper of %s broke: %s", self._options.directory, exc)
            except Exception:
                # Whatever it said: without this thread nothing of this node's jobs would be told any more.
                log.exception("the keeper of %s is not understood; asking again", self._options.directory)
                self._wake.wait(RETRY_S)
            finally:
                self._disconnected(sock)
            sock = None
        with self._lock:
            self._closed = True
            self._connected.notify_all()

    def _converse(self, sock: socket.socket) -> None:
        stream = Lines(sock)
        sock.sendall(b'{"cmd": "hello", "id": 0}\n{"cmd": "list", "id": 0}\n')
        hello, early = stream.reply()
        listing, later = stream.reply()
        # Both before anybody may use the connection: what answers otherwise is no keeper.
        attempts, _pid = listing["attempts"], hello["pid"]
        with self._lock:
            self._sock, self.hello = sock, hello
            self._connected.notify_all()
        self._deliver(lambda: self._on_connected(hello, attempts))
        for message in [*early, *later]:
            self._dispatch(message)
        for message in stream:
            self._dispatch(message)

    def _dispatch(self, message: Message) -> None:
        if "event" in message:
            self._deliver(lambda: self._on_event(message))
            return
        with self._lock:
            entry = self._waiting.pop(message["id"], None)
        if entry is not None:
            entry[0].put(entry[1], message)

    def _deliver(self, deliver: Callable[[], None]) -> None:
        try:
            deliver()
        except Exception:
            log.exception("a callback for keeper events failed")

    def _disconnected(self, sock: socket.socket) -> None:
        with self._lock:
            self._sock = None
            broken = {id(entry[0]): entry[0] for entry in self._waiting.values()}
            self._waiting.clear()
            sock.close()
        for waiting in broken.values():
            waiting.fail()
