"""Output of jobs in the ai contract: text with times, an event stream or growing text with follow=true, a WebSocket."""

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
from app.storage.database import Database
from config.settings import Settings
from tests import websocket
from tests.contract.conftest import TOKEN, Bells, Caller
from tests.contract.test_jobs_logs import Server, Writer, events, finish
from tests.factories import make_fabric
from tests.issuer import AUDIENCE, ISSUER, Issuer, key_set

AT = "/ai/api/v1"
STAMP = "2023-11-14T22:13:20Z "
PLAIN = {"Accept": "text/plain"}
UNKNOWN = "job-6f0f2a526a304a8f8f0b3f0f3ad2b111"


@pytest.fixture
def ai(app: Flask) -> Caller:
    return Caller(app.test_client(), AT)


@pytest.fixture
def fresh(app: Flask, api: Caller) -> Writer:
    """A job that runs and has said nothing."""
    api.submit()
    return Writer(app.extensions["cfab"].db, api.claim()["id"])


@pytest.fixture
def running(fresh: Writer) -> Writer:
    """A job that runs and has said a little."""
    fresh.write((1, b"one\ntw"), (2, b"oops\n"), (1, b"o\n"))
    fresh.write((1, b"three"))
    return fresh


def path(writer: Writer, query: str = "") -> str:
    return f"/jobs/{shown_id('job-', UUID(writer.job_id))}/logs{query}"


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json) == {"error"}
    assert answer.json["error"]["code"] == code
    return dict(answer.json["error"])


def text(ai: Caller, target: str, **headers: str) -> str:
    """A whole answer in plain text."""
    with ai.get(target, headers=headers) as answer:
        assert (answer.status_code, answer.mimetype) == (200, "text/plain"), answer.text
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return str(answer.text)


def followed(ai: Caller, target: str, **headers: str) -> list[dict[str, Any]]:
    """All events of a stream that ends by itself."""
    with ai.get(target, headers=headers) as answer:
        assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), answer.text
        return events(answer.text)


class TestText:
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_has_the_time_of_each_line(self, ai: Caller, running: Writer, slash: str) -> None:
        told = text(ai, path(running) + slash)
        assert told == f"{STAMP}one\n{STAMP}twoops\n{STAMP}o\n{STAMP}three"

    @pytest.mark.parametrize("word", ["false", "0"])
    def test_without_times(self, ai: Caller, running: Writer, word: str) -> None:
        assert text(ai, path(running, f"?timestamps={word}")) == "one\ntwoops\no\nthree"

    @pytest.mark.parametrize("word", ["true", "1"])
    def test_with_times_when_asked(self, ai: Caller, running: Writer, word: str) -> None:
        assert text(ai, path(running, f"?timestamps={word}&follow=false")).startswith(f"{STAMP}one\n")

    def test_is_the_last_hundred_lines(self, ai: Caller, fresh: Writer) -> None:
        fresh.write((1, b"".join(b"%d\n" % n for n in range(150))))
        assert text(ai, path(fresh, "?timestamps=0")).split() == [str(n) for n in range(50, 150)]
        assert text(ai, path(fresh)).splitlines()[0] == f"{STAMP}50"

    def test_from_the_end(self, ai: Caller, running: Writer) -> None:
        for tail, told in ((0, ""), (1, "three"), (2, "o\nthree"), (4, "one\ntwoops\no\nthree")):
            assert text(ai, path(running, f"?timestamps=0&tail={tail}")) == told
            stamped = "".join(STAMP + line for line in told.splitlines(keepends=True))
            assert text(ai, path(running, f"?tail={tail}")) == stamped
        assert text(ai, path(running, "?timestamps=0&tail=2147483647")) == "one\ntwoops\no\nthree"

    def test_of_a_job_that_never_ran_is_empty(self, ai: Caller) -> None:
        job_id = ai.post("/jobs/", json={"job_type": "inference", "image": "a"}).json["id"]
        assert text(ai, f"/jobs/{job_id}/logs") == ""

    def test_drives_no_terminal(self, ai: Caller, fresh: Writer) -> None:
        fresh.write(
            (1, b"\x1b[31mred\x1b[0m \x1b]0;title\x07a\0b\x08\x7f\x9b\n"), (1, b"\x1b"), (1, b"[2Jcut \xff\r\n")
        )
        assert text(ai, path(fresh, "?timestamps=0")) == "red ab\ufffd\ncut \ufffd\n"
        assert text(ai, path(fresh)) == f"{STAMP}red ab\ufffd\n{STAMP}cut \ufffd\n"

    def test_is_what_every_accept_gets(self, ai: Caller, running: Writer) -> None:
        for accept in ("*/*", "text/plain", "text/event-stream", "application/json", ""):
            assert text(ai, path(running, "?tail=1&timestamps=0"), Accept=accept) == "three"

    @pytest.mark.parametrize(
        ("query", "field"),
        [("tail=-1", "tail"), ("tail=x", "tail"), ("tail=1.5", "tail"), ("tail=", "tail"), ("tail=2147483648", "tail"),
         ("follow=yes", "follow"), ("follow=True", "follow"), ("follow=", "follow"), ("timestamps=2", "timestamps"),
         ("timestamps=on", "timestamps")],
    )  # fmt: skip
    def test_bad_parameters_are_refused(self, ai: Caller, running: Writer, query: str, field: str) -> None:
        error = refused(ai.get(path(running, f"?{query}")), 400, "VALIDATION_ERROR")
        assert error["details"][0]["field"] == field

    @pytest.mark.parametrize("name", [UNKNOWN, "job-abc123", "6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111"])
    def test_of_an_unknown_job_is_not_found(self, ai: Caller, name: str) -> None:
        for query in ("", "?follow=true"):
            refused(ai.get(f"/jobs/{name}/logs{query}"), 404, "NOT_FOUND")

    def test_of_another_tenants_job_is_not_found(self, ai: Caller, running: Writer, database_url: str) -> None:
        fabric = make_fabric(database_url)
        fabric.add_tenant("other")
        fabric.db.close()
        for query in ("", "?follow=true"):
            refused(ai.get(path(running, query), headers={"X-Tenant": "other"}), 404, "NOT_FOUND")

    def test_the_address_that_a_job_shows_leads_there(self, ai: Caller) -> None:
        job_id = ai.post("/jobs/", json={"job_type": "inference", "image": "a"}).json["id"]
        url = ai.get(f"/jobs/{job_id}").json["logs_url"]
        assert text(Caller(ai.client, ""), url) == ""


class TestEvents:
    def test_of_an_ended_job_are_all_of_it_and_an_end(self, api: Caller, ai: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        *told, end = followed(ai, path(running, "?follow=true"))
        assert [e["data"] for e in told] == [
            {"timestamp": STAMP.strip(), "stream": stream, "text": said}
            for stream, said in (("stdout", "one\ntw"), ("stderr", "oops\n"), ("stdout", "o\n"), ("stdout", "three"))
        ]
        assert (end["event"], end["data"]) == ("end", {"status": "succeeded", "exit_code": 0, "signal": None})

    def test_without_times(self, api: Caller, ai: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        told = followed(ai, path(running, "?follow=1&timestamps=false"))
        assert all(set(e["data"]) == {"stream", "text"} for e in told[:-1])

    def test_begin_at_the_tail(self, api: Caller, ai: Caller, fresh: Writer) -> None:
        fresh.write((1, b"".join(b"%d\n" % n for n in range(150))))
        finish(api, fresh.job_id)
        for query, first in (("", 50), ("&tail=3", 147), ("&tail=0", 150), ("&tail=1000", 0)):
            told = followed(ai, path(fresh, f"?follow=true{query}"))
            said = "".join(e["data"]["text"] for e in told[:-1])
            assert said.split() == [str(n) for n in range(first, 150)], query
            assert told[-1]["event"] == "end"

    def test_resume_behind_each_event_whatever_the_tail(self, api: Caller, ai: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        whole = followed(ai, path(running, "?follow=true"))
        for place, event in enumerate(whole[:-1]):
            rest = followed(ai, path(running, "?follow=true&tail=1"), **{"Last-Event-ID": event["id"]})
            assert [e["data"] for e in rest] == [e["data"] for e in whole[place + 1 :]]
        for bad in ("x", "1:-1"):
            answer = ai.get(path(running, "?follow=true"), headers={"Last-Event-ID": bad})
            assert refused(answer, 400, "VALIDATION_ERROR")["details"][0]["field"] == "Last-Event-ID"

    def test_are_what_every_other_accept_gets(self, api: Caller, ai: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        for accept in ("", "*/*", "text/event-stream", "text/plain, text/event-stream", "text/plain, */*", "text/html"):
            assert followed(ai, path(running, "?follow=true"), Accept=accept)[-1]["event"] == "end", accept


class TestGrowingText:
    def test_is_what_accept_text_plain_alone_gets(self, api: Caller, ai: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        # Pieces come as they were written: a line of two streams shows the time of each line's beginning once.
        assert text(ai, path(running, "?follow=true"), **PLAIN) == f"{STAMP}one\n{STAMP}twoops\n{STAMP}o\n{STAMP}three"
        assert text(ai, path(running, "?follow=1&timestamps=0"), **PLAIN) == "one\ntwoops\no\nthree"
        assert text(ai, path(running, "?follow=1&timestamps=0&tail=2"), **PLAIN) == "o\nthree"
        assert text(ai, path(running, "?follow=1&timestamps=0&tail=0"), **PLAIN) == ""

    def test_drives_no_terminal(self, api: Caller, ai: Caller, fresh: Writer) -> None:
        fresh.write((1, b"\x1b[31mred\x1b[0m \x1b]0;title\x07a\0b\n"), (1, b"\x1b"), (1, b"[2Jcut \xff\r\n"))
        finish(api, fresh.job_id)
        assert text(ai, path(fresh, "?follow=true&timestamps=0"), **PLAIN) == "red ab\ncut \ufffd\n"
        assert text(ai, path(fresh, "?follow=true"), **PLAIN) == f"{STAMP}red ab\n{STAMP}cut \ufffd\n"

    def test_keeps_what_was_held_back_at_the_end(self, api: Caller, ai: Caller, fresh: Writer) -> None:
        fresh.write((1, b"done\x1b[12"))
        finish(api, fresh.job_id)
        assert text(ai, path(fresh, "?follow=true&timestamps=0"), **PLAIN) == "done[12"

    def test_ends_with_the_token(self, settings: Settings, running: Writer, tmp_path: Path, bells: Bells) -> None:
        signer, keys = Issuer("EdDSA", "ed25519"), tmp_path / "keys.json"
        keys.write_bytes(key_set(signer.jwk()))
        signed = replace(
            settings, auth_keys=str(keys), auth_issuer=ISSUER, auth_audience=(AUDIENCE,), auth_algorithms=("EdDSA",)
        )
        db = Database(settings.database_url, 2, "contract-test")
        client = create_app(signed, db, bells).test_client()
        said = {}
        for name, headers in (("text", PLAIN), ("events", {})):
            token = signer.token(tenant="default", exp=int(time.time()) + 2)
            with Caller(client, AT, token).get(path(running, "?follow=true&timestamps=0"), headers=headers) as answer:
                said[name] = answer.text
        db.close()
        assert said["text"] == "one\ntwoops\no\nthree"
        assert said["events"].endswith("\n\n: token expired\n\n")


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
    def test_live_in_all_three_forms(self, server: Server, api: Caller, running: Writer) -> None:
        target = server.url.removesuffix("/api/v1") + AT + path(running, "?follow=true&tail=1&timestamps=false")
        client = websocket.Client("ws" + target.removeprefix("http"), headers={"Authorization": f"Bearer {TOKEN}"})
        stream = server.session.get(target, stream=True, timeout=20)
        growing = server.session.get(target, headers=PLAIN, stream=True, timeout=20)
        pieces = growing.iter_content(chunk_size=None)
        assert next(pieces) == b"three"
        assert json.loads(client.receive(timeout=20))["data"] == {"stream": "stdout", "text": "three"}
        running.write((1, b" and more\n"))
        assert next(pieces) == b" and more\n"
        told = json.loads(client.receive(timeout=20))
        assert told["data"]["text"] == " and more\n"
        finish(api, running.job_id)
        assert b"".join(pieces) == b""
        assert json.loads(client.receive(timeout=20))["data"]["status"] == "succeeded"
        assert [e["event"] for e in events(stream.text)] == ["log", "log", "end"]
        again = websocket.Client(
            f"ws{target.removeprefix('http')}&after={told['id']}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        assert json.loads(again.receive(timeout=20))["event"] == "end"
