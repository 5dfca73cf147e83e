"""Any order of anything: two workers that forget, repeat, die and come late, and after every step all is in order."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg2
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.domain.errors import StaleIncarnation, StateConflict
from app.domain.job import DEFAULT_TENANT, Assignment
from app.domain.policy import Ending
from app.domain.states import TERMINAL, JobState, StopCause, may_follow
from app.services import nodes, recover
from app.services.report import Answer
from app.services.stop import cancel_pending, request_stop
from tests.factories import BACKGROUND, FOREGROUND, Fabric, Node, gpu, job, share
from tests.integration.services.conftest import EMPTY

ENDINGS = [
    Ending(exit_code=0),
    Ending(exit_code=1),
    Ending(signal=9, oom=True),
    Ending(signal=15, stopped=True),
    Ending(exit_code=0, stopped=True),
    Ending(started=False, node_fault=True),
    Ending(started=False, refused=True),
]
workers = st.integers(0, 1)
seldom = st.sampled_from([False, False, False, True])
anyone = st.integers(0, 10_000)


class Worker:
    """What an agent knows: its node, and what it believes to hold."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.held: dict[UUID, Assignment] = {}


class Life(RuleBasedStateMachine):
    """Commands on the services; the truth is only ever read from the database."""

    fabric: Fabric

    def __init__(self) -> None:
        super().__init__()
        connection = psycopg2.connect(self.fabric.settings.database_url)
        with connection, connection.cursor() as cursor:
            cursor.execute(EMPTY)
        connection.close()
        self.jobs: list[UUID] = []
        self.told: list[tuple[Assignment, Ending]] = []
        self.accepted: dict[UUID, int] = {}
        self.before: dict[UUID, tuple[JobState, int]] = {}

    @initialize()
    def two_workers(self) -> None:
        """Small ones, so that they are often full."""
        self.tenant = self.fabric.add_tenant(quota_jobs=3)
        self.workers = [
            Worker(self.fabric.add_node(f"n{n}", slots=4, cpus=4, gpus=(gpu(2 * n), gpu(2 * n + 1)))) for n in range(2)
        ]
        for number in range(4):
            self.submit(number % 2 == 0, number % 2, number % 3, number == 3, 3)

    def _pick(self, worker: Worker, number: int) -> Assignment:
        return list(worker.held.values())[number % len(worker.held)]

    def _finish(self, taken: Assignment, ending: Ending) -> None:
        answer = self.fabric.finish(taken, ending)
        self.told.append((taken, ending))
        if answer == Answer.ACCEPTED:
            self.accepted[taken.attempt_id] = self.accepted.get(taken.attempt_id, 0) + 1

    # -- users ---------------------------------------------------------------------------------------------------

    @rule(
        urgent=st.booleans(),
        gpus=st.integers(0, 1),
        retries=st.integers(0, 2),
        bound=st.booleans(),
        n=st.integers(1, 4),
    )
    def submit(self, urgent: bool, gpus: int, retries: int, bound: bool, n: int) -> None:
        asked = job(
            priority_class=FOREGROUND if urgent else BACKGROUND, resources=share(1, 64, gpus), max_retries=retries,
            backoff_s=float(retries),
        )  # fmt: skip
        self.jobs += self.fabric.submit(*[asked] * n, tenant=self.tenant if bound else DEFAULT_TENANT)

    @precondition(lambda self: self.jobs)
    @rule(which=anyone, cause=st.sampled_from(StopCause), only_pending=st.booleans())
    def stop(self, which: int, cause: StopCause, only_pending: bool) -> None:
        job_id = self.jobs[which % len(self.jobs)]
        tenant = self.fabric.row(job_id).tenant_id
        try:
            if only_pending:
                cancel_pending(self.fabric.db, tenant, job_id)
            else:
                request_stop(self.fabric.db, tenant, job_id, "user", None, cause)
        except StateConflict:
            pass

    # -- workers -------------------------------------------------------------------------------------------------

    @rule(w=workers, limit=st.integers(1, 5), starts=st.booleans(), reply_lost=seldom)
    def claim(self, w: int, limit: int, starts: bool, reply_lost: bool) -> None:
        taken = self.fabric.claim(self.workers[w].node, limit)
        if starts:
            self.fabric.start(*taken)
        if not reply_lost:
            self.workers[w].held |= {t.attempt_id: t for t in taken}

    @precondition(lambda self: any(w.held for w in self.workers))
    @rule(w=workers, which=anyone, ending=st.sampled_from(ENDINGS), reply_lost=seldom)
    def finish(self, w: int, which: int, ending: Ending, reply_lost: bool) -> None:
        worker = self.workers[w] if self.workers[w].held else self.workers[1 - w]
        taken = self._pick(worker, which)
        self._finish(taken, ending)
        if not reply_lost:
            del worker.held[taken.attempt_id]

    @rule(w=workers, limit=st.integers(1, 4), ending=st.sampled_from(ENDINGS))
    def work(self, w: int, limit: int, ending: Ending) -> None:
        """The ordinary life: claimed, started, and all but one ended."""
        taken = self.fabric.claim(self.workers[w].node, limit)
        self.fabric.start(*taken)
        for one in taken[1:]:
            self._finish(one, ending)
        self.workers[w].held |= {t.attempt_id: t for t in taken[:1]}

    @precondition(lambda self: self.told)
    @rule(which=anyone, other=st.booleans())
    def tell_again(self, which: int, other: bool) -> None:
        taken, ending = self.told[which % len(self.told)]
        open_still = self.fabric.row(taken.job_id).attempt_id == taken.attempt_id
        before = self.fabric.row(taken.job_id)
        self._finish(taken, Ending(exit_code=77) if other else ending)
        assert open_still or self.fabric.row(taken.job_id) == before

    @rule(w=workers)
    def renew(self, w: int) -> None:
        worker = self.workers[w]
        answer = self.fabric.renew(worker.node, *worker.held.values())
        assert answer.renewed | answer.lost == set(worker.held)
        for attempt_id in answer.lost:
            del worker.held[attempt_id]
        for attempt_id in answer.stops:
            self._finish(worker.held.pop(attempt_id), Ending(signal=15, stopped=True))
        recover.hand_back(self.fabric.db, answer.orphans, "never ran")

    @rule(w=workers, forgets=seldom)
    def die_and_come_back(self, w: int, forgets: bool) -> None:
        """A new agent finds what the old one held, or nothing of it; the old one is refused."""
        worker, old = self.workers[w], self.workers[w].node
        worker.node = self.fabric.add_node(old.id, slots=4, cpus=4, gpus=(gpu(2 * w), gpu(2 * w + 1)))
        if forgets:
            worker.held.clear()
        try:
            self.fabric.claim(old, 1)
            raise AssertionError("an older incarnation claimed")
        except StaleIncarnation:
            pass

    @rule(w=workers)
    def drain(self, w: int) -> None:
        worker = self.workers[w]
        nodes.set_draining(self.fabric.db, worker.node.id, True)
        assert self.fabric.claim(worker.node) == []
        nodes.set_draining(self.fabric.db, worker.node.id, False)

    # -- time and the scheduler --------------------------------------------------------------------------------------

    @rule(w=workers, which=anyone)
    def expire(self, w: int, which: int) -> None:
        if self.workers[w].held:
            self.fabric.expire(self._pick(self.workers[w], which))

    @rule(all_of_them=seldom)
    def reap(self, all_of_them: bool) -> None:
        if all_of_them:
            self.fabric.expire()
        self.fabric.reap()

    @rule(due=st.booleans())
    def promote(self, due: bool) -> None:
        if due:
            self.fabric.due()
        recover.promote(self.fabric.db)

    @rule(fold=st.booleans())
    def sweep(self, fold: bool) -> None:
        recover.sweep(self.fabric.db)
        if fold:
            recover.fold_stats(self.fabric.db, limit=5)

    # -- after every step ----------------------------------------------------------------------------------------------

    @invariant()
    def all_is_in_order(self) -> None:
        """Usage, counts, fences, GPUs and marks agree; quotas and nodes are not over-committed."""
        self.fabric.assert_in_order()
        assert self.fabric.all(OVER_COMMITTED) == []

    @invariant()
    def ends_are_final_and_single(self) -> None:
        """No job leaves its end, no attempt is accepted twice, at most one attempt of a job is open."""
        now = {
            row.id: (JobState(row.state), row.attempt) for row in self.fabric.all("SELECT id, state, attempt FROM job")
        }
        for job_id, (state, attempt) in self.before.items():
            after, later = now[job_id]
            assert later >= attempt
            assert state not in TERMINAL or (after, later) == (state, attempt)
            assert later > attempt or may_follow(state, after) or state == JobState.STARTING
        self.before = now
        assert set(self.accepted.values()) <= {1}
        assert self.fabric.all("SELECT job_id FROM attempt WHERE outcome IS NULL GROUP BY 1 HAVING count(*) > 1") == []
        assert (
            self.fabric.all("SELECT job_id FROM attempt WHERE outcome = 'completed' GROUP BY 1 HAVING count(*) > 1")
            == []
        )

    def teardown(self) -> None:
        """Whatever has happened, every job that waits can still be had, and brought to its end."""
        if not hasattr(self, "workers"):
            return
        fabric = self.fabric
        fabric.sql("UPDATE tenant SET quota_jobs = NULL")
        fabric.due()
        recover.promote(fabric.db)
        waiting = fabric.value("SELECT count(*) FROM job WHERE state = 0")
        large = fabric.add_node("large", slots=1000, cpus=1000, gpus=tuple(gpu(n) for n in range(100, 250)))
        taken: list[Any] = []
        while more := fabric.claim(large, 64):
            taken += more
        assert len(taken) == waiting
        for attempt in taken:
            assert fabric.finish(attempt) == Answer.ACCEPTED
        fabric.assert_in_order()


OVER_COMMITTED = """SELECT 'node', n.id FROM node n JOIN (SELECT node_id, sum(jobs) AS jobs, sum(cpus_milli) AS cpus,
    sum(gpus) AS gpus FROM usage GROUP BY 1) u ON u.node_id = n.id
    WHERE u.jobs > n.slots OR u.cpus > n.cpus_milli OR u.gpus > jsonb_array_length(n.gpus)
UNION ALL SELECT 'tenant', t.name FROM tenant t JOIN (SELECT tenant_id, sum(jobs) AS jobs FROM usage GROUP BY 1) u
    ON u.tenant_id = t.id WHERE u.jobs > t.quota_jobs"""


def test_whatever_happens_in_whatever_order_nothing_is_lost_doubled_or_over_committed(fabric: Fabric) -> None:
    class ThisLife(Life):
        pass

    ThisLife.fabric = fabric
    run_state_machine_as_test(
        ThisLife,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            # Shrinking would try for minutes; the steps that failed are printed as they were.
            phases=(Phase.generate,),
            report_multiple_bugs=False,
        ),
    )
