"""One node's agent: joins registry, runner, claims, reports and renewals. Knows nothing of Celery.

Whatever happens to this process, jobs go on under the keeper; the next agent finds them again by `_adopt`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import UUID

from app.bells import Ringer
from app.domain.errors import FabricError, StateConflict
from app.domain.gang import GangPlace
from app.domain.resources import MIB
from app.domain.states import StopCause
from app.services import nodes, recover
from app.services.claim import Claimer as Who
from app.services.packing import Packing
from app.services.ranking import Ranking
from app.services.report import Answer, Finished
from app.services.stop import request_stop
from app.storage.database import Database
from config.settings import Settings
from workers.agent.adoption import Left, look
from workers.agent.capacity import offer
from workers.agent.caution import Caution
from workers.agent.claimer import ClaimLoop
from workers.agent.confinement import Confinement
from workers.agent.fitness import Fitness
from workers.agent.launch import gang_runners
from workers.agent.overuse import Overuse
from workers.agent.registry import Entry, Registry
from workers.agent.renewer import Renewer
from workers.agent.reporter import Reporter
from workers.agent.samples import Sampler
from workers.agent.starter import Starter
from workers.artifacts import ArtifactCache
from workers.gpus.source import open_source
from workers.gpus.watch import GpuWatch
from workers.runners.base import (
    Event,
    Exited,
    Output,
    Runner,
    RunnerError,
    Started,
)

log = logging.getLogger(__name__)

STALE_TASKS_S = 30.0
DRAIN_END_S = 5.0
LOOK_S = 0.2
"""How often the waiting for the database looks whether it is still wanted."""


@dataclass(frozen=True)
class Notice:
    """One step of an attempt, for whoever shows attempts as tasks: kind, the attempt, its job, and more."""

    kind: str
    attempt_id: UUID
    job_id: UUID
    type: str
    at: float
    detail: dict[str, Any]
    gang: GangPlace | None = None


class Agent:
    """Runs one node until `stop`. `notices` takes what Flower shows and is emptied by its reader.

    `unseen` are runners that it was made without though they may hold attempts of this node. Once it has taken up the
    node, its attribute of that name has these and all others that did not say what they hold.
    """

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
        unseen: Collection[str] = (),
    ) -> None:
        self._db = db
        self._settings = settings
        self._runner = runner
        self._cache = cache
        self._ringer = ringer
        self._confinement = confinement
        self._on_stale = stale or (lambda: None)
        self._away = frozenset(unseen)
        self.unseen: frozenset[str] = frozenset()
        self._gpus = GpuWatch(
            open_source(settings), settings.gpus, lambda: self.registry.held_gpus(), lambda: self._renewer.wake(),
            settings.gpu_poll_s, settings.gpu_stranger_mib * MIB, settings.gpu_sharing == "memory",
        )  # fmt: skip
        able = (*runners, *gang_runners(settings, confinement, runners))
        self.offer = offer(settings, able, _version(), host, self._gpus.offered())
        self.registry = Registry(self.offer.slots)
        self.notices: deque[Notice] = deque(maxlen=20_000)
        self.noticed = threading.Event()
        self._stopping = threading.Event()
        self._caution = Caution()
        self._starter = Starter(
            settings, db, runner, cache, self.registry, confinement, self.offer.ip,
            lambda entry, end: self._reporter.tell_ended(entry, end), self._notice, self._wake_nodes, self._stopping,
            self._caution,
        )  # fmt: skip
        who = Who(
            self.offer.node_id, None, runners, settings.lease_s,
            packing=Packing(settings.pack_delay_s) if self.offer.gpus and settings.pack_delay_s else None,
            ranking=Ranking(),
        )  # fmt: skip
        fitness = Fitness(db, runner, self.bell)
        self._claims = ClaimLoop(
            db, settings, who, self.registry, self._starter.launch, self._uncertain, self._stale, self._last_resort,
            ringer.wake_node, fitness.is_unfit, self._caution,
        )  # fmt: skip
        self._renewer = Renewer(
            db, settings, self.registry, self._claims, self._extend, self._starter.stop_entry, self._lost,
            self._hand_back, self._stale, self._gpus, fitness,
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
            self._wake_nodes,
        )
        self._sampler = Sampler(
            db, runner, self.registry, settings.sample_s, self._gpus,
            Overuse(runner, settings.gpu_overuse == "kill"),
        )  # fmt: skip
        self._adopted = False
        self._serves = False
        self._given_up = False
        self._replaced = False

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Registers (waiting for the database if need be), adopts what runs here already, and begins to claim.

        Returns False when `give_up` or `stop` came before that was done.
        """
        pause, same_host = 0.1, True
        self._runner.subscribe(self._on_event)
        while not self._stopping.is_set() and not self._given_up:
            try:
                registered = nodes.register(self._db, self.offer, self._settings.lease_s)
                self._claims.who = replace(self._claims.who, incarnation=registered.incarnation)
                # The second try finds our own name here: only the first one knows whose it was.
                same_host = same_host and registered.same_host
                self._adopt(same_host)
                break
            except (FabricError, RunnerError) as exc:
                log.warning("cannot take up the node yet: %s", exc)
                self._wait_to_try_again(pause)
                pause = min(5.0, pause * 2)
        else:
            return False
        self._serves = True
        self._reporter.start()
        # Before the renewer, which tells what it says.
        self._gpus.start()
        self._renewer.start()
        self._sampler.start()
        self._claims.ring()
        self._claims.start()
        log.info(
            "node %s: %d slots, %g CPUs, %d MiB, %d GPUs, sandbox %s", self.offer.node_id, self.offer.slots,
            self.offer.cpus_milli / 1000, self.offer.memory_bytes >> 20, len(self.offer.gpus),
            self._confinement.sandbox,
        )  # fmt: skip
        return True

    def _wait_to_try_again(self, pause_s: float) -> None:
        over = time.monotonic() + pause_s
        while time.monotonic() < over and not self._given_up:
            self._stopping.wait(min(pause_s, LOOK_S))

    def give_up(self) -> None:
        """Ends the waiting of `start`; may be called by a signal's handler, as no lock is taken."""
        self._given_up = True

    def stop(self) -> None:
        """Detaches: nothing more is claimed or told, and whatever runs goes on under the keeper."""
        self._stopping.set()
        if self._serves:
            self._claims.stop()
            self._renewer.stop()
            self._sampler.stop()
        self._gpus.stop()
        self._starter.stop()
        self._cache.close()
        if self._serves:
            self._reporter.stop()
        self._runner.close()

    def drain(self, limit_s: float) -> int:
        """On the way out: claims nothing more, waits up to `limit_s`, stops the rest, which waits again uncharged.

        Returns how many attempts were still here when the time was over: none where a newer agent has them.
        """
        self._claims.leaving = True
        until = time.monotonic() + limit_s
        while self.registry.all() and time.monotonic() < until and not (self._stopping.is_set() or self._replaced):
            self._stopping.wait(0.2)
        left = [] if self._replaced else self.registry.all()
        for entry in left:
            self._request_stop(entry, StopCause.DRAIN)
        grace_s = max((entry.grace_s for entry in left), default=0.0)
        until = time.monotonic() + grace_s + DRAIN_END_S
        while left and self.registry.all() and time.monotonic() < until:
            self._stopping.wait(0.1)
        return len(left)

    def make_way(self) -> None:
        """Another agent is about to take up what runs here: nothing is stopped on the way out."""
        self._replaced = True

    def bell(self) -> None:
        """There may be work."""
        self._claims.ring()

    def wake(self) -> None:
        """Something here is to be stopped or to start with its gang, or another node left us a job: ask now."""
        self._renewer.wake()
        self._claims.ring()
        self._starter.gangs.look()

    @property
    def full(self) -> bool:
        """Whether bells are for others: no slot is free, an operator drains it, or it could not start what it took."""
        return self.registry.free_slots == 0 or self._claims.draining or self._caution.is_on

    def terminate(self, attempt_id: UUID, by: str) -> bool:
        """Stops the job of an attempt that runs here, as an operator's remote control asks; whether it is here."""
        entry = self.registry.get(attempt_id)
        if entry is None:
            return False
        try:
            _job, nodes_to_wake = request_stop(
                self._db, entry.tenant_id, entry.job_id, by, "terminated by remote control",
                attempt_id=entry.leading_id,
            )  # fmt: skip
            self._wake_nodes(nodes_to_wake)
        except StateConflict:
            return False
        except FabricError as exc:
            # Nobody waits for an answer to remote control: whoever asked sees that the job goes on, and asks again.
            log.warning("job %s could not be stopped by remote control: %s", entry.job_id, exc.message)
            return False
        self.wake()
        return True

    # -- claims ---------------------------------------------------------------------------------------------

    def _uncertain(self) -> None:
        """A claim may have happened without our knowing: the next answers say so, and it is handed back."""
        self._renewer.wake()

    # -- what the runner tells -------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        entry = self.registry.get(UUID(event.attempt_id))
        if entry is None and self._renewer.has_left(UUID(event.attempt_id)):
            # It was out of sight when this agent began; the next one takes it up, or its lease runs out.
            return
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
            # While adopting it may be one that has no entry yet.
            if isinstance(event, Started) and self._adopted:
                # A start that a dead agent had asked for, done after this one had handed the attempt back.
                self._kill_later(event.attempt_id)
        elif isinstance(event, Started):
            first, entry.started_wall = entry.started_wall is None, event.started_wall
            self._reporter.tell_started(entry)
            if first:
                self._notice("started", entry)
                if self._caution.works():
                    self._claims.ring()
        elif isinstance(event, Output):
            entry.spool_bytes = max(entry.spool_bytes, event.spool_bytes)
            self._reporter.tell_output(entry)

    def _forget_later(self, attempt_id: str) -> None:
        # The runner's thread delivers this and must not wait for its own answer.
        self._starter.later(self._forget, [attempt_id])

    def _kill_later(self, attempt_id: str) -> None:
        def kill() -> None:
            if self.registry.get(UUID(attempt_id)) is None:
                self._runner.kill(attempt_id, "no longer ours")

        self._starter.later(kill)

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
                self._starter.later(self._starter.settle, entry, "its node lost track of the process")

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
        ended = recover.hand_back(self._db, orphans, "its node never ran it", uncharged=True)
        self._ringer.ring_all(ended.ready)
        self._wake_nodes(ended.wake)

    def _wake_nodes(self, names: Iterable[str]) -> None:
        """Other nodes have something to stop, or to start."""
        for name in set(names) - {self.offer.node_id}:
            self._ringer.wake_node(name)

    def _stale(self) -> None:
        """A newer agent has this node's name: this one lets go of everything without touching it."""
        self._replaced = True
        log.error("a newer agent serves node %s; this one stops", self.offer.node_id)
        self._on_stale()

    def _request_stop(self, entry: Entry, cause: StopCause) -> None:
        try:
            _job, nodes_to_wake = request_stop(
                self._db, entry.tenant_id, entry.job_id, "node", "the node is drained", cause, entry.leading_id
            )
            self._wake_nodes(nodes_to_wake)
        except FabricError as exc:
            log.warning("job %s could not be stopped: %s", entry.job_id, exc.message)
        self.wake()

    def _adopt(self, same_host: bool) -> None:
        """Takes up what an earlier agent of this node left with the keeper, and hands back what it lost.

        What a former host of this name held is left to its deadline, since nobody here can know that it has ended; so
        is what a runner holds that cannot be asked.
        """
        found = look(self._db, self.offer.node_id, self._runner, self._away)
        for h in found.strangers:
            if h.running:
                self._runner.kill(h.attempt_id, "no longer ours")
            else:
                self._forget([h.attempt_id])
        for left in found.ours:
            self._take_up(left)
        self.unseen = found.unseen
        self._renewer.leave(found.out_of_sight)
        if found.gone and same_host:
            log.warning("handing back %d attempts that this node no longer runs", len(found.gone))
            self._hand_back(found.gone)
        elif found.gone:
            self._renewer.leave(orphan.attempt_id for orphan in found.gone)
        # What started or ended meanwhile told it before it had an entry here.
        self._adopted = True
        for h in self._runner.take_stock().held:
            if h.record is not None:
                self._on_event(Exited(h.attempt_id, h.record))
            elif h.running and UUID(h.attempt_id) not in found.asked:
                self._kill_later(h.attempt_id)
        if found.ours:
            log.info("adopted %d attempts", len(self.registry))

    def _take_up(self, left: Left) -> None:
        entry = left.entry(self.registry)
        self.registry.add(entry)
        if left.port is not None:
            self._starter.gangs.keep_port(entry.attempt_id, left.port)
        self._notice("received", entry)
        if entry.started_wall is not None:
            self._reporter.tell_started(entry)
            self._notice("started", entry)
        if entry.spool_bytes > entry.stored:
            self._reporter.tell_output(entry)
        if entry.record is not None:
            self._reporter.tell_ended(entry)

    def _last_resort(self) -> None:
        """Recovery by the agents' own poll, when nobody else has done it for long."""
        for task in ("reap", "promote"):
            since = recover.seconds_since(self._db, task)
            if since is not None and since < STALE_TASKS_S:
                continue
            if task == "reap":
                done = recover.reap(self._db, self._settings)
            else:
                done = recover.promote(self._db, self._settings.retry_elsewhere_s)
            self._ringer.ring_all(done.ready)
            self._wake_nodes(done.wake)

    # -- what operators see ------------------------------------------------------------------------------------

    def _spool_path(self, entry: Entry) -> str:
        return self._runner.spool_path(str(entry.attempt_id))

    def _notice(self, kind: str, entry: Entry, **detail: Any) -> None:
        if entry.started_wall is not None:
            detail.setdefault("runtime", max(0.0, time.time() - entry.started_wall))
        at = time.time()
        self.notices.append(Notice(kind, entry.attempt_id, entry.job_id, entry.type, at, detail, entry.gang))
        self.noticed.set()


def _version() -> str:
    try:
        return version("cfab")
    except PackageNotFoundError:
        return "from source"
