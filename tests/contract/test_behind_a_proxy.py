"""A real API behind a reverse proxy and a mapped port: the listening socket alone decides which contract is primary."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from app.local.ports import free_port
from tests.factories import Fabric, make_fabric
from tests.integration.live.server import TOKEN, ApiProcess
from tests.servers import TestServers

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to `upstream` as a careless proxy does: another Host, its own X-Forwarded headers, streams."""

    upstream: int
    host: str | None
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in {*HOP_BY_HOP, "host"}}
        headers |= {
            "Host": self.host or self.headers["Host"], "X-Forwarded-Host": "fabric.example.com:8000",
            "X-Forwarded-Port": "8000", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9",
            "X-Forwarded-Prefix": "/elsewhere",
        }  # fmt: skip
        behind = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        behind.request(self.command, self.path, self.rfile.read(length) if length else None, headers)
        answer = behind.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        while part := answer.read1(65536):
            self.wfile.write(part)
            self.wfile.flush()
        self.close_connection = True
        behind.close()

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _pass_on

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def proxy(upstream: int, host: str | None = None) -> Iterator[str]:
    """A proxy on a port of its own; `host` None passes the client's Host on, as a mapped port does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Proxy,), {"upstream": upstream, "host": host}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def fabric(servers: TestServers) -> Iterator[Fabric]:
    url = servers.database()
    made = make_fabric(url)
    yield made
    made.db.close()
    servers.drop(url)


@pytest.fixture(scope="module")
def ports(fabric: Fabric, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The listening port of each primary contract, of one process."""
    ai, gpu = free_port(), free_port()
    own = {"CFAB_DATABASE_URL": fabric.settings.database_url, "CFAB_AI_PORT": str(ai), "CFAB_GPU_PORT": str(gpu)}
    api = ApiProcess(own, tmp_path_factory.mktemp("api") / "api.log")
    api.start()
    yield {"jobs": api.port, "ai": ai, "gpu": gpu}
    api.kill()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False
        made.headers["Authorization"] = f"Bearer {TOKEN}"
        yield made


BODY = {
    "jobs": {"type": "a", "script": "true", "priority": "background"},
    "ai": {"job_type": "inference", "image": "a"},
    "gpu": {"name": "a", "script": "true"},
}
CREATED = {"jobs": "pending", "ai": "pending", "gpu": "submitted"}
PATHS = {"jobs": "/jobs", "ai": "/jobs/", "gpu": "/jobs"}
NO_SUCH_PATH = {"jobs": {"error", "context"}, "ai": {"error"}, "gpu": {"error"}}


@pytest.mark.parametrize("host", [None, "other.example.com:8000", "127.0.0.1:8081"])
@pytest.mark.parametrize("contract", BODY)
def test_the_socket_decides_whatever_the_headers_say(
    ports: dict[str, int], session: requests.Session, contract: str, host: str | None
) -> None:
    with proxy(ports[contract], host) as at:
        made = session.post(f"{at}/api/v1{PATHS[contract]}", json=BODY[contract])
        assert made.status_code == 201, made.text
        assert made.json()["status"] == CREATED[contract]
        assert set(session.get(f"{at}/nowhere").json()) == NO_SUCH_PATH[contract]
        for other in BODY:
            answer = session.post(f"{at}/{other}/api/v1{PATHS[other]}", json=BODY[other])
            assert (answer.status_code, answer.json()["status"]) == (201, CREATED[other])
        assert session.get(f"{at}/api/v1/runtime/compute/jobs").json()["limit"] == 100
        assert session.get(f"{at}/v1/jobs").json()["limit"] == 100


def test_links_keep_the_prefix_of_their_request(ports: dict[str, int], session: requests.Session) -> None:
    with proxy(ports["ai"], "other.example.com") as at:
        job = session.post(f"{at}/api/v1/jobs/", json=BODY["ai"]).json()["id"]
        for prefix in ("/api/v1", "/ai/api/v1"):
            logs_url = session.get(f"{at}{prefix}/jobs/{job}").json()["logs_url"]
            assert logs_url == f"{prefix}/jobs/{job}/logs"
            assert session.get(at + logs_url).status_code == 200
            assert session.get(f"{at}{prefix}/openapi.json").json()["servers"] == [{"url": prefix}]
    with proxy(ports["jobs"]) as at:
        assert session.get(f"{at}/ai/api/v1/jobs/{job}").json()["logs_url"] == f"/ai/api/v1/jobs/{job}/logs"


def test_both_slash_forms_answer_without_a_redirect(ports: dict[str, int], session: requests.Session) -> None:
    for contract, port in ports.items():
        with proxy(port) as at:
            for form in ("/jobs", "/jobs/"):
                answer = session.get(f"{at}/api/v1{form}", allow_redirects=False)
                assert answer.status_code == 200, (contract, form)


def test_a_stream_passes_while_the_job_lives(ports: dict[str, int], session: requests.Session, fabric: Fabric) -> None:
    with proxy(ports["gpu"], "other.example.com") as at:
        job = session.post(f"{at}/api/v1/jobs", json=BODY["gpu"]).json()["job_id"]
        with session.get(f"{at}/api/v1/jobs/{job}/events", stream=True, timeout=30) as events:
            assert events.headers["Content-Type"].startswith("text/event-stream")
            lines = events.iter_lines(chunk_size=1, decode_unicode=True)
            assert next(line for line in lines if line.startswith("data:"))
            assert session.delete(f"{at}/api/v1/jobs/{job}").status_code == 200
            assert any("cancelled" in line for line in lines)
