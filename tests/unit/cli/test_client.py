"""Which token goes where, and what the client makes of servers that are no Compute Fabric."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from app.cli.client import Client, is_loopback, token_of
from app.cli.failure import ExitCode, Failure
from app.cli.options import full_id
from config.settings import load_settings


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory as `cfab up` leaves it."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "api_token").write_text("made-at-first-start\n")
    return tmp_path


@pytest.mark.parametrize(
    ("server", "token"),
    [
        ("http://127.0.0.1:8080", "made-at-first-start"),
        ("http://localhost:8080", "made-at-first-start"),
        ("http://[::1]:8080", "made-at-first-start"),
        ("https://fabric.example.com", ""),
        ("https://localhost.example.com", ""),
    ],
)
def test_the_token_of_this_machine_stays_on_it(data_dir: Path, server: str, token: str) -> None:
    assert token_of(load_settings({"CFAB_DATA_DIR": str(data_dir)}), server) == token


def test_a_token_that_was_given_goes_to_any_server(data_dir: Path) -> None:
    settings = load_settings({"CFAB_DATA_DIR": str(data_dir), "CFAB_API_TOKEN": "given"})
    assert token_of(settings, "https://fabric.example.com") == token_of(settings, "http://127.0.0.1:1") == "given"


def test_no_token_is_no_error(tmp_path: Path) -> None:
    assert token_of(load_settings({"CFAB_DATA_DIR": str(tmp_path / "none")}), "http://127.0.0.1:8080") == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "LOCALHOST", "a.localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "example.com", "localhost.com", "", "0.0.0.0", "127.0.0.1.nip.io"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("prefix", ["job-", "job_", ""])
def test_an_id_of_another_contract_names_the_same_job(prefix: str) -> None:
    nobody = Client("http://127.0.0.1:1", "")
    whole = "0190b3e6-7f4c-7d0a-a6a0-c1a4f5b6d7e8"
    assert full_id(nobody, prefix + whole.replace("-", "").upper()) == full_id(nobody, whole) == whole


class _Stranger(BaseHTTPRequestHandler):
    """A web server of another kind; the first part of the path below /jobs/ is the status it answers."""

    def do_GET(self) -> None:
        status = int(self.path.rsplit("/", 1)[1])
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def stranger() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Stranger)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("200", ExitCode.REFUSED),
        ("302", ExitCode.REFUSED),
        ("404", ExitCode.REFUSED),
        ("502", ExitCode.UNREACHABLE),
    ],
)
def test_a_server_of_another_kind_is_named_as_such(stranger: str, status: str, code: ExitCode) -> None:
    with pytest.raises(Failure, match=f"answered {status} .*not as a Compute Fabric does") as caught:
        Client(stranger).job(status)
    assert caught.value.code is code


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_number_that_json_has_not_is_a_mistake_of_the_caller(weight: float) -> None:
    with pytest.raises(Failure, match="give finite numbers") as caught:
        Client("http://127.0.0.1:1").change_tenant("lab", {"weight": weight})
    assert caught.value.code is ExitCode.USAGE


@pytest.mark.parametrize("server", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "nonsense"])
def test_what_is_no_server(server: str) -> None:
    with pytest.raises(Failure, match="is no server") as caught:
        Client(server)
    assert caught.value.code is ExitCode.USAGE
