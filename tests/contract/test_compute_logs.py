"""Output of jobs in the compute contract: one JSON object, an event stream by Accept, a WebSocket by Upgrade."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from app.api.factory import create_app
from app.api.ids import shown_id
from app.api.live.lines import MAX_LINES_BYTES
from app.storage.database import Database
from config.rates import parse_rules
from config.settings import Settings
from tests import websocket
from tests.contract.conftest import TOKEN, Bells, Caller
from tests.contract.test_jobs_logs import Server, Writer, events, finish
from tests.factories import make_fabric
from tests.issuer import AUDIENCE, ISSUER, Issuer, key_set

AT = "/api/v1/runtime/compute"
BODY = {"data": "{}", "headers": {"Content-Type": "application/json"}}
LIVE = {"Accept": "text/event-stream"}
UNKNOWN = "job_6f0f2a526a304a8f8f0b3f0f3ad2b111"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Without the document's 10 requests a second."""
    return replace(settings, rate_limits=parse_rules("compute:*=off"))


@pytest.fixture
def compute(app: Flask) -> Caller:
    return Caller(app.test_client(), AT)


@pytest.fixture
def running(app: Flask, api: Caller) -> Writer:
    """A job that runs and has said a little; each job is visible through every contract."""
    api.submit()
    writer = Writer(app.extensions["cfab"].db, api.claim()["id"])
    writer.write((1, b"one\ntw"), (2, b"oops\n"), (1, b"o\n"))
    writer.write((1, b"three"))
    return writer


def path(writer: Writer, query: str = "") -> str:
    return f"/jobs/{shown_id('job_', UUID(writer.job_id))}/logs{query}"


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.is_json
    assert answer.json["error"] == code
    assert set(answer.json) <= {"error", "message", "details"}
    return dict(answer.json)


def followed(compute: Caller, target: str, **headers: str) -> list[dict[str, Any]]:
    """All events of a stream that ends by itself."""
    with compute.get(target, headers={**LIVE, **headers}) as answer:
        assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), answer.text
        return events(answer.text)


class TestLines:
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_the_example_of_the_document(self, compute: Caller, running: Writer, slash: str) -> None:
        """It sends a body with a GET."""
        answer = compute.get(path(running) + slash, **BODY)
        assert (answer.status_code, answer.mimetype) == (200, "application/json")
        assert answer.json == {"lines": ["one", "twoops", "o", "three"], "truncated": False}

    def test_without_a_body_or_for_any_client(self, compute: Caller, running: Writer) -> None:
        for accept in ("*/*", "application/json", "text/html", "application/json, text/event-stream", ""):
            answer = compute.get(path(running), headers={"Accept": accept})
            assert (answer.mimetype, len(answer.json["lines"])) == ("application/json", 4), accept

    def test_of_a_job_that_never_ran_are_none(self, compute: Caller) -> None:
        job_id = compute.post("/jobs", json={"image": "repo/transform:24"}).json["job_id"]
        assert compute.get(f"/jobs/{job_id}/logs", **BODY).json == {"lines": [], "truncated": False}

    def test_from_the_end(self, compute: Caller, running: Writer) -> None:
        for query, lines, truncated in (
            ("tail=0", [], True),
            ("tail=1", ["three"], True),
            ("tail=2", ["o", "three"], True),
            ("tail=4", ["one", "twoops", "o", "three"], False),
            ("tail=2147483647", ["one", "twoops", "o", "three"], False),
            ("unknown=1", ["one", "twoops", "o", "three"], False),
        ):
            assert compute.get(path(running, f"?{query}")).json == {"lines": lines, "truncated": truncated}, query

    @pytest.mark.parametrize("tail", ["-1", "x", "1.5", "", "2147483648", "%D9%A1"])
    def test_a_bad_tail_is_refused(self, compute: Caller, running: Writer, tail: str) -> None:
        for headers in ({}, LIVE):
            refused(compute.get(path(running, f"?tail={tail}"), headers=headers), 400, "invalid_request")

    def test_are_the_last_ten_thousand(self, compute: Caller, running: Writer) -> None:
        running.write((1, b"".join(b"\n%d" % n for n in range(10_005))))
        for query in ("", "?tail=20000"):
            answer = compute.get(path(running, query)).json
            assert (len(answer["lines"]), answer["lines"][0], answer["lines"][-1]) == (10_000, "5", "10004")
            assert answer["truncated"] is True

    def test_are_the_last_eight_mebibytes(self, compute: Caller, running: Writer) -> None:
        running.write((1, b"\n"))
        for number in range(10):
            running.write((1, b"".join(b"%d-%03d %s\n" % (number, n, b"x" * 10_000) for n in range(100))))
        answer = compute.get(path(running)).json
        size = sum(len(line) + 1 for line in answer["lines"])
        assert MAX_LINES_BYTES - 10_010 < size <= MAX_LINES_BYTES
        assert (answer["lines"][-1][:6], answer["truncated"]) == ("9-099 ", True)

    def test_a_line_that_is_too_long_shows_its_end(self, compute: Caller, running: Writer) -> None:
        for _ in range(9):
            running.write((1, b"x" * 2**20))
        running.write((1, b"the end"))
        answer = compute.get(path(running)).json
        (line,) = answer["lines"]
        assert len(line) == MAX_LINES_BYTES - 1 and line.endswith("xthe end")
        assert answer["truncated"] is True

    def test_bytes_that_are_not_utf_8_are_replaced(self, compute: Caller, running: Writer) -> None:
        running.write((1, b"\n\xff\x00 \xe2\x82"), (1, b"\xac"))
        assert compute.get(path(running, "?tail=1")).json["lines"] == ["\ufffd\0 €"]

    @pytest.mark.parametrize("name", [UNKNOWN, "job_7", "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111"])
    def test_of_an_unknown_job_are_not_found(self, compute: Caller, name: str) -> None:
        for headers in ({}, LIVE):
            refused(compute.get(f"/jobs/{name}/logs", headers=headers), 404, "not_found")

    def test_of_another_tenants_job_are_not_found(self, compute: Caller, running: Writer, database_url: str) -> None:
        fabric = make_fabric(database_url)
        fabric.add_tenant("other")
        fabric.db.close()
        for headers in ({}, LIVE):
            answer = compute.get(path(running), headers={**headers, "X-Tenant": "other"})
            refused(answer, 404, "not_found")

    def test_need_a_token(self, stranger: Caller, running: Writer) -> None:
        stranger.prefix = AT
        for headers in ({}, LIVE):
            refused(stranger.get(path(running), headers=headers), 401, "unauthorized")


class TestEvents:
    def test_of_an_ended_job_are_all_of_it_and_an_end(self, api: Caller, compute: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        *told, end = followed(compute, path(running))
        assert [(e["data"]["stream"], e["data"]["text"]) for e in told] == [
            ("stdout", "one\ntw"), ("stderr", "oops\n"), ("stdout", "o\n"), ("stdout", "three"),
        ]  # fmt: skip
        assert all(set(e["data"]) == {"stream", "attempt", "time", "text"} for e in told)
        shown = shown_id("job_", UUID(running.job_id))
        assert (end["event"], end["data"]) == (
            "end",
            {"job_id": shown, "state": "succeeded", "exit_code": 0, "signal": None},
        )

    def test_resume_behind_each_event_without_loss_or_repeat(
        self, api: Caller, compute: Caller, running: Writer
    ) -> None:
        finish(api, running.job_id)
        whole = followed(compute, path(running))
        for place, event in enumerate(whole[:-1]):
            resumed = followed(compute, path(running, "?tail=1"), **{"Last-Event-ID": event["id"]})
            assert [e["data"] for e in resumed] == [e["data"] for e in whole[place + 1 :]]
        for bad in ("x", "1", "1:-1", "9" * 30 + ":1"):
            refused(compute.get(path(running), headers={**LIVE, "Last-Event-ID": bad}), 400, "invalid_request")

    def test_tail_begins_near_the_end(self, api: Caller, compute: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        for tail, text in ((0, ""), (1, "three"), (2, "o\nthree")):
            told = followed(compute, path(running, f"?tail={tail}"))
            assert "".join(e["data"]["text"] for e in told[:-1]) == text
            assert told[-1]["event"] == "end"
            for place, event in enumerate(told[:-1]):
                resumed = followed(compute, path(running), **{"Last-Event-ID": event["id"]})
                assert [e["data"] for e in resumed] == [e["data"] for e in told[place + 1 :]]

    def test_are_had_by_whoever_likes_them_better(self, api: Caller, compute: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        for accept in (
            "text/event-stream",
            "text/event-stream, */*;q=0.1",
            "application/json;q=0.5, text/event-stream",
        ):
            assert len(followed(compute, path(running), Accept=accept)) == 5

    def test_end_with_the_token(
        self, settings: Settings, compute: Caller, running: Writer, tmp_path: Path, bells: Bells
    ) -> None:
        signer, keys = Issuer("EdDSA", "ed25519"), tmp_path / "keys.json"
        keys.write_bytes(key_set(signer.jwk()))
        signed = replace(
            settings, auth_keys=str(keys), auth_issuer=ISSUER, auth_audience=(AUDIENCE,), auth_algorithms=("EdDSA",)
        )
        db = Database(settings.database_url, 2, "contract-test")
        token = signer.token(tenant="default", exp=int(time.time()) + 2)
        caller = Caller(create_app(signed, db, bells).test_client(), AT, token)
        with caller.get(path(running), headers=LIVE) as answer:
            text = answer.text
        db.close()
        assert text.endswith("\n\n: token expired\n\n")
        assert [e["event"] for e in events(text)] == ["log"] * 4


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    started = Server(settings)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


class TestRealServer:
    def test_all_three_forms(self, server: Server, api: Caller, running: Writer) -> None:
        target = f"{server.url}{AT.removeprefix('/api/v1')}{path(running)}"
        # One connection for all: a body that nobody reads must not become the next request.
        for _ in range(3):
            answer = server.session.get(target, data="{}", headers={"Content-Type": "application/json"}, timeout=20)
            assert answer.json()["lines"][-1] == "three"
        client = websocket.Client("ws" + target.removeprefix("http"), headers={"Authorization": f"Bearer {TOKEN}"})
        stream = server.session.get(
            target, data="{}", headers={**LIVE, "Content-Type": "application/json"}, stream=True, timeout=20
        )
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        spoken = [json.loads(client.receive(timeout=20)) for _ in range(4)]
        running.write((1, b" and more\n"))
        spoken.append(json.loads(client.receive(timeout=20)))
        assert spoken[-1]["data"]["text"] == " and more\n"
        finish(api, running.job_id)
        end = json.loads(client.receive(timeout=20))
        assert (end["event"], end["data"]["state"]) == ("end", "succeeded")
        with pytest.raises(websocket.ConnectionClosed):
            client.receive(timeout=20)
        told = events(stream.text)
        assert [(e["event"], e["data"]) for e in told] == [(e["event"], e["data"]) for e in [*spoken, end]]
        again = websocket.Client(
            f"ws{target.removeprefix('http')}?after={spoken[-2]['id']}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        assert [json.loads(again.receive(timeout=20))["event"] for _ in range(2)] == ["log", "end"]
