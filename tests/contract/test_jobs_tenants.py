"""Tenants in the jobs contract: who may make, see and change them, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask, Request

from app.api.auth import ADMIN, OPERATOR, USER, Identity
from app.api.factory import create_app
from app.domain.priority import PriorityClass
from app.services import tenants
from app.storage.database import Database
from config.settings import Settings
from tests.contract.conftest import PREFIXES, Bells, Caller, job_body
from tests.contract.jobs_document import TIME, is_error

NO_LIMITS = {"jobs": None, "cpus": None, "memory_mib": None, "gpus": None, "gpu_memory_mb": None}
NOTHING = dict.fromkeys(NO_LIMITS, 0)
As = Callable[..., Caller]


@pytest.fixture
def as_(settings: Settings, app: Flask, monkeypatch: pytest.MonkeyPatch) -> As:
    """Callers of any tenant with any roles, on the same database."""
    db = app.extensions["cfab"].db

    def caller(tenant: str, *roles: str) -> Caller:
        class Fixed:
            def authenticate(self, request: Request) -> Identity:
                return Identity(frozenset(roles), "someone", UUID(tenant))

        monkeypatch.setattr("app.api.auth.authenticator", lambda *_args, **_options: Fixed())
        return Caller(create_app(settings, db, Bells()).test_client())

    return caller


def make(api: Caller, name: str = "lab", **fields: Any) -> dict[str, Any]:
    answer = api.post("/tenants", json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json)


class TestMake:
    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_a_name_is_enough(self, api: Caller, prefix: str) -> None:
        api.prefix = prefix
        made = make(api)
        assert UUID(made.pop("id"))
        assert TIME.fullmatch(made.pop("created_at"))
        assert made == {
            "name": "lab", "email": None, "organization": None, "tier": "medium", "weight": 1.0, "active": True,
            "allow_preemption": True, "can_preempt_others": False, "quota": NO_LIMITS, "usage": NOTHING,
        }  # fmt: skip

    def test_all_that_can_be_said_is_kept(self, api: Caller) -> None:
        asked = {
            "email": "a@example.com", "organization": "Lab", "tier": "high", "weight": 2.5, "active": False,
            "allow_preemption": False, "can_preempt_others": True,
            "quota": {"jobs": 20, "cpus": 64.5, "memory_mib": 262144, "gpus": 10, "gpu_memory_mb": 160000},
        }  # fmt: skip
        made = make(api, **asked)
        assert {name: made[name] for name in asked} == asked
        assert api.get("/tenants/lab").json == made
        assert api.get(f"/tenants/{made['id']}/").json == made

    def test_the_document_names_every_field(self, api: Caller) -> None:
        schemas = api.get("/openapi.json").json["components"]["schemas"]
        made = make(api)
        assert set(schemas["TenantShown"]["properties"]) == set(made)
        assert set(schemas["AmountsShown"]["properties"]) == set(made["quota"]) == set(made["usage"])

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"name": None}, "name"),
            ({"name": ""}, "name"),
            ({"name": "a b"}, "name"),
            ({"name": "a/b"}, "name"),
            ({"name": "x" * 64}, "name"),
            ({"name": "\u007f"}, "name"),
            ({"name": "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111"}, "name"),
            ({"tier": "best"}, "tier"),
            ({"tier": None}, "tier"),
            ({"weight": 0}, "weight"),
            ({"weight": "1"}, "weight"),
            ({"active": 1}, "active"),
            ({"quota": None}, "quota"),
            ({"quota": {"gpus": -1}}, "quota.gpus"),
            ({"quota": {"gpus": 1.5}}, "quota.gpus"),
            ({"quota": {"cpus": True}}, "quota.cpus"),
            ({"quota": {"disks": 1}}, "quota.disks"),
            ({"quota": {"memory_mib": 1e300}}, "quota.memory_mib"),
            ({"color": "red"}, "color"),
        ],
        ids=str,
    )
    def test_what_cannot_be_is_refused_by_field(self, refusing: Caller, fields: dict[str, Any], problem: str) -> None:
        answer = refusing.post("/tenants", json={"name": "lab", **fields})
        context = is_error(answer, 400)
        assert context["field"] == problem

    def test_a_name_is_given_once(self, api: Caller) -> None:
        make(api)
        answer = api.post("/tenants", json={"name": "lab"})
        assert is_error(answer, 400)["field"] == "name"
        assert "already" in answer.json["error"]
        assert len(api.get("/tenants").json) == 2


class TestSee:
    def test_operators_see_all_by_name(self, api: Caller) -> None:
        for name in ("b", "a", "c"):
            make(api, name)
        answer = api.get("/tenants")
        assert [one["name"] for one in answer.json] == ["a", "b", "c", "default"]
        assert answer.headers["X-Total-Count"] == "4"
        assert [one["name"] for one in api.get("/tenants?limit=2&offset=1").json] == ["b", "c"]
        is_error(api.get("/tenants?limit=0"), 400)

    def test_usage_is_what_runs_now(self, api: Caller) -> None:
        api.submit(resources={"cpus": 2, "memory_mib": 512})
        assert api.get("/tenants/default").json["usage"] == NOTHING
        api.claim()
        assert api.get("/tenants/default").json["usage"] == {**NOTHING, "jobs": 1, "cpus": 2, "memory_mib": 512}
        assert api.get("/tenants").json[0]["usage"]["jobs"] == 1

    def test_a_user_sees_its_own_and_no_other(self, api: Caller, as_: As) -> None:
        mine, other = make(api, "mine"), make(api, "other")
        user = as_(mine["id"], USER)
        assert [one["name"] for one in user.get("/tenants").json] == ["mine"]
        assert user.get("/tenants?offset=1").json == []
        assert user.get("/tenants/mine").json == mine
        unknown = user.get("/tenants/no-such")
        for text in ("other", other["id"], "default"):
            answer = user.get(f"/tenants/{text}")
            is_error(answer, 404)
            assert answer.json["error"] == unknown.json["error"]

    def test_only_an_admin_makes_and_changes(self, api: Caller, as_: As) -> None:
        mine = make(api, "mine")
        for roles in ((USER,), (OPERATOR,), (USER, OPERATOR)):
            caller = as_(mine["id"], *roles)
            is_error(caller.post("/tenants", json={"name": "new"}), 403)
            is_error(caller("PATCH", "/tenants/mine", json={"tier": "critical"}), 403)
            assert caller.get("/tenants/mine").status_code == 200
        assert as_(mine["id"], ADMIN)("PATCH", "/tenants/mine", json={"tier": "high"}).status_code == 200

    def test_an_operator_sees_any(self, api: Caller, as_: As) -> None:
        mine = make(api, "mine")
        assert as_(mine["id"], OPERATOR).get("/tenants/default").status_code == 200

    def test_unknown_ones_are_404(self, api: Caller) -> None:
        for text in ("no-such", "%00", "a%20b", "x" * 500, "%ff", str(uuid4()), "a%2Fb"):
            is_error(api.get(f"/tenants/{text}"), 404)
            is_error(api("PATCH", f"/tenants/{text}", json={}), 404)

    def test_nobody_without_a_token(self, stranger: Caller) -> None:
        for method, path in (
            ("GET", "/tenants"),
            ("POST", "/tenants"),
            ("GET", "/tenants/default"),
            ("PATCH", "/tenants/default"),
        ):
            is_error(stranger(method, path, json={}), 401)


class TestChange:
    def test_only_what_is_named_changes(self, api: Caller) -> None:
        made = make(api, quota={"jobs": 5, "gpus": 4}, organization="Lab")
        answer = api("PATCH", "/tenants/lab", json={"quota": {"gpus": None, "cpus": 8}, "email": None, "weight": 3})
        assert answer.status_code == 200
        assert answer.json == {**made, "quota": {**NO_LIMITS, "jobs": 5, "cpus": 8}, "weight": 3.0}
        assert api("PATCH", "/tenants/lab", json={}).json == answer.json

    def test_a_wrong_field_changes_nothing(self, api: Caller) -> None:
        made = make(api)
        for wrong in ({"tier": "x"}, {"name": "b"}, {"id": "x"}, {"weight": -1}, {"quota": {"jobs": "5"}}):
            is_error(api("PATCH", "/tenants/lab", json={"organization": "Lab", **wrong}), 400)
        assert api.get("/tenants/lab").json == made

    def test_raised_limits_wake_the_nodes(self, api: Caller, bells: Bells) -> None:
        make(api)
        api("PATCH", "/tenants/lab", json={"weight": 2})
        assert bells.rung == []
        api("PATCH", "/tenants/lab", json={"quota": {"jobs": 5}})
        assert bells.rung == list(PriorityClass)


class TestSubmit:
    def test_what_could_never_start_is_403_with_numbers(self, api: Caller, as_: As) -> None:
        lab = make(api, quota={"gpus": 4})
        user = as_(lab["id"], USER)
        answer = user.post("/jobs", json=job_body(resources={"gpus": 8}))
        assert is_error(answer, 403)["tenant"] == "lab"
        assert answer.json["error"] == "The job asks for 8 GPUs; the quota of tenant lab is 4 GPUs."
        bulk = user.post("/jobs/bulk", json=[job_body(), job_body(resources={"gpus": 5})])
        context = is_error(bulk, 403)
        assert context["index"] == 1
        assert [one["index"] for one in context["errors"]] == [1]
        assert user.get("/jobs").json == []

    def test_an_inactive_tenant_is_403(self, api: Caller, as_: As) -> None:
        lab = make(api, active=False)
        answer = as_(lab["id"], USER).post("/jobs", json=job_body())
        is_error(answer, 403)

    def test_the_asked_class_is_echoed_and_the_one_that_counts_stands_beside_it(self, api: Caller, as_: As) -> None:
        user = as_(make(api, tier="low")["id"], USER)
        job = user.get(f"/jobs/{user.submit(priority='foreground')['id']}").json
        assert job["priority"] == "foreground"
        assert (job["effective_class"], job["effective_priority"]) == ("best_effort", 100)
        assert len(user.get("/jobs?priority=foreground").json) == 1
        own = api.get(f"/jobs/{api.submit(priority='foreground')['id']}").json
        assert (own["effective_class"], own["effective_priority"]) == ("foreground", 1000)


def test_the_default_tenant_is_there_from_the_start(settings: Settings, app: Flask, api: Caller) -> None:
    db = Database(settings.database_url)
    found = tenants.find(db, "default")
    db.close()
    assert found is not None
    shown = api.get("/tenants/default").json
    assert (shown["id"], shown["tier"]) == (str(found.id), "critical")
