"""One node's agent: joins registry, runner, claims, reports and renewals. Knows nothing of Celery.

Whatever happens to this process, jobs go on under the keeper; the next agent finds them again by `_adopt`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import UUID

from app.bells import Ringer
from app.domain.errors import FabricError, StateConflict
from app.domain.job import Assignment
from app.domain.policy import Ending
from app.domain.resources import MIB
from app.domain.states import StopCause
from app.services import nodes, recover
from app.services.claim import Claimer as Who
from app.services.report import Answer, Finished
from app.services.stop import request_stop
from app.storage.database import Database
from config.settings import Settings
from workers.agent.capacity import offer
from workers.agent.claimer import ClaimLoop
from workers.agent.launch import container_spec, run_spec
from workers.agent.outcome import ending_of_failed_fetch
from workers.agent.registry import Entry, Registry
from workers.agent.renewer import Renewer
from workers.agent.reporter import Reporter, refused
from workers.agent.samples import Sampler
from workers.artifacts import ArtifactCache, ArtifactError, FetchCancelled
from workers.gpus.source import open_source
from workers.gpus.watch import GpuWatch
from workers.runners.base import (
    Event,
    Exited,
    Output,
    Runner,
    RunnerError,
    RunSpec,
    Started,
    StartRefused,
)

log = logging.getLogger(__name__)

FETCHERS = 8
STALE_TASKS_S = 30.0
SETTLE_S = 0.5
DRAIN_END_S = 5.0


@dataclass(frozen=True)
class Confinement:
    """How this node confines its jobs: the sandbox in use, and what is hidden from them."""

    sandbox: str = "off"
    network: str = "host"
    hide: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notice:
    """One step of an attempt, for whoever shows attempts as tasks: kind, the attempt, its job, and more."""

    kind: str
    attempt_id: UUID
    job_id: UUID
    type: str
    at: float
    detail: dict[str, Any]


class Agent:
    """Runs one node until `stop`. `notices` takes what Flower shows and is emptied by its reader."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        runner: Runner,
        cache: ArtifactCache,
        ringer: Ringer,
        confinement: Confinement,
        host: str,
        runners: tuple[str, ...] = ("process",),
        stale: Callable[[], None] | None = None,
    ) -> None:
        self._db = db
        self._settings = settings
        self._runner = runner
        self._cache = cache
        self._ringer = ringer
        self._confinement = confinement
        self._on_stale = stale or (lambda: None)
        self._gpus = GpuWatch(
            open_source(settings), settings.gpus, lambda: self.registry.held_gpus(), lambda: self._renewer.wake(),
            settings.gpu_poll_s, settings.gpu_stranger_mib * MIB,
        )  # fmt: skip
        self.offer = offer(settings, runners, _version(), host, self._gpus.offered())
        self.registry = Registry(self.offer.slots)
        self.notices: deque[Notice] = deque(maxlen=20_000)
        self.noticed = threading.Event()
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="start")
        who = Who(self.offer.node_id, None, runners, settings.lease_s)
        self._claims = ClaimLoop(
            db, settings, who, self.registry, self._launch, self._uncertain, self._stale, self._last_resort
        )
        self._renewer = Renewer(
            db, settings, self.registry, self._claims, self._extend, self.stop_entry, self._lost, self._hand_back,
            self._stale, self._gpus,
        )  # fmt: skip
        self._reporter = Reporter(
            db,
            self.registry,
            settings.log_flush_s,
            self._spool_path,
            self._ended,
            self._lost,
            ringer.ring_all,
            self._claims.finish,
            self._claims.worth_waiting_for,
            ringer.hint,
        )
        self._sampler = Sampler(db, runner, self.registry, settings.sample_s, self._gpus.use)
        self._stopping = threading.Event()
        self._adopted = False

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Registers (waiting for the database if need be), adopts what runs here already, and begins to claim."""
        pause, same_host = 0.1, True
        self._runner.subscribe(self._on_event)
        while not self._stopping.is_set():
            try:
                registered = nodes.register(self._db, self.offer, self._settings.lease_s)
                self._claims.who = replace(self._claims.who, incarnation=registered.incarnation)
                # The second try finds our own name here: only the first one knows whose it was.
                same_host = same_host and registered.same_host
                self._adopt(same_host)
                break
            except (FabricError, RunnerError) as exc:
                log.warning("cannot take up the node yet: %s", exc)
                self._stopping.wait(pause)
                pause = min(5.0, pause * 2)
        else:
            return
        self._reporter.start()
        self._renewer.start()
        self._sampler.start()
        self._gpus.start()
        self._claims.ring()
        self._claims.start()
        log.info(
            "node %s: %d slots, %g CPUs, %d MiB, %d GPUs, sandbox %s", self.offer.node_id, self.offer.slots,
            self.offer.cpus_milli / 1000, self.offer.memory_bytes >> 20, len(self.offer.gpus),
            self._confinement.sandbox,
        )  # fmt: skip

    def stop(self) -> None:
        """Detaches: nothing more is claimed or told, and whatever runs goes on under the keeper."""
        self._stopping.set()
        self._claims.stop()
        self._renewer.stop()
        self._sampler.stop()
        self._gpus.stop()
        for entry in self.registry.all():
            if not entry.launched:
                entry.cancelled.set()
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._starter.shutdown(cancel_futures=True)
        self._cache.close()
        self._reporter.stop()
        self._runner.close()

    def drain(self, limit_s: float) -> int:
        """On the way out: claims nothing more, waits up to `limit_s`, stops the rest, which waits again uncharged.

        Returns how many attempts were still here when the time was over.
        """
        self._claims.leaving = True
        until = time.monotonic() + limit_s
        while self.registry.all() and time.monotonic() < until and not self._stopping.is_set():
            self._stopping.wait(0.2)
        left = self.registry.all()
        for entry in left:
            self._request_stop(entry, StopCause.DRAIN)
        grace_s = max((entry.grace_s for entry in left), default=0.0)
        until = time.monotonic() + grace_s + DRAIN_END_S
        while self.registry.all() and time.monotonic() < until:
            self._stopping.wait(0.1)
        return len(left)

    def bell(self) -> None:
        """There may be work."""
        self._claims.ring()

    def wake(self) -> None:
        """Something here is to be stopped: renew now, the answer says what."""
        self._renewer.wake()

    @property
    def full(self) -> bool:
        """Whether it takes nothing more: no slot is free, or an operator drains it."""
        return self.registry.free_slots == 0 or self._claims.draining

    def terminate(self, attempt_id: UUID, by: str) -> bool:
        """Stops the job of an attempt that runs here, as an operator's remote control asks; whether it is here."""
        entry = self.registry.get(attempt_id)
        if entry is None:
            return False
        try:
            request_stop(self._db, entry.tenant_id, entry.job_id, by, "terminated by remote control")
        except StateConflict:
            return False
        except FabricError as exc:
            # Nobody waits for an answer to remote control: whoever asked sees that the job goes on, and asks again.
            log.warning("job %s could not be stopped by remote control: %s", entry.job_id, exc.message)
            return False
        self.wake()
        return True

    # -- claim and launch ----------------------------------------------------------------------------------

    def _launch(self, taken: list[Assignment], deadline: float) -> None:
        """Starts what was claimed: at once where the binary is here, else after its download."""
        ready: list[tuple[Entry, RunSpec]] = []
        for one in taken:
            entry = self._hold(one, deadline)
            self._notice("received", entry)
            try:
                spec = self._prepare(one, entry)
            except ArtifactError as exc:
                self._refuse(entry, ending_of_failed_fetch(exc), str(exc))
            except Exception as exc:
                # Whatever it was: an attempt that is held here but never started nor told would be renewed for ever.
                log.exception("attempt %s could not be prepared", entry.attempt_id)
                self._refuse(
                    entry, Ending(started=False, node_fault=True), f"the node could not prepare the job: {exc}"
                )
            else:
                if spec is not None:
                    ready.append((entry, spec))
        if ready and not self._stopping.is_set():
            # In a thread of its own: the runner takes its time, and the next ends need not wait for it.
            self._starter.submit(self._start_all, ready)

    def _start_all(self, ready: list[tuple[Entry, RunSpec]]) -> None:
        try:
            self._start(ready)
        except Exception as exc:
            log.exception("%d attempts could not be started", len(ready))
            for entry, _spec in ready:
                self._fetchers.submit(self._settle_start, entry, f"the node could not start the job: {exc}")

    def _prepare(self, one: Assignment, entry: Entry) -> RunSpec | None:
        """What to start at once; None when its program is on its way and starts the attempt when it is here."""
        spec = self._spec(one, entry)
        if one.binary_url is None:
            return spec
        entry.artifact = self._cache.cached(one.binary_url, one.binary_sha256 or "")
        if entry.artifact is None:
            self._fetchers.submit(self._fetch_and_start, one, entry, spec)
            return None
        return spec.with_executable(str(entry.artifact.path))

    def _hold(self, one: Assignment, deadline: float) -> Entry:
        slot = self.registry.take_slot()
        assert slot is not None, "a claim never takes more than there are free slots"
        entry = Entry(
            attempt_id=one.attempt_id, token=one.token, job_id=one.job_id, attempt=one.attempt, type=one.type,
            tenant_id=one.tenant_id, log_day=one.log_day, slot=slot, runner=one.runner, deadline=deadline,
            claimed_wall=time.time(), grace_s=one.grace_s, gpu_uuids=one.gpu_uuids,
        )  # fmt: skip
        self.registry.add(entry)
        return entry

    def _spec(self, one: Assignment, entry: Entry) -> RunSpec:
        if one.runner == "container":
            return container_spec(one, entry.slot, entry.deadline, self._settings)
        attempt_id, runner = str(one.attempt_id), self._runner
        return run_spec(
            one, entry.slot, entry.deadline, runner.work_dir(attempt_id), runner.files_dir(attempt_id),
            self._settings.log_cap_bytes, self._confinement.sandbox, self._confinement.network, self._confinement.hide,
            simulated_gpus=bool(self._settings.simulate_gpus),
        )  # fmt: skip

    def _fetch_and_start(self, one: Assignment, entry: Entry, spec: RunSpec) -> None:
        try:
            entry.artifact = self._cache.fetch(one.binary_url or "", one.binary_sha256 or "", entry.cancelled)
        except FetchCancelled:
            if not self._stopping.is_set():
                self._refuse(entry, Ending(started=False, stopped=True), "stopped before it started")
            return
        except ArtifactError as exc:
            self._refuse(entry, ending_of_failed_fetch(exc), str(exc))
            return
        except Exception as exc:
            log.exception("the download for attempt %s failed", entry.attempt_id)
            self._refuse(entry, Ending(started=False, node_fault=True), f"the node could not fetch the program: {exc}")
            return
        self._start([(entry, spec.with_executable(str(entry.artifact.path)))])

    def _start(self, ready: list[tuple[Entry, RunSpec]]) -> None:
        """Hands specifications to the runner. A stop that came meanwhile wins; a lease that passed is left alone."""
        going = []
        for entry, spec in ready:
            if entry.cancelled.is_set():
                self._refuse(entry, Ending(started=False, stopped=True), "stopped before it started")
            elif self.registry.get(entry.attempt_id) is entry:
                entry.launched = True
                going.append((entry, replace(spec, deadline=entry.deadline)))
        if not going:
            return
        try:
            answers = self._runner.start_many([spec for _entry, spec in going])
        except RunnerError as exc:
            log.error("the runner cannot start jobs: %s", exc)
            for entry, _spec in going:
                self._fetchers.submit(self._settle_start, entry, f"the node could not start the job: {exc}")
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

    def _settle_start(self, entry: Entry, message: str) -> None:
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

    def _refuse(self, entry: Entry, ending: Ending, message: str) -> None:
        self._reporter.tell_ended(entry, refused(entry, ending, message))

    def _uncertain(self) -> None:
        """A claim may have happened without our knowing: the next answers say so, and it is handed back."""
        self._renewer.wake()

    # -- what the runner tells -------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        entry = self.registry.get(UUID(event.attempt_id))
        if isinstance(event, Exited):
            if entry is None:
                # While adopting, an end of an attempt that has no entry yet must not be forgotten untold.
                if self._adopted:
                    self._forget_later(event.attempt_id)
                return
            entry.record = event.record
            entry.spool_bytes = event.record.spool_bytes
            if entry.started_wall is None:
                entry.started_wall = event.record.started_wall
            self._reporter.tell_ended(entry)
        elif entry is None:
            if isinstance(event, Started):
                # A start that a dead agent had asked for, done after this one had handed the attempt back.
                self._kill_later(event.attempt_id)
        elif isinstance(event, Started):
            entry.started_wall = event.started_wall
            self._reporter.tell_started(entry)
            self._notice("started", entry)
        elif isinstance(event, Output):
            entry.spool_bytes = event.spool_bytes
            self._reporter.tell_output(entry)

    def _forget_later(self, attempt_id: str) -> None:
        # The runner's thread delivers this and must not wait for its own answer.
        if not self._stopping.is_set():
            self._fetchers.submit(self._forget, [attempt_id])

    def _kill_later(self, attempt_id: str) -> None:
        def kill() -> None:
            if self.registry.get(UUID(attempt_id)) is None:
                self._runner.kill(attempt_id, "no longer ours")

        if not self._stopping.is_set():
            self._fetchers.submit(kill)

    def _forget(self, attempt_ids: list[str], wait: bool = True) -> None:
        try:
            self._runner.forget(attempt_ids, wait)
        except RunnerError as exc:
            log.warning("the runner could not forget %d attempts, the next start will: %s", len(attempt_ids), exc)

    def _ended(self, told: list[tuple[Entry, Finished, Answer, str]]) -> None:
        """The core has answered: only now may the record, the slot and the artifact go."""
        self._forget([str(entry.attempt_id) for entry, *_rest in told if entry.launched], wait=False)
        for entry, finished, answer, outcome in told:
            self.registry.remove(entry.attempt_id)
            if answer == Answer.STALE:
                log.warning(
                    "attempt %s of job %s had passed to another; its end was dropped",
                    entry.attempt,
                    entry.job_id,
                )
            self._notice("ended", entry, outcome=outcome or str(answer), message=finished.message)
        self._claims.slot_freed()

    # -- what the database tells -----------------------------------------------------------------------------

    def _extend(self, deadlines: dict[UUID, float]) -> None:
        try:
            unknown = self._runner.extend({str(key): deadline for key, deadline in deadlines.items()})
        except RunnerError as exc:
            log.warning("deadlines could not be extended: %s", exc)
            return
        for attempt_id in unknown:
            entry = self.registry.get(UUID(attempt_id))
            if entry is not None and entry.started_wall is not None and entry.record is None:
                # It ran here and the runner has no trace of it: without this its lease would be renewed for ever.
                self._fetchers.submit(self._settle_start, entry, "its node lost track of the process")

    def stop_entry(self, entry: Entry, cause: str, grace_s: float) -> None:
        """Stops an attempt, whether it runs or is still being prepared; asking again changes nothing."""
        if entry.stopping == cause:
            return
        entry.stopping = cause
        entry.grace_s = grace_s
        entry.cancelled.set()
        if entry.launched:
            self._stop_launched(entry)

    def _stop_launched(self, entry: Entry) -> None:
        try:
            self._runner.stop(str(entry.attempt_id), entry.grace_s, entry.stopping or "cancel")
        except RunnerError as exc:
            entry.stopping = None
            log.warning("attempt %s could not be stopped, the next renewal tries again: %s", entry.attempt_id, exc)

    def _lost(self, entry: Entry) -> None:
        """The fence has moved on: another holds the job, or it is over. Kill ours; its end tells nobody anything."""
        # An end that was just accepted also leaves the lease list; it is no longer ours to kill.
        if self.registry.get(entry.attempt_id) is not entry or entry.record is not None:
            return
        log.warning("attempt %s of job %s is no longer ours", entry.attempt, entry.job_id)
        entry.cancelled.set()
        if entry.launched:
            try:
                self._runner.kill(str(entry.attempt_id), "lease lost")
            except RunnerError as exc:
                log.warning("attempt %s could not be killed, its deadline will: %s", entry.attempt_id, exc)
        else:
            self.registry.remove(entry.attempt_id)

    def _hand_back(self, orphans: list[nodes.Orphan]) -> None:
        classes = recover.hand_back(self._db, orphans, "its node never ran it", uncharged=True)
        self._ringer.ring_all(classes)

    def _stale(self) -> None:
        """A newer agent has this node's name: this one lets go of everything without touching it."""
        log.error("a newer agent serves node %s; this one stops", self.offer.node_id)
        self._on_stale()

    def _request_stop(self, entry: Entry, cause: StopCause) -> None:
        try:
            request_stop(self._db, entry.tenant_id, entry.job_id, "node", "the node is drained", cause)
        except FabricError as exc:
            log.warning("job %s could not be stopped: %s", entry.job_id, exc.message)
        self.wake()

    def _adopt(self, same_host: bool) -> None:
        """Finds again what an earlier agent of this node left with the keeper, and hands back what it lost.

        The keeper is asked before the database: what it holds and has no lease then is surely no longer ours. What a
        former host of this name held is left to its deadline, since nobody here can know that it has ended.
        """
        held = {UUID(h.attempt_id): h for h in self._runner.attach()}
        leased = nodes.list_leases(self._db, self.offer.node_id)
        known = nodes.describe_attempts(self._db, list(leased))
        for attempt_id, h in held.items():
            row = leased.get(attempt_id)
            if row is None:
                if h.running:
                    self._runner.kill(h.attempt_id, "no longer ours")
                else:
                    self._forget([h.attempt_id])
                continue
            info = known[attempt_id]
            self.registry.take_slot(h.slot)
            entry = Entry(
                attempt_id=attempt_id, token=row.token, job_id=row.job_id, attempt=row.number, type=info.type,
                tenant_id=info.tenant_id, log_day=info.log_day, slot=h.slot, runner=info.runner, deadline=h.deadline,
                claimed_wall=info.claimed_at.timestamp(), grace_s=row.grace_s, launched=True,
                gpu_uuids=tuple(info.gpu_uuids), started_wall=h.started_wall,
                spool_bytes=h.spool_bytes, stored=info.stored, record=h.record,
            )  # fmt: skip
            self.registry.add(entry)
            self._notice("received", entry)
            if entry.started_wall is not None:
                self._reporter.tell_started(entry)
                self._notice("started", entry)
            if h.spool_bytes > entry.stored:
                self._reporter.tell_output(entry)
            if h.record is not None:
                self._reporter.tell_ended(entry)
        gone = [
            nodes.Orphan(row.attempt_id, row.token, row.started_at is not None)
            for attempt_id, row in leased.items()
            if attempt_id not in held
        ]
        if gone and same_host:
            log.warning("handing back %d attempts that this node no longer runs", len(gone))
            self._hand_back(gone)
        elif gone:
            self._renewer.leave(orphan.attempt_id for orphan in gone)
        # What ended meanwhile told it before it had an entry here.
        self._adopted = True
        for h in self._runner.attach():
            if h.record is not None:
                self._on_event(Exited(h.attempt_id, h.record))
        if held:
            log.info("adopted %d attempts", len(self.registry))

    def _last_resort(self) -> None:
        """Recovery by the agents' own poll, when nobody else has done it for long."""
        for task in ("reap", "promote"):
            since = recover.seconds_since(self._db, task)
            if since is not None and since < STALE_TASKS_S:
                continue
            done = recover.reap(self._db, self._settings) if task == "reap" else recover.promote(self._db)
            self._ringer.ring_all(done.ready)

    # -- what operators see ------------------------------------------------------------------------------------

    def _spool_path(self, entry: Entry) -> str:
        return self._runner.spool_path(str(entry.attempt_id))

    def _notice(self, kind: str, entry: Entry, **detail: Any) -> None:
        if entry.started_wall is not None:
            detail.setdefault("runtime", max(0.0, time.time() - entry.started_wall))
        self.notices.append(Notice(kind, entry.attempt_id, entry.job_id, entry.type, time.time(), detail))
        self.noticed.set()


def _version() -> str:
    try:
        return version("cfab")
    except PackageNotFoundError:
        return "from source"
