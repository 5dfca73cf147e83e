"""Tokens of the one-machine stack: made and rotated by `cfab token`, accepted by a running API without a restart."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from app.api.auth.gate import issuer_of, keyring_of
from app.api.auth.keys import parse_keys
from app.api.auth.signed import SignedTokens
from app.local.data import DataDirectory
from app.local.demo.fabric import Fabric, temporary_directory
from app.local.stack import Shape, Stack
from app.local.tokens.command import command
from app.local.tokens.keys import MAX_OLDER, StackKeys
from config.settings import load_settings


def cfab(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(command, list(words), env=variables)


def made(*words: str, **variables: str) -> str:
    """What a command that succeeds prints."""
    done = cfab(*words, **variables)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def refused(*words: str, **variables: str) -> str:
    """What a command that is refused says, in a line and not a traceback."""
    done = cfab(*words, **variables)
    assert isinstance(done.exception, SystemExit) and done.exit_code == 2, done.output
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data directory with a signing key, without a stack."""
    (tmp_path / "secrets").mkdir(mode=0o700)
    StackKeys(tmp_path).ensure()
    return tmp_path


def trusted(root: Path) -> SignedTokens:
    """The tokens that an API of this directory accepts."""
    settings = load_settings({
        "CFAB_AUTH_KEYS": str(root / "secrets" / "token_keys.json"), "CFAB_AUTH_ISSUER": "cfab",
        "CFAB_AUTH_ALGORITHMS": "EdDSA",
    })  # fmt: skip
    return SignedTokens(issuer_of(settings), keyring_of(settings))


class TestKeys:
    def test_only_their_owner_may_read_them(self, root: Path) -> None:
        for name in ("signing_key", "token_keys.json"):
            assert stat.S_IMODE((root / "secrets" / name).stat().st_mode) == 0o600
        public = json.loads((root / "secrets" / "token_keys.json").read_text())["keys"]
        assert all("d" not in key for key in public)

    def test_a_second_start_keeps_the_key(self, root: Path) -> None:
        before = (root / "secrets" / "signing_key").read_bytes()
        StackKeys(root).ensure()
        assert (root / "secrets" / "signing_key").read_bytes() == before

    def test_a_start_cut_short_is_taken_up(self, root: Path) -> None:
        (root / "secrets" / "token_keys.json").unlink()
        StackKeys(root).ensure()
        (root / "secrets" / "signing_key").unlink()
        StackKeys(root).ensure()
        key = StackKeys(root).signing_key()
        assert (
            len(parse_keys((root / "secrets" / "token_keys.json").read_bytes(), ["EdDSA"]).find("EdDSA", key.id, 0))
            == 1
        )

    def test_damage_is_explained(self, root: Path) -> None:
        (root / "secrets" / "token_keys.json").write_text("{")
        assert "is damaged" in refused("rotate", "--data", str(root))
        (root / "secrets" / "signing_key").write_text("-----BEGIN")
        assert "no private key" in refused("create", "--tenant", "a", "--role", "user", "--data", str(root))

    def test_keys_do_not_pile_up(self, root: Path) -> None:
        keys = StackKeys(root)
        for _ in range(MAX_OLDER):
            keys.rotate(None)
        assert "retire" in refused("rotate", "--data", str(root))
        assert keys.retire() == MAX_OLDER
        assert keys.rotate(1e-6)[1] == 1

    def test_a_key_with_an_end_is_dropped_after_it(self, root: Path) -> None:
        keys = StackKeys(root)
        keys.rotate(1e-6)
        assert keys.rotate(None)[1] == 1, "the one whose time is over is gone"
        assert len(keys.public()["keys"]) == 2


class TestCreate:
    def test_standard_output_is_the_token_alone(self, root: Path) -> None:
        token = made("create", "--tenant", "acme", "--role", "user", "--role", "operator", "--data", str(root))
        who = trusted(root).identify(token)
        assert who is not None
        assert (who.tenant, who.roles, who.subject) == ("acme", {"user", "operator"}, "acme")

    def test_json_says_what_was_made(self, root: Path) -> None:
        words = ("--tenant", "acme", "--role", "admin", "--ttl", "90s", "--subject", "ann", "--json")
        told = json.loads(made("create", *words, "--data", str(root)))
        who = trusted(root).identify(told["token"])
        assert who is not None and who.subject == told["subject"] == "ann"
        assert (told["tenant"], told["roles"]) == ("acme", ["admin"])
        assert told["expires_at"].endswith("Z") and told["key_id"] == StackKeys(root).signing_key().id

    @pytest.mark.parametrize(
        "words",
        [
            ("--role", "user"),
            ("--tenant", "acme"),
            ("--tenant", "acme", "--role", "root"),
            ("--tenant", "", "--role", "user"),
            ("--tenant", "a\nb", "--role", "user"),
            ("--tenant", "x" * 256, "--role", "user"),
            ("--tenant", "acme", "--role", "user", "--subject", "a\tb"),
            ("--tenant", "acme", "--role", "user", "--ttl", "0"),
            ("--tenant", "acme", "--role", "user", "--ttl", "forever"),
            ("--tenant", "acme", "--role", "user", "--ttl", "9999d"),
        ],
    )
    def test_nonsense_is_refused(self, root: Path, words: tuple[str, ...]) -> None:
        refused("create", *words, "--data", str(root))

    def test_an_issuer_elsewhere_signs_its_own(self, root: Path) -> None:
        elsewhere = {"CFAB_AUTH_KEYS": "https://issuer.example.com/keys", "CFAB_AUTH_ISSUER": "x"}
        assert "CFAB_AUTH_KEYS" in refused(
            "create", "--tenant", "a", "--role", "user", "--data", str(root), **elsewhere
        )

    @pytest.mark.parametrize(
        ("algorithm", "make"),
        [("EdDSA", ed25519.Ed25519PrivateKey.generate), ("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
         ("RS256", lambda: rsa.generate_private_key(65537, 2048))],
    )  # fmt: skip
    def test_with_a_key_of_ones_own(self, tmp_path: Path, algorithm: str, make: Callable[[], Any]) -> None:
        """The way of several machines without an identity provider: one key, its public half at every API."""
        key, public = tmp_path / "key.pem", tmp_path / "keys.json"
        key.write_bytes(make().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_text(made("keys", "--key", str(key)))
        variables = {
            "CFAB_AUTH_KEYS": str(public), "CFAB_AUTH_ISSUER": "https://us.example.com", "CFAB_AUTH_AUDIENCE": "fabric",
            "CFAB_AUTH_ALGORITHMS": algorithm, "CFAB_AUTH_ROLES_CLAIM": "realm_access.roles",
            "CFAB_AUTH_TENANT_CLAIM": "https://us.example.com/tenant", "CFAB_AUTH_ROLE_PREFIX": "fabric-",
        }  # fmt: skip
        token = made("create", "--tenant", "acme", "--role", "operator", "--key", str(key), **variables)
        settings = load_settings(variables)
        who = SignedTokens(issuer_of(settings), keyring_of(settings)).identify(token)
        assert who is not None and (who.tenant, who.roles) == ("acme", {"operator"})
        other = {"EdDSA": "ES256"}.get(algorithm, "EdDSA")
        words = ("create", "--tenant", "a", "--role", "user", "--key", str(key))
        assert "CFAB_AUTH_ALGORITHMS" in refused(*words, **{**variables, "CFAB_AUTH_ALGORITHMS": other})

    def test_keys_that_sign_nothing_here(self, tmp_path: Path) -> None:
        key = tmp_path / "key.pem"
        words = ("create", "--tenant", "a", "--role", "user", "--key", str(key))
        assert "No such file" in refused(*words)
        weak = rsa.generate_private_key(65537, 1024)
        for text in (
            b"",
            weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            ec.generate_private_key(ec.SECP256K1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
            ),
        ):
            key.write_bytes(text)
            assert str(key) in refused(*words)


class TestWhatAStackTellsItsParts:
    def told(self, root: Path, **variables: str) -> dict[str, str]:
        settings = load_settings(variables)
        return Stack(settings, DataDirectory(root), Shape(), print)._environment()

    def test_its_own_keys(self, root: Path) -> None:
        told = self.told(root)
        assert told["CFAB_AUTH_KEYS"] == str(root / "secrets" / "token_keys.json")
        assert (told["CFAB_AUTH_ISSUER"], told["CFAB_AUTH_ALGORITHMS"]) == ("cfab", "EdDSA")

    def test_or_the_ones_it_was_given(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        told = self.told(root, CFAB_AUTH_KEYS="keys.json", CFAB_AUTH_ISSUER="x")
        assert told["CFAB_AUTH_KEYS"] == str(tmp_path / "keys.json")
        assert "CFAB_AUTH_ALGORITHMS" not in told
        away = self.told(root, CFAB_AUTH_KEYS="https://issuer.example.com/keys", CFAB_AUTH_ISSUER="x")
        assert "CFAB_AUTH_KEYS" not in away, "as in the environment"


@pytest.fixture(scope="module")
def stack() -> Iterator[Fabric]:
    with temporary_directory() as root:
        running = Fabric(root)
        try:
            running.wait_ready()
            yield running
        finally:
            running.stop()


@pytest.mark.slow
class TestStack:
    def status(self, stack: Fabric, token: str, path: str = "/jobs") -> int:
        header = {"Authorization": f"Bearer {token}"}
        return requests.get(f"{stack.url}/api/v1{path}", headers=header, timeout=10).status_code

    def test_accepts_what_cfab_token_create_made(self, stack: Fabric) -> None:
        data = str(stack.data)
        user = made("create", "--tenant", "default", "--role", "user", "--data", data)
        operator = made("create", "--tenant", "default", "--role", "operator", "--data", data)
        assert (self.status(stack, user), self.status(stack, user, "/admin/stats")) == (200, 403)
        assert (self.status(stack, operator), self.status(stack, operator, "/admin/stats")) == (403, 200)
        assert self.status(stack, made("create", "--tenant", "nobody", "--role", "user", "--data", data)) == 403
        assert self.status(stack, made("--data", data)) == 200

    def test_says_what_a_token_waits_for(self, stack: Fabric) -> None:
        def told(tenant: str, server: str = stack.url) -> str:
            words = ("create", "--tenant", tenant, "--role", "user", "--data", str(stack.data))
            return cfab(*words, CFAB_SERVER_URL=server).stderr.strip()

        assert told("default").endswith("Z")
        assert told("nobody").endswith("Z, once there is a tenant 'nobody': `cfab tenant create` makes it")
        assert told("default", "http://127.0.0.1:1").endswith("Z, if there is a tenant 'default'")

    def test_follows_a_rotation_at_once(self, stack: Fabric) -> None:
        create = ("create", "--tenant", "default", "--role", "user", "--data", str(stack.data))
        old = made(*create)
        made("rotate", "--data", str(stack.data))
        new = made(*create)
        assert old.split(".")[0] != new.split(".")[0]
        assert (self.status(stack, old), self.status(stack, new)) == (200, 200)
        made("rotate", "--retire", "--data", str(stack.data))
        assert (self.status(stack, old), self.status(stack, new)) == (401, 200)

    def test_two_authorization_headers_on_the_wire_are_refused(self, stack: Fabric) -> None:
        """A server may join them with a comma, take the first, or refuse the request; none of it may let one in."""
        token = made("create", "--tenant", "default", "--role", "user", "--data", str(stack.data))
        for first, second in ((token, token), (token, "bad"), ("bad", token)):
            lines = ["GET /api/v1/jobs HTTP/1.1", f"Host: 127.0.0.1:{stack.port}", f"Authorization: Bearer {first}",
                     f"Authorization: Bearer {second}", "Connection: close", "", ""]  # fmt: skip
            with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as wire:
                wire.sendall("\r\n".join(lines).encode())
                answer = wire.makefile("rb").read()
            assert answer.split()[1] in {b"400", b"401"}, answer[:200]

    def test_a_token_is_in_no_log_of_the_stack(self, stack: Fabric) -> None:
        token = made("create", "--tenant", "default", "--role", "user", "--data", str(stack.data))
        assert self.status(stack, token) == 200
        assert self.status(stack, token[:-4] + "AAAA") == 401
        for log in (stack.data / "logs").iterdir():
            assert not any(part.encode() in log.read_bytes() for part in token.split(".")), log
