"""Signed tokens at a whole application: tenants, outages, challenges, and nothing of a token in any log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.api.auth import TenantBook
from app.api.factory import create_app
from app.domain.errors import Unavailable
from app.domain.tenant import Tenant
from app.services import tenants
from app.services.tenants import NewTenant
from app.storage.database import Database
from config.settings import Settings, SettingsError, load_settings
from tests.contract.conftest import Bells, job_body
from tests.factories import Fabric, make_fabric
from tests.issuer import AUDIENCE, ISSUER, Issuer, KeyServer, key_server, key_set

SIGNER = Issuer()
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


def settings(url: str, keys: str, **changes: Any) -> Settings:
    values = {"auth_audience": (AUDIENCE,), "auth_algorithms": ("ES256",), "auth_issuer": ISSUER, **changes}
    return Settings(database_url=url, database_pool=4, api_threads=8, auth_keys=keys, **values)


def call(client: FlaskClient, token: str, path: str = "/jobs", method: str = "GET", **options: Any) -> TestResponse:
    headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
    return client.open("/jobs/api/v1" + path, method=method, headers=headers, **options)


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(SIGNER.jwk()))
    return str(path)


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    made = make_fabric(database_url)
    made.add_tenant("acme")
    yield made
    made.db.close()


@pytest.fixture
def client(fabric: Fabric, keys: str) -> FlaskClient:
    return create_app(settings(fabric.settings.database_url, keys), fabric.db, Bells()).test_client()


class TestTenants:
    def test_a_token_opens_its_tenants_jobs_by_name_and_by_id(self, client: FlaskClient, fabric: Fabric) -> None:
        acme = fabric.value("SELECT id FROM tenant WHERE name = 'acme'")
        made = call(client, SIGNER.token(), method="POST", json=job_body())
        assert made.status_code == 201
        for token in (SIGNER.token(), SIGNER.token(tenant=str(acme)), SIGNER.token(tenant=acme.hex)):
            assert call(client, token, f"/jobs/{made.json['id']}").status_code == 200
        assert fabric.value("SELECT tenant_id FROM job") == acme

    def test_an_admin_without_a_tenant_acts_for_the_default_one_or_for_a_named_one(self, client: FlaskClient) -> None:
        admin = SIGNER.token(roles=["admin"], tenant=None)
        call(client, SIGNER.token(), method="POST", json=job_body())
        assert call(client, admin).headers["X-Total-Count"] == "0"
        assert call(client, admin, headers={"X-Tenant": "acme"}).headers["X-Total-Count"] == "1"
        unknown = call(client, admin, headers={"X-Tenant": "nobody"})
        assert (unknown.status_code, unknown.json["error"]) == (404, "Tenant not found")

    def test_a_name_beyond_ascii(self, client: FlaskClient, fabric: Fabric) -> None:
        fabric.add_tenant("große-läufer")
        assert call(client, SIGNER.token(tenant="große-läufer")).status_code == 200
        admin = SIGNER.token(roles=["admin"])
        named = call(client, admin, headers={"X-Tenant": "große-läufer".encode().decode("latin-1")})
        assert named.status_code == 200
        assert call(client, admin, headers={"X-Tenant": "\xff\xfe"}).status_code == 404

    def test_the_own_tenant_may_be_named_by_anyone(self, client: FlaskClient, fabric: Fabric) -> None:
        acme = fabric.value("SELECT id FROM tenant WHERE name = 'acme'")
        for name in ("acme", str(acme)):
            assert call(client, SIGNER.token(), headers={"X-Tenant": name}).status_code == 200
        assert call(client, SIGNER.token(), headers={"X-Tenant": "default"}).status_code == 403

    def test_a_tenant_that_is_made_later_is_seen_within_seconds(self, fabric: Fabric, keys: str) -> None:
        now = [0.0]
        book = TenantBook(lambda name: tenants.find(fabric.db, name), clock=lambda: now[0])
        assert book.find("later") is None
        made = tenants.create(fabric.db, NewTenant("later"))
        assert book.find("later") is None
        now[0] += 5.0
        found = book.find("later")
        assert found is not None and found.id == made.id
        tenants.change(fabric.db, made.id, {"active": False})
        now[0] += 5.0
        found = book.find("later")
        assert found is not None and not found.active


class TestTenantBook:
    def test_keeps_a_bounded_number_of_names_and_the_last_used_ones(self) -> None:
        asked: list[str] = []

        def find(name: str) -> Tenant | None:
            asked.append(name)
            return None

        book = TenantBook(find, kept=3, clock=lambda: 0.0)
        for name in ("a", "b", "c", "a", "d", "a", "e"):
            book.find(name)
        assert asked == ["a", "b", "c", "d", "e"]
        assert len(book._answers) == 3

    def test_remembers_no_outage(self) -> None:
        answers: list[Any] = [Unavailable(), None]

        def find(name: str) -> Tenant | None:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return None

        book = TenantBook(find)
        with pytest.raises(Unavailable):
            book.find("a")
        assert book.find("a") is None


class TestOutages:
    def test_without_the_database_it_is_503_for_good_tokens_and_401_for_bad_ones(self, keys: str) -> None:
        client = create_app(settings(NOWHERE, keys), ringer=Bells()).test_client()
        away = call(client, SIGNER.token())
        assert away.status_code == 503 and int(away.headers["Retry-After"]) > 0
        assert call(client, SIGNER.token(exp=1)).status_code == 401
        assert call(client, SIGNER.token(), "/no-such-path").status_code == 404
        assert call(client, SIGNER.token(roles=["executor"])).status_code == 403

    def test_without_keys_ever_it_is_503_and_the_machines_token_still_works(
        self, fabric: Fabric, jwks: KeyServer
    ) -> None:
        jwks.status = 500
        asked = settings(fabric.settings.database_url, jwks.url, api_token="machine")
        client = create_app(asked, fabric.db, Bells()).test_client()
        for _ in range(3):
            away = call(client, SIGNER.token())
            assert away.status_code == 503 and int(away.headers["Retry-After"]) > 0
            assert "error" in away.json
            assert call(client, "machine").status_code == 200
            assert call(client, "garbage").status_code == 401
        assert jwks.asked == 1

    @pytest.fixture
    def jwks(self) -> Iterator[KeyServer]:
        with key_server(key_set(SIGNER.jwk())) as told:
            yield told

    def test_keys_come_over_http(self, fabric: Fabric, jwks: KeyServer) -> None:
        asked = settings(fabric.settings.database_url, jwks.url)
        client = create_app(asked, fabric.db, Bells()).test_client()
        assert jwks.asked == 0, "an application that is being made asks nobody"
        for _ in range(5):
            assert call(client, SIGNER.token()).status_code == 200
        jwks.status = 500
        assert call(client, SIGNER.token()).status_code == 200
        for number in range(20):
            assert call(client, SIGNER.token({"kid": f"flood-{number}"})).status_code == 401
        assert jwks.asked == 1


class TestChallenges:
    def test_say_what_is_wrong_and_nothing_of_the_token(self, client: FlaskClient) -> None:
        assert call(client, "").headers["WWW-Authenticate"] == 'Bearer realm="cfab"'
        late = call(client, SIGNER.token(exp=1))
        assert late.headers["WWW-Authenticate"] == (
            'Bearer realm="cfab", error="invalid_token", error_description="The token has expired."'
        )
        weak = call(client, SIGNER.token(roles=["executor"]))
        assert weak.headers["WWW-Authenticate"].startswith('Bearer realm="cfab", error="insufficient_scope"')

    def test_pages_take_a_signed_token_as_a_password_and_nothing_else_does(self, client: FlaskClient) -> None:
        token, anyone = SIGNER.token(), ("anyone", SIGNER.token())
        assert client.get("/jobs/api/v1/docs", auth=anyone).status_code == 200
        assert client.get("/jobs/api/v1/jobs", auth=anyone).status_code == 401
        assert client.get("/jobs/api/v1/docs", auth=(token, "")).status_code == 401
        asked = client.get("/jobs/api/v1/docs")
        assert asked.status_code == 401 and asked.headers["WWW-Authenticate"].startswith("Basic ")

    @pytest.mark.parametrize("level", [logging.DEBUG])
    def test_no_part_of_a_token_is_logged(
        self, fabric: Fabric, keys: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], level: int
    ) -> None:
        secret = SIGNER.token()
        bad = [secret[:-8] + "AAAAAAAA", SIGNER.token(exp=1), SIGNER.token({"kid": "x" * 40}), SIGNER.token(iss="x"),
               SIGNER.token(tenant="nobody"), SIGNER.token(roles=[])]  # fmt: skip
        with caplog.at_level(level):
            client = create_app(settings(fabric.settings.database_url, keys), fabric.db, Bells()).test_client()
            for token in (secret, *bad):
                call(client, token)
                call(client, token, "/no-such-path")
            with fabric.db.transaction() as tx:
                tx.run("ALTER TABLE job RENAME TO job_was")
            assert call(client, secret).status_code == 500
        shown = caplog.text + "".join(capfd.readouterr())
        for token in (secret, *bad):
            assert not any(part in shown for part in token.split("."))


class TestSettings:
    def test_a_file_that_cannot_be_used_is_refused_at_the_start(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.json"
        with pytest.raises(SettingsError, match=r"CFAB_AUTH_KEYS=.*No such file"):
            create_app(settings(NOWHERE, str(path)), ringer=Bells())
        path.write_text("-----BEGIN PUBLIC KEY-----")
        with pytest.raises(SettingsError, match=r"CFAB_AUTH_KEYS=.*not JSON"):
            create_app(settings(NOWHERE, str(path)), ringer=Bells())

    @pytest.mark.parametrize("changes", [{"auth_issuer": ""}, {"auth_audience": ()}])
    def test_an_issuer_and_an_audience_are_needed(self, keys: str, changes: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match="CFAB_AUTH_ISSUER"):
            create_app(replace(settings(NOWHERE, keys), **changes), ringer=Bells())

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("CFAB_AUTH_ALGORITHMS", "HS256"),
            ("CFAB_AUTH_ALGORITHMS", "none"),
            ("CFAB_AUTH_ALGORITHMS", "RS256,ES256"),
            ("CFAB_AUTH_ALGORITHMS", "RS256,HS256"),
            ("CFAB_AUTH_ALGORITHMS", ""),
            ("CFAB_AUTH_KEYS", "http://issuer.example.com/keys"),
            ("CFAB_AUTH_KEYS", "http://localhost.example.com/keys"),
            ("CFAB_AUTH_KEYS", "ftp://127.0.0.1/keys"),
            ("CFAB_AUTH_KEYS", "file:///etc/keys"),
            ("CFAB_AUTH_KEYS", "https://me:secret@issuer.example.com/keys"),
            ("CFAB_AUTH_KEYS", "https:///keys"),
            ("CFAB_AUTH_LEEWAY_S", "nan"),
        ],
    )
    def test_values_that_would_open_a_hole_are_refused(self, variable: str, value: str) -> None:
        with pytest.raises(SettingsError, match=variable):
            load_settings({variable: value, "CFAB_AUTH_ISSUER": ISSUER})

    @pytest.mark.parametrize("value", ["https://issuer.example.com/keys", "http://127.0.0.1:8000/keys", "http://[::1]/k",
                                       "http://localhost/keys", "/etc/cfab/keys.json"])  # fmt: skip
    def test_places_of_keys(self, value: str) -> None:
        assert load_settings({"CFAB_AUTH_KEYS": value, "CFAB_AUTH_ISSUER": ISSUER}).auth_keys == value

    def test_keys_need_an_issuer(self) -> None:
        with pytest.raises(SettingsError, match="CFAB_AUTH_ISSUER"):
            load_settings({"CFAB_AUTH_KEYS": "/etc/cfab/keys.json"})


def test_an_unknown_id_is_no_tenant(db: Database) -> None:
    for word in ("", " ", "a\0b", "\ud800", "x" * 5000, str(uuid4()), UUID(int=7).hex, "'; DROP TABLE tenant"):
        assert tenants.find(db, word) is None
