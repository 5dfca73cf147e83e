"""A server without tokens, and every way in which a web page may try to use it through its reader's browser."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.api import auth, errors
from app.api.auth import TenantBook
from app.api.auth.loopback import LoopbackOnly
from app.api.jobs.contract import CONTRACT
from config.settings import Settings

JSON = {"Content-Type": "application/json"}
SIMPLE = [
    "text/plain",
    "text/plain; charset=utf-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "TEXT/PLAIN",
    "text/plain;application/json",
]


@pytest.fixture
def client() -> FlaskClient:
    app = Flask("test")
    app.add_url_rule("/thing", "thing", lambda: "ok", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    app.add_url_rule("/docs", "docs", auth.browsable(lambda: "docs"))
    auth.install(app, LoopbackOnly(), Settings(auth="off"), TenantBook(lambda _: None))
    errors.install(app, errors.ErrorForms({CONTRACT.at: CONTRACT.errors, "": CONTRACT.errors}))
    return app.test_client()


def status(client: FlaskClient, method: str = "POST", path: str = "/thing", **headers: Any) -> int:
    sent = {"Host": "127.0.0.1:8080", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return client.open(path, method=method, headers=sent, data=b"{}" if "Content-Type" in sent else None).status_code


class TestOfThisMachine:
    def test_curl_and_programs_are_served(self, client: FlaskClient) -> None:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            assert status(client, method) == 200
        assert status(client, Content_Type="application/json") == 200
        assert status(client, Content_Type="application/json; charset=utf-8") == 200

    @pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
    def test_pages_of_this_machine_are_served(self, client: FlaskClient, site: str) -> None:
        assert status(client, "GET", Sec_Fetch_Site=site) == 200
        assert status(client, Sec_Fetch_Site=site, Origin="http://localhost:8080", **JSON) == 200

    def test_a_link_to_the_documentation_may_be_followed(self, client: FlaskClient) -> None:
        followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
        assert status(client, "GET", "/docs", **followed) == 200
        assert status(client, "GET", "/thing", **followed) == 403
        assert status(client, "GET", "/docs", **{**followed, "Sec_Fetch_Dest": "iframe"}) == 403
        assert status(client, "GET", "/docs", **{**followed, "Sec_Fetch_Mode": "no-cors"}) == 403


class TestRebinding:
    """A page's own name resolves to 127.0.0.1: to the browser it is the same origin, only the Host header tells."""

    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    @pytest.mark.parametrize(
        "host",
        [
            "evil.example.com",
            "evil.example.com:8080",
            "127.0.0.1.evil.example.com",
            "localhost.evil.example.com",
            "192.168.0.10:8080",
            "0.0.0.0:8080",
            "[::]:8080",
            "[::1].evil.example.com",
            "[::1]evil",
            "127.0.0.1:8080:1",
            "127.0.0.1@evil.example.com",
            "localhost:80a",
            "",
            " ",
            "2130706433",
            "0x7f000001",
            "127.1",
        ],
    )
    def test_is_seen_by_the_host(self, client: FlaskClient, method: str, host: str) -> None:
        assert status(client, method, Host=host) in {400, 403}

    def test_no_header_of_a_proxy_changes_that(self, client: FlaskClient) -> None:
        for name in ("X-Forwarded-Host", "Forwarded", "X-Host", "X-Original-Host"):
            assert status(client, "GET", Host="evil.example.com", **{name: "localhost"}) == 403


class TestOtherSites:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    @pytest.mark.parametrize(
        "origin",
        [
            "http://evil.example.com",
            "https://evil.example.com:8080",
            "null",
            "",
            "file://",
            "http://[",
            "localhost",
            "http://localhost.evil.example.com",
            "http://localhost@evil.example.com",
            "chrome-extension://abcdef",
        ],
    )
    def test_are_seen_by_the_origin(self, client: FlaskClient, method: str, origin: str) -> None:
        """Also the question before a request with JSON (OPTIONS): without a yes the browser does not send it."""
        answer = client.open("/thing", method=method, headers={"Host": "127.0.0.1", "Origin": origin, **JSON})
        assert answer.status_code == 403
        assert "Access-Control-Allow-Origin" not in answer.headers

    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_are_seen_by_the_browsers_word(self, client: FlaskClient, method: str) -> None:
        assert status(client, method, Sec_Fetch_Site="cross-site") == 403
        assert status(client, method, Sec_Fetch_Site="Cross-Site ") == 403

    @pytest.mark.parametrize("kind", SIMPLE)
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_forms_are_seen_by_their_type(self, client: FlaskClient, method: str, kind: str) -> None:
        """What a browser sends without asking, even an old one that sends neither Origin nor Sec-Fetch-Site."""
        assert status(client, method, Content_Type=kind) == 415

    def test_a_websocket_is_seen_by_its_origin(self, client: FlaskClient) -> None:
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
                   "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
        assert status(client, "GET", Origin="http://evil.example.com", **upgrade) == 403
        assert status(client, "GET", Origin="null", **upgrade) == 403
        assert status(client, "GET", Host="evil.example.com", Origin="http://evil.example.com", **upgrade) == 403

    def test_nothing_is_said_to_them_about_paths(self, client: FlaskClient) -> None:
        assert status(client, "GET", "/no-such-path", Origin="http://evil.example.com") == 403
