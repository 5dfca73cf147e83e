"""Who asks, and whether they may: bearer tokens, roles, tenants, and what a server without tokens demands instead.

principal   who the caller is          marks    what a view is open to       gate    the check of every request
bearer      the Authorization header   static   this machine's one token     signed  tokens of an issuer (JWT)
keys        the issuer's public keys   keyring  which of them are trusted now (source: where they come from)
tenants     claims to tenants          loopback a server without tokens      verified good signatures
"""

from __future__ import annotations

from app.api.auth.gate import authenticator, install
from app.api.auth.loopback import is_loopback_name
from app.api.auth.marks import always, browsable, needs, public
from app.api.auth.principal import (
    ADMIN,
    ALL_ROLES,
    EXECUTOR,
    OPERATOR,
    USER,
    Authenticator,
    Identity,
    Principal,
    principal,
)
from app.api.auth.tenants import TenantBook

__all__ = [
    "ADMIN",
    "ALL_ROLES",
    "EXECUTOR",
    "OPERATOR",
    "USER",
    "Authenticator",
    "Identity",
    "Principal",
    "TenantBook",
    "always",
    "authenticator",
    "browsable",
    "install",
    "is_loopback_name",
    "needs",
    "principal",
    "public",
]
