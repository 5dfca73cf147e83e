"""The life of container jobs: image, container, output, signals, deadline, end. Free of the keeper's socket.

Promise: when an attempt's exit record exists, its container is gone and its output is in the spool. Each attempt has a
thread that leads it from its image to its end; one more reads its output. All state is under one lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from workers.containers.attempt import ENDED, PREPARING, RUNNING, STARTING, Attempt
from workers.containers.engine import Engine, EngineAway, EngineError, Output
from workers.containers.exits import is_of_container, program_below, read_exit
from workers.containers.images import ImageRefused, Images, ImageUnavailable, PullCancelled
from workers.containers.network import provide_network
from workers.containers.recipe import LABEL_ATTEMPT, LABEL_JOB, LABEL_NODE, Wanted, container_config
from workers.keeper.attempt import boottime
from workers.keeper.output import OutputNews
from workers.keeper.processes import boot_id
from workers.keeper.wire import Refused

CLOCK_S = 0.02
DRAIN_S = 10.0
ASK_AGAIN_S = 0.5
FORGOTTEN_KEPT = 4096
TAIL_BYTES = 1024


class Jobs:
    """All container attempts of one keeper."""

    def __init__(self, directory: str, engine: Engine, max_image_bytes: int, emit: Callable[[dict[str, Any]], None]):
        """Serve `directory` with `engine`; `emit` is called with the lock held and must not wait."""
        self.directory = directory
        self.name = f"{zlib.crc32(directory.encode()):08x}"
        self.lock = threading.RLock()
        self.attempts: dict[str, Attempt] = {}
        self.boot = boot_id()
        self._engine = engine
        self._images = Images(engine, f"{directory}/images.json", max_image_bytes)
        self._emit = emit
        self._news = OutputNews(emit)
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._root = f"{directory}/attempts"
        os.makedirs(self._root, 0o711, exist_ok=True)

    def path(self, attempt_id: str) -> str:
        """Return where an attempt's folder is."""
        return f"{self._root}/{attempt_id}"

    def container_name(self, attempt_id: str) -> str:
        """The name of an attempt's container, unique on this host."""
        return f"cfab-{self.name}-{attempt_id}"

    def live_count(self) -> int:
        """How many attempts have no exit record yet."""
        with self.lock:
            return sum(attempt.state != ENDED for attempt in self.attempts.values())

    # -- commands, any thread ------------------------------------------------------------------------------

    def start(self, wanted: Wanted) -> bool:
        """Begin an attempt; False when it is here already, which begins nothing. Raises Refused.

        What goes wrong with its image or its container is not refused: the record tells of it.
        """
        spec = wanted.spec
        with self.lock:
            if spec.attempt_id in self.attempts:
                return False
            if spec.attempt_id in self._forgotten:
                raise Refused("forgotten", f"attempt {spec.attempt_id} has ended and was forgotten: it runs once")
            now = boottime()
            if spec.deadline <= now:
                late = f"deadline {spec.deadline:.3f} of {spec.attempt_id} has passed: it is {now:.3f}"
                raise Refused("deadline", late)
            attempt = Attempt(spec, self.path(spec.attempt_id), wanted)
            try:
                attempt.make_folder()
                attempt.note(self.boot)
            except OSError as exc:
                shutil.rmtree(attempt.directory, ignore_errors=True)
                where = exc.filename or attempt.directory
                raise Refused("io", f"attempt {spec.attempt_id} was not started: {where}: {exc.strerror}") from exc
            self.attempts[spec.attempt_id] = attempt
        self.lead(attempt, self._begin)
        return True

    def stop(self, attempt_id: str, grace_s: float, cause: str) -> None:
        """SIGTERM now and SIGKILL after `grace_s`; repeating it can only shorten the grace. Raises Refused."""
        with self.lock:
            attempt = self._signallable(attempt_id)
            if attempt is not None:
                if attempt.record["stop_cause"] is None or cause == "cancel":
                    attempt.record["stop_cause"] = cause
                self._terminate(attempt, grace_s)

    def kill(self, attempt_id: str, cause: str) -> None:
        """SIGKILL now. Raises Refused for an unknown attempt."""
        with self.lock:
            attempt = self._signallable(attempt_id)
            if attempt is not None:
                attempt.record["stop_cause"] = attempt.record["stop_cause"] or cause
                self._kill(attempt)

    def kill_all(self, cause: str) -> None:
        """SIGKILL every live attempt."""
        with self.lock:
            for attempt_id in list(self.attempts):
                self.kill(attempt_id, cause)

    def extend(self, deadlines: dict[str, float]) -> list[str]:
        """Move lease deadlines forward, never back; return the attempts that are not live here."""
        with self.lock:
            unknown = []
            for attempt_id, deadline in deadlines.items():
                attempt = self.attempts.get(attempt_id)
                if attempt is None or attempt.state == ENDED:
                    unknown.append(attempt_id)
                    continue
                attempt.deadline = max(attempt.deadline, deadline)
                self.note(attempt)
            return unknown

    def forget(self, attempt_id: str) -> None:
        """Remove an ended attempt with its files; an unknown one is fine. Raises Refused while it runs."""
        with self.lock:
            attempt = self.attempts.get(attempt_id)
            if attempt is None:
                return
            if attempt.state != ENDED:
                raise Refused("running", f"attempt {attempt_id} is still running: stop it first")
            del self.attempts[attempt_id]
            self._forgotten[attempt_id] = None
            if len(self._forgotten) > FORGOTTEN_KEPT:
                self._forgotten.popitem(last=False)
            aside = f"{self.directory}/trash/{os.urandom(8).hex()}"
            os.makedirs(f"{self.directory}/trash", 0o700, exist_ok=True)
            with contextlib.suppress(OSError):
                os.rename(attempt.directory, aside)
        # A job may leave millions of files: nobody waits for their removal.
        threading.Thread(target=shutil.rmtree, args=(aside, True), name="remove", daemon=True).start()

    def list(self) -> list[dict[str, Any]]:
        """Describe all attempts."""
        with self.lock:
            return [attempt.describe() for attempt in self.attempts.values()]

    # -- the clock ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Everything that is due now: deadlines, time limits, graces, and news of output."""
        with self.lock:
            now = boottime()
            for attempt in list(self.attempts.values()):
                if attempt.state != ENDED and not attempt.kill_sent:
                    self._due(attempt, now)
            self._news.tell(now)

    def _due(self, attempt: Attempt, now: float) -> None:
        if attempt.deadline <= now:
            attempt.record["lease_lost"] = True
            self._kill(attempt)
        elif attempt.kill_at is not None and attempt.kill_at <= now:
            self._kill(attempt)
        elif attempt.limit_at is not None and attempt.limit_at <= now and not attempt.term_sent:
            attempt.record["limit_hit"] = "time"
            self._terminate(attempt, attempt.spec.grace_s)

    def _signallable(self, attempt_id: str) -> Attempt | None:
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            raise Refused("unknown", f"attempt {attempt_id} is not here")
        return None if attempt.state == ENDED or attempt.over.is_set() else attempt

    def _terminate(self, attempt: Attempt, grace_s: float) -> None:
        if attempt.state == PREPARING:
            self._kill(attempt)
            return
        kill_at = boottime() + grace_s
        attempt.kill_at = kill_at if attempt.kill_at is None else min(attempt.kill_at, kill_at)
        if not attempt.term_sent:
            attempt.term_sent = True
            if attempt.state == RUNNING:
                self._signal(attempt, "SIGTERM")
        self.note(attempt)

    def _kill(self, attempt: Attempt) -> None:
        attempt.kill_sent = True
        if attempt.state == PREPARING:
            # Nothing of it runs: its thread finds it ended, and removes what it was about to start.
            attempt.record["signal"] = int(signal.SIGKILL)
            self.end(attempt)
        elif attempt.state == RUNNING:
            if attempt.init_pidfd >= 0:
                # At once, and whether or not the engine answers.
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(attempt.init_pidfd, signal.SIGKILL)
            self._signal(attempt, "SIGKILL")

    def _signal(self, attempt: Attempt, name: str) -> None:
        # An engine that hangs must hold up neither the clock nor other attempts.
        threading.Thread(target=self._send, args=(attempt, name), name=f"{name} {attempt.id}", daemon=True).start()

    def _send(self, attempt: Attempt, name: str) -> None:
        while not attempt.over.is_set():
            try:
                self._engine.signal(attempt.container, name)
                return
            except EngineError as exc:
                complain(f"{name} to the container of attempt {attempt.id}: {exc}; trying again")
            attempt.over.wait(ASK_AGAIN_S)

    # -- one attempt's thread ----------------------------------------------------------------------------------

    def lead(self, attempt: Attempt, step: Callable[[Attempt], None]) -> None:
        """Run a step in a thread of the attempt's own; what nobody foresaw there ends the attempt."""

        def run() -> None:
            try:
                step(attempt)
            except Exception as exc:
                complain(f"attempt {attempt.id}: {exc!r}")
                self._discard(attempt)
                self._fail(attempt, node_fault=f"the node could not keep the container: {exc}")

        threading.Thread(target=run, name=f"attempt {attempt.id}", daemon=True).start()

    def _begin(self, attempt: Attempt) -> None:
        wanted = attempt.wanted
        assert wanted is not None
        try:
            image = self._images.bring(wanted, lambda text: self._say(attempt, text), lambda: attempt.state == ENDED)
            attempt.record["image_digest"] = image.digest
            attempt.container = self._create(attempt, wanted, image.id)
        except PullCancelled:
            return
        except (ImageUnavailable, EngineAway) as exc:
            self._fail(attempt, node_fault=str(exc))
            return
        except ImageRefused as exc:
            self._fail(attempt, spawn_error=str(exc))
            return
        except EngineError as exc:
            refused = exc.status in (400, 404)
            self._fail(attempt, **{"spawn_error" if refused else "node_fault": f"no container was made: {exc}"})
            return
        self._start(attempt)

    def _create(self, attempt: Attempt, wanted: Wanted, image_id: str) -> str:
        labels = {LABEL_NODE: self.name, LABEL_ATTEMPT: attempt.id, LABEL_JOB: attempt.spec.job_id}
        config = container_config(wanted, image_id, attempt.directory, labels)
        name = self.container_name(attempt.id)
        if wanted.network == "bridge":
            provide_network(self._engine)
        # One of this name can only be what an earlier keeper had created and never started.
        self._engine.remove(name)
        return self._engine.create(name, config)

    def _start(self, attempt: Attempt) -> None:
        output = self._engine.attach(attempt.container)
        with self.lock:
            if attempt.state == ENDED:
                output.close()
                self._discard(attempt)
                return
            attempt.state = STARTING
            attempt.record["started_boottime"], attempt.record["started_wall"] = boottime(), time.time()
            self.note(attempt)
        reader = self.read(attempt, output)
        try:
            self._engine.call("POST", f"/containers/{attempt.container}/start")
        except EngineError as exc:
            output.close()
            self._discard(attempt)
            # A program that is not there, or may not be run; anything else (GPU hooks, a full disk) is the node's.
            lacks_network = str(exc).startswith("network ")
            theirs = not lacks_network and (exc.status in (400, 404) or "executable file not found" in str(exc))
            self._fail(attempt, **{"spawn_error" if theirs else "node_fault": str(exc)})
            return
        self.follow(attempt, reader, output)

    def read(self, attempt: Attempt, output: Output) -> threading.Thread:
        """Read a container's output in a thread of its own, until it ends or is closed."""

        def run() -> None:
            for stream, payload in output:
                with self.lock:
                    if attempt.state == ENDED:
                        break
                    attempt.output.take(stream, payload)
                    if attempt.state == RUNNING:
                        self._news.grown[attempt.id] = attempt.output
                    if stream == 2:
                        attempt.error_tail = (attempt.error_tail + payload)[-TAIL_BYTES:]
            output.close()

        thread = threading.Thread(target=run, name=f"output {attempt.id}", daemon=True)
        thread.start()
        return thread

    def follow(self, attempt: Attempt, reader: threading.Thread, output: Output) -> None:
        """Lead a started container to its end."""
        info = self._look(attempt)
        self._hold_processes(attempt, info)
        with self.lock:
            attempt.state = RUNNING
            self.note(attempt)
            self._announce(attempt)
            if attempt.output.spool_bytes:
                # Nothing of a program's output is told before its start is.
                self._news.grown[attempt.id] = attempt.output
            # What was asked for while it started.
            if attempt.kill_sent:
                self._kill(attempt)
            elif attempt.term_sent:
                self._signal(attempt, "SIGTERM")
        attempt.engine_broke = False
        while info is not None and info["State"]["Running"]:
            try:
                self._engine.wait(attempt.container)
            except EngineError:
                attempt.engine_broke = True
                time.sleep(ASK_AGAIN_S)
            info = self._look(attempt)
        attempt.over.set()
        # A stream that does not end must never hold up the end of a job.
        reader.join(DRAIN_S)
        output.close()
        with self.lock:
            read_exit(attempt, info["State"] if info is not None else None)
        self._discard(attempt)
        with self.lock:
            self.end(attempt)
        self._images.trim()

    def _look(self, attempt: Attempt) -> dict[str, Any] | None:
        """What the engine knows of a container, asked until it answers; None when it is gone."""
        while True:
            try:
                return self._engine.inspect(attempt.container)
            except EngineError as exc:
                complain(f"attempt {attempt.id}: {exc}; asking again")
                attempt.engine_broke = True
                time.sleep(ASK_AGAIN_S)

    def _hold_processes(self, attempt: Attempt, info: dict[str, Any] | None) -> None:
        """Take hold of the container's init and its program, for a kill and a true end without the engine."""
        pid = int(info["State"]["Pid"]) if info is not None else 0
        if pid <= 0 or info is None:
            return
        with contextlib.suppress(OSError):
            attempt.init_pidfd = os.pidfd_open(pid)
            if not is_of_container(pid, str(info["Id"])):
                os.close(attempt.init_pidfd)
                attempt.init_pidfd = -1
                return
            attempt.pid = pid
            attempt.program_pidfd = program_below(pid)

    def _announce(self, attempt: Attempt) -> None:
        self._emit(
            {
                "event": "started",
                "attempt_id": attempt.id,
                "pid": attempt.pid,
                "uid": None,
                "cgroup": None,
                "started_boottime": attempt.record["started_boottime"],
                "started_wall": attempt.record["started_wall"],
            }
        )

    def _say(self, attempt: Attempt, text: str) -> None:
        with self.lock:
            if attempt.state != ENDED:
                attempt.output.say(text)
                self._news.grown[attempt.id] = attempt.output

    def _discard(self, attempt: Attempt) -> None:
        """Remove the container, asking the engine until it answers."""
        while attempt.container:
            try:
                self._engine.remove(attempt.container)
                return
            except EngineError as exc:
                complain(f"the container of attempt {attempt.id} could not be removed: {exc}; trying again")
                time.sleep(ASK_AGAIN_S)

    def _fail(self, attempt: Attempt, spawn_error: str | None = None, node_fault: str | None = None) -> None:
        with self.lock:
            if attempt.state != ENDED:
                attempt.record["spawn_error"], attempt.record["node_fault"] = spawn_error, node_fault
                self._say(attempt, str(spawn_error or node_fault))
                self.end(attempt)

    # -- the end ----------------------------------------------------------------------------------------------

    def end(self, attempt: Attempt) -> None:
        """Write the exit record and tell of it, once. With the lock held."""
        if attempt.state == ENDED:
            return
        attempt.over.set()
        attempt.finish()
        self._news.grown.pop(attempt.id, None)
        try:
            attempt.note_end()
        except OSError as exc:
            complain(f"the end of attempt {attempt.id} could not be written down: {exc}")
        self._emit({"event": "exited", "attempt_id": attempt.id, "record": attempt.full_record()})

    def note(self, attempt: Attempt) -> None:
        """Write down where an attempt is; a disk that is full now is no reason to end it."""
        try:
            attempt.note(self.boot)
        except OSError as exc:
            complain(f"attempt {attempt.id} could not be noted: {exc}")


def complain(text: str) -> None:
    """Say something in the keeper's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
    sys.stderr.flush()
