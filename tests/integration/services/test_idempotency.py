"""A key's first answer is kept with what it did, given again to its repeats, and forgotten in time."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.errors import KeyInFlight, KeyReused, StateConflict, Unavailable
from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState
from app.services import recover, stop
from app.services.idempotency import Answer, IdempotencyKey, answer_once
from app.services.submit import submit
from app.storage.faults import Fault, FaultPlan
from tests.factories import Fabric, Node, job, make_fabric

KEY = IdempotencyKey(DEFAULT_TENANT, "POST", "/jobs/1/stop", "k1", b"body one")


def stop_once(fabric: Fabric, job_id: Any, key: IdempotencyKey | None = KEY) -> Answer[Any]:
    """Stops a job as a route would."""
    return answer_once(
        fabric.db,
        "stop",
        key,
        lambda tx: stop.request_stop_in(tx, DEFAULT_TENANT, job_id, "ada"),
        lambda done: (200, {"state": done[0].state.word, "wake": done[1]}),
    )


def test_the_first_answer_is_given_again_whatever_has_happened_since(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    first = stop_once(fabric, taken.job_id)
    assert first.body["wake"] == [node.id]
    fabric.finish(taken)
    again = stop_once(fabric, taken.job_id)
    assert first.fresh is not None
    assert again == Answer(200, first.body, None)
    with pytest.raises(StateConflict):
        stop_once(fabric, taken.job_id, None)


def test_a_refusal_undoes_all_and_is_not_kept(fabric: Fabric) -> None:
    job_id = fabric.submit_one()
    stop_once(fabric, job_id, None)
    for _ in range(2):
        with pytest.raises(StateConflict):
            stop_once(fabric, job_id)
    assert fabric.value("SELECT count(*) FROM idempotency") == 0


def test_an_answer_that_cannot_be_rendered_undoes_what_was_done(fabric: Fabric) -> None:
    job_id = fabric.submit_one()

    def broken(_done: Any) -> tuple[int, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        answer_once(fabric.db, "stop", KEY, lambda tx: stop.request_stop_in(tx, DEFAULT_TENANT, job_id, "ada"), broken)
    assert fabric.state(job_id) == JobState.PENDING
    assert stop_once(fabric, job_id).fresh is not None


def test_a_key_is_of_one_tenant_method_and_path(fabric: Fabric) -> None:
    other = fabric.add_tenant()
    for key in (
        KEY,
        IdempotencyKey(other, KEY.method, KEY.path, KEY.key, KEY.body_sha256),
        IdempotencyKey(DEFAULT_TENANT, "PUT", KEY.path, KEY.key, KEY.body_sha256),
        IdempotencyKey(DEFAULT_TENANT, KEY.method, "/jobs/2/stop", KEY.key, KEY.body_sha256),
    ):
        assert stop_once(fabric, fabric.submit_one(), key).fresh is not None


def test_another_body_under_a_used_key_is_refused_and_changes_nothing(fabric: Fabric) -> None:
    first, second = fabric.submit_one(), fabric.submit_one()
    stop_once(fabric, first)
    with pytest.raises(KeyReused):
        stop_once(fabric, second, IdempotencyKey(DEFAULT_TENANT, "POST", "/jobs/1/stop", "k1", b"body two"))
    assert fabric.state(second) == JobState.PENDING


def test_a_repeat_while_the_first_still_runs_is_told_so_at_once(fabric: Fabric) -> None:
    def meanwhile(_tx: Any) -> str:
        with pytest.raises(KeyInFlight):
            answer_once(fabric.db, "stop", KEY, lambda tx: "second", lambda done: (200, done))
        return "first"

    assert answer_once(fabric.db, "stop", KEY, meanwhile, lambda done: (200, done)).fresh == "first"


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_crash_between_commit_and_answer_leaves_one_effect_and_its_answer(fabric: Fabric, point: str) -> None:
    plan = FaultPlan([Fault("submit", point, times=1)])
    broken = make_fabric(fabric.settings.database_url, plan)

    def send() -> Any:
        done = submit(
            broken.db, broken.settings, DEFAULT_TENANT, [job()], KEY, lambda jobs: (201, {"id": str(jobs[0].id)})
        )
        return done.replay or (201, {"id": str(done.jobs[0].id)})

    with pytest.raises(Unavailable):
        send()
    answers = [send(), send()]
    assert answers[0] == answers[1]
    assert [answers[0][1]["id"]] == [str(row[0]) for row in fabric.all("SELECT id FROM job")]
    broken.db.close()


def test_keys_are_forgotten_after_their_retention_in_bounded_steps(fabric: Fabric) -> None:
    job_ids = fabric.submit(*[job()] * 6)
    for number, job_id in enumerate(job_ids):
        stop_once(fabric, job_id, IdempotencyKey(DEFAULT_TENANT, "POST", f"/{number}", "k", b""))
    hours = fabric.settings.retain_keys_hours
    fabric.sql(f"UPDATE idempotency SET created_at = now() - interval '{hours} hours 1 minute' WHERE path < '/5'")
    fabric.sql("UPDATE idempotency SET created_at = now() - interval '1 year' WHERE path = '/0'")
    assert recover.forget_keys(fabric.db, fabric.settings, limit=2).detail["forgotten"] == 2
    assert fabric.value("SELECT count(*) FROM idempotency WHERE path = '/0'") == 0
    assert recover.forget_keys(fabric.db, fabric.settings).detail["forgotten"] == 3
    assert [row[0] for row in fabric.all("SELECT path FROM idempotency")] == ["/5"]
