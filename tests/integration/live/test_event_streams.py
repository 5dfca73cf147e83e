"""Streams of events through a real server: nothing missed or told twice, whatever ends and begins in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.domain.states import JobState
from tests import websocket
from tests.factories import Fabric, Node, raw, until
from tests.integration.live.server import TOKEN, ApiProcess

Told = dict[str, Any]


@pytest.fixture
def api(fabric: Fabric, tmp_path: Path) -> Iterator[ApiProcess]:
    started = ApiProcess({"CFAB_DATABASE_URL": fabric.settings.database_url}, tmp_path / "api.log")
    started.start()
    yield started
    started.kill()


@pytest.fixture
def node(fabric: Fabric) -> Node:
    return fabric.add_node()


class Follower:
    """One connection to a stream of server-sent events; `next` waits for a message and tells it with its data."""

    def __init__(self, api: ApiProcess, path: str, last: str | None = None) -> None:
        headers = {"Last-Event-ID": last} if last else {}
        self.answer = api.session.get(f"{api.url}/api/v1{path}", headers=headers, stream=True, timeout=20)
        assert self.answer.status_code == 200, self.answer.text
        assert self.answer.headers["Content-Type"].startswith("text/event-stream")
        self._lines = self.answer.iter_lines(chunk_size=1, decode_unicode=True)

    def next(self) -> Told:
        fields: Told = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if name in {"id", "event", "data"}:
                fields[name] = json.loads(value) if name == "data" else value
            elif not line and "event" in fields:
                return fields
        raise EOFError

    def close(self) -> None:
        self.answer.close()


def state(told: Told) -> str:
    return str(told["data"]["state_detail"])


class TestAllJobs:
    def test_are_followed_as_they_change(self, api: ApiProcess, fabric: Fabric, node: Node) -> None:
        fabric.submit_one()
        follower = Follower(api, "/events/stream")
        begin = follower.next()
        assert (begin["event"], begin["data"]["after"]) == ("begin", begin["id"])
        first = fabric.claim_one(node)
        assert [follower.next()["data"][key] for key in ("job_id",)] == [str(first.job_id)]
        other = fabric.submit_one()
        told = follower.next()
        assert (told["event"], told["data"]["job_id"], state(told)) == ("job", str(other), "pending")
        assert told["id"] == told["data"]["id"]
        follower.close()

    def test_from_the_beginning_and_only_some(self, api: ApiProcess, fabric: Fabric) -> None:
        fabric.submit_one(type="a")
        wanted = fabric.submit_one(type="b")
        for query in (f"job_id={wanted}", "type=b", f"tenant=*&job_id={wanted}"):
            follower = Follower(api, f"/events/stream?after=0&{query}")
            assert follower.next()["event"] == "begin"
            assert follower.next()["data"]["job_id"] == str(wanted)
            follower.close()

    def test_what_commits_late_is_told_when_it_does(self, api: ApiProcess, fabric: Fabric) -> None:
        early, late = fabric.submit_one(), fabric.submit_one()
        follower = Follower(api, "/events/stream")
        follower.next()
        with raw(fabric.settings.database_url) as slow, slow.cursor() as sql:
            sql.execute("UPDATE job SET reason = 'hold' WHERE id = %s", (str(early),))
            fabric.sql("UPDATE job SET reason = 'lost' WHERE id = %s", str(late))
            slow.commit()
        assert {follower.next()["data"]["reason"] for _ in range(2)} == {"hold", "lost"}
        follower.close()

    def test_across_a_kill_of_the_server_nothing_is_missed_or_told_twice(
        self, api: ApiProcess, fabric: Fabric, node: Node
    ) -> None:
        follower = Follower(api, "/events/stream")
        last: str = follower.next()["id"]
        seen: list[str] = []
        for _ in range(3):
            fabric.submit_one()
            told = follower.next()
            last, seen = told["id"], [*seen, told["data"]["id"]]
        api.kill()
        for _ in range(3):
            fabric.finish(fabric.run(node))
        api.start()
        follower = Follower(api, "/events/stream", last)
        assert follower.next()["event"] == "begin"
        seen += [follower.next()["data"]["id"] for _ in range(9)]
        whole = api.session.get(f"{api.url}/api/v1/events").json()["events"]
        assert seen == [one["id"] for one in whole]
        follower.close()

    def test_over_a_websocket(self, api: ApiProcess, fabric: Fabric) -> None:
        url = f"ws://127.0.0.1:{api.port}/api/v1/events/stream"
        client = websocket.Client(url, headers={"Authorization": f"Bearer {TOKEN}"})
        begin = json.loads(client.receive(timeout=20))
        job_id = fabric.submit_one()
        told = json.loads(client.receive(timeout=20))
        assert (told["event"], told["data"]["job_id"]) == ("job", str(job_id))
        client.close()
        again = websocket.Client(f"{url}?after={begin['id']}", headers={"Authorization": f"Bearer {TOKEN}"})
        assert json.loads(again.receive(timeout=20))["event"] == "begin"
        assert json.loads(again.receive(timeout=20))["data"] == told["data"]
        again.close()

    @pytest.mark.parametrize(("query", "status"), [("after=x", 400), ("tenant=nobody", 404), ("job_id=x", 404)])
    def test_what_cannot_be_followed_is_refused_before_it_begins(
        self, api: ApiProcess, query: str, status: int
    ) -> None:
        answer = api.session.get(f"{api.url}/api/v1/events/stream?{query}", timeout=20)
        assert (answer.status_code, set(answer.json())) == (status, {"error", "context"})
        answer = api.session.get(f"{api.url}/api/v1/events/stream", headers={"Last-Event-ID": "x"}, timeout=20)
        assert answer.json()["context"]["field"] == "Last-Event-ID"


class TestOneJob:
    def test_is_followed_to_its_end(self, api: ApiProcess, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        follower = Follower(api, f"/jobs/{job_id}/events/stream")
        assert state(follower.next()) == "pending"
        taken = fabric.run(node)
        assert [state(follower.next()) for _ in range(2)] == ["starting", "running"]
        fabric.submit_one()
        fabric.finish(taken)
        assert state(follower.next()) == "completed"
        end = follower.next()
        assert (end["event"], end["data"]["status"], end["data"]["exit_code"]) == ("end", "completed", 0)
        with pytest.raises(EOFError):
            follower.next()

    def test_that_has_ended_is_told_whole_or_from_an_id_on(self, api: ApiProcess, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        fabric.finish(fabric.run(node))
        until(lambda: fabric.state(job_id) == JobState.COMPLETED)
        follower = Follower(api, f"/jobs/{job_id}/events/stream")
        told = [follower.next() for _ in range(5)]
        assert [one["event"] for one in told] == ["job"] * 4 + ["end"]
        again = Follower(api, f"/jobs/{job_id}/events/stream", told[2]["id"])
        assert [again.next()["event"] for _ in range(2)] == ["job", "end"]

    def test_that_is_unknown_is_not_found(self, api: ApiProcess) -> None:
        answer = api.session.get(f"{api.url}/api/v1/jobs/{uuid4()}/events/stream", timeout=20)
        assert answer.status_code == 404

    def test_over_a_websocket(self, api: ApiProcess, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        fabric.finish(fabric.run(node))
        client = websocket.Client(
            f"ws://127.0.0.1:{api.port}/api/v1/jobs/{job_id}/events/stream",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        told = [json.loads(client.receive(timeout=20)) for _ in range(5)]
        assert [one["event"] for one in told] == ["job"] * 4 + ["end"]
        with pytest.raises(websocket.ConnectionClosed):
            client.receive(timeout=20)


class TestCommand:
    def test_follows_a_job_to_its_end_and_tells_what_is_kept(
        self, api: ApiProcess, fabric: Fabric, node: Node, tmp_path: Path
    ) -> None:
        job_id = fabric.submit_one()
        plain = {name: text for name, text in os.environ.items() if not name.startswith("CFAB_")}
        environment = {**plain, "CFAB_SERVER_URL": api.url, "CFAB_API_TOKEN": TOKEN}
        cfab = [sys.executable, "-m", "app.cli.main", "events"]
        out = tmp_path / "out"
        with (
            out.open("wb") as file,
            subprocess.Popen([*cfab, "-f", "--job", str(job_id)], env=environment, stdout=file),
        ):
            until(lambda: "pending" in out.read_text())
            fabric.finish(fabric.run(node))
        assert [line.split("  ")[3:] for line in out.read_text().splitlines()] == [
            ["pending", "new"],
            ["pending → starting", f"on {node.id}"],
            ["starting → running", f"on {node.id}"],
            ["running → completed", f"on {node.id}"],
        ]
        told = subprocess.run([*cfab, "--json"], env=environment, capture_output=True, check=True, text=True).stdout
        assert [json.loads(line)["state_detail"] for line in told.splitlines()] == [
            "pending", "starting", "running", "completed",
        ]  # fmt: skip
