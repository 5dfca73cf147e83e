"""The keeper as a server: its socket, its clients, its commands, and the loop that drives everything.

A client is a convenience. It may be slow, gone or replaced at any time without effect on a job.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from workers.keeper import wire
from workers.keeper.attempt import boottime
from workers.keeper.jobs import Jobs
from workers.keeper.leftovers import recover
from workers.keeper.loop import RANK_SIGNAL, RANK_SOCKET, Poller, Timers
from workers.keeper.processes import boot_id
from workers.keeper.spec import parse_spec
from workers.keeper.wire import Refused
from workers.sandbox.cgroups import CgroupLayer

PROTOCOL_VERSION = 2
READ_BYTES = 256 * 1024
MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_QUEUED_BYTES = 4 * 1024 * 1024
COMMANDS_PER_TURN = 32
TICK_S = 1.0
COLLECT_S = 60.0


class Config(NamedTuple):
    """What a keeper is started with."""

    directory: str
    uid_base: int | None
    layer: CgroupLayer | None
    cgroups: str
    bwrap: str | None
    births: str
    idle_exit_s: float | None
    guard_pid: int
    guard_fd: int


class Client:
    """One connection: received bytes, bytes to send, and whether it wants events."""

    __slots__ = ("inbox", "lagging", "outbox", "sock", "subscribed", "waiting_to_write")

    def __init__(self, sock: socket.socket) -> None:
        """Take over an accepted non-blocking socket."""
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.subscribed = False
        self.lagging = False
        self.waiting_to_write = False


class Service:
    """Serves one directory until it is told to stop, its guard ends, or it has been idle for long."""

    def __init__(self, config: Config) -> None:
        """Clean up after a dead predecessor, then listen."""
        self._config = config
        self._poller = Poller()
        self._timers = Timers()
        self._clients: dict[int, Client] = {}
        self._backlog: set[int] = set()
        self._collect_at = 0.0
        self._closing = False
        self._pid = os.getpid()
        self._idle_since = boottime()
        self._wakeup_read = self._watch_signals()
        self._jobs = Jobs(
            config.directory, uid_base=config.uid_base, layer=config.layer, bwrap=config.bwrap,
            births=config.births, poller=self._poller, timers=self._timers, emit=self._emit,
        )  # fmt: skip
        for attempt in recover(config.directory, config.uid_base):
            self._jobs.adopt_ended(attempt)
        self._jobs.folders.work()
        self._poller.add(config.guard_fd, RANK_SIGNAL, lambda _fd: self._guard_spoke())
        self._listener = wire.listen(config.directory)
        self._listener.setblocking(False)
        self._poller.add(self._listener.fileno(), RANK_SOCKET, lambda _fd: self._accept())
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

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until closing and empty. Each turn: output, gates, exits, commands; timers; events out."""
        next_tick = boottime() + TICK_S
        while not (self._closing and self._jobs.live_count() == 0):
            now = boottime()
            flush_in = self._jobs.news.tell(now)
            self._send_all()
            wait_s = self._timers.next_in(now, TICK_S)
            self._poller.poll(0.0 if self._backlog else min(wait_s, flush_in if flush_in is not None else TICK_S))
            for fd in list(self._backlog):
                self._serve(fd)
            now = boottime()
            self._timers.run_due(now)
            if now >= next_tick:
                next_tick = now + TICK_S
                self._tick(now)
        self._jobs.tidy()
        if self._config.layer is not None:
            self._config.layer.close()
        self._send_all()

    def _tick(self, now: float) -> None:
        self._jobs.tidy()
        if now >= self._collect_at:
            self._collect_at = now + COLLECT_S
            gc.collect()
        if self._clients or self._jobs.live_count():
            self._idle_since = now
        elif self._config.idle_exit_s is not None and now - self._idle_since > self._config.idle_exit_s:
            self._closing = True

    def _watch_signals(self) -> int:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._told_to_stop)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        self._poller.add(read_fd, RANK_SIGNAL, lambda _fd: self._children_ended())
        return read_fd

    def _told_to_stop(self, _number: int, _frame: Any) -> None:
        # A child between fork and exec has this handler too, and must not act on it.
        if os.getpid() == self._pid and not self._closing:
            self._close("keeper_shutdown")

    def _children_ended(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._wakeup_read, 4096)) == 4096:
                pass
        self._jobs.reap()

    def _guard_spoke(self) -> None:
        # A byte or the end of the pipe: SIGTERM to the guard, or its death. Either way nothing may live on.
        self._poller.remove(self._config.guard_fd)
        self._close("keeper_shutdown")

    def _close(self, cause: str) -> None:
        self._closing = True
        self._jobs.kill_all(cause)

    # -- connections ---------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock = wire.accept(self._listener)
        except OSError:
            return
        if sock is None:
            return
        sock.setblocking(False)
        self._clients[sock.fileno()] = Client(sock)
        self._poller.add(sock.fileno(), RANK_SOCKET, self._ready)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd, None)
        self._backlog.discard(fd)
        if client is not None:
            self._poller.remove(fd)
            client.sock.close()

    def _ready(self, fd: int) -> None:
        client = self._clients[fd]
        self._send(fd, client)
        if fd not in self._clients:
            return
        try:
            data = client.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(fd)
            return
        client.inbox += data
        if len(client.inbox) > MAX_LINE_BYTES and b"\n" not in client.inbox:
            self._drop(fd)
            return
        self._serve(fd)

    def _serve(self, fd: int) -> None:
        """Carry out some of a client's commands; a long queue waits, so that exits and output get their turn."""
        client = self._clients.get(fd)
        if client is None:
            self._backlog.discard(fd)
            return
        *lines, rest = bytes(client.inbox).split(b"\n", COMMANDS_PER_TURN)
        client.inbox = bytearray(rest)
        for line in lines:
            client.outbox += json.dumps(wire.answer(self._commands, client, line)).encode() + b"\n"
        if b"\n" in rest:
            self._backlog.add(fd)
        else:
            self._backlog.discard(fd)

    def _emit(self, event: dict[str, Any]) -> None:
        line = b""
        for client in self._clients.values():
            if not client.subscribed:
                continue
            if len(client.outbox) > MAX_QUEUED_BYTES:
                client.lagging = True
            if not client.lagging:
                line = line or json.dumps(event).encode() + b"\n"
                client.outbox += line

    def _send_all(self) -> None:
        for fd, client in list(self._clients.items()):
            if client.outbox and not client.waiting_to_write:
                self._send(fd, client)

    def _send(self, fd: int, client: Client) -> None:
        try:
            while client.outbox:
                del client.outbox[: client.sock.send(client.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(fd)
            return
        if not client.outbox and client.lagging:
            # It missed events: `list` gives it the state they led to.
            client.lagging = False
            client.outbox += b'{"event": "resync"}\n'
        if bool(client.outbox) != client.waiting_to_write:
            client.waiting_to_write = bool(client.outbox)
            self._poller.watch_writes(fd, client.waiting_to_write)

    # -- commands ------------------------------------------------------------------------------------------

    def _hello(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        client.subscribed = bool(request.get("events", True))
        layer = self._config.layer
        return {
            "version": PROTOCOL_VERSION,
            "pid": os.getpid(),
            "guard_pid": self._config.guard_pid,
            "boot_id": boot_id(),
            "uid_base": self._config.uid_base,
            "bubblewrap": self._config.bwrap,
            "cgroups": layer.describe() if layer else None,
            "cgroups_mode": self._config.cgroups,
        }

    def _start(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        if self._closing:
            raise Refused("closing", "the keeper is shutting down")
        return {"existing": not self._jobs.start(parse_spec(request["spec"]))}

    def _stop(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        self._jobs.stop(request["attempt_id"], float(request.get("grace_s", 10.0)), str(request.get("cause", "stop")))
        return {}

    def _kill(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        self._jobs.kill(request["attempt_id"], str(request.get("cause", "kill")))
        return {}

    def _extend(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        wanted = {str(name): float(deadline) for name, deadline in request["deadlines"].items()}
        return {"unknown": [name for name, deadline in wanted.items() if not self._jobs.extend(name, deadline)]}

    def _list(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        return {"attempts": [attempt.describe() for attempt in self._jobs.attempts.values()]}

    def _forget(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        for attempt_id in request["attempt_ids"]:
            self._jobs.forget(attempt_id)
        return {}

    def _shutdown(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        live = self._jobs.live_count()
        if live and not request.get("kill"):
            raise Refused("busy", f"{live} attempts are running: wait for them, or shut down with kill")
        self._close("keeper_shutdown")
        return {"killed": live}
