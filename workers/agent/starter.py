"""From a claimed assignment to a started attempt: hold it, fetch its program, hand it to the runner, or say why not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from app.domain.job import Assignment
from app.domain.policy import Ending
from app.services.report import Finished
from app.storage.database import Database
from config.settings import Settings
from workers.agent.admission import Admission
from workers.agent.caution import Caution
from workers.agent.confinement import Confinement
from workers.agent.fetches import Fetches
from workers.agent.gang import Gangs
from workers.agent.launch import container_spec, run_spec
from workers.agent.outcome import ending_of_failed_fetch
from workers.agent.ports import Ports
from workers.agent.registry import Entry, Registry
from workers.agent.reporter import refused
from workers.artifacts import Artifact, ArtifactCache, ArtifactError
from workers.runners.base import Runner, RunnerError, RunSpec, StartRefused
from workers.runners.container import ContainerSpec

log = logging.getLogger(__name__)

LATER = 4
SETTLE_S = 0.5


class Starter:
    """Starts what was claimed. `tell_ended` takes the ends of attempts that never had a process."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        runner: Runner,
        cache: ArtifactCache,
        registry: Registry,
        confinement: Confinement,
        address: str | None,
        tell_ended: Callable[[Entry, Finished], None],
        notice: Callable[[str, Entry], None],
        wake: Callable[[Iterable[str]], None],
        stopping: threading.Event,
        caution: Caution,
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._cache = cache
        self._registry = registry
        self._confinement = confinement
        self._tell_ended = tell_ended
        self._notice = notice
        self._stopping = stopping
        self._caution = caution
        # Whether an attempt is launched or ended before that is decided under this lock, once.
        self._deciding = threading.Lock()
        self._fetches = Fetches(cache, self._fetched, self._not_prepared)
        self._later = ThreadPoolExecutor(LATER, thread_name_prefix="later")
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="start")
        self._admission = Admission(settings, db, self._go_on)
        self.gangs = Gangs(
            db, registry, address, Ports(settings.gang_port_range), settings.gang_barrier_s, self._start_soon,
            self._refuse, wake, stopping,
        )  # fmt: skip

    def stop(self) -> None:
        """Starts nothing more (`stopping` must be set); downloads are given up. What runs goes on.

        What has not begun to run is told to nobody: the next agent finds its lease, and hands it back uncharged.
        """
        with self._deciding:
            for entry in self._registry.all():
                if not entry.launched:
                    entry.cancelled.set()
        self.gangs.stop()
        self._later.shutdown(wait=False, cancel_futures=True)
        self._starter.shutdown(cancel_futures=True)

    def later(self, work: Callable[..., None], *args: Any) -> None:
        """Does `work` in a thread of the starter's own, unless it stops."""
        if not self._stopping.is_set():
            # A stop may come between.
            with suppress(RuntimeError):
                self._later.submit(work, *args)

    def launch(self, taken: list[Assignment], deadline: float) -> None:
        """Starts what was claimed: at once where the binary is here, else after its download.

        What has no slot is left alone: the next renewal finds that nobody here has it, and hands it back uncharged.
        """
        ready: list[tuple[Entry, RunSpec]] = []
        for one in taken:
            entry = self._hold(one, deadline)
            if entry is None:
                log.warning("there is no slot for attempt %s, it is handed back", one.attempt_id)
                continue
            self._notice("received", entry)
            try:
                spec = self._prepare(one, entry)
            except Exception as exc:
                self._not_prepared(entry, exc)
            else:
                if spec is not None:
                    ready.append((entry, spec))
        if ready:
            self._start_soon(ready)

    def _start_soon(self, ready: list[tuple[Entry, RunSpec]]) -> None:
        # In a thread of its own: the runner takes its time, and the next ends need not wait for it.
        if not self._stopping.is_set():
            # A stop may come between.
            with suppress(RuntimeError):
                self._starter.submit(self._start_all, ready)

    def _start_all(self, ready: list[tuple[Entry, RunSpec]]) -> None:
        try:
            self._start(ready)
        except Exception as exc:
            log.exception("%d attempts could not be started", len(ready))
            for entry, _spec in ready:
                self.later(self.settle, entry, f"the node could not start the job: {exc}")

    def _prepare(self, one: Assignment, entry: Entry) -> RunSpec | None:
        """What to start at once; None when its program, or its gang, is on its way and starts the attempt then."""
        spec = self._spec(one, entry)
        if isinstance(spec, ContainerSpec):
            self._admission.ask(one, entry, spec)
            return None
        if one.binary_url is None:
            return self._with_gang(one, entry, spec)
        artifact = self._cache.cached(one.binary_url, one.binary_sha256 or "")
        if artifact is None:
            self._fetches.begin(one, entry, spec)
            return None
        self._registry.keep(entry, artifact)
        return self._with_gang(one, entry, spec.with_executable(str(artifact.path)))

    def _fetched(self, one: Assignment, entry: Entry, spec: RunSpec, artifact: Artifact) -> None:
        if self._registry.keep(entry, artifact):
            self._go_on(one, entry, spec.with_executable(str(artifact.path)))

    def _not_prepared(self, entry: Entry, exc: Exception) -> None:
        """Whatever it was: an attempt that is held here but never started nor told would be renewed for ever."""
        if isinstance(exc, ArtifactError):
            self._refuse(entry, ending_of_failed_fetch(exc), str(exc))
        elif not self._stopping.is_set():
            log.error("attempt %s could not be prepared", entry.attempt_id, exc_info=exc)
            self._refuse(entry, Ending(started=False, node_fault=True), f"the node could not prepare the job: {exc}")

    def _go_on(self, one: Assignment, entry: Entry, spec: RunSpec) -> None:
        """Starts an attempt whose program is here or whose image was checked, if it is still wanted."""
        if self._stopping.is_set() or entry.cancelled.is_set():
            return
        try:
            ready = self._with_gang(one, entry, spec)
        except Exception as exc:
            self._not_prepared(entry, exc)
            return
        if ready is not None:
            self._start_all([(entry, ready)])

    def _with_gang(self, one: Assignment, entry: Entry, spec: RunSpec) -> RunSpec | None:
        """A plain job's specification to start at once; a member of a gang waits for the others."""
        if one.gang is None:
            return spec
        self.gangs.join(entry, one.gang, spec, len(one.gpu_uuids))
        return None

    def _hold(self, one: Assignment, deadline: float) -> Entry | None:
        slot = self._registry.take_slot()
        if slot is None:
            # A claim takes no more than there are free slots, but it counts on ends that it is made with.
            return None
        entry = Entry(
            attempt_id=one.attempt_id, token=one.token, job_id=one.job_id, attempt=one.attempt, type=one.type,
            tenant_id=one.tenant_id, log_day=one.log_day, slot=slot, runner=one.runner, deadline=deadline,
            claimed_wall=time.time(), grace_s=one.grace_s, gpu_uuids=one.gpu_uuids, gang=one.gang,
            gpu_slice_bytes=one.resources.gpu_memory_bytes if one.resources.gpu_shared else None,
        )  # fmt: skip
        self._registry.add(entry)
        return entry

    def _spec(self, one: Assignment, entry: Entry) -> RunSpec:
        assert entry.slot is not None, "what was claimed has a slot"
        if one.runner == "container":
            return container_spec(one, entry.slot, entry.deadline, self._settings)
        attempt_id, runner = str(one.attempt_id), self._runner
        return run_spec(
            one, entry.slot, entry.deadline, runner.work_dir(attempt_id), runner.files_dir(attempt_id),
            self._settings.log_cap_bytes, self._confinement.sandbox, self._confinement.network, self._confinement.hide,
            simulated_gpus=bool(self._settings.simulate_gpus),
        )  # fmt: skip

    def _start(self, ready: list[tuple[Entry, RunSpec]]) -> None:
        """Hands specifications to the runner; what was stopped or lost meanwhile has been seen to."""
        going = []
        with self._deciding:
            if self._stopping.is_set():
                return
            for entry, spec in ready:
                if not entry.cancelled.is_set() and self._registry.get(entry.attempt_id) is entry:
                    entry.launched = True
                    going.append((entry, replace(spec, deadline=entry.deadline)))
        if not going:
            return
        try:
            answers = self._runner.start_many([spec for _entry, spec in going])
        except RunnerError as exc:
            log.error("the runner cannot start jobs: %s", exc)
            for entry, _spec in going:
                self.later(self.settle, entry, f"the node could not start the job: {exc}")
            return
        for (entry, _spec), answer in zip(going, answers, strict=True):
            if not isinstance(answer, StartRefused):
                if entry.cancelled.is_set():
                    # The stop came while the runner did not know the attempt yet, and found nothing to stop.
                    self._stop_launched(entry)
                continue
            log.warning("attempt %s was not started: %s", entry.attempt_id, answer)
            entry.launched = False
            bad = answer.code == "invalid"
            self._refuse(entry, Ending(started=False, refused=bad, node_fault=not bad), str(answer))

    def settle(self, entry: Entry, message: str) -> None:
        """A start whose outcome is unknown: ask the runner until it answers, and hold the lease meanwhile.

        Only when the runner is known not to have the attempt may another node be given the job.
        """
        while not self._stopping.wait(SETTLE_S):
            try:
                held = {h.attempt_id for h in self._runner.attach()}
            except RunnerError as exc:
                log.warning("the runner does not say whether attempt %s runs: %s", entry.attempt_id, exc)
                continue
            if str(entry.attempt_id) not in held and entry.record is None:
                entry.launched = False
                self._refuse(entry, Ending(started=False, node_fault=True), message)
            elif entry.cancelled.is_set():
                # The stop came while nobody knew whether there was anything to stop.
                self._stop_launched(entry)
            return

    def stop_entry(self, entry: Entry, cause: str, grace_s: float) -> None:
        """Stops an attempt, whether it runs or is still being prepared; asking again changes nothing."""
        with self._deciding:
            if entry.stopping == cause:
                return
            entry.stopping = cause
            entry.grace_s = grace_s
            entry.cancelled.set()
            launched = entry.launched
        if launched:
            self._stop_launched(entry)
        else:
            # Whoever prepares it may hang, at a registry or a slow server, and need not be waited for.
            self._refuse(entry, Ending(started=False, stopped=True), "stopped before it started")

    def _stop_launched(self, entry: Entry) -> None:
        try:
            self._runner.stop(str(entry.attempt_id), entry.grace_s, entry.stopping or "cancel")
        except RunnerError as exc:
            entry.stopping = None
            log.warning("attempt %s could not be stopped, the next renewal tries again: %s", entry.attempt_id, exc)

    def _refuse(self, entry: Entry, ending: Ending, message: str) -> None:
        # An agent on its way out breaks off what it prepares: that is no fault of the node, nor of the job.
        if self._stopping.is_set():
            return
        if ending.node_fault:
            self._caution.fault(entry.job_id, message, time.monotonic())
        self._tell_ended(entry, refused(entry, ending, message))
