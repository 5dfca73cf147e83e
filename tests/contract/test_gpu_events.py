"""State changes in the gpu contract: server-sent events of ended jobs, live ones and WebSockets on a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from app.api.ids import parse_id, shown_id
from app.domain.policy import Ending
from app.services.stop import request_stop
from app.storage.database import Database
from tests import websocket
from tests.contract.conftest import Caller
from tests.factories import Fabric, Node, job, make_fabric
from tests.integration.live.server import TOKEN, ApiProcess

AT = "/gpu/api/v1"
STATE = {
    "job_id", "tenant_id", "name", "state", "message", "node_name", "time", "state_detail", "reason", "stopping",
    "attempt",
}  # fmt: skip
END = {"job_id", "state", "message", "exit_code", "signal"}
UNKNOWN = "job-6f0f2a526a304a8f8f0b3f0f3ad2b111"

Told = dict[str, Any]


@pytest.fixture
def gpu(app: Flask) -> Caller:
    return Caller(app.test_client(), AT)


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    fabric = make_fabric(database_url)
    yield fabric
    fabric.db.close()


@pytest.fixture
def node(fabric: Fabric) -> Node:
    return fabric.add_node("gpu-node-1")


def messages(text: str) -> list[Told]:
    """The messages of a stream that has ended."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def followed(gpu: Caller, path: str, **options: Any) -> list[Told]:
    """The messages of a stream that ends by itself."""
    with gpu.get(path, **options) as answer:
        assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), answer.text
        return messages(answer.text)


def words(told: list[Told]) -> list[str]:
    return [one["data"]["state"] for one in told if one["event"] == "state"]


def refused(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json) <= {"error", "details"}
    return str(answer.json["error"])


class TestOneJob:
    def test_is_told_from_its_submit_to_its_end(self, gpu: Caller, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one(type="training-job")
        fabric.finish(fabric.run(node))
        told = followed(gpu, f"/jobs/{shown_id('job-', job_id)}/events")
        assert [one["event"] for one in told] == ["state"] * 4 + ["end"]
        assert words(told) == ["pending", "running", "running", "completed"]
        assert [one["data"]["state_detail"] for one in told[:4]] == ["pending", "starting", "running", "completed"]
        for one in told[:4]:
            assert set(one["data"]) == STATE
            assert one["data"]["job_id"] == shown_id("job-", job_id)
            assert one["data"]["tenant_id"] == shown_id("tenant-", fabric.tenant)
            assert (one["data"]["name"], one["data"]["message"]) == ("training-job", "")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["data"]["time"])
        assert [one["data"]["node_name"] for one in told[:2]] == ["", "gpu-node-1"]
        end = told[-1]["data"]
        assert set(end) == END
        assert (end["job_id"], end["state"], end["exit_code"]) == (shown_id("job-", job_id), "completed", 0)

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_goes_on_behind_the_last_message(self, gpu: Caller, fabric: Fabric, node: Node, slash: str) -> None:
        shown = shown_id("job-", fabric.submit_one())
        fabric.finish(fabric.run(node))
        path = f"/jobs/{shown}/events{slash}"
        whole = followed(gpu, path)
        for place in (1, 3):
            rest = followed(gpu, path, headers={"Last-Event-ID": whole[place]["id"]})
            assert rest == whole[place + 1 :]
            assert followed(gpu, f"{path}?after={whole[place]['id']}") == rest
        assert followed(gpu, path, headers={"Last-Event-ID": whole[1]["id"]}, query_string="after=0") == (whole[2:])
        assert [one["event"] for one in followed(gpu, f"{path}?after=now")] == ["end"]

    def test_a_cancelled_one_shows_as_cancelled_while_it_stops(self, gpu: Caller, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        taken = fabric.run(node)
        request_stop(fabric.db, fabric.tenant, job_id, "ann")
        fabric.finish(taken, Ending(signal=15, stopped=True))
        told = followed(gpu, f"/jobs/{shown_id('job-', job_id)}/events")
        assert words(told) == ["pending", "running", "running", "cancelled", "cancelled"]
        assert [one["data"]["stopping"] for one in told[:5]] == [False, False, False, True, False]

    def test_a_preempted_one_is_preempted_until_it_runs_again(
        self, gpu: Caller, fabric: Fabric, node: Node, database_url: str
    ) -> None:
        job_id = fabric.submit_one()
        db = Database(database_url, 1, "test")
        with db.transaction("test") as tx:
            tx.run("UPDATE job SET reason = 'preempted' WHERE id = %(id)s", {"id": job_id})
            tx.run("UPDATE job SET reason = 'backoff', ready = false WHERE id = %(id)s", {"id": job_id})
            tx.run("UPDATE job SET reason = 'new', ready = true WHERE id = %(id)s", {"id": job_id})
        db.close()
        fabric.finish(fabric.run(node), Ending(exit_code=3))
        told = followed(gpu, f"/jobs/{shown_id('job-', job_id)}/events")
        assert words(told) == ["pending", "preempted", "pending", "pending", "running", "running", "failed"]
        assert [one["data"]["message"] for one in told[:4]] == ["", "preempted", "backoff", ""]
        assert (told[-1]["data"]["state"], told[-1]["data"]["exit_code"]) == ("failed", 3)
        assert told[-1]["data"]["message"]

    @pytest.mark.parametrize("name", [UNKNOWN, "job-1234567890", "nonsense", "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111"])
    def test_an_unknown_one_is_not_found(self, gpu: Caller, name: str) -> None:
        assert refused(gpu.get(f"/jobs/{name}/events"), 404) == "Job not found"

    def test_anothers_is_for_operators(self, gpu: Caller, fabric: Fabric) -> None:
        other = fabric.add_tenant("other")
        (job_id,) = fabric.submit(job(), tenant=other)
        request_stop(fabric.db, other, job_id, "ann")
        # The machine's own token has every role.
        told = followed(gpu, f"/jobs/{shown_id('job-', job_id)}/events")
        assert words(told) == ["pending", "cancelled"]

    @pytest.mark.parametrize("after", ["x", "1.2.99999999", "%00", "-1"])
    def test_what_is_no_place_is_refused(self, gpu: Caller, fabric: Fabric, after: str) -> None:
        shown = shown_id("job-", fabric.submit_one())
        for path in (f"/jobs/{shown}/events", "/events"):
            answer = gpu.get(f"{path}?after={after}")
            assert refused(answer, 400) == "Invalid request body"
            assert answer.json["details"][0]["field"] == "after"
            answer = gpu.get(path, headers={"Last-Event-ID": "x"})
            assert answer.json["details"][0]["field"] == "Last-Event-ID"

    def test_needs_a_token(self, stranger: Caller) -> None:
        stranger.prefix = AT
        assert refused(stranger.get(f"/jobs/{UNKNOWN}/events"), 401) == "Unauthorized"
        assert refused(stranger.get("/events"), 401) == "Unauthorized"


class TestAllJobs:
    def test_of_an_unknown_tenant_are_not_found(self, gpu: Caller) -> None:
        assert refused(gpu.get("/events?tenant_id=nobody"), 404) == "Tenant not found"


@pytest.fixture
def server(fabric: Fabric, tmp_path: Path) -> Iterator[ApiProcess]:
    started = ApiProcess({"CFAB_DATABASE_URL": fabric.settings.database_url}, tmp_path / "api.log")
    started.start()
    yield started
    started.kill()


class Spoken:
    """One WebSocket; `next` waits for a message."""

    def __init__(self, server: ApiProcess, path: str) -> None:
        url = f"ws://127.0.0.1:{server.port}{AT}{path}"
        self.client = websocket.Client(url, headers={"Authorization": f"Bearer {TOKEN}"})

    def next(self) -> Told:
        return dict(json.loads(self.client.receive(timeout=20)))


class TestLive:
    """On a real server, as the test client has no socket."""

    def test_one_job_is_followed_to_its_end_in_both_ways(self, server: ApiProcess, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        path = f"/jobs/{shown_id('job-', job_id)}/events"
        spoken = Spoken(server, path)
        answer = server.session.get(server.url + AT + path, stream=True, timeout=20)
        assert words([spoken.next()]) == ["pending"]
        taken = fabric.run(node)
        assert words([spoken.next(), spoken.next()]) == ["running", "running"]
        fabric.finish(taken)
        last, end = spoken.next(), spoken.next()
        assert (last["data"]["state"], end["event"], end["data"]["exit_code"]) == ("completed", "end", 0)
        with pytest.raises(websocket.ConnectionClosed):
            spoken.client.receive(timeout=20)
        told = messages(answer.text)
        assert [one["data"] for one in told[-2:]] == [last["data"], end["data"]]
        again = Spoken(server, f"{path}?after={told[2]['id']}")
        assert [again.next() for _ in range(2)] == [last, end]

    def test_all_jobs_of_a_tenant_and_of_no_other(self, server: ApiProcess, fabric: Fabric, node: Node) -> None:
        other = fabric.add_tenant("other")
        mine, others = Spoken(server, "/events"), Spoken(server, "/events?tenant_id=other")
        begin = mine.next()
        assert (begin["event"], begin["data"]) == ("begin", {"after": begin["id"]})
        assert others.next()["event"] == "begin"
        (theirs,) = fabric.submit(job(), tenant=other)
        ours = fabric.submit_one()
        first, second = mine.next(), others.next()
        assert _job(first) == ours and _job(second) == theirs
        assert second["data"]["tenant_id"] == shown_id("tenant-", other)
        again = Spoken(server, f"/events?after={begin['id']}")
        assert again.next()["event"] == "begin"
        assert again.next() == first

    def test_handshakes_are_refused_in_the_contracts_form(self, server: ApiProcess) -> None:
        upgrade = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }  # fmt: skip
        for path, status in ((f"/jobs/{UNKNOWN}/events", 404), ("/events?after=x", 400), ("/events?tenant_id=no", 404)):
            answer = server.session.get(server.url + AT + path, headers=upgrade, timeout=20)
            assert answer.status_code == status
            assert set(answer.json()) <= {"error", "details"}


def _job(told: Told) -> UUID:
    return parse_id("job-", told["data"]["job_id"])
