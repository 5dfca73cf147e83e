"""A registry with TLS whose users get tokens elsewhere, as at the large public ones; certificates of the tests' own."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.local.ports import free_port
from tests.engine import START_S, missing


class Certificate:
    """A self-signed certificate for 127.0.0.1 with its key, as files."""

    def __init__(self, directory: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cfab tests")])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self.key = key.private_bytes(pem, form, serialization.NoEncryption())
        self.chain = [base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()]
        self.file, self.key_file = directory / "cert.pem", directory / "key.pem"
        self.file.write_bytes(made.public_bytes(pem))
        self.key_file.write_bytes(self.key)


class Server:
    """An HTTP server on loopback that answers each GET and POST by a function, and keeps what it was asked."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler, bytes], None], tls: Certificate | None = None) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.path, dict(self.headers), body))
                answer(self, body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.file, tls.key_file)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Answers a request."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class TokenRegistry:
    """docker-registry with TLS and token authentication; `me` may pull and push everything, others nothing."""

    USER, PASSWORD, IDENTITY = "me", "only-for-tests", "an-identity-token"

    def __init__(self, root: Path) -> None:
        if shutil.which("docker-registry") is None:
            missing("not installed: docker-registry")
        self.certificate = Certificate(root)
        self.tokens = Server(self._give_token, self.certificate)
        self.address = f"127.0.0.1:{free_port()}"
        config = root / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {root}/registry}}}}\n"
            f"http: {{addr: '{self.address}', tls: {{certificate: {self.certificate.file}, "
            f"key: {self.certificate.key_file}}}}}\n"
            f"auth: {{token: {{realm: 'https://{self.tokens.address}/token', service: tests, issuer: tests, "
            f"rootcertbundle: {self.certificate.file}}}}}\n"
        )
        with (root / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
        self._wait(root)

    def push_token(self, repository: str) -> str:
        """What somebody who may push sends."""
        return self._token([{"type": "repository", "name": repository, "actions": ["pull", "push"]}])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self.tokens.close()

    def _wait(self, root: Path) -> None:
        import requests

        until = time.monotonic() + START_S
        while True:
            try:
                requests.get(f"https://{self.address}/v2/", verify=str(self.certificate.file), timeout=2)
                return
            except requests.RequestException:
                assert time.monotonic() < until, (root / "registry.log").read_text()[-500:]
                time.sleep(0.05)

    def _give_token(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        form = parse_qs(body.decode() or urlsplit(handler.path).query)
        basic = "Basic " + base64.b64encode(f"{self.USER}:{self.PASSWORD}".encode()).decode()
        known = handler.headers.get("Authorization") == basic or form.get("refresh_token") == [self.IDENTITY]
        if not known and handler.headers.get("Authorization"):
            reply(handler, 401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}')
            return
        kind, _, rest = form.get("scope", [""])[0].partition(":")
        name, _, actions = rest.rpartition(":")
        access: list[dict[str, Any]] = (
            [{"type": kind, "name": name, "actions": actions.split(",")}] if known and kind else []
        )
        field = "access_token" if body else "token"
        reply(handler, 200, json.dumps({field: self._token(access)}).encode())

    def _token(self, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        claims = {"iss": "tests", "sub": self.USER, "aud": "tests", "exp": now + 300, "nbf": now - 60, "iat": now,
                  "jti": "1", "access": access}  # fmt: skip
        return jwt.encode(claims, self.certificate.key, algorithm="ES256", headers={"x5c": self.certificate.chain})
