"""Executors outside the fabric: one job at a time, held by name, finished once however often they say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import Invalid, NotFound, StateConflict
from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState
from app.services import external
from app.services.external import ExternalClaim, claim_external, finish_external, heartbeat_external
from app.services.inspect import executors, job_detail
from app.services.stop import request_stop
from tests.factories import (
    BEST_EFFORT,
    FOREGROUND,
    Fabric,
    Node,
    at_once,
    binary_job,
    in_thread,
    job,
    raw,
    share,
    until,
)


def claim(fabric: Fabric, name: str = "w1") -> ExternalClaim | None:
    return claim_external(fabric.db, fabric.settings, name, "192.0.2.7")


def claimed(fabric: Fabric, name: str = "w1") -> UUID:
    given = claim(fabric, name)
    assert given is not None
    return given.detail.job.id


def finish(fabric: Fabric, job_id: UUID, name: str = "w1", completed: bool = True, **changes: Any) -> JobState:
    told = {"exit_code": 0 if completed else 1, "stdout": "out", "stderr": "err", **changes}
    return finish_external(fabric.db, job_id, name, completed, **told)[0].state


def beat(fabric: Fabric, job_id: UUID, name: str = "w1", **changes: Any) -> Any:
    return heartbeat_external(fabric.db, fabric.settings, job_id, name, **changes)


def test_there_is_nothing_to_claim(fabric: Fabric) -> None:
    assert claim(fabric) is None


def test_an_executor_waits_for_a_quota_that_is_being_decided_elsewhere(
    fabric: Fabric, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = fabric.add_tenant(quota_jobs=5)
    (job_id,) = fabric.submit(binary_job(), tenant=tenant)
    with raw(database_url) as other:
        other.cursor().execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('quota:' || %s::uuid, 71))", (str(tenant),)
        )
        assert claim(fabric) is None, "it does not wait for ever"
        monkeypatch.setattr(external, "CLAIM_TRIES", 10_000)
        with in_thread(lambda: claimed(fabric, "w2")) as given:
            until(lambda: fabric.value("SELECT count(*) FROM node WHERE id = 'w2'"))
            other.rollback()
            assert given.result(20) == job_id


def test_only_binary_jobs_without_gpus_are_given(fabric: Fabric) -> None:
    fabric.submit(job(), job(runner="container", image="x"), binary_job(resources=share(gpus=1)))
    assert claim(fabric) is None


def test_a_claim_runs_at_once_under_a_lease_of_its_own(fabric: Fabric) -> None:
    low, high = fabric.submit(binary_job(priority_class=BEST_EFFORT), binary_job(priority_class=FOREGROUND))
    given = claim(fabric)
    assert given is not None
    assert (given.detail.job.id, given.detail.job.state, given.attempt) == (high, JobState.RUNNING, 1)
    attempt = given.detail.attempts[0]
    assert (attempt.executor_id, attempt.executor_ip) == ("w1", "192.0.2.7")
    assert attempt.started_at is not None
    left = fabric.value("SELECT extract(epoch FROM %s - now())::float", given.lease_expires_at)
    assert fabric.settings.external_lease_s - 5 < left <= fabric.settings.external_lease_s
    assert fabric.state(low) == JobState.PENDING
    fabric.assert_in_order()


def test_the_name_of_a_node_cannot_be_borrowed(fabric: Fabric, node: Node) -> None:
    fabric.submit(binary_job())
    with pytest.raises(Invalid, match="choose another"):
        claim(fabric, node.id)


def test_eight_executors_at_once_get_eight_jobs(fabric: Fabric) -> None:
    sent = fabric.submit(*[binary_job()] * 8)
    assert sorted(at_once(8, lambda n: claimed(fabric, f"w{n}"))) == sent


def test_a_heartbeat_moves_the_lease_and_says_when_to_stop(fabric: Fabric) -> None:
    fabric.submit(binary_job(grace_s=7.0))
    job_id = claimed(fabric)
    fabric.expire()
    answer = beat(fabric, job_id, attempt=1)
    assert (answer.stop, answer.grace_s) == (False, 7.0)
    assert fabric.value("SELECT expires_at FROM lease") == answer.lease_expires_at
    assert fabric.value("SELECT expires_at > now() FROM lease")
    request_stop(fabric.db, DEFAULT_TENANT, job_id, "ann")
    assert beat(fabric, job_id).stop


def test_a_heartbeat_of_who_does_not_hold_the_job_is_not_found(fabric: Fabric) -> None:
    waiting, _ = fabric.submit(binary_job(), binary_job(priority=5000))
    job_id = claimed(fabric)
    for wrong in (
        {"job_id": job_id, "name": "w2"},
        {"job_id": job_id, "attempt": 2},
        {"job_id": waiting},
        {"job_id": uuid4()},
    ):
        with pytest.raises(NotFound):
            beat(fabric, **wrong)
    finish(fabric, job_id)
    with pytest.raises(NotFound):
        beat(fabric, job_id)
    assert fabric.value("SELECT count(*) FROM node") == 1


@pytest.mark.parametrize("completed", [True, False])
def test_the_same_answer_again_is_fine_and_another_is_a_conflict(fabric: Fabric, completed: bool) -> None:
    fabric.submit(binary_job())
    job_id = claimed(fabric)
    end = JobState.COMPLETED if completed else JobState.FAILED
    told = {"completed": completed, "error_message": None if completed else "no\x00good"}
    assert finish(fabric, job_id, **told) == end
    before = fabric.row(job_id)
    assert finish(fabric, job_id, **told) == end
    for other in ({"exit_code": 9}, {"completed": not completed}, {"stdout": "else"}, {"name": "w2"}, {"attempt": 2}):
        with pytest.raises(StateConflict):
            finish(fabric, job_id, **{**told, **other})
    assert fabric.row(job_id) == before
    fabric.assert_in_order()


def test_the_same_answer_twice_at_once_is_fine_both_times(fabric: Fabric) -> None:
    fabric.submit(*[binary_job()] * 5)
    for n in range(5):
        job_id = claimed(fabric, f"w{n}")
        assert at_once(3, lambda _, job_id=job_id, n=n: finish(fabric, job_id, f"w{n}")) == [JobState.COMPLETED] * 3


def test_a_result_is_never_taken_for_received_when_the_reaper_was_first(fabric: Fabric, database_url: str) -> None:
    fabric.submit(binary_job())
    job_id = claimed(fabric)
    fabric.expire()
    with raw(database_url) as other:
        # Holds the reaper between its lock of the job and its end.
        other.cursor().execute("SELECT 1 FROM usage FOR UPDATE")
        with in_thread(lambda: fabric.reap(lease_s=0.0)) as reaped:
            until(fabric.blocked)
            with in_thread(lambda: finish(fabric, job_id)) as told:
                until(lambda: fabric.blocked() == 2)
                other.rollback()
                with pytest.raises(StateConflict):
                    told.result(20)
            reaped.result(20)
    assert fabric.state(job_id) == JobState.PENDING


def test_what_the_executor_says_is_accepted_whatever_the_exit_code(fabric: Fabric) -> None:
    fabric.submit(binary_job())
    job_id = claimed(fabric)
    assert finish(fabric, job_id, completed=True, exit_code=3) == JobState.COMPLETED
    assert fabric.row(job_id).exit_code == 3


def test_nobody_finishes_what_he_does_not_hold(fabric: Fabric) -> None:
    (waiting,) = fabric.submit(binary_job())
    with pytest.raises(NotFound):
        finish(fabric, uuid4())
    with pytest.raises(StateConflict):
        finish(fabric, waiting)
    job_id = claimed(fabric)
    with pytest.raises(StateConflict):
        finish(fabric, job_id, "w2")
    assert fabric.state(job_id) == JobState.RUNNING


def test_a_node_cannot_be_impersonated_to_finish_its_job(fabric: Fabric, node: Node) -> None:
    fabric.submit(binary_job())
    taken = fabric.run(node)
    with pytest.raises(StateConflict):
        finish(fabric, taken.job_id, node.id)
    with pytest.raises(NotFound):
        beat(fabric, taken.job_id, node.id)


def test_output_is_kept_to_the_first_mib_of_each_stream_at_a_character(fabric: Fabric) -> None:
    fabric.submit(binary_job())
    job_id = claimed(fabric)
    finish(fabric, job_id, stdout="x" * (2**20 - 1) + "ä" * 9, stderr="ü\x00!")
    detail = job_detail(fabric.db, DEFAULT_TENANT, job_id)
    assert detail.stdout == b"x" * (2**20 - 1)
    assert detail.stderr == "ü\x00!".encode()
    assert detail.attempts[0].truncated_bytes == 18


def test_a_cancel_wins_over_whatever_the_executor_says(fabric: Fabric) -> None:
    fabric.submit(binary_job())
    job_id = claimed(fabric)
    request_stop(fabric.db, DEFAULT_TENANT, job_id, "ann")
    assert finish(fabric, job_id) == JobState.CANCELLED
    assert finish(fabric, job_id) == JobState.CANCELLED


def test_a_job_is_never_given_twice_to_the_same_executor(fabric: Fabric) -> None:
    """Its name is its fence: an answer of the first time could not be told from one of the second."""
    fabric.submit(*[binary_job(priority=900 + n, max_retries=9, backoff_s=0.0) for n in range(12)])
    tried = [claimed(fabric) for _ in range(12)]
    for job_id in tried[:6]:
        finish(fabric, job_id, completed=False)
    fabric.expire()
    fabric.reap()
    fabric.reap()
    assert {fabric.state(job_id) for job_id in tried} == {JobState.PENDING}
    assert claim(fabric) is None
    last = fabric.submit(binary_job())[0]
    assert claimed(fabric) == last
    assert {claimed(fabric, "w2") for _ in range(12)} == set(tried)
    fabric.assert_in_order()


def test_a_late_answer_of_a_lost_attempt_is_refused(fabric: Fabric) -> None:
    fabric.submit(binary_job())
    job_id = claimed(fabric)
    fabric.expire()
    fabric.reap()
    assert claimed(fabric, "w2") == job_id
    with pytest.raises(StateConflict):
        finish(fabric, job_id, "w1")
    assert finish(fabric, job_id, "w2") == JobState.COMPLETED


def test_an_executor_is_seen_with_its_job(fabric: Fabric) -> None:
    fabric.submit(binary_job(type="render"))
    job_id = claimed(fabric)
    (seen,) = executors(fabric.db)
    assert (seen.executor_id, seen.current_job_id, seen.job_type, seen.jobs_completed) == ("w1", job_id, "render", 0)
    finish(fabric, job_id)
    (seen,) = executors(fabric.db)
    assert (seen.current_job_id, seen.job_type, seen.jobs_completed) == (None, None, 1)


def test_only_what_completed_counts_as_completed(fabric: Fabric) -> None:
    for completed in (False, True):
        fabric.submit(binary_job())
        finish(fabric, claimed(fabric), completed=completed)
    fabric.submit(binary_job())
    claimed(fabric)
    fabric.expire()
    fabric.reap()
    (seen,) = executors(fabric.db)
    assert seen.jobs_completed == 1


def test_quotas_bind_external_executors_too(fabric: Fabric) -> None:
    tenant = fabric.add_tenant(quota_jobs=1)
    fabric.submit(binary_job(), binary_job(), tenant=tenant)
    first = claimed(fabric)
    assert claim(fabric, "w2") is None
    finish(fabric, first)
    assert claim(fabric, "w2") is not None


def test_its_lease_is_its_own_setting(fabric: Fabric) -> None:
    fabric.settings = replace(fabric.settings, external_lease_s=1000.0)
    fabric.submit(binary_job())
    claimed(fabric)
    assert fabric.value("SELECT expires_at > now() + interval '900 s' FROM lease")
