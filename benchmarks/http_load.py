"""Users of the jobs contract over HTTP: plain sockets kept open, so that little of what is measured is the client."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BULK = 1000
POLL_S = 0.02
STUCK_S = 120.0


class Stuck(Exception):
    """The fabric made no progress for two minutes; its logs may say why."""


@dataclass(frozen=True)
class Program:
    """A no-op program as a job asks for it."""

    url: str
    sha256: str

    def job(self) -> dict[str, Any]:
        """The body of a submit."""
        return {
            "type": "no-op", "binary_url": self.url, "binary_sha256": self.sha256, "priority": "background",
        }  # fmt: skip


class User:
    """One connection to the API, of one thread."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def post(self, path: str, body: Any, expected: int = 201) -> Any:
        """The answer's JSON. Raises RuntimeError for any other status than `expected`."""
        return self._ask("POST", path, json.dumps(body).encode(), expected)

    def get(self, path: str) -> Any:
        """The answer's JSON. Raises RuntimeError for any status but 200."""
        return self._ask("GET", path, None, 200)

    def wait_ended(self, job_id: str) -> str:
        """The job's last status, once it has one."""
        until = time.monotonic() + STUCK_S
        while time.monotonic() < until:
            # Before the first look too: it would take the cores that the job is about to need.
            time.sleep(POLL_S)
            status = self.get(f"/jobs/{job_id}")["status"]
            if status in {"completed", "failed", "cancelled"}:
                return str(status)
        raise Stuck(f"job {job_id} is {status} for {STUCK_S:g} s")

    def by_status(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        return {str(k): int(v) for k, v in self.get("/admin/stats")["jobs_by_status"].items()}

    @contextmanager
    def drained(self) -> Iterator[None]:
        """No node takes jobs meanwhile. Raises Stuck when those under way do not end."""
        nodes = [node["name"] for node in self.get("/nodes")]
        for node in nodes:
            self.post(f"/nodes/{node}/drain", {"reason": "benchmark"}, 200)
        until = time.monotonic() + STUCK_S
        while self.by_status()["running"]:
            if time.monotonic() > until:
                raise Stuck(f"jobs still run after {STUCK_S:g} s: {self.by_status()}")
            time.sleep(POLL_S)
        try:
            yield
        finally:
            for node in nodes:
                self.post(f"/nodes/{node}/resume", {}, 200)

    def _ask(self, method: str, path: str, body: bytes | None, expected: int) -> Any:
        self._connection.request(method, "/jobs/api/v1" + path, body, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != expected:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
        return json.loads(text)


def submit_each(port: int, token: str, program: Program, clients: int, seconds: float) -> tuple[list[float], float]:
    """`clients` users submit one job after another for `seconds`; each request's seconds, and the time it all took."""
    took: list[list[float]] = [[] for _ in range(clients)]
    body = program.job()
    until = time.monotonic() + seconds

    def work(mine: list[float]) -> None:
        user = User(port, token)
        while time.monotonic() < until:
            began = time.perf_counter()
            user.post("/jobs", body)
            mine.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in took]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for mine in took for one in mine], time.monotonic() - began


def submit_bulk(user: User, program: Program, count: int) -> float:
    """Submits `count` jobs in requests of at most 1,000; the seconds it took."""
    began = time.perf_counter()
    for first in range(0, count, BULK):
        user.post("/jobs/bulk", [program.job()] * min(BULK, count - first))
    return time.perf_counter() - began


@contextmanager
def serve_no_op(directory: Path) -> Iterator[Program]:
    """Serves `true` of this machine on a free port of loopback."""
    found = shutil.which("true")
    if found is None:
        raise FileNotFoundError("there is no program `true` on the PATH")
    path = directory / "no-op"
    shutil.copyfile(found, path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Program(
            f"http://127.0.0.1:{server.server_port}/no-op", hashlib.sha256(path.read_bytes()).hexdigest()
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: requests are no news here."""
