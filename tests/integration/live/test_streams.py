"""Streams through a real server: events and WebSockets, resumed, cut, refused, left."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from app.cli import client as client_module
from app.cli.client import Client
from app.domain.job import Assignment
from app.services import logs, report
from app.services.report import Chunk
from tests import websocket
from tests.factories import Fabric, in_thread, make_fabric, until
from tests.integration.live.server import TOKEN, ApiProcess
from tests.issuer import AUDIENCE, ISSUER, Issuer, key_set
from tests.servers import TestServers

HEADERS = {"Authorization": f"Bearer {TOKEN}"}


SIGNER = Issuer("EdDSA", "ed25519")


@pytest.fixture(scope="module")
def fabric(servers: TestServers) -> Iterator[Fabric]:
    """One database and one API for all tests here; each has jobs of its own."""
    url = servers.database()
    fabric = make_fabric(url)
    yield fabric
    fabric.db.close()
    servers.drop(url)


@pytest.fixture(scope="module")
def shared_api(fabric: Fabric, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with serving(fabric, tmp_path_factory.mktemp("api")) as started:
        yield started


@pytest.fixture
def api(shared_api: ApiProcess) -> ApiProcess:
    """The server, with nobody's stream open."""
    until(lambda: open_streams(shared_api) == 0)
    return shared_api


@contextmanager
def serving(fabric: Fabric, directory: Path, **variables: str) -> Iterator[ApiProcess]:
    """A server that serves three streams at a time, and knows an issuer's tokens."""
    keys = directory / "keys.json"
    keys.write_bytes(key_set(SIGNER.jwk()))
    own = {
        "CFAB_DATABASE_URL": fabric.settings.database_url, "CFAB_API_STREAMS": "3", "CFAB_AUTH_KEYS": str(keys),
        "CFAB_AUTH_ISSUER": ISSUER, "CFAB_AUTH_AUDIENCE": AUDIENCE, "CFAB_AUTH_ALGORITHMS": "EdDSA",
        "CFAB_AUTH_LEEWAY_S": "1",
    }  # fmt: skip
    started = ApiProcess({**own, **variables}, directory / "api.log")
    try:
        started.start()
        yield started
    finally:
        started.kill()


@pytest.fixture
def taken(fabric: Fabric) -> Assignment:
    """A job that runs."""
    job_id = fabric.submit_one()
    mine = next(taken for taken in fabric.claim(fabric.add_node()) if taken.job_id == job_id)
    fabric.start(mine)
    return mine


class Output:
    """What the job prints, as its agent would store it."""

    def __init__(self, fabric: Fabric, taken: Assignment) -> None:
        self.fabric, self.taken, self.position = fabric, taken, 0

    def write(self, *pieces: tuple[int, bytes]) -> None:
        framed = b"".join(logs.frame(stream, 1.25, data) for stream, data in pieces)
        chunk = Chunk(self.taken.attempt_id, self.taken.log_day, self.position, len(framed), logs.PLAIN, framed)
        report.append_output(self.fabric.db, [chunk])
        self.position += len(framed)

    def end(self, **changes: Any) -> None:
        self.fabric.finish(self.taken, output_bytes=self.position, **changes)


@pytest.fixture
def output(fabric: Fabric, taken: Assignment) -> Output:
    return Output(fabric, taken)


def connect(api: ApiProcess, taken: Assignment, query: str = "", **headers: str) -> websocket.Client:
    return websocket.Client(api.logs(taken.job_id, "ws") + query, headers={**HEADERS, **headers})


def told(client: websocket.Client, count: int) -> list[dict[str, Any]]:
    """The next `count` messages."""
    messages: list[dict[str, Any]] = []
    for _ in range(count):
        message = client.receive(timeout=20)
        assert message is not None, f"only {messages} came"
        messages.append(json.loads(message))
    return messages


def closed(client: websocket.Client) -> int:
    """The code with which the server closes; nothing else may come before."""
    with pytest.raises(websocket.ConnectionClosed) as raised:
        assert client.receive(timeout=20) is None
        raise AssertionError("the server did not close")
    return int(raised.value.reason)


class TestWebSocket:
    def test_tells_each_event_as_one_message_and_closes(self, api: ApiProcess, output: Output) -> None:
        output.write((1, b"one\n"), (2, b"oops\n"))
        client = connect(api, output.taken)
        first, second = told(client, 2)
        assert (first["event"], first["data"]) == (
            "log", {"stream": "stdout", "attempt": 1, "time": 1.25, "text": "one\n"},
        )  # fmt: skip
        assert second["data"]["stream"] == "stderr"
        output.write((1, b"two\n"))
        assert told(client, 1)[0]["data"]["text"] == "two\n"
        output.end()
        (end,) = told(client, 1)
        assert (end["event"], end["id"], end["data"]["status"]) == ("end", None, "completed")
        assert closed(client) == 1000

    def test_goes_on_behind_any_message(self, api: ApiProcess, output: Output) -> None:
        output.write((1, b"one\n"), (2, b"two\n"), (1, b"\xe2\x82"))
        output.write((1, b"\xac\n"))
        output.end(truncated_bytes=7)
        client = connect(api, output.taken)
        everything = told(client, 6)
        assert [m["data"].get("text") for m in everything[:-1]] == [
            "one\n", "two\n", "", "€\n", "[truncated: 7 bytes were dropped]\n",
        ]  # fmt: skip
        assert closed(client) == 1000
        for place, message in enumerate(everything[:-1], 1):
            again = connect(api, output.taken, f"?after={message['id']}")
            assert told(again, 6 - place) == everything[place:], message["id"]
            assert closed(again) == 1000

    def test_answers_pings_and_ends_with_its_client(self, api: ApiProcess, output: Output) -> None:
        client = connect(api, output.taken)
        output.write((1, b"one\n"))
        told(client, 1)
        assert open_streams(api) == 1
        client.close()
        until(lambda: open_streams(api) == 0)
        torn = connect(api, output.taken)
        told(torn, 1)
        torn.sock.close()
        until(lambda: open_streams(api) == 0)

    def test_foreign_and_unknown_and_wrong_are_refused_before_it_begins(
        self, api: ApiProcess, output: Output, fabric: Fabric
    ) -> None:
        foreign = fabric.submit_one(tenant=fabric.add_tenant())
        for path, status in (
            (api.logs(foreign), 404),
            (api.logs("x"), 404),
            (api.logs(output.taken.job_id) + "?after=x", 400),
        ):
            assert handshake(path).status_code == status, path
        assert handshake(api.logs(output.taken.job_id), Authorization="Bearer no").status_code == 401
        assert handshake(api.logs(output.taken.job_id), **{"Sec-WebSocket-Version": "7"}).status_code == 426

    def test_ends_when_the_server_is_told_to(self, fabric: Fabric, output: Output, tmp_path: Path) -> None:
        with serving(fabric, tmp_path) as api:
            client = connect(api, output.taken)
            output.write((1, b"one\n"))
            told(client, 1)
            assert api.process is not None
            api.process.terminate()
            assert closed(client) == 1001

    def test_of_a_foreign_page_is_refused_where_no_token_is_asked(
        self, fabric: Fabric, output: Output, tmp_path: Path
    ) -> None:
        with serving(fabric, tmp_path, CFAB_AUTH="off") as api:
            path = api.logs(output.taken.job_id)
            assert handshake(path, Origin="https://evil.example.com").status_code == 403
            client = connect(api, output.taken, Origin=f"http://localhost:{api.port}")
            output.write((1, b"one\n"))
            told(client, 1)
            client.close()


def handshake(url: str, **headers: str) -> requests.Response:
    session = requests.Session()
    session.trust_env = False
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
    }  # fmt: skip
    return session.get(url, headers={**HEADERS, **upgrade, **headers}, timeout=20)


def open_streams(api: ApiProcess) -> int:
    """What the server's metrics say."""
    text = api.session.get(api.url + "/jobs/api/v1/metrics", timeout=10).text
    return next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith("cfab_streams_open "))


class TestEvents:
    def test_end_with_their_client_also_while_nothing_happens(self, api: ApiProcess, output: Output) -> None:
        with api.session.get(api.logs(output.taken.job_id) + "?follow=1", stream=True, timeout=20) as answer:
            # Held: a dropped iterator closes the connection.
            pieces = answer.iter_content(None)
            next(pieces)
            assert open_streams(api) == 1
        until(lambda: open_streams(api) == 0)

    def test_raw_ones_carry_the_bytes(self, api: ApiProcess, output: Output) -> None:
        data = bytes(range(256))
        output.write((1, data[:100]), (1, data[100:]))
        output.end()
        text = api.session.get(api.logs(output.taken.job_id) + "?follow=1&raw=1", timeout=20).text
        pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        assert b"".join(base64.b64decode(piece["base64"]) for piece in pieces[:-1]) == data

    def test_beyond_the_cap_are_refused_while_requests_are_served(self, api: ApiProcess, output: Output) -> None:
        path = api.logs(output.taken.job_id)
        clients = [connect(api, output.taken) for _ in range(3)]
        for refused in (api.session.get(path + "?follow=1", timeout=20), handshake(path)):
            assert refused.status_code == 503
            assert refused.headers["Retry-After"]
        assert api.session.get(path, timeout=20).status_code == 200
        clients[0].close()
        until(lambda: open_streams(api) == 2)
        clients.append(connect(api, output.taken))
        for client in clients[1:]:
            client.close()


class TestTokens:
    """A stream ends with the token that opened it."""

    def short(self, fabric: Fabric) -> str:
        name = f"tenant-{uuid4().hex[:8]}"
        self.tenant = fabric.add_tenant(name)
        return SIGNER.token(tenant=name, exp=int(time.time()) + 2)

    def test_events_end_with_a_word(self, api: ApiProcess, fabric: Fabric) -> None:
        token = self.short(fabric)
        path = api.logs(fabric.submit_one(tenant=self.tenant)) + "?follow=1"
        answer = requests.get(path, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        assert (answer.status_code, answer.text) == (200, "retry: 1000\n\n: token expired\n\n")

    def test_websockets_close_with_a_code(self, api: ApiProcess, fabric: Fabric) -> None:
        token = self.short(fabric)
        path = api.logs(fabric.submit_one(tenant=self.tenant), "ws")
        assert closed(websocket.Client(path, headers={"Authorization": f"Bearer {token}"})) == 1008


class Looking(Client):
    """A client that counts its looks at jobs."""

    looks = 0

    def job(self, job_id: str) -> dict[str, Any]:
        self.looks += 1
        return super().job(job_id)


class TestWait:
    def test_is_told_instead_of_asking_again_and_again(
        self, api: ApiProcess, output: Output, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client_module, "LONGEST_LOOK_S", client_module.SHORTEST_LOOK_S)
        client = Looking(api.url, TOKEN)
        with in_thread(lambda: client.wait(str(output.taken.job_id), None, lambda job: None)) as waiting:
            until(lambda: open_streams(api) == 1)
            looks = client.looks
            for _ in range(5):
                output.write((1, b"x" * 1000))
            output.end()
            assert waiting.result(20)["status"] == "completed"
        assert client.looks <= looks + 4


class TestText:
    def test_says_what_is_missing_and_drives_no_terminal(self, api: ApiProcess, output: Output) -> None:
        output.write((1, b"\x1b[31mred\x1b[0m\r\xff"))
        output.end(truncated_bytes=5, log_gap=False)
        path = api.logs(output.taken.job_id)
        shown = api.session.get(path, timeout=20)
        assert shown.content.decode() == "red\n\ufffd\n[truncated: 5 bytes were dropped]\n"
        assert shown.headers["Content-Type"] == "text/plain; charset=utf-8"
        raw = api.session.get(path + "?raw=1", timeout=20)
        assert raw.content == b"\x1b[31mred\x1b[0m\r\xff"
        assert raw.headers["Content-Type"] == "application/octet-stream"
        for answer in (shown, raw):
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert (answer.headers["X-Truncated-Bytes"], answer.headers["X-Log-Gap"]) == ("5", "false")
        lines = api.session.get(path, headers={"Accept": "application/json"}, timeout=20).json()["lines"]
        assert lines[-1] == "[truncated: 5 bytes were dropped]"

    def test_has_a_time_before_each_line_if_asked(self, api: ApiProcess, output: Output) -> None:
        output.write((1, b"one\ntwo\n"))
        path = api.logs(output.taken.job_id) + "?timestamps=1"
        assert api.session.get(path, timeout=20).text == (
            "1970-01-01T00:00:01.250Z one\n1970-01-01T00:00:01.250Z two\n"
        )
        lines = api.session.get(path + "&tail=1", headers={"Accept": "application/json"}, timeout=20).json()["lines"]
        assert lines == ["1970-01-01T00:00:01.250Z two"]
