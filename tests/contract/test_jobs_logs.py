"""Output of jobs: as text, as lines, and live, through the test client and through a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import requests
from flask import Flask

from app.services import logs
from app.services.report import Chunk, append_output
from app.storage.database import Database
from config.settings import Settings
from tests.contract.conftest import TOKEN, Caller
from tests.contract.jobs_document import is_error


@dataclass
class Writer:
    """Plays the agent of a running attempt: stores output as an agent ships it."""

    db: Database
    job_id: str
    position: int = 0

    def write(self, *pieces: tuple[int, bytes]) -> None:
        """One chunk of (stream, bytes) frames."""
        framed = b"".join(logs.frame(stream, 1_700_000_000.25, data) for stream, data in pieces)
        with self.db.transaction() as tx:
            row = tx.row(
                "SELECT a.id, a.log_day FROM attempt a WHERE job_id = %(id)s ORDER BY number DESC LIMIT 1",
                {"id": self.job_id},
            )
        assert row is not None
        append_output(self.db, [Chunk(row.id, row.log_day, self.position, len(framed), logs.PLAIN, framed)])
        self.position += len(framed)


@pytest.fixture
def running(app: Flask, api: Caller) -> Writer:
    """A job that runs and has said a little."""
    api.submit(max_retries=1, backoff_seconds=0)
    writer = Writer(app.extensions["cfab"].db, api.claim()["id"])
    writer.write((1, b"one\ntw"), (2, b"oops\n"), (1, b"o\n"))
    writer.write((1, b"three"))
    return writer


def finish(api: Caller, job_id: str, completed: bool = True, executor: str = "worker-1-abc123") -> None:
    word = "complete" if completed else "fail"
    answer = api.put(f"/jobs/{job_id}/{word}", json={"executor_id": executor, "exit_code": 0 if completed else 1})
    assert answer.status_code == 200


def events(text: str) -> list[dict[str, Any]]:
    """Parsed events of a stream; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"(?m)^(id|event|data): (.*)$", block))
        if "data" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def followed(api: Caller, job_id: str, query: str = "follow=true", last: str | None = None) -> list[dict[str, Any]]:
    """All events of a stream that ends by itself; the stream is closed then, as a server does."""
    headers = {} if last is None else {"Last-Event-ID": last}
    with api.get(f"/jobs/{job_id}/logs?{query}", headers=headers) as answer:
        assert answer.status_code == 200, answer.text
        assert answer.mimetype == "text/event-stream"
        return events(answer.text)


QUERIES = {
    "stream=stdout": "one\ntwo\nthree",
    "stream=stderr": "oops\n",
    "stream=stdout&tail=2": "two\nthree",
    "stream=stdout&tail=99": "one\ntwo\nthree",
    "tail=0": "",
    "attempt=1&tail=1": "three",
    "follow=false&stream=stderr": "oops\n",
    "follow=0&stream=stderr": "oops\n",
}


class TestText:
    def test_is_the_output_as_it_came(self, api: Caller, running: Writer) -> None:
        answer = api.get(f"/jobs/{running.job_id}/logs")
        assert answer.status_code == 200
        assert answer.mimetype == "text/plain"
        assert answer.text == "one\ntwoops\no\nthree"

    def test_of_one_stream_and_from_the_end(self, api: Caller, running: Writer) -> None:
        for query, text in QUERIES.items():
            assert api.get(f"/jobs/{running.job_id}/logs?{query}").text == text, query

    def test_of_a_job_that_never_ran_is_empty(self, api: Caller) -> None:
        answer = api.get(f"/jobs/{api.submit()['id']}/logs/")
        assert (answer.status_code, answer.text) == (200, "")

    def test_bad_parameters_and_unknown_jobs(self, api: Caller, running: Writer) -> None:
        for query in ("tail=-1", "tail=x", "stream=both", "follow=yes", "attempt=0"):
            is_error(api.get(f"/jobs/{running.job_id}/logs?{query}"), 400)
        is_error(api.get(f"/jobs/{running.job_id}/logs?attempt=2"), 404)
        is_error(api.get(f"/jobs/{uuid4()}/logs"), 404)
        is_error(api.get("/jobs/x/logs?follow=true"), 404)


class TestLines:
    def test_are_json(self, api: Caller, running: Writer) -> None:
        answer = api.get(f"/jobs/{running.job_id}/logs?stream=stdout", headers={"Accept": "application/json"})
        assert answer.json == {"lines": ["one", "two", "three"], "truncated": False, "attempt": 1}

    def test_keep_the_last_ten_thousand(self, api: Caller, running: Writer) -> None:
        running.write((1, b"".join(b"\n%d" % n for n in range(10_005))))
        answer = api.get(f"/jobs/{running.job_id}/logs?stream=stdout", headers={"Accept": "application/json"}).json
        assert (len(answer["lines"]), answer["lines"][-1], answer["truncated"]) == (10_000, "10004", True)

    def test_bytes_that_are_not_utf_8_are_replaced(self, api: Caller, running: Writer) -> None:
        running.write((1, b"\n\xff\x00"))
        answer = api.get(f"/jobs/{running.job_id}/logs?tail=1", headers={"Accept": "application/json"})
        assert answer.json["lines"] == ["\ufffd\0"]


class TestEvents:
    def test_of_an_ended_job_are_all_of_it_and_an_end(self, api: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        *told, end = followed(api, running.job_id)
        assert [(e["data"]["stream"], e["data"]["text"]) for e in told] == [
            ("stdout", "one\ntw"), ("stderr", "oops\n"), ("stdout", "o\n"), ("stdout", "three"),
        ]  # fmt: skip
        assert {e["data"]["attempt"] for e in told} == {1}
        assert end["event"] == "end"
        assert (end["data"]["status"], end["data"]["exit_code"]) == ("completed", 0)

    def test_resume_behind_each_event_without_loss_or_repeat(self, api: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        all_told = followed(api, running.job_id)
        assert len(all_told) == 5
        for place, event in enumerate(all_told[:-1]):
            resumed = followed(api, running.job_id, last=event["id"])
            assert [e["data"] for e in resumed] == [e["data"] for e in all_told[place + 1 :]]

    def test_tail_begins_near_the_end(self, api: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        told = followed(api, running.job_id, "follow=1&tail=2&stream=stdout")
        assert "".join(e["data"]["text"] for e in told[:-1]) == "two\nthree"

    def test_a_character_cut_in_two_arrives_whole(self, api: Caller, running: Writer) -> None:
        running.write((1, b"\xe2\x82"))
        running.write((1, b"\xac"))
        finish(api, running.job_id)
        told = followed(api, running.job_id)
        assert "".join(e["data"]["text"] for e in told[:-1]).endswith("three€")

    def test_go_on_into_the_next_attempt(self, app: Flask, api: Caller, running: Writer) -> None:
        finish(api, running.job_id, completed=False)
        with app.extensions["cfab"].db.transaction() as tx:
            tx.run("UPDATE job SET ready = true, not_before = NULL WHERE id = %(id)s", {"id": running.job_id})
            tx.run("UPDATE scheduling_key SET live = true")
        assert api.claim("second")["id"] == running.job_id
        Writer(running.db, running.job_id).write((1, b"again\n"))
        finish(api, running.job_id, executor="second")
        told = followed(api, running.job_id, last="1:0")
        assert [(e["data"]["attempt"], e["data"].get("text")) for e in told] == [
            (1, "one\ntw"), (1, "oops\n"), (1, "o\n"), (1, "three"), (2, "again\n"), (2, None),
        ]  # fmt: skip

    def test_are_had_by_accept_too(self, api: Caller, running: Writer) -> None:
        finish(api, running.job_id)
        with api.get(f"/jobs/{running.job_id}/logs", headers={"Accept": "text/event-stream"}) as answer:
            assert len(events(answer.text)) == 5

    def test_of_a_job_cancelled_before_it_ran_are_only_an_end(self, api: Caller) -> None:
        job = api.submit()["id"]
        api.delete(f"/jobs/{job}")
        (end,) = followed(api, job)
        assert end["data"]["status"] == "cancelled"

    def test_an_id_that_is_none_is_400(self, refusing: Caller) -> None:
        for place in ("x", "1", "1:2:3", "1:-1", "1:0.x", "9" * 30 + ":1"):
            is_error(refusing.get(f"/jobs/{uuid4()}/logs?follow=true", headers={"Last-Event-ID": place}), 400)

    def test_beyond_the_cap_503_and_a_closed_one_makes_room(self, api: Caller, running: Writer) -> None:
        path = f"/jobs/{running.job_id}/logs?follow=true"
        open_ones = [api.get(path) for _ in range(4)]
        answer = api.get(path)
        is_error(answer, 503)
        assert answer.headers["Retry-After"]
        open_ones[0].close()
        last = api.get(path)
        assert last.status_code == 200
        for one in [*open_ones[1:], last]:
            one.close()


class Server:
    """A real gunicorn with the real application."""

    def __init__(self, settings: Settings) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        environment = {name: text for name, text in os.environ.items() if not name.startswith("CFAB_")} | {
            "CFAB_DATABASE_URL": settings.database_url,
            "CFAB_API_TOKEN": TOKEN,
            "CFAB_API_THREADS": "8",
        }
        command = [sys.executable, "-m", "gunicorn", "-b", f"fd://{listener.fileno()}", "-k", "gthread"]
        command += ["--threads", "8", "--graceful-timeout", "30", "app.api.wsgi:app"]
        self.process = subprocess.Popen(command, env=environment, pass_fds=[listener.fileno()])
        listener.close()
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"

    def stop(self) -> float:
        """Ends the server as an operator does; seconds it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)
        return time.monotonic() - began


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
    def test_streams_live_until_the_job_ends(self, server: Server, api: Caller, running: Writer) -> None:
        path = f"{server.url}/jobs/{running.job_id}/logs?follow=true"
        with server.session.get(path, stream=True, timeout=30) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines(chunk_size=None, decode_unicode=True)
            seen: list[str] = []

            def until(text: str) -> None:
                for line in lines:
                    seen.append(line)
                    if text in line:
                        return
                raise AssertionError(f"the stream ended without {text}: {seen}")

            until("three")
            running.write((1, b" and more\n"))
            until("and more")
            assert not any("end" in line for line in seen if line.startswith("event"))
            finish(api, running.job_id)
            until("event: end")
        assert server.session.get(f"{server.url}/health", timeout=10).json()["status"] == "healthy"

    def test_ends_at_once_with_streams_open(self, server: Server, running: Writer) -> None:
        path = f"{server.url}/jobs/{running.job_id}/logs?follow=true"
        with server.session.get(path, stream=True, timeout=30) as answer:
            rest = answer.iter_lines(chunk_size=None)
            next(rest)
            reader = threading.Thread(target=lambda: list(rest), daemon=True)
            reader.start()
            assert server.stop() < 10
            reader.join(timeout=10)
            assert not reader.is_alive()
