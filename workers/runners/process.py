"""Runs jobs as processes under the keeper: the contract of `base.Runner` over the keeper's socket."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.keeper.files import FILES
from workers.keeper.spec import BadSpec, parse_spec
from workers.runners.base import (
    Callback,
    Cancelled,
    Event,
    Exited,
    ExitRecord,
    Held,
    Output,
    PrepareCancelled,
    RunnerError,
    RunSpec,
    Sample,
    Started,
    StartRefused,
    Stock,
)
from workers.runners.keeper_client import CommandFailed, KeeperClient, KeeperOptions
from workers.runners.process_samples import Running, measure
from workers.sandbox.cgroups import layer_from

log = logging.getLogger(__name__)

FILES_SINCE = 2
"""The first version of the keeper's protocol that has files."""
TOO_OLD = (
    "the keeper that runs on this node is older than its agent and cannot start this: "
    "a new one takes its place as soon as nothing runs under it"
)

Fetch = Callable[[RunSpec, Cancelled], RunSpec]


class ProcessRunner:
    """Starts, stops and reports processes; they outlive it, and a new one finds them again with `attach`."""

    def __init__(self, options: KeeperOptions, fetch: Fetch | None = None) -> None:
        """Connect to the directory's keeper, starting one when there is none.

        One that was started with other options or is older ends as soon as nothing runs under it, and another takes
        its place: here already when it is idle. `fetch` brings an attempt's artifact in `prepare`. Raises
        RunnerUnavailable, and RunnerError when jobs of their own users could not reach the directory.
        """
        self._directory = Path(os.path.realpath(options.directory))
        if options.uid_base is not None:
            check_reachable(self._directory)
        self._fetch = fetch
        self._callbacks: list[Callback] = []
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._options = options
        self._accepted: list[str] = []
        self._outgrown = False
        self._replacing = threading.Lock()
        self._opened = False
        self._client = KeeperClient(options, self._on_event, self._on_connected)
        try:
            self._replace()
        except RunnerError:
            self._client.close()
            raise
        self._opened = True

    @property
    def hello(self) -> Mapping[str, Any]:
        """The keeper's answer to the last hello: version, pids, what it confines with."""
        return self._client.hello

    def obstacle(self) -> str | None:
        """What is wrong with the keeper that serves, till another takes its place."""
        unfit = self._unfit()
        if unfit:
            return f"its keeper was started with other settings ({'; '.join(unfit)})"
        if self._outgrown and self._is_older():
            return "its keeper is older than its agent and cannot start some jobs"
        return None

    def prepare(self, spec: RunSpec, cancelled: Cancelled) -> RunSpec:
        """Check the spec and fetch its artifact."""
        if cancelled():
            raise PrepareCancelled(f"attempt {spec.attempt_id} is no longer wanted")
        try:
            parse_spec(spec.to_wire())
        except BadSpec as exc:
            raise RunnerError(f"attempt {spec.attempt_id}: {exc}") from exc
        return self._fetch(spec, cancelled) if self._fetch is not None else spec

    def subscribe(self, callback: Callback) -> None:
        """Deliver every later event to `callback`, from the reading thread."""
        with self._lock:
            self._callbacks.append(callback)

    def attach(self) -> list[Held]:
        """Return everything the keeper holds."""
        return [_held(entry) for entry in self._client.call("list")["attempts"]]

    def take_stock(self) -> Stock:
        """Return what the keeper holds."""
        return Stock(self.attach())

    def start(self, spec: RunSpec) -> bool:
        """Start one attempt."""
        answer = self.start_many([spec])[0]
        if isinstance(answer, StartRefused):
            raise answer
        return answer

    def start_many(self, specs: Sequence[RunSpec]) -> list[bool | StartRefused]:
        """Start several attempts in one exchange."""
        if not specs:
            return []
        if self._unfit():
            # This was claimed before that was known. What the keeper lacks may be what confines the job.
            return [StartRefused("keeper", f"not started: {self.obstacle()}") for _ in specs]
        fit = [int(self.hello.get("version", 1)) >= self._version_for(spec) for spec in specs]
        sent = [{"cmd": "start", "spec": spec.to_wire()} for spec, fits in zip(specs, fit, strict=True) if fits]
        replies = iter(self._told(sent) if sent else ())
        answers = [_answer(next(replies)) if fits else StartRefused("old", TOO_OLD) for fits in fit]
        if not all(fit):
            self._outgrown = True
            self._replace_soon()
        return answers

    def _told(self, starts: Sequence[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Tell the keeper, and the next one where this one is just giving up its place."""
        replies = self._client.call_many(starts)
        if any(reply.get("code") == "closing" for reply in replies):
            with self._replacing:
                pass
            replies = self._client.call_many(starts)
        return replies

    def _version_for(self, spec: RunSpec) -> int:
        """The version of the keeper's protocol that a spec needs."""
        return FILES_SINCE if spec.files else 1

    def stop(self, attempt_id: str, grace_s: float, cause: str) -> None:
        """SIGTERM, and SIGKILL after the grace."""
        self._signal("stop", attempt_id=attempt_id, grace_s=grace_s, cause=cause)

    def kill(self, attempt_id: str, cause: str) -> None:
        """SIGKILL everything of the attempt."""
        self._signal("kill", attempt_id=attempt_id, cause=cause)

    def extend(self, deadlines: Mapping[str, float]) -> list[str]:
        """Move deadlines forward; return the attempts that are not running here."""
        if not deadlines:
            return []
        return [str(name) for name in self._client.call("extend", deadlines=dict(deadlines))["unknown"]]

    def forget(self, attempt_ids: Iterable[str], wait: bool = True) -> None:
        """Remove ended attempts and their files."""
        names = list(attempt_ids)
        if names and wait:
            self._client.call("forget", attempt_ids=names)
        elif names:
            # The keeper does things in the order it is told, so a later start finds the place free.
            self._client.tell("forget", attempt_ids=names)

    def spool_path(self, attempt_id: str) -> str:
        """Return the attempt's spool file."""
        return str(self._directory / "attempts" / attempt_id / "spool")

    def work_dir(self, attempt_id: str) -> str:
        """Return the attempt's working directory."""
        return str(self._directory / "attempts" / attempt_id / "work")

    def files_dir(self, attempt_id: str) -> str:
        """Return the directory of the files that come with the attempt; the same in a sandbox."""
        return str(self._directory / "attempts" / attempt_id / FILES)

    def samples(self, only: Collection[str] | None = None) -> list[Sample]:
        """Measure the running attempts, or `only` these, from their control groups or from /proc."""
        with self._lock:
            running = [one for name, one in self._running.items() if only is None or name in only]
        described = self.hello.get("cgroups")
        return measure(running, layer_from(described) if described else None)

    def shutdown_keeper(self, *, kill: bool) -> None:
        """End the keeper itself, for tests and for taking a node out of service. Raises RunnerError when busy."""
        self._opened = False
        try:
            self._client.shut_down(kill=kill)
        except RunnerError:
            self._opened = True
            raise

    def close(self) -> None:
        """Disconnect; jobs go on under the keeper."""
        self._opened = False
        self._client.close()

    def _signal(self, cmd: str, **arguments: Any) -> None:
        try:
            self._client.call(cmd, **arguments)
        except CommandFailed as exc:
            if exc.code != "unknown":
                raise

    # -- events, in the client's reading thread ------------------------------------------------------------

    def _on_connected(self, hello: dict[str, Any], attempts: list[dict[str, Any]]) -> None:
        self._resync(attempts)
        self._replace_soon()

    def _resync(self, attempts: list[dict[str, Any]]) -> None:
        """Tell of every start, of all output and of every end again: whoever listens may have missed it."""
        with self._lock:
            self._running = {
                entry["attempt_id"]: Running(entry["attempt_id"], entry["pid"], entry["uid"], entry["cgroup"])
                for entry in attempts
                if entry["state"] == "running"
            }
        for entry in attempts:
            attempt_id = entry["attempt_id"]
            if entry["record"] is not None:
                self._publish(Exited(attempt_id, ExitRecord.from_wire(entry["record"])))
            elif entry["started_wall"] is not None:
                self._publish(Started(attempt_id, entry["pid"], entry["started_boottime"], entry["started_wall"]))
                if entry["spool_bytes"]:
                    self._publish(Output(attempt_id, entry["spool_bytes"]))

    def _on_event(self, message: dict[str, Any]) -> None:
        kind, attempt_id = message["event"], message.get("attempt_id", "")
        if kind == "output":
            self._publish(Output(attempt_id, message["size"]))
        elif kind == "started":
            with self._lock:
                self._running[attempt_id] = Running(attempt_id, message["pid"], message["uid"], message["cgroup"])
            self._publish(Started(attempt_id, message["pid"], message["started_boottime"], message["started_wall"]))
        elif kind == "exited":
            with self._lock:
                self._running.pop(attempt_id, None)
            self._publish(Exited(attempt_id, ExitRecord.from_wire(message["record"])))
            self._replace_soon()
        elif kind == "resync":
            # Asked from another thread: this one has to read the answer.
            threading.Thread(target=self._resync_after_lag, name="keeper-resync", daemon=True).start()

    def _resync_after_lag(self) -> None:
        try:
            self._resync(self._client.call("list")["attempts"])
        except RunnerError as exc:
            log.warning("could not ask the keeper for its state: %s; the next connection will", exc)

    # -- a keeper that is not what it should be ---------------------------------------------------------------

    def _unfit(self) -> list[str]:
        """In what the keeper was started otherwise than this runner would start one."""
        return [one for one in self._options.differences(self.hello) if one not in self._accepted]

    def _is_older(self) -> bool:
        return int(self.hello.get("version", 1)) < self._options.protocol

    def _is_to_go(self) -> bool:
        """Whether another keeper is to take this one's place once nothing runs under it."""
        with self._lock:
            busy = bool(self._running)
        return not busy and (self._is_older() or self.obstacle() is not None)

    def _replace_soon(self) -> None:
        """In a thread of its own: the reading one, which tells of ends, has to read the answer."""
        if self._opened and self._is_to_go():
            threading.Thread(target=self._replace_or_wait, name="keeper-replace", daemon=True).start()

    def _replace_or_wait(self) -> None:
        try:
            self._replace()
        except RunnerError as exc:
            log.warning("the keeper's place could not be taken: %s", exc)

    def _replace(self) -> None:
        """End the keeper if it is to go, and have another started with this runner's options."""
        with self._replacing:
            if not self._is_to_go():
                return
            why = self.obstacle() or "it is older than its agent"
            try:
                self._client.replace()
            except CommandFailed as exc:
                if exc.code == "busy":
                    return  # Its next end tries again.
                raise
            log.warning("a new keeper has taken the place of the last one: %s", why)
            # What a new one lacks too is this host's doing; to replace it again would help nobody.
            self._accepted = self._options.differences(self.hello)
            self._outgrown = False

    def _publish(self, event: Event) -> None:
        with self._lock:
            callbacks = list(self._callbacks)
        for callback in callbacks:
            try:
                callback(event)
            except Exception:
                log.exception("a subscriber failed on %r", event)


def check_reachable(directory: Path) -> None:
    """Raise RunnerError when other users cannot get through to `directory`: jobs run as users of their own."""
    for folder in (directory, *directory.parents):
        if folder.exists() and not folder.stat().st_mode & 0o001:
            raise RunnerError(
                f"jobs run as users of their own and cannot reach {directory}: others may not enter {folder}; "
                f"run `chmod o+x {folder}`, choose another data directory, or run jobs as this user"
            )


def _answer(reply: Mapping[str, Any]) -> bool | StartRefused:
    if "error" in reply:
        return StartRefused(str(reply.get("code")), str(reply["error"]))
    return not reply["existing"]


def _held(entry: dict[str, Any]) -> Held:
    return Held(
        attempt_id=entry["attempt_id"],
        job_id=entry["job_id"],
        attempt=entry["attempt"],
        member=entry["member"],
        slot=entry["slot"],
        running=entry["state"] == "running",
        pid=entry["pid"],
        deadline=entry["deadline"],
        started_boottime=entry["started_boottime"],
        started_wall=entry["started_wall"],
        spool_bytes=entry["spool_bytes"],
        record=ExitRecord.from_wire(entry["record"]) if entry["record"] else None,
    )
