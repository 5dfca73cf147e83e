"""Submit makes all jobs durable or none, in order, once per idempotency key."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from app.domain.errors import KeyInFlight, KeyReused, Refused
from app.domain.job import DEFAULT_TENANT, JobRequest, Submitted
from app.domain.resources import Resources
from app.domain.states import JobState, Reason
from app.services.inspect import job_detail
from app.services.submit import IdempotencyKey, Submission, submit
from tests.factories import FOREGROUND, Fabric, Node, at_once, job, share

KEY = IdempotencyKey(DEFAULT_TENANT, "POST", "/api/v1/jobs", "k1", b"body one")


def render(jobs: list[Submitted]) -> tuple[int, Any]:
    return 201, {"ids": [str(one.id) for one in jobs]}


def send(fabric: Fabric, key: IdempotencyKey = KEY, *requests: JobRequest) -> Submission:
    return submit(fabric.db, fabric.settings, DEFAULT_TENANT, requests or (job(),), key, render)


def test_a_new_job_is_pending_and_ready_because_it_is_new(fabric: Fabric) -> None:
    row = fabric.row(fabric.submit_one())
    assert (row.state, row.ready, row.reason, row.attempt) == (JobState.PENDING, True, Reason.NEW, 0)
    fabric.assert_in_order()


def test_what_was_asked_comes_back_word_for_word(fabric: Fabric) -> None:
    asked = job(
        command=("a", "b c"), arguments=("ä", '"', ""), environment={"K": "ü=1"}, resources=share(2, 512, 1, 5, "A100"),
        time_limit_s=1.5, grace_s=0.25, max_retries=3, asked={"words": [1, None, "x"]}, script="echo é",
    )  # fmt: skip
    spec = job_detail(fabric.db, DEFAULT_TENANT, fabric.submit(asked)[0]).spec
    for name in ("command", "arguments", "environment", "time_limit_s", "grace_s", "max_retries", "asked", "script"):
        assert getattr(spec, name) == getattr(asked, name)
    assert spec.resources == share(2, 512, 1, 5, "A100")


def test_a_job_that_asks_for_nothing_gets_the_default_share(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one()
    assert job_detail(fabric.db, DEFAULT_TENANT, job_id).spec.resources is None
    taken = fabric.claim_one(node)
    assert (taken.resources, taken.hard_limits) == (share(0.1, 64), False)


def test_many_jobs_keep_the_order_in_which_they_were_sent(fabric: Fabric, node: Node) -> None:
    sent = fabric.submit(*[job(arguments=(str(n),)) for n in range(1000)])
    assert sent == sorted(sent)
    claimed = [taken.job_id for _ in range(16) for taken in fabric.claim(node, 4)]
    assert claimed == sent[:64]


def test_jobs_of_mixed_shapes_keep_their_own(fabric: Fabric) -> None:
    sent = fabric.submit(*[job(type=f"t{n}", priority=n % 5, resources=share(1 + n % 3)) for n in range(50)])
    rows = {
        row.id: row
        for row in fabric.all(
            "SELECT j.*, k.priority, k.cpus_milli FROM job j JOIN scheduling_key k ON k.id = j.key_id"
        )
    }
    for place, job_id in enumerate(sent):
        row = rows[job_id]
        assert (row.type, row.priority, row.cpus_milli) == (f"t{place}", place % 5, 1000 * (1 + place % 3))
    assert fabric.value("SELECT count(*) FROM scheduling_key") == 15


def test_nothing_is_kept_of_a_bulk_with_one_bad_row(fabric: Fabric) -> None:
    with pytest.raises(Exception, match="ck_job_spec_sha256"):
        fabric.submit(job(), job(binary_sha256="not a digest"))
    assert fabric.value("SELECT count(*) FROM job") == 0
    fabric.assert_in_order()


def test_the_same_request_again_gets_the_stored_answer(fabric: Fabric) -> None:
    first = send(fabric)
    again = send(fabric)
    assert again == Submission([], (201, {"ids": [str(first.jobs[0].id)]}))
    assert fabric.value("SELECT count(*) FROM job") == 1


def test_a_key_with_another_body_is_refused(fabric: Fabric) -> None:
    send(fabric)
    with pytest.raises(KeyReused):
        send(fabric, replace(KEY, body_sha256=b"body two"))


@pytest.mark.parametrize("other", [{"method": "PUT"}, {"path": "/api/v1/jobs/bulk"}, {"key": "k2"}])
def test_a_key_is_one_of_its_method_and_path(fabric: Fabric, other: dict[str, str]) -> None:
    send(fabric)
    assert send(fabric, replace(KEY, **other)).replay is None


def test_a_key_is_one_of_its_tenant(fabric: Fabric) -> None:
    send(fabric)
    assert send(fabric, replace(KEY, tenant_id=fabric.add_tenant())).replay is None


def test_a_key_whose_first_request_still_runs_is_told_to_wait(fabric: Fabric) -> None:
    def render_slowly(jobs: list[Submitted]) -> tuple[int, Any]:
        with pytest.raises(KeyInFlight):
            send(fabric)
        return render(jobs)

    submit(fabric.db, fabric.settings, DEFAULT_TENANT, [job()], KEY, render_slowly)
    assert send(fabric).replay is not None


def test_a_request_that_failed_leaves_its_key_free(fabric: Fabric) -> None:
    def fail(_jobs: list[Submitted]) -> tuple[int, Any]:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError):
        submit(fabric.db, fabric.settings, DEFAULT_TENANT, [job()], KEY, fail)
    assert len(send(fabric).jobs) == 1
    assert fabric.value("SELECT count(*) FROM job") == 1


def test_fifty_posts_at_once_with_one_key_make_one_job(fabric: Fabric) -> None:
    def post(_place: int) -> str:
        try:
            return "replayed" if send(fabric).replay else "made"
        except KeyInFlight:
            return "in flight"

    answers = Counter(answer for _ in range(5) for answer in at_once(10, post))
    assert answers["made"] == 1
    assert answers["replayed"] > 0
    assert fabric.value("SELECT count(*) FROM job") == 1
    assert send(fabric).replay is not None


def test_fifty_posts_at_once_without_a_key_make_fifty_jobs_of_one_shape(fabric: Fabric) -> None:
    at_once(10, lambda _: [fabric.submit_one() for _ in range(5)])
    assert fabric.value("SELECT count(*) FROM job") == 50
    assert fabric.value("SELECT count(*) FROM scheduling_key") == 1
    fabric.assert_in_order()


def test_live_shapes_of_a_tenant_are_capped_and_old_ones_go_on(fabric: Fabric, node: Node) -> None:
    fabric.settings = replace(fabric.settings, live_keys_per_tenant=3)
    fabric.submit(*[job(priority=n) for n in range(3)])
    with pytest.raises(Refused, match="More than 3 different"):
        fabric.submit_one(priority=3)
    assert fabric.value("SELECT count(*) FROM job") == 3
    fabric.submit_one(priority=2)
    fabric.submit(job(priority=3), tenant=fabric.add_tenant())


def test_the_cap_counts_only_shapes_that_wait(fabric: Fabric, node: Node) -> None:
    from app.services.recover import sweep

    fabric.settings = replace(fabric.settings, live_keys_per_tenant=3)
    fabric.submit(*[job(priority=n) for n in range(3)])
    assert len(fabric.claim(node)) == 3
    sweep(fabric.db)
    fabric.submit_one(priority=3)
    fabric.assert_in_order()


def test_asks_between_two_grid_points_share_one_shape(fabric: Fabric) -> None:
    fabric.submit(*[job(resources=Resources(100, (1000 + n) * 2**20)) for n in range(20)])
    assert fabric.value("SELECT count(*) FROM scheduling_key") == 1


def test_the_class_sets_the_priority_where_none_is_asked(fabric: Fabric) -> None:
    fabric.submit_one(priority_class=FOREGROUND)
    assert fabric.value("SELECT priority FROM scheduling_key") == 1000
