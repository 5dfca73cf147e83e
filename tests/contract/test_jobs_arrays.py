"""Arrays and dependencies in the jobs contract: what is accepted, answered, refused, and in which form."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from app.api.hub import Hub
from app.domain.policy import Ending
from tests.contract.conftest import PREFIXES, Bells, Caller, job_body
from tests.contract.jobs_document import TIME, is_error
from tests.factories import Fabric, Node
from tests.integration.services.array_lab import assert_sound, tick

COUNTS = ("pending", "running", "completed", "failed", "cancelled")


@pytest.fixture
def fabric(app: Flask) -> Fabric:
    shared: Hub = app.extensions["cfab"]
    return Fabric(shared.db, shared.settings)


@pytest.fixture
def node(fabric: Fabric) -> Node:
    return fabric.add_node("n1")


def documented(api: Any, name: str) -> set[str]:
    spec: Any = api.get("/openapi.json").json
    return set(spec["components"]["schemas"][name]["properties"])


def array(api: Any, count: int = 5, **spread: Any) -> str:
    """An array's id."""
    return str(api.submit(array={"count": count, **spread})["id"])


def counted(api: Any, array_id: str) -> dict[str, int]:
    """The array's counts without zeros."""
    return {word: n for word, n in api.get(f"/arrays/{array_id}").json["counts"].items() if n}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_array_is_submitted_shown_and_listed(api: Any, bells: Bells, prefix: str) -> None:
    api.prefix = prefix
    made = api.submit(array={"count": 5, "max_parallel": 2})
    assert made["array"] == {"count": 5, "max_parallel": 2}
    assert (made["status"], made["reason"], bool(TIME.fullmatch(made["created_at"]))) == ("pending", "new", True)
    assert bells.rung
    shown: Any = api.get(f"/arrays/{made['id']}").json
    assert set(shown) == documented(api, "ArrayShown")
    assert shown["counts"] == {**dict.fromkeys(COUNTS, 0), "pending": 5}
    assert (shown["count"], shown["max_parallel"], shown["progress"], shown["depends_on"]) == (5, 2, 0.0, [])
    (listed,) = api.get("/arrays").json
    assert set(listed) == documented(api, "ArrayListed")
    assert listed == {name: value for name, value in shown.items() if name != "depends_on"}


def test_its_jobs_are_ordinary_jobs_with_an_index(api: Any, fabric: Fabric, node: Node) -> None:
    array_id = array(api, 3, max_parallel=2)
    taken = fabric.run(node)
    answer = api.get(f"/arrays/{array_id}/jobs")
    assert answer.headers["X-Total-Count"] == "3"
    assert [(one["array_index"], one["status"], one["reason"]) for one in answer.json] == [
        (0, "running", None), (1, "pending", "new"), (2, "pending", "array"),
    ]  # fmt: skip
    shown = api.get(f"/jobs/{taken.job_id}").json
    assert (shown["array_id"], shown["array_index"]) == (array_id, 0)
    assert shown["env_variables"]["CFAB_ARRAY_INDEX"] == "0"
    page = api.get(f"/arrays/{array_id}/jobs?status=pending&limit=1&offset=1")
    assert ([one["array_index"] for one in page.json], page.headers["X-Total-Count"]) == ([2], "2")
    assert api.get("/jobs").headers["X-Total-Count"] == "3"
    assert api.get(f"/jobs/{array_id}").status_code == 404
    why = api.get(f"/jobs/{answer.json[2]['id']}/explain").json
    assert (why["code"], why["causes"][0]["numbers"]["max_parallel"]) == ("array", 2)


def test_some_or_all_indices_are_cancelled(api: Any, fabric: Fabric, node: Node, bells: Bells) -> None:
    array_id = array(api, 10)
    running = fabric.run(node)
    done: Any = api.post(f"/arrays/{array_id}/cancel", json={"indices": "2-4, 9", "reason": "wrong input"}).json
    assert set(done) == documented(api, "ArrayCancelled")
    assert (done["cancelled"], done["stopping"], done["stop_reason"]) == (4, 0, "wrong input")
    rest = api.post(f"/arrays/{array_id}/cancel").json
    assert (rest["cancelled"], rest["stopping"], bells.woken) == (5, 1, ["n1"])
    fabric.finish(running, Ending(signal=15))
    tick(fabric)
    shown = api.get(f"/arrays/{array_id}").json
    assert (shown["status"], shown["counts"]["cancelled"], shown["progress"]) == ("cancelled", 10, 1.0)
    assert TIME.fullmatch(shown["completed_at"])
    context = is_error(api.post(f"/arrays/{array_id}/cancel"), 400)
    assert context == {"array_id": array_id, "status": "cancelled", "state_detail": "cancelled"}


def test_what_runs_may_go_on(api: Any, fabric: Fabric, node: Node) -> None:
    array_id = array(api, 2)
    fabric.run(node)
    assert api.post(f"/arrays/{array_id}/cancel", json={"running": False}).json["stopping"] == 0
    assert counted(api, array_id) == {"running": 1, "cancelled": 1}


def test_failed_indices_run_again(api: Any, fabric: Fabric, node: Node) -> None:
    array_id = array(api, 4)
    is_error(api.post(f"/arrays/{array_id}/retry"), 400)
    for one in fabric.claim(node):
        fabric.finish(one, Ending(exit_code=int(one.environment["CFAB_ARRAY_INDEX"]) % 2))
    tick(fabric)
    assert api.get(f"/arrays/{array_id}").json["status"] == "failed"
    before = {one["id"] for one in api.get(f"/arrays/{array_id}/jobs?status=failed").json}
    is_error(api.post(f"/arrays/{array_id}/retry", json={"indices": "0,2"}), 400)
    done: Any = api.post(f"/arrays/{array_id}/retry", json={"indices": "3"}).json
    assert set(done) == documented(api, "ArrayRetried")
    assert (done["retried"], done["status"], done["completed_at"]) == (1, "running", None)
    assert counted(api, array_id) == {"completed": 2, "failed": 1, "pending": 1}
    assert len(before & {one["id"] for one in api.get(f"/arrays/{array_id}/jobs?status=failed").json}) == 1
    assert api.get("/jobs").headers["X-Total-Count"] == "5"


def test_a_key_covers_an_array_and_what_is_done_to_it(api: Any, fabric: Fabric, node: Node) -> None:
    headers = {"Idempotency-Key": "one"}
    sent = [api.post("/jobs", json=job_body(array={"count": 3}), headers=headers) for _ in range(2)]
    assert sent[0].json == sent[1].json
    assert sent[1].headers["Idempotent-Replayed"] == "true"
    assert api.post("/jobs", json=job_body(array={"count": 4}), headers=headers).status_code == 422
    array_id = sent[0].json["id"]
    cancelled = [
        api.post(f"/arrays/{array_id}/cancel", json={"indices": "0"}, headers=headers).json["cancelled"]
        for _ in range(2)
    ]
    assert cancelled == [1, 1]
    for one in fabric.claim(node):
        fabric.finish(one, Ending(exit_code=1))
    again = [api.post(f"/arrays/{array_id}/retry", headers=headers).json["retried"] for _ in range(2)]
    assert again == [2, 2]


@pytest.mark.parametrize(
    ("array", "field"),
    [
        ({}, "array.count"), ({"count": 0}, "array.count"), ({"count": "5"}, "array.count"),
        ({"count": 2.0}, "array.count"), ({"count": 3_000_000}, "array.count"), ({"count": 2**40}, "array.count"),
        ({"count": 5, "max_parallel": 0}, "array.max_parallel"), ({"count": 5, "more": 1}, "array.more"),
        (5, "array"),
    ],
    ids=str,
)  # fmt: skip
def test_an_array_that_cannot_be_is_refused(api: Any, array: Any, field: str) -> None:
    context = is_error(api.post("/jobs", json=job_body(array=array)), 400)
    assert context["field"] == field
    assert api.get("/jobs").headers["X-Total-Count"] == "0"


@pytest.mark.parametrize("indices", ["", "x", "1-", "-1", "3-2", "0,,1", "5", "0-5", "1e2", "0 1", "9" * 30, 3, ["0"]])
def test_indices_that_cannot_be_are_refused(api: Any, indices: Any) -> None:
    array_id = array(api, 5)
    for action in ("cancel", "retry"):
        context = is_error(api.post(f"/arrays/{array_id}/{action}", json={"indices": indices}), 400)
        assert context["field"] == "indices"
    assert counted(api, array_id) == {"pending": 5}


def test_an_array_is_not_held_whole(api: Any) -> None:
    assert is_error(api.post("/jobs", json=job_body(array={"count": 2}, hold=True)), 400)["field"] == "hold"


def test_an_array_is_no_part_of_a_bulk(api: Any) -> None:
    context = is_error(api.post("/jobs/bulk", json=[job_body(array={"count": 2})]), 400)
    assert (context["errors"][0]["index"], context["errors"][0]["field"]) == (0, "array")


@pytest.mark.parametrize(
    "name", ["nothing", "019aa5a5-0000-7000-8000-000000000000", "00000000-0000-0000-0000-000000000000 "]
)
def test_an_array_that_is_not_there(api: Any, name: str) -> None:
    for method, path in (("GET", ""), ("GET", "/jobs"), ("POST", "/cancel"), ("POST", "/retry")):
        context = is_error(api(method, f"/arrays/{name}{path}"), 404)
        assert context["array_id"] == name


# -- dependencies ----------------------------------------------------------------------------------------------


def test_a_job_waits_and_says_for_what(api: Any, fabric: Fabric, node: Node) -> None:
    first, second = api.submit()["id"], api.submit()["id"]
    made = api.submit(depends_on=[first, {"job": second, "on": "afterany"}])
    assert (made["status"], made["reason"], made["array"]) == ("pending", "dependency", None)
    shown: Any = api.get(f"/jobs/{made['id']}").json
    assert [set(one) for one in shown["depends_on"]] == [documented(api, "ParentShown")] * 2
    assert {(one["job"], one["on"], one["satisfied"], one["state_detail"]) for one in shown["depends_on"]} == {
        (first, "afterok", None, "pending"), (second, "afterany", None, "pending"),
    }  # fmt: skip
    why = api.get(f"/jobs/{made['id']}/explain").json
    assert why["code"] == "dependency"
    assert first in why["message"]
    fabric.finish(fabric.run(node))
    fabric.finish(fabric.run(node), Ending(exit_code=1))
    tick(fabric)
    assert str(fabric.claim_one(node).job_id) == made["id"]


def test_what_can_never_start_is_cancelled_and_says_why(api: Any, fabric: Fabric, node: Node) -> None:
    first = api.submit()["id"]
    made = api.submit(depends_on=[first])["id"]
    api.delete(f"/jobs/{first}")
    tick(fabric)
    shown = api.get(f"/jobs/{made}").json
    assert (shown["status"], shown["stopped_by"]) == ("cancelled", "dependency")
    assert first in shown["message"]
    assert shown["depends_on"][0]["satisfied"] is False


def test_an_array_is_a_parent_and_a_child(api: Any, fabric: Fabric, node: Node) -> None:
    parent = api.submit()["id"]
    waiting = array_after(api, parent)
    last = api.submit(depends_on=[waiting])["id"]
    assert api.get(f"/arrays/{waiting}").json["reason"] == "dependency"
    assert api.get(f"/arrays/{waiting}").json["depends_on"][0]["job"] == parent
    for _ in range(4):
        fabric.finish(fabric.run(node))
        tick(fabric)
    assert str(fabric.claim_one(node).job_id) == last
    assert api.get(f"/jobs/{last}").json["depends_on"][0]["array"] is True


def array_after(api: Any, parent: str) -> str:
    """An array of three that waits for `parent`."""
    return str(api.submit(array={"count": 3}, depends_on=[parent])["id"])


@pytest.mark.parametrize(
    ("parents", "field"),
    [
        ("x", "depends_on"), ([5], "depends_on[0]"), ([{}], "depends_on[0]"),
        (["nobody"], "depends_on[0]"), ([{"job": "0" * 32}], "depends_on[0]"),
        ([{"job": "00000000-0000-0000-0000-000000000000", "on": "later"}], "depends_on[0]"),
        ([{"job": "00000000-0000-0000-0000-000000000000", "x": 1}], "depends_on[0]"),
        (["00000000-0000-0000-0000-000000000000"], "depends_on[0].job"),
        (["00000000-0000-0000-0000-000000000000"] * 2, "depends_on[1]"),
        (["00000000-0000-0000-0000-000000000000"] * 1001, "depends_on"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_parents_that_cannot_be_are_refused(api: Any, parents: Any, field: str) -> None:
    context = is_error(api.post("/jobs", json=job_body(depends_on=parents)), 400)
    assert context["field"] == field
    assert api.get("/jobs").headers["X-Total-Count"] == "0"


def test_another_tenants_job_is_no_parent(api: Any, fabric: Fabric) -> None:
    theirs = fabric.submit_one(tenant=fabric.add_tenant())
    answer = api.post("/jobs", json=job_body(depends_on=[str(theirs)]))
    nobody = api.post("/jobs", json=job_body(depends_on=[str(uuid4())]))
    assert is_error(answer, 400)["field"] == is_error(nobody, 400)["field"] == "depends_on[0].job"


def test_jobs_of_a_bulk_have_parents_too(api: Any, fabric: Fabric, node: Node) -> None:
    first = api.submit()["id"]
    made = api.post("/jobs/bulk", json=[job_body(depends_on=[first]), job_body()]).json
    assert [one["reason"] for one in made] == ["dependency", "new"]
    refused = api.post("/jobs/bulk", json=[job_body(), job_body(depends_on=[str(uuid4())])])
    assert is_error(refused, 400)["errors"][0]["index"] == 1


def test_an_executor_gets_the_index_in_its_variables(api: Any, fabric: Fabric) -> None:
    array_id = array(api, 2, max_parallel=1)
    first = api.claim()
    assert first["env_variables"]["CFAB_ARRAY_INDEX"] == "0"
    assert api.post("/jobs/claim", json={"executor_id": "other"}).status_code == 204
    api.put(f"/jobs/{first['id']}/complete", json={"executor_id": "worker-1-abc123", "exit_code": 0})
    assert api.claim("other")["env_variables"]["CFAB_ARRAY_INDEX"] == "1"
    assert_sound(fabric, fabric.value("SELECT id FROM job_array"))
    assert counted(api, array_id) == {"completed": 1, "running": 1}


def test_other_contracts_see_an_arrays_jobs_as_any(api: Any) -> None:
    array(api, 2)
    other = Caller(api.client, "/ai/api/v1")
    page: Any = other.get("/jobs/").json
    assert len(page["items"]) == 2
