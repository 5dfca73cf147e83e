"""The check before every request: who asks (401), then whether the route is for them and for which tenant (403)."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from flask import Flask, Request, g, request

from app.api.auth.bearer import BearerTokens, Verifier
from app.api.auth.challenge import insufficient_scope, offering_basic
from app.api.auth.claims import ClaimNames
from app.api.auth.keyring import FileKeyring, Keyring, Pace, UrlKeyring
from app.api.auth.keys import BadKeys
from app.api.auth.loopback import LoopbackOnly, is_loopback_name
from app.api.auth.marks import Rules, rules_for
from app.api.auth.principal import ADMIN, ALL_ROLES, Authenticator, Identity, Principal
from app.api.auth.signed import Issuer, SignedTokens
from app.api.auth.source import FileSource, NotRead, UrlSource
from app.api.auth.static import StaticToken
from app.api.auth.tenants import TenantBook
from app.api.errors import Forbidden, Unauthorized
from app.domain.errors import NotFound
from app.domain.job import DEFAULT_TENANT
from config.settings import Settings, SettingsError

TENANT_HEADER = "X-Tenant"


def authenticator(settings: Settings) -> Authenticator:
    """The authenticator that the settings ask for. Raises SettingsError if they leave the API open or useless."""
    if settings.auth == "off":
        if not is_loopback_name(settings.api_host):
            raise SettingsError(
                f"CFAB_AUTH=off works on a loopback address only, not on CFAB_API_HOST={settings.api_host!r}: "
                "anyone who reaches the port could run programs here"
            )
        return LoopbackOnly()
    verifiers: list[Verifier] = []
    if settings.api_token:
        verifiers.append(StaticToken(settings.api_token))
    if settings.auth_keys:
        verifiers.append(SignedTokens(issuer_of(settings), keyring_of(settings)))
    if not verifiers:
        raise SettingsError(
            "neither CFAB_API_TOKEN (or CFAB_API_TOKEN_FILE) nor CFAB_AUTH_KEYS is set: nobody could use the API"
        )
    return BearerTokens(verifiers)


def issuer_of(settings: Settings) -> Issuer:
    """Whose tokens the settings accept. Raises SettingsError."""
    if not settings.auth_issuer or not settings.auth_audience:
        raise SettingsError("CFAB_AUTH_KEYS needs CFAB_AUTH_ISSUER and CFAB_AUTH_AUDIENCE: whose tokens, and for whom")
    return Issuer(
        name=settings.auth_issuer,
        audiences=frozenset(settings.auth_audience),
        algorithms=frozenset(settings.auth_algorithms),
        leeway_s=settings.auth_leeway_s,
        types=frozenset(word.lower().removeprefix("application/") for word in settings.auth_token_types),
        max_bytes=settings.auth_token_max_bytes,
        claims=ClaimNames(settings.auth_tenant_claim, settings.auth_roles_claim, settings.auth_role_prefix),
    )


def keyring_of(settings: Settings) -> Keyring:
    """The issuer's keys. A file is read at once, and raises SettingsError if it cannot be used; an address is not."""
    pace = Pace(settings.auth_keys_refresh_s, settings.auth_keys_interval_s, settings.auth_keys_max_age_s)
    if "://" in settings.auth_keys:
        return UrlKeyring(UrlSource(settings.auth_keys), settings.auth_algorithms, pace)
    ring = FileKeyring(FileSource(Path(settings.auth_keys)), settings.auth_algorithms, pace)
    try:
        ring.load()
    except (NotRead, BadKeys) as exc:
        raise SettingsError(f"CFAB_AUTH_KEYS={settings.auth_keys!r} cannot be used: {exc}") from exc
    return ring


def install(app: Flask, who: Authenticator, settings: Settings, tenants: TenantBook) -> None:
    """Checks every request of `app` first of all: 401 comes before any 404; 403 after 404 and 405."""

    def check() -> None:
        rules = rules_for(request)
        if rules.public(settings):
            return
        try:
            identity = who.authenticate(request)
        except Unauthorized as exc:
            if rules.browsable:
                offering_basic(exc)
            raise
        if request.routing_exception is not None:
            return
        _check_roles(identity, rules)
        g.principal = _principal(identity, request, tenants)

    app.before_request(check)


def _check_roles(identity: Identity, rules: Rules) -> None:
    if not identity.roles:
        raise insufficient_scope(f"The token has none of the roles {', '.join(sorted(ALL_ROLES))}.")
    if ADMIN not in identity.roles and not identity.roles.intersection(rules.roles):
        raise insufficient_scope(f"This needs the role {' or '.join(rules.roles)}.")


def _principal(identity: Identity, asked: Request, tenants: TenantBook) -> Principal:
    tenant_id = _tenant_id(identity, asked, tenants)
    return Principal(tenant_id, identity.roles, identity.subject, identity.expires_at)


def _tenant_id(identity: Identity, asked: Request, tenants: TenantBook) -> UUID:
    """The tenant to act for: the caller's own, or the one that an administrator names in the header."""
    own_id, own_name = _own_tenant(identity, tenants)
    named = asked.headers.get(TENANT_HEADER)
    if named is None:
        return own_id
    if ADMIN not in identity.roles:
        # No look-up: the answer must not tell which tenants there are.
        if _as_utf8(named) not in {str(own_id), own_name}:
            raise Forbidden(f"Only an admin may act for another tenant; leave the header {TENANT_HEADER} out.")
        return own_id
    found = tenants.find(_as_utf8(named))
    if found is None:
        raise NotFound("Tenant not found", tenant=_as_utf8(named)[:255])
    return found.id


def _own_tenant(identity: Identity, tenants: TenantBook) -> tuple[UUID, str]:
    """Id and name of the caller's tenant."""
    if isinstance(identity.tenant, UUID):
        return identity.tenant, ""
    if identity.tenant is None:
        if ADMIN in identity.roles:
            return DEFAULT_TENANT, ""
        raise Forbidden("The token names no tenant.")
    found = tenants.find(identity.tenant)
    if found is None:
        raise Forbidden("The tenant of the token does not exist.")
    if not found.active:
        raise Forbidden("The tenant of the token is not active.")
    return found.id, found.name


def _as_utf8(header: str) -> str:
    """A header's text: WSGI hands its bytes over as Latin-1."""
    try:
        return header.encode("latin-1").decode("utf-8").strip()
    except UnicodeError:
        return header.strip()
