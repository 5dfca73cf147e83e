"""The registry client: signing in by tokens over TLS, on a real registry; and servers that mean ill."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from app.services.outbound import Reach
from app.services.registry import Login, NotThere, Registry, RegistryAway, RegistryRefused
from app.services.registry_reach import reach_of
from config.settings import Settings, SettingsError
from tests.token_registry import Certificate, Server, TokenRegistry, reply

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ME = Login(TokenRegistry.USER, TokenRegistry.PASSWORD)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenRegistry]:
    running = TokenRegistry(tmp_path_factory.mktemp("registry"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def manifest(registry: TokenRegistry) -> str:
    """The digest of `team/tool:1`."""
    session = requests.Session()
    session.trust_env = False
    session.verify = str(registry.certificate.file)
    session.headers["Authorization"] = f"Bearer {registry.push_token('team/tool')}"
    config = b"{}"
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    where = session.post(f"https://{registry.address}/v2/team/tool/blobs/uploads/").headers["Location"]
    session.put(where, params={"digest": digest}, data=config).raise_for_status()
    part = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": digest}
    content = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": part, "layers": [part]}).encode()
    at = f"https://{registry.address}/v2/team/tool/manifests/1"
    session.put(at, data=content, headers={"Content-Type": MANIFEST}).raise_for_status()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def asked(registry: TokenRegistry) -> Callable[..., Registry]:
    """The client of a repository there, as it is with the settings that such a registry needs."""

    def of(login: Login | None, path: str = "team/tool", **changes: Any) -> Registry:
        places = (registry.address, registry.tokens.address)
        chosen = replace(Settings(registry_hosts=places, registry_ca=str(registry.certificate.file)), **changes)
        return Registry(registry.address, path, login, reach_of(chosen), 20.0)

    return of


class TestSignIn:
    @pytest.mark.parametrize("login", [ME, Login(identity_token=TokenRegistry.IDENTITY)], ids=["password", "identity"])
    def test_token_is_got_where_the_registry_says(
        self, asked: Callable[..., Registry], manifest: str, login: Login
    ) -> None:
        client = asked(login)
        assert client.manifest("1").digest == manifest
        content = json.loads(client.manifest(manifest).content)
        assert client.blob(content["config"]["digest"], 100) == b"{}"

    @pytest.mark.parametrize(
        ("login", "why"),
        [(None, "denies it to those who do not sign in"), (Login("me", "wrong"), "denies these credentials: .*wrong")],
        ids=["nobody", "wrong"],
    )
    def test_who_may_not_pull_is_told_so(
        self, asked: Callable[..., Registry], manifest: str, login: Login | None, why: str
    ) -> None:
        with pytest.raises(RegistryRefused, match=why):
            asked(login).manifest("1")

    def test_what_is_not_there_is_told_apart(self, asked: Callable[..., Registry], manifest: str) -> None:
        with pytest.raises(NotThere):
            asked(ME).manifest("2")
        with pytest.raises(NotThere):
            asked(ME, "team/none").manifest("1")

    def test_blob_beyond_its_cap_is_refused(self, asked: Callable[..., Registry], manifest: str) -> None:
        digest = json.loads(asked(ME).manifest("1").content)["config"]["digest"]
        with pytest.raises(RegistryRefused, match="more than 1 bytes"):
            asked(ME).blob(digest, 1)

    def test_certificate_that_nobody_vouches_for_is_not_trusted(
        self, asked: Callable[..., Registry], registry: TokenRegistry, manifest: str
    ) -> None:
        before = len(registry.tokens.asked)
        with pytest.raises(RegistryAway, match="certificate verify failed"):
            asked(ME, registry_ca="").manifest("1")
        assert len(registry.tokens.asked) == before

    def test_certificates_that_cannot_be_read_stop_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="CFAB_REGISTRY_CA"):
            reach_of(Settings(registry_ca=str(tmp_path / "absent")))


class TestHostileRegistries:
    @pytest.fixture
    def serve(self) -> Iterator[Callable[..., Server]]:
        opened: list[Server] = []

        def server(answer: Callable[[BaseHTTPRequestHandler, bytes], None], tls: Certificate | None = None) -> Server:
            opened.append(Server(answer, tls))
            return opened[-1]

        yield server
        for one in opened:
            one.close()

    @staticmethod
    def client(*trusted: Server) -> Registry:
        places = frozenset(server.address for server in trusted)
        return Registry(trusted[0].address, "team/tool", ME, Reach(places, places), 20.0)

    def test_redirect_into_the_network_is_not_followed(self, serve: Callable[..., Server]) -> None:
        inside = serve(lambda handler, _: reply(handler, 200, b"secret"))
        for target in (
            f"http://{inside.address}/x",
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
            "gopher://a",
        ):
            evil = serve(lambda handler, _, to=target: reply(handler, 307, Location=to))
            with pytest.raises((RegistryRefused, RegistryAway)):
                self.client(evil).blob("sha256:" + "a" * 64, 100)
        assert inside.asked == []

    def test_redirect_to_a_storage_carries_no_credentials(self, serve: Callable[..., Server]) -> None:
        content = b"payload"
        storage = serve(lambda handler, _: reply(handler, 200, content))

        def answer(handler: BaseHTTPRequestHandler, _: bytes) -> None:
            if handler.headers.get("Authorization"):
                reply(handler, 307, Location=f"http://{storage.address}/blob")
            else:
                reply(handler, 401, WWW_Authenticate='Basic realm="x"')

        registry = serve(answer)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert self.client(registry, storage).blob(digest, 100) == content
        ((_path, headers, _body),) = storage.asked
        assert "Authorization" not in headers

    def test_place_to_sign_in_at_must_be_one_that_may_be_asked(self, serve: Callable[..., Server]) -> None:
        thief = serve(lambda handler, _: reply(handler, 200, b'{"token": "x"}'))
        challenge = f'Bearer realm="http://{thief.address}/token",service="x"'
        evil = serve(lambda handler, _: reply(handler, 401, WWW_Authenticate=challenge))
        with pytest.raises(RegistryRefused):
            self.client(evil).manifest("1")
        assert thief.asked == []

    @pytest.mark.parametrize("tls", [False, True])
    def test_answer_that_never_ends_is_given_up(
        self, serve: Callable[..., Server], registry: TokenRegistry, tls: bool
    ) -> None:
        over = threading.Event()

        def drip(handler: BaseHTTPRequestHandler, _: bytes) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
            while not over.wait(0.05):
                handler.wfile.write(b"x")

        try:
            with pytest.raises(RegistryAway, match=r"broke off|did not answer"):
                slow = serve(drip, registry.certificate if tls else None)
                here = frozenset({slow.address})
                context = ssl.create_default_context(cafile=str(registry.certificate.file))
                reach = Reach(here, frozenset() if tls else here, context)
                Registry(slow.address, "team/tool", None, reach, 1.0).manifest("1")
        finally:
            over.set()

    @pytest.mark.parametrize("status", [429, 500, 502])
    def test_server_in_trouble_is_no_refusal(self, serve: Callable[..., Server], status: int) -> None:
        with pytest.raises(RegistryAway, match=str(status)):
            self.client(serve(lambda handler, _: reply(handler, status, b"\x00<html>"))).manifest("1")
