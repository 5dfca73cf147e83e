"""Images by policy, on a real registry: who signed what under which name, and every way to get past that."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from app.domain.errors import Invalid, NotFound, Refused, Unavailable
from app.domain.image_trust import TrustedKey
from app.domain.job import DEFAULT_TENANT
from app.services.image_trust import change_trust
from app.services.images import Admitted, ImageGate
from app.services.turns import Turns
from app.storage.database import Database
from config.settings import Settings, SettingsError
from tests.engine import TestEngine
from tests.signing import Shelf, Signer, statement

Gate = Callable[..., Admitted]


@pytest.fixture(scope="module")
def registry(docker_engine: TestEngine) -> Iterator[TestEngine]:
    """The registry with an image `team/tool:1`, and a second one, `team/other:1`."""
    docker_engine.start_registry()
    yield docker_engine
    docker_engine.stop_registry()


@pytest.fixture
def shelf(registry: TestEngine) -> Shelf:
    return Shelf(registry.registry, registry.root / "registry")


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def pushed(registry: TestEngine, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Pushes an image whose content is this test's own; its digest."""

    def push(name: str, content: str = "") -> str:
        local = f"cfab-gate:{zlib.crc32(f'{request.node.name} {content}'.encode())}"
        registry.import_image(local, **{"made-for": f"{request.node.name} {content}"})
        return registry.push(name, local)

    return push


@pytest.fixture
def gate(db: Database, settings: Settings, registry: TestEngine, signer: Signer) -> Gate:
    """Asks for the default tenant, whose images must be signed by `signer` unless it is told otherwise."""
    change_trust(db, DEFAULT_TENANT, {"policy": "signed", "keys": [TrustedKey("ci", signer.pem)]})

    def admit(image: str, trust: dict[str, Any] | None = None, **changes: Any) -> Admitted:
        if trust:
            change_trust(db, DEFAULT_TENANT, trust)
        chosen = replace(settings, **{"registry_hosts": (f"http://{registry.registry}",), **changes})
        return ImageGate(chosen, 10.0, Turns(4, 4), 10.0).admit(db, DEFAULT_TENANT, f"{registry.registry}/{image}")

    return admit


class TestSigned:
    def test_signed_image_is_pinned_to_the_digest_that_was_signed(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        digest = pushed("team/tool:1")
        signer.sign(shelf, "team/tool", digest)
        found = gate("team/tool:1")
        assert (found.image, found.digest, found.signer) == (f"{shelf.address}/team/tool@{digest}", digest, "ci")
        assert gate(f"team/tool@{digest}").image == found.image

    def test_unsigned_image_is_refused(self, gate: Gate, pushed: Callable[..., str]) -> None:
        pushed("team/bare:1")
        with pytest.raises(Refused, match="has no signature"):
            gate("team/bare:1")

    def test_wrong_key_is_refused_and_a_second_good_signature_is_enough(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        digest = pushed("team/two:1")
        Signer().sign(shelf, "team/two", digest)
        with pytest.raises(Refused, match=r"none of the trusted keys \(ci\)"):
            gate("team/two:1")
        signer.sign(shelf, "team/two", digest)
        assert gate("team/two:1").signer == "ci"

    def test_signature_moved_from_another_image_is_refused(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        good, bad = pushed("team/good:1", "good"), pushed("team/good:2", "bad")
        payload = statement(good, f"{shelf.address}/team/good")
        shelf.put_signature("team/good", bad, payload, signer.signature(payload))
        with pytest.raises(Refused, match="about another image"):
            gate("team/good:2")

    def test_image_copied_to_another_repository_with_its_signature_is_refused(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        digest = pushed("evil/copy:1")
        signer.sign(shelf, "evil/copy", digest, identity=f"{shelf.address}/team/origin")
        with pytest.raises(Refused, match=r"signed as .*team/origin, not as .*evil/copy"):
            gate("evil/copy:1")

    @pytest.mark.parametrize(("places", "passes"), [(["{}/team"], True), (["{}/tea"], False), (["{}"], True)])
    def test_identity_must_lie_in_the_named_places(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str], places: list[str], passes: bool
    ) -> None:
        digest = pushed("mirror/tool:1")
        signer.sign(shelf, "mirror/tool", digest, identity=f"{shelf.address}/team/origin")
        trust = {"repositories": [place.format(shelf.address) for place in places]}
        if passes:
            assert gate("mirror/tool:1", trust).signer == "ci"
        else:
            with pytest.raises(Refused, match="lies in none of"):
                gate("mirror/tool:1", trust)

    @pytest.mark.parametrize("identity", ["", "NOT a name", "a" * 600])
    def test_signature_without_a_readable_identity_is_refused(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str], identity: str
    ) -> None:
        digest = pushed("team/nameless:1")
        payload = statement(digest, identity)
        shelf.put_signature("team/nameless", digest, payload, signer.signature(payload))
        with pytest.raises(Refused, match="without a name"):
            gate("team/nameless:1")

    @pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"critical": 1}', b"[" * 60_000], ids=len)
    def test_signed_nonsense_is_refused(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str], payload: bytes
    ) -> None:
        digest = pushed("team/nonsense:1")
        shelf.put_signature("team/nonsense", digest, payload, signer.signature(payload))
        with pytest.raises(Refused, match="not a statement about an image"):
            gate("team/nonsense:1")

    def test_statement_of_another_kind_is_refused(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        signer.sign(shelf, "team/kind", pushed("team/kind:1"), kind="atomic container signature")
        with pytest.raises(Refused, match="atomic"):
            gate("team/kind:1")

    def test_payload_changed_on_the_registry_s_disk_is_refused(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        digest = pushed("team/payload:1")
        stored = signer.sign(shelf, "team/payload", digest, identity=f"{shelf.address}/team/elsewhere")
        shelf.tamper(stored, statement(digest, f"{shelf.address}/team/payload"))
        with pytest.raises(Refused, match="is in truth"):
            gate("team/payload:1")

    def test_manifest_changed_on_the_registry_s_disk_is_refused(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        digest = pushed("team/manifest:1")
        signer.sign(shelf, "team/manifest", digest)
        manifest = json.loads(shelf.manifest("team/manifest", digest))
        shelf.tamper(digest, json.dumps({**manifest, "annotations": {"more": "layers"}}).encode())
        with pytest.raises(Refused, match=f"calls {digest} is in truth"):
            gate("team/manifest:1")
        # A digest is what was signed, whatever the registry holds under it: no engine takes these bytes for it.
        assert gate(f"team/manifest@{digest}").digest == digest

    def test_tag_that_moved_to_an_unsigned_image_is_refused(
        self, gate: Gate, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        first = pushed("team/moving:1", "first")
        signer.sign(shelf, "team/moving", first)
        assert gate("team/moving:1").digest == first
        pushed("team/moving:1", "second")
        with pytest.raises(Refused, match="has no signature"):
            gate("team/moving:1")
        assert gate(f"team/moving@{first}").digest == first

    def test_key_that_is_taken_away_counts_no_more_at_once(
        self, gate: Gate, db: Database, settings: Settings, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        signer.sign(shelf, "team/revoked", pushed("team/revoked:1"))
        one = ImageGate(replace(settings, registry_hosts=(f"http://{shelf.address}",)), 10.0, Turns(4, 4), 10.0)
        image = f"{shelf.address}/team/revoked:1"
        assert one.admit(db, DEFAULT_TENANT, image).signer == "ci"
        change_trust(db, DEFAULT_TENANT, {"keys": [TrustedKey("new", Signer().pem)]})
        with pytest.raises(Refused, match="none of the trusted keys"):
            one.admit(db, DEFAULT_TENANT, image)

    def test_fabric_s_keys_and_policy_hold_where_a_tenant_has_none(
        self, gate: Gate, shelf: Shelf, pushed: Callable[..., str]
    ) -> None:
        ours, others = Signer(), Signer()
        digest = pushed("team/fabric:1")
        nothing: dict[str, Any] = {"policy": None, "keys": []}
        with pytest.raises(Refused, match="no key is trusted yet"):
            gate("team/fabric:1", nothing, image_signatures="signed")
        ours.sign(shelf, "team/fabric", digest)
        both = others.pem + ours.pem
        assert gate("team/fabric:1", image_signatures="signed", image_keys=both).signer == "fabric-2"
        assert gate("team/fabric:1").digest is None

    def test_registry_that_is_away_is_told_apart_from_a_refusal(
        self, gate: Gate, registry: TestEngine, shelf: Shelf, signer: Signer, pushed: Callable[..., str]
    ) -> None:
        signer.sign(shelf, "team/away", pushed("team/away:1"))
        registry.stop_registry()
        try:
            with pytest.raises(Unavailable, match="cannot be used now"):
                gate("team/away:1")
        finally:
            registry.start_registry()
        assert gate("team/away:1").signer == "ci"

    def test_image_that_does_not_exist_is_refused(self, gate: Gate) -> None:
        with pytest.raises(Refused, match="has no team/absent"):
            gate("team/absent:1")


class TestOtherPolicies:
    def test_digest_policy_asks_for_a_digest_and_no_registry(self, gate: Gate) -> None:
        with pytest.raises(Refused, match="by its digest"):
            gate("team/tool:1", {"policy": "digest"})
        named = f"team/tool@sha256:{'a' * 64}"
        assert gate(named).image.endswith(named)

    def test_places_count_without_signatures_too(self, gate: Gate, registry: TestEngine) -> None:
        trust = {"policy": "off", "repositories": [f"{registry.registry}/team"]}
        assert gate("team/tool:1", trust).digest is None
        with pytest.raises(Refused, match="lies in none of"):
            gate("teams/tool:1")

    def test_off_asks_nothing(self, gate: Gate) -> None:
        assert gate("any/thing:1", {"policy": "off"}).digest is None


class TestReach:
    def test_registry_inside_is_asked_only_if_an_operator_named_it(self, gate: Gate) -> None:
        with pytest.raises(Refused, match="a loopback address; an operator can name it in CFAB_REGISTRY_HOSTS"):
            gate("team/tool:1", registry_hosts=())

    def test_named_with_tls_it_is_not_asked_without(self, gate: Gate, registry: TestEngine) -> None:
        with pytest.raises(Unavailable, match="cannot be used now"):
            gate("team/tool:1", registry_hosts=(registry.registry,))

    def test_metadata_services_are_never_asked(
        self, gate: Gate, db: Database, settings: Settings, registry: TestEngine
    ) -> None:
        open_to_all = replace(settings, registry_hosts=("http://169.254.169.254",))
        with pytest.raises(Refused, match="metadata service"):
            ImageGate(open_to_all, 5.0, Turns(4, 4), 5.0).admit(db, DEFAULT_TENANT, "169.254.169.254/latest/meta-data")


class TestTrust:
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"policy": "maybe"}, "policy"),
            ({"keys": [TrustedKey("a b", "")]}, "keys[0].name"),
            ({"keys": [TrustedKey("a", "no key")]}, "keys[0].pem"),
            ({"keys": [TrustedKey("a", "-----BEGIN PRIVATE KEY-----")]}, "keys[0].pem"),
            ({"repositories": ["acme"]}, "repositories[0]"),
            ({"repositories": ["ghcr.io/Acme"]}, "repositories[0]"),
            ({"credentials": {"ghcr.io": "../x"}}, "credentials.ghcr.io"),
            ({"credentials": {"ghcr.io/acme": "x"}}, "credentials"),
            ({"color": 1}, "color"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_cannot_be_is_refused_by_field(self, db: Database, changes: dict[str, Any], field: str) -> None:
        with pytest.raises(Invalid) as refusal:
            change_trust(db, DEFAULT_TENANT, changes)
        assert [problem.field for problem in refusal.value.problems] == [field]

    def test_changes_leave_the_rest_and_docker_s_registry_has_one_name(self, db: Database) -> None:
        change_trust(db, DEFAULT_TENANT, {"repositories": ["index.docker.io/acme", "docker.io/acme"]})
        trust = change_trust(db, DEFAULT_TENANT, {"policy": "digest", "credentials": {"index.docker.io": "hub"}})
        assert (trust.policy, trust.repositories) == ("digest", ("docker.io/acme",))
        assert trust.credentials == {"docker.io": "hub"}

    def test_unknown_tenant_is_not_found(self, db: Database) -> None:
        with pytest.raises(NotFound):
            change_trust(db, uuid4(), {"policy": "off"})

    def test_settings_with_keys_that_are_none_are_refused(self, settings: Settings) -> None:
        with pytest.raises(SettingsError, match="CFAB_IMAGE_KEYS"):
            ImageGate(replace(settings, image_keys="nonsense"), 1.0, Turns(1, 1), 1.0)
