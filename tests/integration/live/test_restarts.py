"""Followers see every byte once and in order while API, broker and agent are killed and started again."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import simple_websocket  # type: ignore[import-untyped]

from app.cli.client import Client
from app.cli.follow import pieces
from app.cli.sse import parse
from app.domain.states import TERMINAL
from app.local.keepers import end_keepers
from app.local.ports import free_port
from app.local.valkey import ValkeyServer
from app.services.logs import STDOUT, read_log
from tests.factories import Fabric, until
from tests.integration.live.server import TOKEN, ApiProcess, Role

HEADERS = {"Authorization": f"Bearer {TOKEN}"}

# Odd sizes, so that pieces end anywhere, also within a character.
SCRIPT = """n=0
while [ ! -e {stop} ]; do
    n=$((n+1)); echo "line $n €"; [ $((n % 7)) = 0 ] && echo "note $n" >&2 && sleep 0.02
done
echo "last $n" """


class Stack:
    """Broker, API and worker as processes, on one database."""

    def __init__(self, fabric: Fabric, root: Path) -> None:
        self.fabric, self.root = fabric, root
        self.broker = ValkeyServer(root / "valkey", free_port(), "secret")
        self.broker.create()
        self.broker.start()
        common = {"CFAB_DATABASE_URL": fabric.settings.database_url, "CFAB_BROKER_URL": self.broker.url}
        self.api = ApiProcess(common, root / "api.log")
        worker = {
            "CFAB_NODE_NAME": "n1", "CFAB_WORK_DIR": str(root / "work"), "CFAB_SANDBOX": "off", "CFAB_SLOTS": "4",
            "CFAB_POLL_S": "0.5", "CFAB_RENEW_S": "1",
        }  # fmt: skip
        self.worker = Role("worker", {**common, **worker}, root / "worker.log")

    def close(self) -> None:
        self.worker.kill()
        end_keepers(self.root / "work")
        self.api.kill()
        self.broker.stop()


@pytest.fixture
def stack(fabric: Fabric) -> Iterator[Stack]:
    root = Path(tempfile.mkdtemp(prefix="cfab-live-", dir="/tmp"))
    root.chmod(0o755)  # The job runs as a user of its own and looks here for its sign to stop.
    made = Stack(fabric, root)
    try:
        made.api.start()
        made.worker.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(root, ignore_errors=True)


class Follower(threading.Thread):
    """Follows a job to its end, however often it is cut; keeps what it was told."""

    def __init__(self, told: Callable[[], Iterator[dict[str, Any]]]) -> None:
        super().__init__(daemon=True)
        self._told = told
        self.got = bytearray()
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for data in self._told():
                self.got += base64.b64decode(data["base64"]) if "base64" in data else data["text"].encode()
        except BaseException as exc:
            self.failure = exc


def by_events(api: ApiProcess, job_id: object, raw: bool) -> Iterator[dict[str, Any]]:
    """All log events over server-sent events."""
    last: dict[str, str] = {}
    while True:
        with contextlib.suppress(requests.RequestException):
            path = api.logs(job_id) + ("?follow=1&raw=1" if raw else "?follow=1")
            with requests.get(path, headers={**HEADERS, **last}, stream=True, timeout=30) as answer:
                for event in parse(answer.iter_content(None)) if answer.status_code == 200 else ():
                    if event is not None and event.name == "end":
                        return
                    if event is not None:
                        assert event.id is not None
                        last = {"Last-Event-ID": event.id}
                        yield json.loads(event.data)
        threading.Event().wait(0.05)


def by_websocket(api: ApiProcess, job_id: object) -> Iterator[dict[str, Any]]:
    """All log events over WebSockets."""
    query = "?raw=1"
    while True:
        with contextlib.suppress(OSError, simple_websocket.ConnectionClosed, simple_websocket.ConnectionError):
            client = simple_websocket.Client(api.logs(job_id, "ws") + query, headers=HEADERS)
            while True:
                message = json.loads(client.receive())
                if message["event"] == "end":
                    client.close()
                    return
                query = f"?raw=1&after={message['id']}"
                yield message["data"]
        threading.Event().wait(0.05)


@pytest.mark.timeout(180)
def test_each_byte_once_and_in_order(stack: Stack) -> None:
    stop = stack.root / "stop"
    job_id = stack.fabric.submit_one(script=SCRIPT.format(stop=stop))
    followers = {
        "events": Follower(lambda: by_events(stack.api, job_id, raw=True)),
        "text": Follower(lambda: by_events(stack.api, job_id, raw=False)),
        "websocket": Follower(lambda: by_websocket(stack.api, job_id)),
        "cli": Follower(lambda: pieces(Client(stack.api.url, TOKEN), str(job_id))),
    }

    def grown() -> None:
        """Everybody gets more than they have now."""
        sizes = {name: len(follower.got) for name, follower in followers.items()}

        def all_have() -> bool:
            for name, follower in followers.items():
                assert follower.failure is None, (name, follower.failure)
            return all(len(follower.got) > sizes[name] + 500 for name, follower in followers.items())

        until(all_have, 60)

    grown()
    stack.api.kill()
    stack.api.start()
    grown()
    stack.broker.kill()
    grown()
    stack.broker.start()
    grown()
    stack.worker.kill()
    stack.worker.start()
    grown()
    stack.api.kill()
    stack.worker.kill()
    stack.api.start()
    stack.worker.start()
    grown()
    stop.touch()
    until(lambda: stack.fabric.state(job_id) in TERMINAL, 60)
    for name, follower in followers.items():
        follower.join(30)
        assert not follower.is_alive() and follower.failure is None, (name, follower.failure)
    stored = whole(stack.fabric, job_id)
    for name, follower in followers.items():
        assert bytes(follower.got) == stored, name
    assert len(stack.fabric.attempts(job_id)) == 1
    lines = [line for line in printed(stack.fabric, job_id).decode().splitlines() if line.startswith("line ")]
    assert lines == [f"line {n} €" for n in range(1, len(lines) + 1)]


def whole(fabric: Fabric, job_id: Any) -> bytes:
    """The stored output in its order."""
    return b"".join(data for _stream, data in frames(fabric, job_id))


def printed(fabric: Fabric, job_id: Any) -> bytes:
    """What the job wrote to its standard output."""
    return b"".join(data for stream, data in frames(fabric, job_id) if stream == STDOUT)


def frames(fabric: Fabric, job_id: Any) -> Iterator[tuple[int, bytes]]:
    after, ended = 0, False
    while not ended:
        part = read_log(fabric.db, fabric.tenant, job_id, after=after)
        yield from ((frame.stream, frame.data) for frame in part.frames)
        after, ended = part.next_position, part.ended
