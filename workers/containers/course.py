"""The course of one attempt, led by a thread of its own: its image, its container, its output, its end.

Promise: when an attempt's exit record exists, its container is gone and its output is in the spool.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from workers.containers.attempt import ENDED, RUNNING, STARTING, Attempt
from workers.containers.book import Book, complain
from workers.containers.engine import Engine, EngineAway, EngineError, Output
from workers.containers.exits import is_of_container, program_below, read_exit
from workers.containers.images import Images, PullCancelled
from workers.containers.network import provide_network
from workers.containers.pull_errors import ImageRefused, ImageUnavailable
from workers.containers.recipe import LABEL_ATTEMPT, LABEL_JOB, LABEL_NODE, Wanted, container_config
from workers.containers.rubbish import open_folders
from workers.containers.signals import ASK_AGAIN_S, Signals
from workers.containers.spool import HEAD_BYTES
from workers.keeper.attempt import boottime
from workers.spool import STDERR, STDOUT

DRAIN_S = 10.0
LATE_S = (0.0, 10.0, 50.0, 540.0)
"""When to look for what the engine was asked to make and did not answer: each time so long after the last."""
REST_S = 2.0
"""How long what an engine that went away had sent may take to be read."""
TAIL_BYTES = 1024


class Course:
    """Leads attempts to their ends. Nothing is called with the book's lock held."""

    def __init__(self, book: Book, engine: Engine, images: Images, signals: Signals) -> None:
        """Make and follow containers of `engine`."""
        self._book = book
        self._engine = engine
        self._images = images
        self._signals = signals

    def lead(self, attempt: Attempt, step: Callable[[Attempt], None]) -> None:
        """Run a step in a thread of the attempt's own; what nobody foresaw there ends the attempt."""

        def run() -> None:
            try:
                step(attempt)
            except Exception as exc:
                complain(f"attempt {attempt.id}: {exc!r}")
                attempt.container = attempt.container or self._book.container_name(attempt.id)
                self._discard(attempt)
                self._book.fail(attempt, node_fault=f"the node could not keep the container: {exc}")

        threading.Thread(target=run, name=f"attempt {attempt.id}", daemon=True).start()

    def begin(self, attempt: Attempt) -> None:
        """Bring the image, make the container, start it and lead it to its end."""
        wanted = attempt.wanted
        assert wanted is not None
        try:
            attempt.container = self._make(attempt, wanted)
        except PullCancelled:
            return
        except ImageUnavailable as exc:
            self._book.fail(attempt, node_fault=str(exc))
            return
        except EngineAway as exc:
            self._book.fail(attempt, node_fault=str(exc))
            self._remove_late(attempt)
            return
        except ImageRefused as exc:
            self._book.fail(attempt, spawn_error=str(exc))
            return
        except EngineError as exc:
            refused = exc.status in (400, 404)
            self._book.fail(attempt, **{"spawn_error" if refused else "node_fault": f"no container was made: {exc}"})
            return
        finally:
            self._images.done(attempt.id)
        self._start(attempt)

    def _make(self, attempt: Attempt, wanted: Wanted, again: bool = True) -> str:
        """Bring the image and have the engine make a container of it; return its id."""
        image = self._images.bring(wanted, partial(self._book.say, attempt), lambda: attempt.state == ENDED)
        attempt.record["image_digest"] = image.digest
        try:
            return self._create(attempt, wanted, image.id)
        except EngineError as exc:
            if exc.status != 404 or "no such image" not in str(exc).lower():
                raise
            # Another keeper of this engine, or its operator, has just removed it: nothing is wrong with the job.
            if not again:
                raise ImageUnavailable(f"image {image.name} was removed while it was needed: {exc}") from exc
        return self._make(attempt, wanted, again=False)

    def _remove_late(self, attempt: Attempt) -> None:
        """Remove a container that the engine may have made, or yet make, after nobody waited for its answer any more.

        Nothing of it ever runs, so that the attempt's end need not wait for that.
        """
        for wait_s in LATE_S:
            time.sleep(wait_s)
            with contextlib.suppress(EngineError):
                self._engine.remove(self._book.container_name(attempt.id))

    def _create(self, attempt: Attempt, wanted: Wanted, image_id: str) -> str:
        labels = {LABEL_NODE: self._book.name, LABEL_ATTEMPT: attempt.id, LABEL_JOB: attempt.spec.job_id}
        config = container_config(wanted, image_id, attempt.directory, labels)
        name = self._book.container_name(attempt.id)
        if wanted.network == "bridge":
            provide_network(self._engine)
        # One of this name can only be what an earlier keeper had created and never started.
        self._engine.remove(name)
        return self._engine.create(name, config)

    def _start(self, attempt: Attempt) -> None:
        output = self._engine.attach(attempt.container)
        with self._book.lock:
            if attempt.state == ENDED:
                output.close()
                self._discard(attempt)
                return
            attempt.state = STARTING
            attempt.record["started_boottime"], attempt.record["started_wall"] = boottime(), time.time()
            self._book.note(attempt)
        reader = self.read(attempt, output)
        try:
            self._engine.call("POST", f"/containers/{attempt.container}/start")
        except EngineError as exc:
            output.close()
            self._discard(attempt)
            # A program that is not there, or may not be run; anything else (GPU hooks, a full disk) is the node's.
            lacks_network = str(exc).startswith("network ")
            theirs = not lacks_network and (exc.status in (400, 404) or "executable file not found" in str(exc))
            self._book.fail(attempt, **{"spawn_error" if theirs else "node_fault": str(exc)})
            return
        self.follow(attempt, reader, output)

    def read(self, attempt: Attempt, output: Output) -> threading.Thread:
        """Read a container's output in a thread of its own, until it ends or is closed."""

        def run() -> None:
            for stream, payload in output:
                with self._book.lock:
                    if attempt.state == ENDED:
                        break
                    attempt.output.take(stream, payload)
                    if attempt.state == RUNNING:
                        self._book.news.grown[attempt.id] = attempt.output
                    if stream == 2:
                        attempt.error_tail = (attempt.error_tail + payload)[-TAIL_BYTES:]
            output.close()

        thread = threading.Thread(target=run, name=f"output {attempt.id}", daemon=True)
        thread.start()
        return thread

    def read_again(self, attempt: Attempt) -> tuple[threading.Thread, Output]:
        """Read what the engine has of a container's output and what comes, less what was read. Raises EngineError."""
        heads = self._heads(attempt.container)
        output = self._engine.logs(attempt.container)
        with self._book.lock:
            attempt.output.again(heads)
        return self.read(attempt, output), output

    def _heads(self, container: str) -> dict[int, bytes]:
        """What the engine's log of each stream begins with."""
        heads = {STDOUT: b"", STDERR: b""}
        logs = self._engine.logs(container, follow=False)
        for stream, payload in logs:
            heads[stream] = (heads[stream] + payload)[:HEAD_BYTES]
            if all(len(head) == HEAD_BYTES for head in heads.values()):
                break
        logs.close()
        return heads

    def follow(self, attempt: Attempt, reader: threading.Thread, output: Output) -> None:
        """Lead a started container to its end."""
        info = self._look(attempt)
        if attempt.wanted is None and info is not None and not info["State"]["Running"]:
            # It ended while no keeper was there: the engine may have been stopped as well.
            attempt.engine_broke = True
        self._hold_processes(attempt, info)
        with self._book.lock:
            attempt.state = RUNNING
            self._book.note(attempt)
            self._book.announce(attempt)
            if attempt.output.spool_bytes:
                # Nothing of a program's output is told before its start is.
                self._book.news.grown[attempt.id] = attempt.output
            # What was asked for while it started.
            if attempt.kill_sent:
                self._signals.kill(attempt)
            elif attempt.term_sent:
                self._signals.send(attempt, "SIGTERM")
        while info is not None and info["State"]["Running"]:
            try:
                self._engine.wait(attempt.container)
            except EngineError:
                attempt.engine_broke = True
                time.sleep(ASK_AGAIN_S)
            info = self._look(attempt)
            if info is not None and attempt.engine_broke:
                reader, output = self._read_on(attempt, reader, output)
        attempt.over.set()
        # A stream that does not end must never hold up the end of a job.
        reader.join(DRAIN_S)
        output.close()
        with self._book.lock:
            read_exit(attempt, info["State"] if info is not None else None)
        if info is not None:
            open_folders(self._engine, attempt.container, attempt.mounted)
        self._discard(attempt)
        with self._book.lock:
            self._book.end(attempt)
        self._images.trim()

    def _read_on(self, attempt: Attempt, reader: threading.Thread, output: Output) -> tuple[threading.Thread, Output]:
        """Read a container's output anew where it has ended with the engine: containers may outlive their engine."""
        reader.join(REST_S)
        if reader.is_alive():
            return reader, output
        try:
            return self.read_again(attempt)
        except EngineError as exc:
            complain(f"the output of attempt {attempt.id} cannot be read: {exc}")
            return reader, output

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

    def _discard(self, attempt: Attempt) -> None:
        """Remove the container, asking the engine until it answers."""
        while attempt.container:
            try:
                self._engine.remove(attempt.container)
                return
            except EngineError as exc:
                complain(f"the container of attempt {attempt.id} could not be removed: {exc}; trying again")
                time.sleep(ASK_AGAIN_S)
