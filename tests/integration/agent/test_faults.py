"""What a network does: a transaction never happened, or nobody heard that it did. Nothing is lost, nothing doubled."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest

from app.domain.errors import StateConflict, Unavailable
from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState
from app.services.stop import request_stop
from app.services.submit import IdempotencyKey, submit
from app.storage.database import Database
from app.storage.faults import Fault, FaultPlan
from tests.factories import Fabric, job, make_fabric, share, until
from tests.integration.agent.conftest import Site
from workers.agent import reporter

POINTS = ["before", "after"]


def assert_each_ended_once(fabric: Fabric, count: int) -> None:
    assert fabric.value("SELECT count(*) FROM job WHERE state = 4") == count
    assert fabric.value("SELECT count(*) FROM attempt WHERE outcome = 'completed'") == count
    assert fabric.value("SELECT count(*) FROM attempt WHERE outcome IS NULL") == 0
    assert fabric.value("SELECT count(*) FROM lease") == 0
    fabric.assert_in_order()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["claim", "renew", "finish", "start", "output", "register", "hand_back"])
def test_an_agent_whose_transaction_fails_loses_and_doubles_nothing(site: Site, name: str, point: str) -> None:
    faults = [Fault(name, point, times=3)]
    if name == "hand_back":
        faults.append(Fault("claim", "after", times=2))
    plan = FaultPlan(faults)
    sent = site.fabric.submit(*[job(environment={"FAKE_OUTPUT": "x", "FAKE_DURATION_S": "0.1"})] * 24)
    site.agent(faults=plan)
    site.until_ended(*sent)
    assert (name, point) in plan.fired
    assert_each_ended_once(site.fabric, 24)
    assert {site.output(j) for j in sent} == {b"x"}


def test_two_agents_with_faults_everywhere_end_every_job_once(site: Site) -> None:
    names = ["claim", "renew", "finish", "start", "output", "hand_back", "read"]
    plans = [
        FaultPlan([Fault(name, point, probability=0.08) for name in names for point in POINTS], seed=seed)
        for seed in (1, 2)
    ]
    sent = site.fabric.submit(*[job(environment={"FAKE_DURATION_S": "0.05"}, priority=n % 5) for n in range(60)])
    for number, plan in enumerate(plans):
        site.agent(f"n{number}", faults=plan)
    site.until_ended(*sent, within_s=60.0)
    assert_each_ended_once(site.fabric, 60)


def test_a_submit_whose_answer_was_lost_is_replayed_by_its_key(fabric: Fabric) -> None:
    for number, point in enumerate(POINTS):
        broken = make_fabric(fabric.settings.database_url, FaultPlan([Fault("submit", point, times=1)]))
        key = IdempotencyKey(DEFAULT_TENANT, "POST", "/jobs", f"k{number}", b"")

        def send(fabric: Fabric = broken, key: IdempotencyKey = key) -> object:
            return submit(fabric.db, fabric.settings, DEFAULT_TENANT, [job()], key, lambda made: (201, str(made[0].id)))

        with pytest.raises(Unavailable):
            send()
        send()
        assert fabric.value("SELECT count(*) FROM job") == number + 1
        broken.db.close()
    fabric.assert_in_order()


@pytest.mark.parametrize("point", POINTS)
def test_a_stop_whose_answer_was_lost_can_be_asked_again(site: Site, point: str) -> None:
    broken = make_fabric(site.fabric.settings.database_url, FaultPlan([Fault("stop", point, times=1)]))
    site.agent()
    (job_id,) = site.fabric.submit(job(environment={"FAKE_DURATION_S": "forever"}))
    until(lambda: site.fabric.state(job_id) == JobState.RUNNING)
    with pytest.raises(Unavailable):
        request_stop(broken.db, DEFAULT_TENANT, job_id, "ann")
    try:
        request_stop(broken.db, DEFAULT_TENANT, job_id, "ann")
    except StateConflict:
        assert point == "after"
    site.until_ended(job_id)
    assert site.fabric.state(job_id) == JobState.CANCELLED
    broken.db.close()
    site.fabric.assert_in_order()


def test_a_lost_claim_reply_is_handed_back_and_run(site: Site) -> None:
    plan = FaultPlan([Fault("claim", "after", times=1)])
    sent = site.fabric.submit(*[job()] * 4)
    site.agent(faults=plan)
    site.until_ended(*sent)
    assert {tuple(a.outcome for a in site.fabric.attempts(j)) for j in sent} == {("lost", "completed")}
    assert {site.fabric.row(j).failures for j in sent} == {0}
    assert site.fabric.value("SELECT count(*) FROM job WHERE lost_nodes <> '{}'") == 0


@pytest.fixture
def fails_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first end is committed, and then its agent stumbles; when it has, this is not empty."""
    failed: list[str] = []

    def keep_peaks(db: Database, attempt_ids: Sequence[UUID]) -> None:
        if not failed:
            failed.append("peaks")
            raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(reporter, "keep_peaks", keep_peaks)
    return failed


def test_what_was_claimed_with_an_end_starts_whatever_becomes_of_the_end(site: Site, fails_once: list[str]) -> None:
    all_cpus = job(resources=share(cpus=2), environment={"FAKE_DURATION_S": "0.3"})
    sent = site.fabric.submit(*[all_cpus] * 2)
    site.agent(cpus_milli=2000)
    site.until_ended(*sent)
    assert fails_once
    assert [[a.outcome for a in site.fabric.attempts(one)] for one in sent] == [["completed"]] * 2
    until(lambda: not site.agents[0].registry.all())
    site.fabric.assert_in_order()


def test_what_was_claimed_for_a_slot_that_did_not_come_free_is_handed_back(site: Site, fails_once: list[str]) -> None:
    sent = site.fabric.submit(*[job(environment={"FAKE_DURATION_S": "0.3"})] * 2)
    site.agent(slots=1)
    site.until_ended(*sent)
    assert fails_once
    assert [[a.outcome for a in site.fabric.attempts(one)] for one in sent] == [["completed"], ["lost", "completed"]]
    assert {site.fabric.row(one).failures for one in sent} == {0}
    site.fabric.assert_in_order()
