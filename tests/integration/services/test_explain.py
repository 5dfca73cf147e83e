"""An explanation tells what claims do: what it says can start is taken, what it says is blocked is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.errors import NotFound
from app.domain.explain import Code, Fit
from app.domain.policy import Ending
from app.domain.resources import GIB, MIB, Gpu
from app.services import claim as claiming
from app.services import explain as explaining
from app.services.claim import Claimer, claim_in
from app.services.explain import Explanation, explain
from app.services.external import claim_external, finish_external
from app.services.inspect import job_detail
from app.services.nodes import set_draining
from app.services.stop import request_stop
from tests.factories import (
    BACKGROUND,
    BEST_EFFORT,
    FOREGROUND,
    Fabric,
    Node,
    binary_job,
    gpu,
    job,
    share,
)
from tests.integration.services.conftest import EMPTY


def why(fabric: Fabric, job_id: UUID, tenant: UUID | None = None) -> Explanation:
    return explain(fabric.db, fabric.settings, tenant or fabric.tenant, job_id)


def code(fabric: Fabric, job_id: UUID, tenant: UUID | None = None) -> Code:
    return why(fabric, job_id, tenant).causes[0].code


def message(fabric: Fabric, job_id: UUID, tenant: UUID | None = None) -> str:
    return why(fabric, job_id, tenant).causes[0].message


class _Undone(Exception):
    """Rolls a claim back."""


def would_take(fabric: Fabric, node: Node, limit: int = 1000) -> list[tuple[UUID, int]]:
    """The jobs and their keys that a claim by this node alone would take now; nothing is changed."""
    taken: list[tuple[UUID, int]] = []
    try:
        with fabric.db.transaction("dry") as tx:
            for one in claim_in(tx, Claimer(node.id, node.incarnation, node.runners), limit):
                taken.append((one.job_id, tx.value("SELECT key_id FROM job WHERE id = %(id)s", {"id": one.job_id})))
            raise _Undone
    except _Undone:
        return taken


# -- what lies in the job itself -------------------------------------------------------------------------------


def test_a_foreign_job_is_not_found(fabric: Fabric) -> None:
    job_id = fabric.submit_one()
    for tenant, asked in ((fabric.add_tenant(), job_id), (fabric.tenant, uuid4())):
        with pytest.raises(NotFound):
            explain(fabric.db, fabric.settings, tenant, asked)


def test_a_job_that_does_not_wait_says_where_it_is_and_how_it_ended(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one()
    taken = fabric.claim_one(node)
    assert code(fabric, job_id) == Code.STARTING
    fabric.start(taken)
    assert f"runs on node {node.id} since" in message(fabric, job_id)
    request_stop(fabric.db, fabric.tenant, job_id, "ann")
    assert message(fabric, job_id) == f"The job is being stopped on node {node.id}: cancel by ann."
    fabric.finish(taken, Ending(signal=15, stopped=True))
    assert (code(fabric, job_id), why(fabric, job_id).nodes) == (Code.CANCELLED, ())
    (failed,) = fabric.submit(job())
    fabric.finish(fabric.run(node), Ending(exit_code=3), message="boom")
    assert message(fabric, failed).startswith("The job failed with exit code 3 at 2")
    assert message(fabric, failed).endswith(": boom.")


def test_a_backoff_says_until_when_and_for_which_failure(fabric: Fabric, node: Node) -> None:
    (job_id,) = fabric.submit(job(max_retries=3, backoff_s=60.0))
    fabric.finish(fabric.run(node), Ending(exit_code=7))
    cause = why(fabric, job_id).causes[0]
    assert cause.code == Code.BACKOFF
    assert cause.message.startswith("Attempt 1 failed with exit code 7. The job waits until 2")
    assert cause.message.endswith("1 of 3 retries spent.")
    assert 50 < cause.numbers["wait_s"] <= 60
    fabric.due()
    assert "made ready with the scheduler's next tick" in message(fabric, job_id)
    (other,) = fabric.submit(job())
    fabric.finish(fabric.run(node), Ending(node_fault=True, started=False), message="disk full")
    assert code(fabric, other) == Code.NODE_FAULT
    assert "fault of its node: disk full." in message(fabric, other)


def test_a_hold_is_told_by_its_reason(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one()
    fabric.sql("UPDATE job SET ready = false, reason = 'hold', message = 'budget' WHERE id = %s", job_id)
    assert code(fabric, job_id) == Code.HOLD
    assert "budget" in message(fabric, job_id)


def test_the_history_tells_every_change_in_order(fabric: Fabric, node: Node) -> None:
    (job_id,) = fabric.submit(job(max_retries=1, backoff_s=60.0))
    fabric.finish(fabric.run(node), Ending(exit_code=1))
    told = [(c.state.word, c.reason, c.node_id) for c in why(fabric, job_id).history]
    assert told == [
        ("pending", "new", None),
        ("starting", None, node.id),
        ("running", None, node.id),
        ("pending", "backoff", node.id),
    ]


# -- the tenant ------------------------------------------------------------------------------------------------


def test_a_quota_that_is_used_up_is_told_with_its_numbers(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[gpu(n) for n in range(8)])
    tenant = fabric.add_tenant("vision", quota_gpus=4)
    first, second = fabric.submit(job(resources=share(gpus=4)), job(resources=share(gpus=2)), tenant=tenant)
    assert code(fabric, first, tenant) == Code.STARTS_NOW
    fabric.run(node)
    told = why(fabric, second, tenant).causes
    assert [cause.code for cause in told] == [Code.QUOTA]
    assert told[0].message == "Tenant vision holds 4 of 4 GPUs; this job asks 2 GPUs more."
    assert told[0].numbers["limits"] == {"gpus": {"limit": 4, "used": 4, "asks": 2}}


def test_a_quota_wait_is_shown_with_the_job_itself_and_is_gone_with_it(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant("small", quota_jobs=1)
    first, second = fabric.submit(job(), job(), tenant=tenant)
    taken = fabric.run(node)
    shown = job_detail(fabric.db, tenant, second).job
    assert (shown.reason, shown.message) == ("quota", "Tenant small holds 1 of 1 job; this job asks 1 job more.")
    assert job_detail(fabric.db, tenant, first).job.reason is None
    fabric.finish(taken)
    assert job_detail(fabric.db, tenant, second).job.reason == "new"


def test_an_ask_beyond_the_whole_quota_can_never_start(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant("lowered")
    job_id = fabric.submit_one(tenant, resources=share(8, 1024))
    fabric.sql("UPDATE tenant SET quota_cpus_milli = 4000 WHERE id = %s", tenant)
    assert code(fabric, job_id, tenant) == Code.QUOTA_NEVER
    assert message(fabric, job_id, tenant) == (
        "The job asks more than tenant lowered may ever hold: 8 CPUs (at most 4 CPUs)."
    )


def test_an_inactive_tenant_is_told(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant("closed")
    job_id = fabric.submit_one(tenant)
    fabric.sql("UPDATE tenant SET active = false WHERE id = %s", tenant)
    assert code(fabric, job_id, tenant) == Code.TENANT_INACTIVE
    assert would_take(fabric, node) == []


def test_what_the_nodes_lack_is_told_beside_the_quota(fabric: Fabric) -> None:
    tenant = fabric.add_tenant("both", quota_jobs=0)
    fabric.sql("UPDATE tenant SET quota_jobs = 1 WHERE id = %s", tenant)
    fabric.submit(job(), tenant=tenant)
    fabric.claim_one(fabric.add_node("small", cpus=2))
    job_id = fabric.submit_one(tenant, resources=share(16, 64))
    assert [cause.code for cause in why(fabric, job_id, tenant).causes] == [Code.QUOTA, Code.TOO_BIG]


# -- the nodes -------------------------------------------------------------------------------------------------


def test_without_any_node_it_says_so(fabric: Fabric) -> None:
    job_id = fabric.submit_one()
    assert message(fabric, job_id) == "No node has ever joined: start one with `cfab worker`."
    fabric.add_node("n1")
    set_draining(fabric.db, "n1", True)
    assert message(fabric, job_id) == "No node takes jobs: n1 is draining."
    fabric.add_node("n2")
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour' WHERE id = 'n2'")
    assert message(fabric, job_id) == "No node takes jobs: n1 is draining and n2 is offline."


def test_a_missing_runner_is_named(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one(runner="container", script=None, image="busybox")
    assert code(fabric, job_id) == Code.NO_RUNNER
    assert "needs the runner 'container'" in message(fabric, job_id)


def test_the_best_of_nodes_that_are_too_small_is_named(fabric: Fabric) -> None:
    fabric.add_node("small", cpus=2)
    fabric.add_node("large", cpus=8)
    job_id = fabric.submit_one(resources=share(16, 64))
    assert message(fabric, job_id) == (
        "No node is big enough. The largest for this job, large, has 8 CPUs in all (asks 16 CPUs)."
    )


def test_a_gpu_model_that_is_nowhere_is_told_with_those_that_are(fabric: Fabric) -> None:
    fabric.add_node(gpus=[gpu(1, "NVIDIA T4", 16)])
    job_id = fabric.submit_one(resources=share(gpus=1, model="H100"))
    assert message(fabric, job_id) == (
        "The job asks for a GPU of model 'H100', and there is none: the models here are NVIDIA T4."
    )
    large = fabric.submit_one(resources=share(gpus=1, gpu_memory=40 * 10**9, model="T4"))
    assert message(fabric, large).endswith(
        "has 0 suitable GPUs in all (asks 1 T4 GPU with 40 GB or more). The largest T4 GPU, on node-1, has 16 GB."
    )


def test_busy_nodes_are_told_with_what_is_free_and_who_drains(fabric: Fabric) -> None:
    node = fabric.add_node("n1", cpus=8)
    fabric.submit(job(resources=share(6, 64)))
    fabric.claim_one(node)
    fabric.add_node("n2", cpus=8)
    set_draining(fabric.db, "n2", True)
    job_id = fabric.submit_one(resources=share(4, 64))
    told = why(fabric, job_id)
    assert told.causes[0].message == (
        "1 node big enough is busy. The nearest, n1, has 2 CPUs free (asks 4 CPUs). Besides, n2 is draining."
    )
    assert [(n.id, fit) for n, fit in told.nodes] == [("n1", Fit.BUSY), ("n2", Fit.DRAINING)]


def test_a_draining_node_that_alone_is_big_enough_is_named(fabric: Fabric) -> None:
    fabric.add_node("n1", cpus=2)
    fabric.add_node("n2", cpus=8)
    set_draining(fabric.db, "n2", True)
    job_id = fabric.submit_one(resources=share(4, 64))
    assert code(fabric, job_id) == Code.NODES_AWAY
    assert "n2 is draining" in message(fabric, job_id)


def test_a_job_behind_better_ones_says_whose_they_are(fabric: Fabric) -> None:
    fabric.add_node("n1", slots=2)
    fabric.submit(job(priority_class=FOREGROUND), job())
    job_id = fabric.submit_one()
    told = why(fabric, job_id)
    assert told.causes[0].code == Code.BEHIND_OTHERS
    assert told.causes[0].numbers["first"] == {"foreground": 1, "same_shape": 1}
    assert told.ahead == 1
    assert told.causes[0].message == (
        "Node n1 has room, but 2 jobs that go first will fill it: "
        "1 foreground and 1 submitted earlier with the same shape."
    )


def test_an_executor_outside_gets_no_job_twice(fabric: Fabric) -> None:
    (job_id,) = fabric.submit(binary_job(max_retries=1, backoff_s=0.0))
    assert claim_external(fabric.db, fabric.settings, "w1", None) is not None
    finish_external(fabric.db, job_id, "w1", False, 1, "", "")
    assert code(fabric, job_id) == Code.EXCLUDED
    assert claim_external(fabric.db, fabric.settings, "w1", None) is None
    assert claim_external(fabric.db, fabric.settings, "w2", None) is not None


def test_a_waiting_executor_outside_gets_the_next_binary_but_no_script(fabric: Fabric) -> None:
    assert claim_external(fabric.db, fabric.settings, "w1", None) is None
    script = fabric.submit_one()
    assert code(fabric, script) == Code.NO_RUNNER
    (binary,) = fabric.submit(binary_job())
    assert message(fabric, binary) == "Executor w1 gets the job when it asks for one the next time."


def test_at_most_so_many_nodes_are_listed_and_all_are_counted(fabric: Fabric) -> None:
    for n in range(30):
        fabric.add_node(f"n{n:02}", cpus=2)
    told = why(fabric, fabric.submit_one(resources=share(4, 64)))
    assert (len(told.nodes), told.nodes_seen) == (explaining.NODES_SHOWN, 30)
    assert told.causes[0].numbers["too_small"] == 30


# -- agreement with claims -------------------------------------------------------------------------------------


@dataclass
class World:
    """A random fabric: tenants, nodes, what runs, what waits."""

    tenants: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    waiting: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


MODELS = (("T4", 16), ("A100", 40), ("A100", 80))
shapes = st.builds(
    share,
    st.sampled_from([0.1, 1, 2, 4, 16]),
    st.sampled_from([64, 1024, 8192]),
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from([0, 30 * 10**9]),
    st.sampled_from(["", "T4", "A100"]),
)
small = st.none() | st.integers(1, 4)
worlds = st.builds(
    World,
    st.lists(
        st.fixed_dictionaries(
            {
                "weight": st.sampled_from([0.5, 1.0, 3.0]),
                "quota_jobs": small,
                "quota_gpus": small,
                "quota_cpus_milli": st.none() | st.integers(100, 9000),
                "active": st.sampled_from([True, True, True, False]),
                "keeps": st.none() | st.integers(0, 9),
            }
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(
        st.fixed_dictionaries(
            {
                "slots": st.integers(0, 4),
                "cpus": st.sampled_from([1, 4, 8]),
                "memory": st.sampled_from([256 * MIB, 4 * GIB]),
                "gpus": st.lists(st.sampled_from(MODELS), max_size=3),
                "runners": st.sampled_from([("process",), ("process", "container")]),
                "state": st.sampled_from(["ready", "ready", "ready", "draining", "offline"]),
            }
        ),
        max_size=3,
    ),
    st.integers(0, 4),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.fixed_dictionaries(
                {
                    "priority_class": st.sampled_from([FOREGROUND, BACKGROUND, BEST_EFFORT]),
                    "priority": st.sampled_from([None, 1, 2]),
                    "resources": st.none() | shapes,
                    "runner": st.sampled_from(["process", "process", "container"]),
                    "copies": st.sampled_from([1, 1, 2, 6]),
                }
            ),
        ),
        min_size=1,
        max_size=5,
    ),
)


@contextmanager
def build(fabric: Fabric, url: str, world: World) -> Iterator[tuple[list[Node], list[tuple[UUID, UUID]]]]:
    """The world in the emptied database: nodes, and (tenant, job) of all that was submitted."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(EMPTY)
    connection.close()
    fabric._nodes = 0
    tenants = [fabric.add_tenant(tier="critical", weight=one["weight"]) for one in world.tenants]
    nodes, cards = [], 0
    for one in world.nodes:
        gpus: list[Gpu] = [gpu(cards + n, model, gb) for n, (model, gb) in enumerate(one["gpus"])]
        cards += len(gpus)
        nodes.append(
            fabric.add_node(
                slots=one["slots"], cpus=one["cpus"], memory=one["memory"], gpus=gpus, runners=one["runners"]
            )
        )
    jobs = []
    for place, asked in world.waiting:
        changes = {name: value for name, value in asked.items() if name != "copies"}
        if changes["runner"] == "container":
            changes |= {"script": None, "image": "busybox"}
        tenant = tenants[place % len(tenants)]
        jobs += [(tenant, one) for one in fabric.submit(*[job(**changes)] * asked["copies"], tenant=tenant)]
    for n in range(min(world.running, len(nodes) * 2)):
        fabric.claim(nodes[n % len(nodes)], 1)
    for tenant, one in zip(tenants, world.tenants, strict=True):
        fabric.sql(
            "UPDATE tenant SET quota_jobs = %s, quota_gpus = %s, quota_cpus_milli = %s, active = %s WHERE id = %s",
            one["quota_jobs"], one["quota_gpus"], one["quota_cpus_milli"], one["active"], tenant,
        )  # fmt: skip
        _keep(fabric, [job_id for of, job_id in jobs if of == tenant], one["keeps"])
    for node, one in zip(nodes, world.nodes, strict=True):
        fabric.sql("UPDATE node SET state = %s WHERE id = %s", one["state"], node.id)
    yield nodes, jobs


def _keep(fabric: Fabric, mine: list[UUID], place: int | None) -> None:
    """Keeps of their tenant's quota, for one of its jobs, what that needs."""
    if mine and place is not None:
        fabric.sql(
            """INSERT INTO quota_hold (tenant_id, job_id, jobs, cpus_milli, memory_bytes, gpus, gpu_memory_bytes,
                expires_at)
            SELECT j.tenant_id, j.id, 1, k.cpus_milli, k.memory_bytes, k.gpus, k.gpus * k.gpu_memory_bytes,
                now() + interval '1 hour'
            FROM job j JOIN scheduling_key k ON k.id = j.key_id WHERE j.id = %s""",
            mine[place % len(mine)],
        )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds)
def test_an_explanation_and_the_claims_never_tell_different_stories(
    fabric: Fabric, database_url: str, world: World
) -> None:
    tell_the_same(fabric, database_url, world)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds, size=st.integers(1, 4))
def test_they_tell_the_same_where_more_tenants_wait_than_one_look_shows(
    fabric: Fabric, database_url: str, world: World, size: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(claiming, "PAGE", size)
        patched.setattr(claiming, "SMALL_PAGE", size)
        tell_the_same(fabric, database_url, world)


def test_an_explanation_knows_the_order_of_many_tenants(fabric: Fabric) -> None:
    node = fabric.add_node(slots=1)
    tenants = [fabric.add_tenant() for _ in range(3 * claiming.SMALL_PAGE)]
    waiting = [fabric.submit_one(tenant) for tenant in tenants]
    for tenant in tenants[:-1]:
        fabric.sql("INSERT INTO tenant_share (tenant_id, average) VALUES (%s, 5)", tenant)
    (first,) = [one for one, _key in would_take(fabric, node)]
    assert first == waiting[-1]
    assert code(fabric, first, tenants[-1]) == Code.STARTS_NOW
    for place in (0, claiming.SMALL_PAGE, -2):
        told = why(fabric, waiting[place], tenants[place]).causes[0]
        assert (told.code, told.numbers["first"]) == (Code.BEHIND_OTHERS, {"other_tenants": 1})


def tell_the_same(fabric: Fabric, database_url: str, world: World) -> None:
    """What starts now by its explanation is taken by the claim it names; what is behind others or blocked is not."""
    with build(fabric, database_url, world) as (nodes, jobs):
        taken = {node.id: would_take(fabric, node) for node in nodes}
        for tenant, job_id in jobs:
            told = why(fabric, job_id, tenant)
            cause = told.causes[0]
            row = fabric.row(job_id)
            if row.state != 0:
                continue
            if cause.code == Code.STARTS_NOW:
                assert job_id in {one for one, _key in taken[cause.numbers["node"]]}, cause
            elif cause.code == Code.BEHIND_OTHERS:
                assert sum(cause.numbers["first"].values()) > 0, cause
                assert all(job_id not in {one for one, _key in held} for held in taken.values()), cause
            else:
                assert all(row.key_id not in {key for _one, key in held} for held in taken.values()), cause
