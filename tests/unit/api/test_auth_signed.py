"""Signed tokens: what is accepted, and every known way to be accepted without right. All tokens are real."""

from __future__ import annotations

import json
import math
import random
import string
import time
from collections.abc import Sequence
from typing import Any

import jwt
import pytest
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from app.api.auth.claims import ClaimNames
from app.api.auth.keys import Key, parse_keys
from app.api.auth.principal import ALL_ROLES
from app.api.auth.signed import Issuer as Accepted
from app.api.auth.signed import SignedTokens
from app.api.auth.verified import Verified, VerifiedTokens
from app.api.errors import Unauthorized
from tests.issuer import AUDIENCE, ISSUER, Issuer, claims, encode, jwk, key_set, pem, private_key

SIGNERS = {
    "ES256": Issuer("ES256", "p256"),
    "ES384": Issuer("ES384", "p384"),
    "ES512": Issuer("ES512", "p521"),
    "RS256": Issuer("RS256", "rsa2048"),
    "RS512": Issuer("RS512", "rsa2048"),
    "PS256": Issuer("PS256", "rsa2048"),
    "EdDSA": Issuer("EdDSA", "ed25519"),
}
ANN = SIGNERS["ES256"]


class Ring:
    """Trusts the keys of one JWKS."""

    def __init__(self, text: bytes, algorithms: Sequence[str]) -> None:
        self.keys = parse_keys(text, algorithms)

    def find(self, algorithm: str, key_id: str | None) -> Sequence[Key]:
        return self.keys.find(algorithm, key_id, time.time())


def verifier(*keys: dict[str, Any], algorithms: Sequence[str] = ("ES256",), **changes: Any) -> SignedTokens:
    accepted = Accepted(ISSUER, frozenset({AUDIENCE}), frozenset(algorithms), **changes)
    return SignedTokens(accepted, Ring(key_set(*(keys or (ANN.jwk(),))), algorithms))


def refusal(token: str, who: SignedTokens | None = None) -> str:
    """Why the token is refused; no part of the token is in the answer."""
    with pytest.raises(Unauthorized) as refused:
        (who or verifier()).identify(token)
    challenge = refused.value.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="cfab", error="invalid_token", error_description="')
    assert challenge.isascii() and challenge.isprintable()
    assert not any(part in challenge or part in refused.value.message for part in token.split(".") if len(part) > 8)
    return refused.value.message


class TestAccepted:
    @pytest.mark.parametrize("algorithm", SIGNERS)
    def test_each_algorithm(self, algorithm: str) -> None:
        signer = SIGNERS[algorithm]
        who = verifier(signer.jwk(), algorithms=[algorithm]).identify(signer.token(exp=int(time.time()) + 600))
        assert who is not None
        assert (who.subject, who.tenant, who.roles) == ("ann", "acme", {"user"})

    def test_the_end_is_the_tokens_end_with_the_leeway(self) -> None:
        ends = int(time.time()) + 77
        who = verifier(leeway_s=5.0).identify(ANN.token(exp=ends))
        assert who is not None and who.expires_at == ends + 5.0

    @pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
    def test_an_audience_or_a_list_with_it(self, audience: Any) -> None:
        assert verifier().identify(ANN.token(aud=audience))

    @pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+jwt", None])
    def test_usual_types(self, kind: str | None) -> None:
        assert verifier().identify(ANN.token({"typ": kind}))

    def test_clocks_may_differ_by_the_leeway(self) -> None:
        now = time.time()
        assert verifier(leeway_s=10.0).identify(ANN.token(iat=now + 5, nbf=now + 5))
        assert verifier(leeway_s=10.0).identify(ANN.token(exp=now - 5))

    def test_without_a_kid_where_there_is_one_key_only(self) -> None:
        token = ANN.token({"kid": None})
        assert verifier().identify(token)
        assert "not known" in refusal(token, verifier(ANN.jwk(), Issuer(key_id="key-2", number=2).jwk()))

    def test_two_keys_under_one_id_are_both_tried(self) -> None:
        other = Issuer(number=3)
        who = verifier(ANN.jwk(), other.jwk())
        assert who.identify(ANN.token()) and who.identify(other.token())
        assert "signature" in refusal(Issuer(number=4).token(), who)

    def test_other_words_are_no_signed_tokens(self) -> None:
        for word in ("random", "a.b", "a.b.c.d", "a..c", "ä.b.c", "a.b.c=", "a b.c.d", ".", ".."):
            assert verifier().identify(word) is None, word

    @pytest.mark.parametrize("members", [{"jwk": True}, {"jku": True}, {"x5u": True}, {"x5c": True}])
    def test_keys_in_the_header_are_never_looked_at(self, members: dict[str, Any]) -> None:
        """A token of a stranger who brings the key along is refused; a good one with such members passes."""
        stranger = Issuer(number=5)
        brought = {
            "jwk": stranger.jwk(), "jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x", "x5c": ["MII="],
        }  # fmt: skip
        header = {name: brought[name] for name in members}
        assert "signature" in refusal(stranger.token(header))
        assert "not known" in refusal(stranger.token({**header, "kid": "theirs"}))
        assert verifier().identify(ANN.token(header))


class TestAlgorithms:
    @pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", " none", None, 1, ["ES256"], {"a": 1}])
    @pytest.mark.parametrize("signature", ["", encode(b"\0"), encode(b"x" * 64)])
    def test_none_and_nonsense(self, name: Any, signature: str) -> None:
        token = f"{encode({'alg': name, 'typ': 'JWT', 'kid': 'key-1'})}.{encode(claims())}.{signature}"
        if signature:
            assert "algorithm" in refusal(token)
        else:
            assert verifier().identify(token) is None

    @pytest.mark.parametrize("kind", ["p256", "rsa2048", "ed25519"])
    def test_hs256_signed_with_what_everyone_knows(self, kind: str) -> None:
        """A library that takes the algorithm from the header would use the public key as the shared secret."""
        algorithm = {"p256": "ES256", "rsa2048": "RS256", "ed25519": "EdDSA"}[kind]
        private = private_key(kind)
        public = jwk(private, "key-1")
        who = verifier(public, algorithms=[algorithm])
        hmac = jwt.PyJWS().get_algorithm_by_name("HS256")
        text = f"{encode({'alg': 'HS256', 'typ': 'JWT', 'kid': 'key-1'})}.{encode(claims())}"
        for secret in (
            pem(private),
            pem(private).strip(),
            json.dumps(public).encode(),
            public["x" if "x" in public else "n"].encode(),
            b"",
        ):
            token = f"{text}.{encode(hmac.sign(text.encode(), secret))}"
            assert "algorithm" in refusal(token, who)

    def test_another_algorithm_of_the_same_key(self) -> None:
        rsa = SIGNERS["RS256"]
        who = verifier(rsa.jwk(), algorithms=["RS256"])
        for other in ("RS384", "RS512", "PS256"):
            assert "algorithm" in refusal(Issuer(other, "rsa2048").token(), who)
        bound = verifier(rsa.jwk(alg="RS256"), algorithms=["RS256", "RS512"])
        assert bound.identify(rsa.token())
        assert "not known" in refusal(SIGNERS["RS512"].token(), bound)

    def test_the_id_of_a_key_of_another_algorithm(self) -> None:
        who = verifier(ANN.jwk(), Issuer("ES384", "p384", "key-2").jwk(), algorithms=["ES256", "ES384"])
        assert "not known" in refusal(ANN.token({"kid": "key-2"}), who)
        assert "not known" in refusal(Issuer("ES384", "p384", "key-1").token(), who)

    def test_a_shared_secret_among_the_keys_is_not_used(self) -> None:
        secret = {"kty": "oct", "k": encode(b"s" * 32), "kid": "key-1", "alg": "HS256"}
        assert len(parse_keys(key_set(secret), ["ES256"])) == 0


class TestHeaders:
    @pytest.mark.parametrize(
        "key_id",
        ["../../../../dev/null", "/etc/passwd", "key-1' OR '1'='1", "key-1; DROP TABLE tenant", "|id", "KEY-1",
         "key-1 ", "key-1\0", "x" * 256, "ключ", "${jndi:ldap://x}", "http://127.0.0.1:1/key"],
    )  # fmt: skip
    def test_a_kid_is_compared_and_nothing_else(self, key_id: str) -> None:
        assert "key" in refusal(ANN.token({"kid": key_id})) or "malformed" in refusal(ANN.token({"kid": key_id}))

    @pytest.mark.parametrize("key_id", ["", "x" * 257, 1, True, ["key-1"], {"kid": "key-1"}, 1.5])
    def test_a_kid_that_is_none(self, key_id: Any) -> None:
        assert "kid" in refusal(ANN.token({"kid": key_id}))

    @pytest.mark.parametrize("header", [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"crit": ["b64"], "b64": False},
                                        {"crit": "b64"}, {"b64": False}, {"b64": True}])  # fmt: skip
    def test_extensions_are_refused(self, header: dict[str, Any]) -> None:
        assert "extensions" in refusal(ANN.token(header))

    @pytest.mark.parametrize("content", ["JWT", "jwt", "application/json", ""])
    def test_a_token_in_a_token(self, content: str) -> None:
        nested = ANN.token()
        assert "another token" in refusal(ANN.signed(nested.encode(), {"cty": content}))
        assert "malformed" in refusal(ANN.signed(nested.encode()))

    @pytest.mark.parametrize("kind", ["logout+jwt", "secevent+jwt", "JOSE", "dpop+jwt", 7, ["JWT"]])
    def test_other_types(self, kind: Any) -> None:
        assert "typ" in refusal(ANN.token({"typ": kind}))

    def test_a_type_that_the_settings_demand(self) -> None:
        who = verifier(types=frozenset({"at+jwt"}))
        assert who.identify(ANN.token({"typ": "at+jwt"})) and who.identify(ANN.token({"typ": "application/at+JWT"}))
        for kind in ("JWT", None):
            assert "type" in refusal(ANN.token({"typ": kind}), who)

    def test_doubled_members_and_other_texts(self) -> None:
        body, signature = ANN.token().split(".")[1:]
        for header in (
            b'{"alg":"ES256","alg":"none"}',
            b"[]",
            b"null",
            b"7",
            b"{",
            b"\xff",
            b"[" * 2000,
            b'{"alg":NaN}',
        ):
            assert "malformed" in refusal(f"{encode(header)}.{body}.{signature}")
        assert "too long" in refusal(f"{encode({'alg': 'ES256', 'pad': 'x' * 4000})}.{body}.{signature}")

    def test_a_token_beyond_the_limit(self) -> None:
        assert "longer than 8192" in refusal(ANN.token(note="x" * 8192))
        assert "longer than 8192" in refusal("x" * 1_000_000)


class TestSignatures:
    def test_one_bit_more_or_less(self) -> None:
        header, body, signature = ANN.token().split(".")
        assert "signature" in refusal(f"{header}.{encode(claims(roles=['admin']))}.{signature}")
        assert "signature" in refusal(f"{header}.{body}.{signature[:-4]}AAAA")
        assert "signature" in refusal(f"{header}.{body}.{encode(bytes(64))}")
        assert "signature" in refusal(f"{header}.{body}.{encode(b'x')}")
        assert "malformed" in refusal(f"{header}.{body}.x")

    def test_of_a_stranger(self) -> None:
        assert "signature" in refusal(Issuer(number=9).token())


class TestTimes:
    @pytest.mark.parametrize("name", ["exp", "iat"])
    def test_are_required(self, name: str) -> None:
        assert f"no {name}" in refusal(ANN.token(**{name: None}))

    @pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
    @pytest.mark.parametrize("value", ["9999999999", "soon", True, [], {}, ["9999999999"]])
    def test_are_numbers(self, name: str, value: Any) -> None:
        assert f"{name} of the token is no number" in refusal(ANN.token(**{name: value}))

    @pytest.mark.parametrize(
        "value",
        [-1, 0, -1e300, 1e300, 10**400, -(10**400), 253_402_300_800, 99999999999999],
        ids=lambda value: f"{str(value)[:20]}",
    )
    def test_are_times(self, value: float) -> None:
        assert "out of range" in refusal(ANN.token(exp=value))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_are_json_numbers(self, value: float) -> None:
        assert "malformed" in refusal(ANN.token(exp=value))
        raw = json.dumps(claims(exp=None))[:-1] + ', "exp": 1e999}'
        assert "malformed" in refusal(ANN.signed(raw.encode()))

    def test_expired(self) -> None:
        assert "expired" in refusal(ANN.token(exp=int(time.time()) - 60))
        assert "expired" in refusal(ANN.token(exp=1))

    def test_not_yet(self) -> None:
        later = int(time.time()) + 600
        assert "not valid yet" in refusal(ANN.token(nbf=later))
        assert "future" in refusal(ANN.token(iat=later))

    def test_twice_in_one_token(self) -> None:
        raw = json.dumps(claims(exp=1))[:-1] + f', "exp": {int(time.time()) + 600}}}'
        assert "malformed" in refusal(ANN.signed(raw.encode()))


class TestIssuerAudienceSubject:
    @pytest.mark.parametrize(
        "issuer", [None, "", "https://issuer.example.com", ISSUER.upper(), ISSUER + "x", [ISSUER], 1]
    )
    def test_another_issuer(self, issuer: Any) -> None:
        assert "another issuer" in refusal(ANN.token(iss=issuer))

    @pytest.mark.parametrize("audience", [None, "", "other", "CFAB", "cfab ", ["other"], [], [["cfab"]], {"cfab": 1}, 1,
                                          ["cfab", 1]])  # fmt: skip
    def test_another_audience(self, audience: Any) -> None:
        assert "another audience" in refusal(ANN.token(aud=audience))

    @pytest.mark.parametrize("subject", [None, "", 1, ["ann"], "x" * 257, "a\nb", "a\x00b", "\ud800", "\u202eann"])
    def test_a_subject_that_is_none(self, subject: Any) -> None:
        assert refusal(ANN.token(sub=subject)) in {
            "The token names no usable subject (sub).", "The token is malformed.",
        }  # fmt: skip

    @pytest.mark.parametrize("use", ["ID", "Refresh", "Offline", "Logout"])
    def test_keycloaks_other_tokens(self, use: str) -> None:
        assert "no access token" in refusal(ANN.token(typ=use))
        assert verifier().identify(ANN.token(typ="Bearer"))

    @pytest.mark.parametrize("payload", [b"", b"null", b"[]", b'"text"', b"7", b"{}x", b"\xff\xfe", b"[" * 5000])
    def test_payloads_that_are_no_claims(self, payload: bytes) -> None:
        token = ANN.signed(payload)
        if payload:
            assert "malformed" in refusal(token)
        else:
            assert verifier().identify(token) is None


class TestRolesAndTenants:
    @pytest.mark.parametrize(
        ("roles", "known"),
        [
            (["user", "admin"], {"user", "admin"}),
            (["user", "root", "ADMIN", " admin", 7, None, ["admin"]], {"user"}),
            ("openid executor operator", {"executor", "operator"}),
            ([], set()),
            (None, set()),
            ({"admin": True}, set()),
            (1, set()),
            (list(ALL_ROLES), ALL_ROLES),
        ],
    )
    def test_known_words_count_and_others_do_not(self, roles: Any, known: set[str]) -> None:
        who = verifier().identify(ANN.token(roles=roles))
        assert who is not None and who.roles == known

    @pytest.mark.parametrize(
        ("path", "changes"),
        [
            ("realm_access.roles", {"realm_access": {"roles": ["operator"]}}),
            ("resource_access.my.client.roles", {"resource_access": {"my.client": {"roles": ["operator"]}}}),
            ("https://fabric.example.com/roles", {"https://fabric.example.com/roles": ["operator"]}),
        ],
    )
    def test_roles_are_found_by_path(self, path: str, changes: dict[str, Any]) -> None:
        who = verifier(claims=ClaimNames(roles=path)).identify(ANN.token(roles=["admin"], **changes))
        assert who is not None and who.roles == {"operator"}

    @pytest.mark.parametrize("value", [{}, {"roles": {}}, {"roles": 1}, [], "roles", None])
    def test_a_path_that_leads_nowhere(self, value: Any) -> None:
        who = verifier(claims=ClaimNames(roles="realm_access.roles")).identify(ANN.token(realm_access=value))
        assert who is not None and who.roles == set()

    def test_a_prefix_keeps_other_services_roles_out(self) -> None:
        who = verifier(claims=ClaimNames(role_prefix="fabric-")).identify(ANN.token(roles=["admin", "fabric-user"]))
        assert who is not None and who.roles == {"user"}

    @pytest.mark.parametrize("tenant", [None, "", 7, ["acme"], "x" * 256])
    def test_a_tenant_that_is_none(self, tenant: Any) -> None:
        who = verifier().identify(ANN.token(tenant=tenant))
        assert who is not None and who.tenant is None


JUNK: list[Any] = [None, True, 0, -1, 1.5, 10**30, "", "x", "\0", "é", "x" * 300, [], {}, ["x"], {"x": 1}, [[]]]


class TestJunk:
    """Whatever is sent, the answer is a refusal and never a fault."""

    def test_spoilt_tokens(self) -> None:
        who, good, chance = verifier(), ANN.token(), random.Random(7)
        letters = string.ascii_letters + string.digits + "-_.=+/ \0é"
        for _ in range(3000):
            place = chance.randrange(len(good))
            spoilt = (
                good[:place] + chance.choice(letters) * chance.randrange(3) + good[place + chance.randrange(1, 4) :]
            )
            try:
                accepted = who.identify(spoilt)
            except Unauthorized:
                continue
            # The last letter of a signature has bits that no byte needs.
            assert accepted is None or spoilt[:-2] == good[:-2]

    @pytest.mark.parametrize(
        "name", ["alg", "typ", "kid", "crit", "cty", "jwk", "jku", "x5c", "zip", "enc", "b64", "nonce"]
    )
    @pytest.mark.parametrize("value", JUNK, ids=lambda value: f"{value!r:.12}")
    def test_in_headers(self, name: str, value: Any) -> None:
        try:
            verifier().identify(ANN.token({name: value}))
        except Unauthorized:
            pass

    @pytest.mark.parametrize("name", ["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "tenant", "roles", "typ"])
    @pytest.mark.parametrize("value", JUNK, ids=lambda value: f"{value!r:.12}")
    def test_in_claims_signed_by_the_issuer(self, name: str, value: Any) -> None:
        try:
            verifier(claims=ClaimNames(roles="roles.x", tenant="tenant.x")).identify(
                ANN.signed({**claims(), name: value})
            )
            verifier().identify(ANN.signed({**claims(), name: value}))
        except Unauthorized:
            pass


class TestTheSameTokenAgain:
    """A signature is checked once; everything that may change is checked each time."""

    def test_ends_in_time(self) -> None:
        now = [time.time()]
        accepted = Accepted(ISSUER, frozenset({AUDIENCE}), frozenset({"ES256"}), leeway_s=10.0)
        who = SignedTokens(accepted, Ring(key_set(ANN.jwk()), ["ES256"]), lambda: now[0])
        token = ANN.token(exp=int(now[0]) + 60)
        assert who.identify(token) == who.identify(token)
        now[0] += 71
        assert "expired" in refusal(token, who)

    def test_is_refused_once_its_key_is_not_trusted(self) -> None:
        ring = Ring(key_set(ANN.jwk()), ["ES256"])
        who = SignedTokens(Accepted(ISSUER, frozenset({AUDIENCE}), frozenset({"ES256"})), ring)
        token = ANN.token()
        assert who.identify(token)
        ring.keys = parse_keys(key_set(Issuer(number=2).jwk()), ["ES256"])
        assert "signature" in refusal(token, who), "another key under the same id"
        ring.keys = parse_keys(key_set(), ["ES256"])
        assert "not known" in refusal(token, who)
        ring.keys = parse_keys(key_set(ANN.jwk()), ["ES256"])
        assert who.identify(token)

    def test_is_remembered_only_if_it_was_good(self) -> None:
        who = verifier()
        for number in range(10):
            refusal(Issuer(number=9).token(number=number), who)
        for number in range(3):
            assert who.identify(ANN.token(number=number))
        assert len(who._verified._tokens) == 3

    def test_memory_is_bounded(self) -> None:
        known, kept = Verified("ES256", None, parse_keys(key_set(ANN.jwk()), ["ES256"])._keys[0], {}), VerifiedTokens(3)
        for name in ("a", "b", "c"):
            kept.put(name, known)
        kept.get("a")
        kept.put("d", known)
        assert [name for name in "abcd" if kept.get(name)] == ["a", "c", "d"]


class TestKeys:
    @pytest.mark.parametrize(
        "described",
        [
            jwk(private_key("rsa1024"), "key-1"),
            jwk(private_key("p256"), "key-1", use="enc"),
            jwk(private_key("p256"), "key-1", key_ops=["sign"]),
            json.loads(ECAlgorithm.to_jwk(private_key("p256"))),
            json.loads(RSAAlgorithm.to_jwk(private_key("rsa2048"))),
            jwk(private_key("p256"), "key-1", alg="ES384"),
            jwk(private_key("p256"), "key-1", alg=7),
            jwk(private_key("p256"), "key-1", x="!!"),
            jwk(private_key("p256"), "key-1", y="AAAA"),
            jwk(private_key("p256"), kid=7),
            jwk(private_key("p256"), "k" * 257),
            jwk(private_key("p256"), "key-1", exp="soon"),
            jwk(private_key("p256"), "key-1", crv="P-384"),
            {"kty": "EC", "crv": "P-256"},
            {"kty": "EC", "crv": ["P-256"]},
            {"kty": ["EC"]},
            {},
            [],
            None,
            "key",
        ],
    )
    def test_that_are_not_used(self, described: Any) -> None:
        """One bad key does not take the others along."""
        keys = parse_keys(key_set(described, Issuer(key_id="good").jwk()), ["ES256", "RS256"])
        assert [key.id for key in keys.find("ES256", "good", 0.0)] == ["good"]
        assert len(keys) == 1

    def test_a_key_may_have_an_end(self) -> None:
        who = verifier(ANN.jwk(exp=time.time() + 60))
        assert who.identify(ANN.token())
        assert "not known" in refusal(ANN.token(), verifier(ANN.jwk(exp=time.time() - 1)))
