"""Who may do what, for every route of the application: the cases are made from its map of URLs and its views' marks.

A new route is tested without a line here. It fails only if its path parameters cannot be filled (`_filled`) or if it
is open to everyone without being named in PUBLIC.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from app.api.auth.marks import Rules, rules_of
from app.api.auth.principal import ADMIN, ALL_ROLES, EXECUTOR, OPERATOR, USER
from app.api.contract import Contract
from app.api.factory import CONTRACTS, create_app
from app.api.ids import shown_id
from app.domain.array import ArrayAsked
from app.domain.dependency import After
from app.services.submit import submit_array
from config.rates import parse_rules
from config.settings import Settings
from tests.contract.conftest import Bells
from tests.factories import Fabric, binary_job, make_fabric
from tests.issuer import AUDIENCE, ISSUER, Issuer, key_set
from tests.servers import TestServers

PUBLIC = {"/jobs/api/v1/health", "/ai/api/v1/health/live", "/ai/api/v1/health/ready", "/gpu/api/v1/health",
          "/health", "/v1/health"}  # fmt: skip
"""Routes that need no token; each must say no more than whether the server is well."""

SHOWN_IDS = {"compute": "job_", "gpu": "job-", "ai": "job-"}
"""How a contract shows the id of a job, where it does not show the plain UUID."""

NOBODYS = {"queue_name", "cluster_name", "file", "node", "gpu"}
"""Arguments that name nothing of a tenant's."""
AI_OFF = ["ai:submit=off", "ai:list=off"]

EVENTS = {"Accept": "text/event-stream"}
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "events": {"headers": EVENTS, "query_string": {"follow": "true"}},
    "websocket": {"headers": UPGRADE, "query_string": {"follow": "true"}},
}
"""The ways in which a GET can be asked: a stream must be refused before it starts, like anything else."""

SIGNER = Issuer("EdDSA", "ed25519")
FOREIGN_ANSWERS = {"GET": {404}, "DELETE": {404}}


@dataclass(frozen=True)
class Route:
    """One method of one rule."""

    rule: str
    method: str
    marks: Rules
    contract: str
    arguments: tuple[str, ...]
    websocket: bool

    def __str__(self) -> str:
        return f"{'WEBSOCKET' if self.websocket else self.method} {self.rule}"


@dataclass
class House:
    """The application with a job of tenant `owner`; `stranger` is another tenant, `gone` an inactive one."""

    app: Flask
    fabric: Fabric
    owner: UUID
    job: UUID

    def ask(self, route: Route, token: str | None, form: str = "", **headers: str) -> TestResponse:
        """Sends a request for the owner's object."""
        form = form or forms(route)[0]
        options = {**FORMS[form], "headers": {**FORMS[form].get("headers", {}), **headers}}
        if token is not None:
            options["headers"]["Authorization"] = f"Bearer {token}"
        if route.method not in {"GET", "DELETE"}:
            options["json"] = {}
        return self.app.test_client().open(_filled(route, self.job), method=route.method, **options)

    def rows(self) -> str:
        """Everything there is about jobs and tenants, to see that a refusal changed nothing."""
        tables = {
            name: self.fabric.all(f"SELECT * FROM {name} ORDER BY id")
            for name in ("job", "job_array", "tenant", "attempt")
        }
        return repr(tables)


def _filled(route: Route, job: UUID) -> str:
    shown = shown_id(SHOWN_IDS[route.contract], job) if route.contract in SHOWN_IDS else str(job)
    known = {"job_id": shown, "id": shown, "array_id": str(job), "tenant": "owner", "tenant_id": "owner",
             "file": "swagger-ui.css", "queue_name": "default", "cluster_name": "default", "number": "1",
             "attempt": "1", "node": "node-1", "gpu": "0"}  # fmt: skip
    unknown = set(route.arguments) - known.keys()
    assert not unknown, f"{route}: say in _filled what {', '.join(sorted(unknown))} may be"
    return re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", lambda match: known[match[1]], route.rule)


def _routes() -> list[Route]:
    """Every method of every rule, from an application that never asks its database."""
    app = create_app(Settings(api_token="x", database_url="postgresql://nobody@127.0.0.1:1/none"), ringer=Bells())
    rules = sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule)
    return [
        _route(app, rule, method) for rule in rules for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


def _route(app: Flask, rule: Rule, method: str) -> Route:
    def at(contract: Contract) -> bool:
        return rule.rule.startswith(contract.at + "/")

    named = next((contract.name for contract in CONTRACTS if at(contract)), "")
    marks = rules_of(app.view_functions[rule.endpoint])
    return Route(rule.rule, method, marks, named, tuple(sorted(rule.arguments)), rule.websocket)


ROUTES = _routes()
CLOSED = [route for route in ROUTES if not route.marks.public(Settings())]
OPEN = [route for route in ROUTES if route.marks.public(Settings())]

every_route = pytest.mark.parametrize("route", CLOSED, ids=str)


@pytest.fixture(scope="module")
def house(servers: TestServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    url = servers.database()
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.write_bytes(key_set(SIGNER.jwk()))
    settings = Settings(
        database_url=url, database_pool=4, api_threads=8, api_token="the-machines-token",
        auth_keys=str(keys), auth_issuer=ISSUER, auth_audience=(AUDIENCE,), auth_algorithms=("EdDSA",),
        rate_limits=parse_rules(",".join([f"{contract.name}:*=off" for contract in CONTRACTS] + AI_OFF)),
        failed_logins_per_minute=0,
    )  # fmt: skip
    fabric = make_fabric(url)
    fabric.add_node()
    owner = fabric.add_tenant("owner")
    fabric.add_tenant("stranger")
    fabric.add_tenant("gone", active=False)
    (job,) = fabric.submit(binary_job(), tenant=owner)
    # One id for both, and an array that waits, so that it has no jobs.
    waits = submit_array(fabric.db, fabric.settings, owner, binary_job(after=(After(job),)), ArrayAsked(2)).array
    assert waits is not None
    fabric.sql("UPDATE job_array SET id = %s WHERE id = %s", job, waits.id)
    yield House(create_app(settings, fabric.db, Bells()), fabric, owner, job)
    fabric.db.close()
    servers.drop(url)


@pytest.fixture(scope="module", autouse=True)
def nothing_was_changed(house: House) -> Iterator[None]:
    """Whatever was refused had no effect."""
    before = house.rows()
    yield
    assert house.rows() == before


def token(*roles: str, tenant: str | None = "owner", **changes: Any) -> str:
    return SIGNER.token(roles=list(roles), tenant=tenant, **changes)


def refused(answer: TestResponse, status: int, challenge: str = "") -> None:
    """An answer in full, not a stream, in JSON, with the challenge that its status needs."""
    assert answer.status_code == status, answer.text[:300]
    assert answer.mimetype == "application/json", answer.mimetype
    assert isinstance(json.loads(answer.text), dict)
    assert challenge in answer.headers.get("WWW-Authenticate", ""), answer.headers
    if status == 401:
        assert "Bearer" in answer.headers["WWW-Authenticate"]


def forms(route: Route) -> list[str]:
    """The ways in which this route can be asked."""
    if route.websocket:
        return ["websocket"]
    return ["plain", "events"] if route.method == "GET" else ["plain"]


def test_only_what_is_named_is_open() -> None:
    assert {route.rule for route in OPEN} <= PUBLIC
    assert len(CLOSED) > 15


@pytest.mark.parametrize("route", OPEN, ids=str)
def test_an_open_route_says_only_how_the_server_is(house: House, route: Route) -> None:
    answer = house.ask(route, None)
    assert answer.status_code in {200, 503}
    assert "owner" not in answer.text and len(answer.text) < 300


@every_route
def test_no_token(house: House, route: Route) -> None:
    for form in FORMS if route.method == "GET" else ("plain",):
        answer = house.ask(route, None, form)
        refused(answer, 401)
        assert "error=" not in answer.headers["WWW-Authenticate"]


@every_route
def test_a_token_elsewhere_than_in_its_header(house: House, route: Route) -> None:
    """A token in a URL ends up in logs and histories, one in a form can be sent by any web page."""
    good = token(*ALL_ROLES)
    client, path = house.app.test_client(), _filled(route, house.job)
    for name in ("access_token", "token", "authorization", "bearer"):
        refused(client.open(path, method=route.method, query_string={name: good}), 401)
    client.set_cookie("access_token", good)
    headers = {"X-Access-Token": good, "X-Api-Key": good, "Proxy-Authorization": f"Bearer {good}",
               "X-Forwarded-Authorization": f"Bearer {good}", "Sec-WebSocket-Protocol": f"bearer, {good}"}  # fmt: skip
    refused(client.open(path, method=route.method, headers=headers), 401)
    refused(
        client.open(path, method="POST" if route.method == "GET" else route.method, data={"access_token": good}), 401
    )


@every_route
def test_a_garbage_token(house: House, route: Route) -> None:
    good = token(*ALL_ROLES)
    bad = ["garbage", "a.b.c", good[:-6] + "AAAAAA", good + "x", "x" * 20_000, good.replace(".", ". ", 1), "\xff"]
    for given in bad if route == CLOSED[0] else bad[:3]:
        for form in forms(route):
            refused(house.ask(route, given, form), 401, 'error="invalid_token"')


@every_route
def test_an_expired_token(house: House, route: Route) -> None:
    late = token(*ALL_ROLES, exp=int(time.time()) - 3600, iat=int(time.time()) - 7200)
    for form in forms(route):
        refused(house.ask(route, late, form), 401, "The token has expired.")


@every_route
def test_two_tokens_at_once(house: House, route: Route) -> None:
    header = f"Bearer {token(*ALL_ROLES)}"
    answer = house.app.test_client().open(
        _filled(route, house.job), method=route.method, headers=[("Authorization", header), ("Authorization", header)]
    )
    refused(answer, 401)


@every_route
def test_a_token_of_a_stranger(house: House, route: Route) -> None:
    stranger = Issuer("EdDSA", "ed25519", number=9)
    refused(house.ask(route, stranger.token(roles=["admin"])), 401, 'error="invalid_token"')


@every_route
def test_a_wrong_role(house: House, route: Route) -> None:
    for role in sorted(ALL_ROLES - set(route.marks.roles) - {ADMIN}):
        for form in forms(route):
            refused(house.ask(route, token(role), form), 403, 'error="insufficient_scope"')


@every_route
def test_no_role_that_is_known(house: House, route: Route) -> None:
    for roles in ((), ("root", "Admin", "superuser")):
        refused(house.ask(route, token(*roles)), 403, 'error="insufficient_scope"')


@every_route
@pytest.mark.parametrize("tenant", [None, "", "nobody", "gone", "o' OR 1=1", "\u202eowner"])
def test_no_tenant_that_is_there(house: House, route: Route, tenant: str | None) -> None:
    role = next(iter(route.marks.roles))
    if role == ADMIN and not tenant:
        pytest.skip("an admin without a tenant acts for the default one")
    for form in forms(route):
        refused(house.ask(route, token(role, tenant=tenant), form), 403)


@every_route
def test_another_tenant_by_header(house: House, route: Route) -> None:
    """Only an admin may name one; whether it exists shows in no other's answer."""
    for role in sorted(set(route.marks.roles) - {ADMIN}):
        answers = [
            house.ask(route, token(role, tenant="stranger"), **{"X-Tenant": name, "X-Request-Id": "one"})
            for name in ("owner", "nobody")
        ]
        for answer in answers:
            refused(answer, 403)
        assert answers[0].json == answers[1].json
    refused(house.ask(route, token(ADMIN), **{"X-Tenant": "nobody"}), 404)


@pytest.mark.parametrize(
    "route",
    [
        route
        for route in CLOSED
        if set(route.arguments) - NOBODYS and USER in route.marks.roles and not route.marks.browsable
    ],
    ids=str,
)  # fmt: skip
class TestAnObjectOfAnotherTenant:
    def test_is_not_there(self, house: House, route: Route) -> None:
        for form in forms(route):
            answer = house.ask(route, token(USER, tenant="stranger"), form)
            assert answer.status_code in FOREIGN_ANSWERS.get(route.method, {400, 404}), (form, answer.text[:300])
            assert answer.mimetype == "application/json"
            assert str(house.owner) not in answer.text and "example.com/program" not in answer.text

    def test_answers_as_if_it_had_never_been(self, house: House, route: Route) -> None:
        if not {"job_id", "array_id"} & set(route.arguments):
            pytest.skip("this route is about no job and no array")
        absent = House(house.app, house.fabric, house.owner, UUID(int=house.job.int ^ 1))
        here, nowhere = (one.ask(route, token(USER, tenant="stranger")) for one in (house, absent))
        assert here.status_code == nowhere.status_code
        assert _without_id(here) == _without_id(nowhere)

    def test_is_there_for_its_owner(self, house: House, route: Route) -> None:
        if route.method != "GET":
            pytest.skip("this would change it")
        for token_of in (token(USER), token(USER, tenant=str(house.owner))):
            assert house.ask(route, token_of).status_code in {200, 426}
        assert house.ask(route, token(ADMIN, tenant=None), **{"X-Tenant": "owner"}).status_code in {200, 426}


def _without_id(answer: TestResponse) -> str:
    return re.sub(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", "ID", answer.text)


@pytest.mark.parametrize(
    ("role", "open_routes"),
    [
        (USER, {"GET /jobs", "POST /jobs", "POST /jobs/bulk", "GET /jobs/<job_id>", "DELETE /jobs/<job_id>",
                "POST /jobs/<job_id>/stop", "GET /jobs/<job_id>/logs", "GET /arrays", "GET /arrays/<array_id>",
                "POST /arrays/<array_id>/cancel", "POST /arrays/<array_id>/retry", "GET /openapi.json"}),
        (EXECUTOR, {"POST /jobs/claim", "PUT /jobs/<job_id>/heartbeat", "PUT /jobs/<job_id>/complete",
                    "PUT /jobs/<job_id>/fail"}),
        (OPERATOR, {"GET /admin/stats", "GET /admin/executors", "GET /metrics"}),
    ],
)  # fmt: skip
def test_the_jobs_contract_gives_each_role_its_routes_alone(role: str, open_routes: set[str]) -> None:
    def of(marked: Callable[[Route], bool]) -> set[str]:
        routes = [route for route in CLOSED if route.contract == "jobs" and marked(route)]
        return {f"{route.method} {route.rule.removeprefix('/jobs/api/v1')}" for route in routes}

    assert open_routes <= of(lambda route: role in route.marks.roles)
    others = of(lambda route: role not in route.marks.roles)
    assert not open_routes & others


class TestTheMachinesOwnToken:
    @every_route
    def test_opens_every_route(self, house: House, route: Route) -> None:
        if route.method != "GET":
            pytest.skip("this would change something")
        answer = house.ask(route, "the-machines-token", **{"X-Tenant": "owner"})
        assert answer.status_code in {200, 426}, answer.text[:300]
        answer.close()

    def test_acts_for_the_default_tenant(self, house: House) -> None:
        client = house.app.test_client()
        header = {"Authorization": "Bearer the-machines-token"}
        assert client.get("/jobs/api/v1/jobs", headers=header).headers["X-Total-Count"] == "0"
        mine = client.get("/jobs/api/v1/jobs", headers={**header, "X-Tenant": str(house.owner)})
        assert mine.headers["X-Total-Count"] == "1"


def test_keys_that_no_longer_are_trusted_close_every_door(house: House, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set(SIGNER.jwk()))
    settings = Settings(
        database_url=house.fabric.settings.database_url, auth_keys=str(keys), auth_issuer=ISSUER,
        auth_audience=(AUDIENCE,), auth_algorithms=("EdDSA",),
    )  # fmt: skip
    client = create_app(settings, house.fabric.db, Bells()).test_client()
    header = {"Authorization": f"Bearer {token(USER)}"}
    assert client.get("/jobs/api/v1/jobs", headers=header).status_code == 200
    keys.write_bytes(key_set(Issuer("EdDSA", "ed25519", number=2).jwk()))
    assert client.get("/jobs/api/v1/jobs", headers=header).status_code == 401
