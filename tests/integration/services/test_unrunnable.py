"""Jobs that no registered node could ever run: told, counted, alerted of, and refused where the setting says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.domain.errors import Unrunnable
from app.services import unrunnable
from app.services.external import claim_external
from app.services.inspect import gauges, job_detail
from app.services.rehearse import rehearse
from app.services.submit import submit
from tests.factories import Fabric, binary_job, gpu, job, share


def mark(fabric: Fabric) -> dict[str, Any]:
    return unrunnable.mark(fabric.db, fabric.settings).detail


def refusing(fabric: Fabric) -> Fabric:
    return replace(fabric, settings=replace(fabric.settings, unrunnable="refuse"))


def test_a_job_says_itself_that_no_node_could_ever_run_it(fabric: Fabric) -> None:
    fabric.add_node("small", cpus=2)
    fits, never = fabric.submit(job(), job(resources=share(16, 64)))
    detail = mark(fabric)
    shown = job_detail(fabric.db, fabric.tenant, never).job
    assert (shown.reason, shown.message) == (
        "unrunnable", "No node is big enough. The largest for this job, small, has 2 CPUs in all (asks 16 CPUs)."
    )  # fmt: skip
    assert job_detail(fabric.db, fabric.tenant, fits).job.reason == "new"
    assert (detail["keys"], detail["jobs"]) == (1, 1)
    assert gauges(fabric.db).task_detail["unrunnable"]["jobs"] == 1


def test_operators_are_told_once(fabric: Fabric) -> None:
    fabric.add_node("small", cpus=2)
    fabric.submit(*[job(resources=share(16, 64))] * 3)
    detail = mark(fabric)
    assert detail["jobs"] == 3
    assert detail["alerts"] == [
        "jobs of tenant default wait that no registered node could ever run (too_big): No node is big enough. "
        "The largest for this job, small, has 2 CPUs in all (asks 16 CPUs)."
    ]
    assert mark(fabric)["alerts"] == []


def test_a_node_that_comes_ends_it(fabric: Fabric) -> None:
    fabric.add_node("small", cpus=2)
    (never,) = fabric.submit(job(resources=share(16, 64)))
    mark(fabric)
    node = fabric.add_node("large", cpus=32)
    assert mark(fabric)["keys"] == 0
    assert job_detail(fabric.db, fabric.tenant, never).job.reason == "new"
    assert fabric.claim_one(node).job_id == never
    assert fabric.value("SELECT count(*) FROM unrunnable_key") == 0


@pytest.mark.parametrize("state", ["draining", "offline"])
def test_a_node_that_is_away_may_come_back(fabric: Fabric, state: str) -> None:
    fabric.add_node("large", cpus=32, gpus=[gpu(0), gpu(1)])
    fabric.sql("UPDATE node SET state = %s", state)
    fabric.sql("""UPDATE node SET gpus_out = '{"GPU-0": {"reason": "x", "by": "ops", "at": ""}}'""")
    fabric.submit(job(resources=share(16, 64, gpus=2)))
    assert mark(fabric)["keys"] == 0
    refusing(fabric).submit(job(resources=share(16, 64, gpus=2)))


@pytest.mark.parametrize(
    "asked",
    [
        {"resources": share(1, 64, gpus=1)},
        {"resources": share(1, 64, gpus=3, model="A100")},
        {"resources": share(1, 64, gpus=1, gpu_memory=200 * 10**9)},
        {"resources": share(1, 2**30)},
        {"runner": "container", "image": "busybox", "script": None},
    ],
    ids=["gpu model", "gpus", "gpu memory", "memory", "runner"],
)
def test_refused_where_the_setting_says_so(fabric: Fabric, asked: dict[str, Any]) -> None:
    gpus = [] if asked.get("resources") == share(1, 64, gpus=1) else [gpu(0), gpu(1)]
    fabric.add_node("host", gpus=gpus)
    with pytest.raises(Unrunnable, match=r"No registered node could ever run this job\. ") as refused:
        refusing(fabric).submit(job(**asked))
    assert [(one.field, one.index) for one in refused.value.problems] == [("resources", None)]
    assert fabric.value("SELECT count(*) FROM job") == 0
    fabric.submit(job(**asked))
    assert mark(fabric)["jobs"] == 1


def test_of_many_the_places_are_named_and_none_is_made(fabric: Fabric) -> None:
    fabric.add_node("small", cpus=2)
    big = job(resources=share(16, 64))
    with pytest.raises(Unrunnable, match=r"^\[1\] ") as refused:
        refusing(fabric).submit(job(), big, job(), big)
    assert [one.index for one in refused.value.problems] == [1, 3]
    assert fabric.value("SELECT count(*) FROM job") == 0


def test_before_the_first_node_nothing_is_refused_or_marked(fabric: Fabric) -> None:
    refusing(fabric).submit(job(resources=share(64, 64, gpus=8)))
    assert mark(fabric)["keys"] == 0
    claim_external(fabric.db, fabric.settings, "outside", None)
    refusing(fabric).submit(job(resources=share(64, 64, gpus=8)))
    assert mark(fabric)["keys"] == 0


def test_an_executor_outside_may_run_what_no_node_can(fabric: Fabric) -> None:
    fabric.add_node("small", cpus=2)
    claim_external(fabric.db, fabric.settings, "outside", None)
    refusing(fabric).submit(binary_job(resources=share(64, 64)))
    with pytest.raises(Unrunnable):
        refusing(fabric).submit(job(resources=share(64, 64)))


def test_all_members_of_a_gang_must_have_room(fabric: Fabric) -> None:
    for name in ("a", "b"):
        fabric.add_node(name, cpus=4, runners=("process", "gang-process"))
    refusing(fabric).submit(job(members=4, resources=share(2, 64)))
    with pytest.raises(Unrunnable, match=r"5 members that each ask .* all registered nodes together have room for 4"):
        refusing(fabric).submit(job(members=5, resources=share(2, 64)))


def test_a_dry_run_tells_of_the_refusal(fabric: Fabric) -> None:
    fabric.add_node("small", cpus=2)
    asked = job(resources=share(16, 64))
    found = rehearse(fabric.db, refusing(fabric).settings, fabric.tenant, asked)
    assert isinstance(found.refusal, Unrunnable)
    assert rehearse(fabric.db, fabric.settings, fabric.tenant, asked).ever.count == 0


def test_refused_is_exactly_what_could_run_nowhere(fabric: Fabric) -> None:
    """The same `fit_of` as an explanation's decides."""
    fabric.add_node("a", cpus=4, gpus=[gpu(0, "NVIDIA T4", 16)])
    fabric.add_node("b", cpus=16)
    strict = refusing(fabric)
    for cpus in (2, 8, 32):
        for gpus in (0, 1, 2):
            asked = job(resources=share(cpus, 64, gpus=gpus))
            ever = rehearse(fabric.db, fabric.settings, fabric.tenant, asked).ever.count
            try:
                submit(fabric.db, strict.settings, fabric.tenant, [asked])
            except Unrunnable:
                assert ever == 0
            else:
                assert ever > 0
