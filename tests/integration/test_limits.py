"""Limits over several API processes on one Valkey: the sum counts, and a broker in any trouble stops nobody.

The applications here have contracts of their own making, so that each kind of row in the table is met.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
import redis
from flask import Flask, Response, g, request
from flask.testing import FlaskClient

from app.api import errors, limits
from app.api.arguments import Blueprint
from app.api.auth import Principal
from app.api.contract import Contract
from app.api.jobs.schemas import ErrorShown
from app.api.limits.check import Limits
from app.api.limits.counters import PREFIX, LocalCounters
from app.domain.errors import FabricError
from app.local.ports import free_port
from app.local.valkey import ValkeyServer
from config.settings import Settings, load_settings
from tests.factories import until

NOON = 1_705_315_230
"""Half past a minute, a long way from the end of an hour."""


class Form:
    """Shows the message alone."""

    statuses: Any = MappingProxyType({})

    def body(self, status: int, error: FabricError) -> Any:
        return {"error": error.message, "context": dict(error.context)}


def contract(name: str, at: str, groups: dict[str, str]) -> Contract:
    """A contract with a route for each name in `groups`, marked with its group."""
    blueprint = Blueprint(name, name)
    for route, group in groups.items():

        def view() -> Response:
            return Response("done")

        view.__name__ = route
        marked = view if group == "*" else limits.limited(group)(view)
        blueprint.add_url_rule(f"/{route}", route, marked, methods=["GET"])
    return Contract(name, name, at, blueprint, Form(), ErrorShown)


CONTRACTS = (
    contract("jobs", "/jobs", {"submit": "submit", "show": "read", "stop": "*", "health": limits.UNLIMITED}),
    contract("ai", "/ai", {"submit": "submit", "list": "list", "queues": "*", "health": limits.UNLIMITED}),
    contract("compute", "/compute", {"submit": "*", "stop": "*"}),
    contract("gpu", "/gpu", {"submit": "*"}),
)


def make_app(broker_url: str = "", rules: str = "") -> Flask:
    """An API process as far as its limits go; who asks is in the headers."""
    environ = {"CFAB_RATE_LIMITS": rules} if rules else {}
    settings: Settings = load_settings(environ, broker_url=broker_url)
    app = Flask("limits-test")

    def login() -> None:
        if "X-Caller" in request.headers:
            tenant = UUID(int=int(request.headers.get("X-Of", "1")))
            g.principal = Principal(tenant, frozenset({"user"}), request.headers["X-Caller"])
        elif "health" not in request.path:
            raise errors.Unauthorized()

    limiting = limits.install(app, settings, CONTRACTS)
    app.before_request(login)
    limiting.count()
    for one in CONTRACTS:
        app.register_blueprint(one.blueprint, url_prefix=one.at)
    errors.install(app, errors.ErrorForms({one.at: one.errors for one in CONTRACTS} | {"": Form()}))
    return app


def limits_of(app: Flask) -> Limits:
    found: Limits = app.extensions["cfab_limits"]
    return found


def ask(client: FlaskClient, path: str, caller: str = "ada", of: int = 1) -> Any:
    return client.get(path, headers={"X-Caller": caller, "X-Of": str(of)})


def passed(client: FlaskClient, path: str, times: int, **who: Any) -> int:
    """How many of `times` requests were served; the others were refused for their rate."""
    statuses = [ask(client, path, **who).status_code for _ in range(times)]
    assert set(statuses) <= {200, 429}
    return statuses.count(200)


@pytest.fixture(autouse=True)
def still_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the windows stands still until the test moves it."""
    now = [float(NOON)]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey to be treated badly."""
    server = ValkeyServer(tmp_path / "valkey", free_port(), "only-for-tests")
    server.create()
    server.start()
    yield server
    if server.pid is not None:
        os.kill(server.pid, signal.SIGCONT)
    server.stop()


@pytest.fixture
def pair(valkey: ValkeyServer) -> Iterator[list[Flask]]:
    """Two API processes on one Valkey, with ten submits a day for a tenant."""
    apps = [make_app(valkey.url, "jobs:submit=10/day") for _ in range(2)]
    yield apps
    for app in apps:
        limits_of(app).counters.close()


def shared(app: Flask) -> bool | None:
    return limits_of(app).counters.shared


class TestDocumentedLimits:
    def test_ai_has_three_limits_for_each_caller_with_headers_on_every_answer(self) -> None:
        client = make_app().test_client()
        for route, most in (("submit", 100), ("list", 300), ("queues", 600)):
            first = ask(client, f"/ai/{route}")
            assert first.headers["X-RateLimit-Limit"] == str(most)
            assert first.headers["X-RateLimit-Remaining"] == str(most - 1)
            assert first.headers["X-RateLimit-Reset"] == "1705315260"
            assert "Retry-After" not in first.headers
            assert passed(client, f"/ai/{route}", most) == most - 1
            assert passed(client, f"/ai/{route}", 1, caller="bob") == 1
            refused = ask(client, f"/ai/{route}")
            assert refused.status_code == 429
            assert refused.headers["X-RateLimit-Remaining"] == "0"
            assert refused.headers["Retry-After"] == "30"

    def test_ai_shows_the_headers_also_where_nothing_is_counted(self) -> None:
        client = make_app().test_client()
        for path, status, most in (("/ai/health", 200, "600"), ("/ai/submit", 401, "100")):
            for _ in range(2):
                answer = client.get(path)
                assert answer.status_code == status
                assert answer.headers["X-RateLimit-Limit"] == answer.headers["X-RateLimit-Remaining"] == most

    def test_ai_shows_the_headers_also_for_paths_and_methods_that_do_not_exist(self) -> None:
        client = make_app().test_client()
        missing = [ask(client, "/ai/nothing") for _ in range(2)][-1]
        assert (missing.status_code, missing.headers["X-RateLimit-Remaining"]) == (404, "600")
        wrong = client.delete("/ai/queues", headers={"X-Caller": "ada"})
        assert (wrong.status_code, wrong.headers["X-RateLimit-Remaining"]) == (405, "600")

    def test_compute_allows_ten_a_second_for_each_tenant_and_endpoint(self, still_clock: list[float]) -> None:
        client = make_app().test_client()
        assert passed(client, "/compute/submit", 12, caller="ada") == 10
        assert passed(client, "/compute/submit", 1, caller="bob") == 0
        assert passed(client, "/compute/stop", 12) == 10
        assert passed(client, "/compute/submit", 12, of=2) == 10
        assert "X-RateLimit-Limit" not in ask(client, "/compute/submit", of=3).headers
        still_clock[0] += 1
        assert passed(client, "/compute/submit", 12) == 10

    def test_gpu_allows_a_hundred_a_second_for_each_caller(self) -> None:
        client = make_app().test_client()
        assert passed(client, "/gpu/submit", 101) == 100
        assert passed(client, "/gpu/submit", 1, caller="bob") == 1

    def test_jobs_has_none(self) -> None:
        client = make_app().test_client()
        assert passed(client, "/jobs/submit", 700) == 700
        assert not [name for name in ask(client, "/jobs/submit").headers if name[0].startswith("X-RateLimit")]

    def test_another_windows_requests_do_not_count(self, still_clock: list[float]) -> None:
        client = make_app().test_client()
        assert passed(client, "/ai/submit", 101) == 100
        still_clock[0] = 1_705_315_260
        assert passed(client, "/ai/submit", 101) == 100


class TestSettings:
    def test_an_operator_sets_several_rates_and_whose_requests_count_together(self, still_clock: list[float]) -> None:
        client = make_app(rules="jobs:submit=3/second+5/day by subject").test_client()
        assert passed(client, "/jobs/submit", 4) == 3
        assert passed(client, "/jobs/submit", 4, caller="bob") == 3
        still_clock[0] += 1
        assert passed(client, "/jobs/submit", 4) == 2
        still_clock[0] += 1
        refused = ask(client, "/jobs/submit")
        assert refused.headers["X-RateLimit-Limit"] == "5"
        assert int(refused.headers["Retry-After"]) == 86_400 - (NOON + 2) % 86_400

    def test_the_rest_of_a_contract_shares_one_limit_but_for_groups_of_their_own(self) -> None:
        client = make_app(rules="jobs:*=5/day,jobs:read=off").test_client()
        assert passed(client, "/jobs/stop", 3) == 3
        assert passed(client, "/jobs/submit", 3) == 2
        assert passed(client, "/jobs/show", 20) == 20
        assert passed(client, "/jobs/health", 20) == 20

    def test_a_documented_limit_can_be_changed_or_lifted(self) -> None:
        client = make_app(rules="ai:submit=7/day,gpu:*=off").test_client()
        assert passed(client, "/ai/submit", 9) == 7
        assert passed(client, "/ai/submit", 9, caller="bob") == 7
        assert passed(client, "/gpu/submit", 300) == 300

    def test_requests_can_be_counted_by_address_whoever_sends_them(self) -> None:
        client = make_app(rules="jobs:submit=2/day by address").test_client()

        def send(caller: str, address: str) -> int:
            answer = client.get("/jobs/submit", headers={"X-Caller": caller}, environ_base={"REMOTE_ADDR": address})
            return answer.status_code

        assert [send(caller, "192.0.2.1") for caller in ("ada", "bob", "eve")] == [200, 200, 429]
        assert send("eve", "192.0.2.2") == 200
        assert [send("ada", f"::ffff:192.0.2.{n}") for n in (1, 2)] == [429, 200]

    def test_a_group_that_does_not_exist_is_refused_at_start_with_those_that_do(self) -> None:
        with pytest.raises(ValueError, match=r"no jobs:sumbit to limit; there are jobs:submit, jobs:bulk"):
            make_app(rules="jobs:sumbit=1/day")


class TestManyProcesses:
    def test_the_sum_of_two_is_limited(self, pair: list[Flask]) -> None:
        first, second = (app.test_client() for app in pair)
        assert passed(first, "/jobs/submit", 6) + passed(second, "/jobs/submit", 6) == 10
        assert ask(first, "/jobs/submit").status_code == ask(second, "/jobs/submit").status_code == 429
        assert ask(second, "/jobs/submit", of=2).headers["X-RateLimit-Remaining"] == "9"

    def test_keys_have_a_prefix_and_an_end(self, pair: list[Flask], valkey: ValkeyServer) -> None:
        ask(pair[0].test_client(), "/jobs/submit")
        with redis.Redis.from_url(valkey.url) as client:
            (name,) = client.keys("*")
            assert name.startswith(PREFIX.encode())
            assert 0 < client.ttl(name) <= 86_400 + 60

    def test_names_cannot_reach_into_the_keys_of_others(self, valkey: ValkeyServer) -> None:
        client = make_app(valkey.url, "jobs:submit=2/day by subject").test_client()
        odd = ["ada", "ada/jobs:submit/2/1/day", "a\tda", "*", "x" * 3000, "tenant=1,subject=ada"]
        for caller in odd:
            assert passed(client, "/jobs/submit", 3, caller=caller) == 2
        with redis.Redis.from_url(valkey.url) as raw:
            names = raw.keys("*")
        assert len(names) == len(odd)
        assert all(len(name) < 200 and b"ada" not in name for name in names)

    def test_flushall_is_lenient_and_no_more(self, pair: list[Flask], valkey: ValkeyServer) -> None:
        client = pair[0].test_client()
        assert passed(client, "/jobs/submit", 11) == 10
        with redis.Redis.from_url(valkey.url) as raw:
            raw.flushall()
        assert passed(client, "/jobs/submit", 11) == 10
        assert shared(pair[0])


class TestRedisIsAway:
    @pytest.mark.parametrize("trouble", ["dead", "frozen", "full", "other password"])
    def test_each_process_counts_alone_and_comes_back(
        self, pair: list[Flask], valkey: ValkeyServer, trouble: str
    ) -> None:
        clients = [app.test_client() for app in pair]
        assert passed(clients[0], "/jobs/submit", 10) == 10
        end_trouble = make_trouble(valkey, trouble)
        assert [passed(client, "/jobs/submit", 12) for client in clients] == [10, 10]
        assert [shared(app) for app in pair] == [False, False]
        end_trouble()
        until(lambda: all(shared(app) for app in pair))
        with redis.Redis.from_url(valkey.url) as raw:
            raw.flushall()
        assert sum(passed(client, "/jobs/submit", 7) for client in clients) == 10

    def test_one_that_answers_without_counting_is_not_back(self, pair: list[Flask], valkey: ValkeyServer) -> None:
        ask(pair[0].test_client(), "/jobs/submit")
        end_trouble = make_trouble(valkey, "full")
        ask(pair[0].test_client(), "/jobs/submit")
        with redis.Redis.from_url(valkey.url) as raw:
            until(lambda: raw.info("commandstats")["cmdstat_incrby"]["rejected_calls"] >= 5)
        assert shared(pair[0]) is False
        end_trouble()

    def test_a_broker_that_never_was_there_stops_nobody(self) -> None:
        app = make_app(f"redis://127.0.0.1:{free_port()}/0", "jobs:submit=10/day")
        assert passed(app.test_client(), "/jobs/submit", 12) == 10
        assert shared(app) is False
        limits_of(app).counters.close()

    def test_without_a_broker_the_process_counts(self) -> None:
        app = make_app(rules="jobs:submit=10/day")
        assert passed(app.test_client(), "/jobs/submit", 12) == 10
        assert shared(app) is None

    def test_a_stranger_with_many_addresses_cannot_grow_the_process(self, still_clock: list[float]) -> None:
        counters = LocalCounters(most_keys=100)
        for number in range(1000):
            counters.add(f"k{number}", 60)
        assert len(counters._counts) <= 100
        still_clock[0] += 60
        assert counters.add("k999", 60).number == 1


def make_trouble(valkey: ValkeyServer, trouble: str) -> Any:
    """Spoils the broker; the result mends it."""
    pid = valkey.pid
    assert pid is not None
    if trouble == "dead":
        valkey.kill()
        return valkey.start
    if trouble == "frozen":
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)
    option, bad, good = ("maxmemory", "1", "0") if trouble == "full" else ("requirepass", "other", "only-for-tests")
    admin = redis.Redis.from_url(valkey.url)
    admin.config_set(option, bad)
    if trouble == "other password":
        # Connections that have logged in stay so; a restart with another password would end them.
        admin.client_kill_filter(skipme=True)

    def mend() -> None:
        admin.config_set(option, good)
        admin.close()

    return mend


class TestMeasures:
    def test_refusals_are_counted_by_contract_and_group_and_redis_is_watched(self, pair: list[Flask]) -> None:
        passed(pair[0].test_client(), "/jobs/submit", 13)
        families = {family.name: family for family in limits_of(pair[0]).measures.collect()}
        (refused,) = families["cfab_rate_limited"].samples
        assert (refused.labels, refused.value) == ({"contract": "jobs", "group": "submit"}, 3)
        assert families["cfab_rate_limits_redis_up"].samples[0].value == 1
