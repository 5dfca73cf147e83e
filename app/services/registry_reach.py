"""Which registries may be asked from this host, by its settings."""

from __future__ import annotations

import ssl
from functools import cache

from app.services.outbound import Reach
from config.settings import Settings, SettingsError


def reach_of(settings: Settings) -> Reach:
    """Public registries and those of CFAB_REGISTRY_HOSTS, with the certificates of CFAB_REGISTRY_CA besides the usual.

    Raises SettingsError when those cannot be read.
    """
    tls = _usual()
    if settings.registry_ca:
        tls = ssl.create_default_context()
        try:
            tls.load_verify_locations(cafile=settings.registry_ca)
        except (OSError, ssl.SSLError) as exc:
            raise SettingsError(f"CFAB_REGISTRY_CA={settings.registry_ca!r} cannot be used: {exc}") from exc
    plain = frozenset(one.removeprefix("http://") for one in settings.registry_hosts if one.startswith("http://"))
    return Reach(plain | frozenset(settings.registry_hosts), plain, tls)


@cache
def _usual() -> ssl.SSLContext:
    """The usual certificates, read once: there are many."""
    return ssl.create_default_context()
