"""`GET /plan` of the jobs contract: what operators see of the planner, page by page, and who may not see it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from app.api.factory import create_app
from app.domain.policy import Ending
from app.domain.states import StopCause
from app.services.passes import Pass
from config.settings import Settings
from scheduler.plan import run_plan
from tests.contract.conftest import PREFIXES, Bells, Caller
from tests.contract.jobs_document import TIME, is_error
from tests.factories import BACKGROUND, BEST_EFFORT, FOREGROUND, Fabric, gpu, job, share
from tests.gangs import gang_node
from tests.issuer import AUDIENCE, ISSUER, Issuer, key_set

SIGNER = Issuer("EdDSA", "ed25519")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set(SIGNER.jwk()))
    return replace(
        settings, min_runtime_s=0.0, reserve_after_s=0.0, auth_keys=str(keys), auth_issuer=ISSUER,
        auth_audience=(AUDIENCE,), auth_algorithms=("EdDSA",),
    )  # fmt: skip


@pytest.fixture
def fabric(app: Flask, settings: Settings) -> Fabric:
    return Fabric(app.extensions["cfab"].db, settings)


def plan(fabric: Fabric) -> Pass:
    """One cycle, however long the last one took."""
    fabric.sql("UPDATE task_run SET detail = detail - 'at' WHERE name = 'plan'")
    return run_plan(fabric.db, fabric.settings)


def seen(api: Caller, path: str = "/plan") -> dict[str, Any]:
    answer = api.get(path)
    assert answer.status_code == 200, answer.text
    return dict(answer.json)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_before_the_first_cycle_it_says_that_nobody_plans(api: Caller, prefix: str) -> None:
    api.prefix = prefix
    assert seen(api) == {
        "cycle": None, "silent_seconds": None, "late": True, "reserved_jobs": 0, "reservations_total": 0,
        "totals": {"cycles": 0, "seconds": 0.0, "placed": 0, "refused": 0, "preempted": 0},
        "reservations": [], "quota_holds_total": 0, "quota_holds": [], "making_room_total": 0, "making_room": [],
    }  # fmt: skip


def test_a_cycle_is_told_and_cycles_add_up(api: Caller, fabric: Fabric) -> None:
    gang_node(fabric, "host", slots=4)
    fabric.submit_one(members=2)
    plan(fabric)
    first = seen(api)
    assert (first["cycle"]["placed"], first["cycle"]["nodes"], first["cycle"]["waiting"]) == (1, 1, 1)
    assert first["cycle"]["seconds"] > 0 and TIME.fullmatch(first["cycle"]["ended_at"])
    plan(fabric)
    second = seen(api)
    assert (second["cycle"]["placed"], second["late"]) == (0, False)
    assert (second["totals"]["cycles"], second["totals"]["placed"]) == (2, 1)
    assert second["totals"]["seconds"] > first["totals"]["seconds"]


def test_a_look_that_finds_it_too_early_is_no_cycle(api: Caller, fabric: Fabric) -> None:
    plan(fabric)
    fabric.sql("""UPDATE task_run SET detail = detail || '{"plan_s": 100}' WHERE name = 'plan'""")
    run_plan(fabric.db, fabric.settings)
    assert seen(api)["totals"]["cycles"] == 1


@pytest.mark.parametrize(("silent_s", "took_s", "late"), [(20, 0, False), (60, 0, True), (60, 30, False)])
def test_a_planner_that_has_been_silent_for_long_is_late(
    api: Caller, fabric: Fabric, silent_s: int, took_s: int, late: bool
) -> None:
    plan(fabric)
    fabric.sql(
        """UPDATE task_run SET last_run_at = last_run_at - make_interval(secs => %s),
        detail = detail || jsonb_build_object('took_s', %s) WHERE name = 'plan'""",
        silent_s,
        took_s,
    )
    told = seen(api)
    assert told["late"] is late and told["silent_seconds"] >= silent_s


class TestReservations:
    @pytest.fixture(autouse=True)
    def _kept(self, fabric: Fabric) -> None:
        """A gang of three waits for two nodes that are full."""
        tenant = fabric.add_tenant("science", tier="critical")
        nodes = [gang_node(fabric, f"host-{n}", [gpu(2 * n), gpu(2 * n + 1)], slots=2, cpus=4) for n in range(2)]
        fabric.submit(*[job(resources=share(cpus=2, gpus=1), time_limit_s=600.0) for _ in range(4)])
        for node in nodes:
            fabric.start(*fabric.claim(node))
        asked = job(members=3, priority_class=FOREGROUND, type="train", resources=share(cpus=1, memory_mib=64, gpus=1))
        self.gang = fabric.submit(asked, tenant=tenant)[0]
        plan(fabric)

    def test_show_where_what_when_and_why(self, api: Caller) -> None:
        told = seen(api)
        assert (told["reserved_jobs"], told["reservations_total"], told["cycle"]["reserved"]) == (1, 2, 3)
        places = told["reservations"]
        assert {one["job_id"] for one in places} == {str(self.gang)}
        assert [(one["node"], one["members"]) for one in places] in (
            [("host-0", 2), ("host-1", 1)], [("host-0", 1), ("host-1", 2)],
        )  # fmt: skip
        for one in places:
            n = one["members"]
            assert (one["tenant"], one["type"], one["why"], one["job_members"]) == ("science", "train", "gang", 3)
            assert (one["effective_class"], one["counts_as"]) == ("foreground", "foreground")
            assert (one["cpus"], one["memory_bytes"], len(set(one["gpus"]))) == (n, n * 2**26, n)
            assert all(TIME.fullmatch(one[name]) for name in ("starts_at", "made_at", "expires_at"))

    def test_come_in_pages(self, api: Caller) -> None:
        whole = seen(api)["reservations"]
        pages = [seen(api, f"/plan?limit=1&offset={n}") for n in range(3)]
        assert [page["reservations"] for page in pages] == [whole[:1], whole[1:], []]
        assert {page["reservations_total"] for page in pages} == {2}

    def test_that_are_over_are_not_shown(self, api: Caller, fabric: Fabric) -> None:
        fabric.sql("UPDATE reservation SET expires_at = now() - interval '1 second'")
        told = seen(api)
        assert (told["reserved_jobs"], told["reservations_total"], told["reservations"]) == (0, 0, [])

    def test_are_counted_for_prometheus(self, api: Caller) -> None:
        text = api.get("/metrics").text
        assert "cfab_plan_reserved_jobs 1.0" in text
        assert "cfab_plan_cycles_total 1.0" in text
        assert re.search(r"^cfab_plan_cycle_seconds 0\.\d+$", text, re.MULTILINE)
        assert re.search(r"^cfab_plan_busy_seconds_total 0\.\d+$", text, re.MULTILINE)

    def test_have_exactly_the_documented_fields(self, api: Caller) -> None:
        schemas = api.get("/openapi.json").json["components"]["schemas"]
        told = seen(api)
        assert set(told) == set(schemas["PlanShown"]["properties"])
        assert set(told["cycle"]) == set(schemas["CycleShown"]["properties"])
        assert set(told["totals"]) == set(schemas["TotalsShown"]["properties"])
        assert set(told["reservations"][0]) == set(schemas["ReservationShown"]["properties"])


def test_whose_quota_is_kept_is_shown_with_what_it_limits(api: Caller, fabric: Fabric) -> None:
    tenants = [fabric.add_tenant(name, tier="critical", quota_jobs=2, quota_gpus=1) for name in ("one", "two")]
    node = gang_node(fabric, "host")
    gangs = []
    for tenant in tenants:
        fabric.submit(job(), tenant=tenant)
        fabric.start(*fabric.claim(node))
        gangs += fabric.submit(job(members=2, type="train", priority_class=FOREGROUND), tenant=tenant)
    fabric.sql("UPDATE job SET created_at = now() - interval '2 hours' WHERE state = 0")
    run_plan(fabric.db, replace(fabric.settings, starvation_s=3600.0))
    told = seen(api)
    assert [one["job_id"] for one in told["quota_holds"]] == [str(gang) for gang in gangs]
    one = told["quota_holds"][0]
    assert set(one) == set(api.get("/openapi.json").json["components"]["schemas"]["QuotaHoldShown"]["properties"])
    assert (one["tenant"], one["type"], one["effective_class"], one["job_members"]) == ("one", "train", "foreground", 2)
    assert (one["jobs"], one["gpus"], one["cpus"], one["memory_bytes"], one["gpu_memory_bytes"]) == (
        2, 0, None, None, None,
    )  # fmt: skip
    assert all(TIME.fullmatch(one[name]) for name in ("made_at", "expires_at"))
    page = seen(api, "/plan?limit=1&offset=1")
    assert (page["quota_holds_total"], page["quota_holds"]) == (2, told["quota_holds"][1:])
    fabric.sql("UPDATE quota_hold SET expires_at = now()")
    assert (seen(api)["quota_holds_total"], seen(api)["quota_holds"]) == (0, [])


def test_who_makes_room_for_whom_is_shown_until_it_has_ended(api: Caller, fabric: Fabric) -> None:
    victims = fabric.add_tenant("low", tier="low")
    high = fabric.add_tenant("high", tier="critical", can_preempt_others=True)
    node = fabric.add_node("host", cpus=2, gpus=[gpu(0)])
    fabric.submit(job(priority_class=BEST_EFFORT, type="bulk", resources=share(gpus=1)), tenant=victims)
    victim = fabric.run(node)
    urgent = fabric.submit(job(priority_class=BACKGROUND, resources=share(gpus=1)), tenant=high)[0]
    assert plan(fabric).detail["preempted"] == 1
    for _ in range(2):
        told = seen(api)
        (one,) = told["making_room"]
        assert (one["job_id"], one["for_job_id"]) == (str(victim.job_id), str(urgent))
        assert (one["tenant"], one["type"], one["nodes"], one["gpus"]) == ("low", "bulk", ["host"], 1)
        assert TIME.fullmatch(one["since"]) and "makes room" in one["reason"]
        assert (told["reservations"][0]["why"], told["making_room_total"]) == ("preempting", 1)
        assert told["totals"]["preempted"] == 1
        plan(fabric)
    assert set(one) == set(api.get("/openapi.json").json["components"]["schemas"]["MakingRoomShown"]["properties"])
    assert "cfab_plan_preemptions_total 1.0" in api.get("/metrics").text
    assert len(fabric.value("SELECT detail->'told' FROM task_run WHERE name = 'plan'")) == 1
    fabric.finish(victim, Ending(signal=15, stopped=True))
    plan(fabric)
    assert (seen(api)["making_room"], seen(api)["making_room_total"]) == ([], 0)
    assert fabric.value("SELECT detail->'told' FROM task_run WHERE name = 'plan'") == []


def test_who_makes_room_is_shown_also_where_nobody_noted_for_whom(api: Caller, fabric: Fabric) -> None:
    node = fabric.add_node("host")
    fabric.submit_one()
    running = fabric.run(node)
    fabric.sql(
        "UPDATE job SET state = 3, stop_cause = %s, stop_by = 'scheduler' WHERE id = %s",
        int(StopCause.PREEMPT), str(running.job_id),
    )  # fmt: skip
    (one,) = seen(api)["making_room"]
    assert (one["job_id"], one["for_job_id"], one["reason"]) == (str(running.job_id), None, "")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=%00", "offset=-1", f"offset={2**60}"])
def test_a_page_that_cannot_be_is_refused(api: Caller, query: str) -> None:
    is_error(api.get(f"/plan?{query}"), 400)
    assert seen(api, f"/plan?limit=1000&offset={2**53}&other=%00")["reservations"] == []


@pytest.mark.parametrize(("role", "status"), [("user", 403), ("executor", 403), ("operator", 200), ("admin", 200)])
def test_only_operators_and_admins_see_it(app: Flask, role: str, status: int) -> None:
    caller = Caller(app.test_client(), token=SIGNER.token(roles=[role], tenant="default"))
    answer = caller.get("/plan")
    assert answer.status_code == status, answer.text
    if status == 403:
        is_error(answer, 403)
        assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]


def test_without_a_database_it_is_unavailable() -> None:
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/none", api_token="x" * 20)
    caller = Caller(create_app(settings, ringer=Bells()).test_client(), token="x" * 20)
    is_error(caller.get("/plan"), 503)
