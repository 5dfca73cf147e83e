"""Whether a container image may be used: asked before a job is made, and again on its node before each start."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from uuid import UUID

from app.domain.errors import Refused, Unavailable
from app.domain.image_name import BadImageName, ImageName, parse_image_name
from app.domain.image_trust import ImagePolicy, ImageTrust, TrustedKey
from app.services.image_trust import trust_of
from app.services.outbound import Reach
from app.services.public_keys import BadKey, read_keys
from app.services.registry import Registry, RegistryAway, RegistryRefused
from app.services.registry_logins import Chosen, LoginMissing, login_for
from app.services.registry_reach import reach_of
from app.services.signatures import find_signer
from app.services.turns import NoTurn, Turns
from app.storage.database import Database
from config.settings import Settings, SettingsError

log = logging.getLogger(__name__)

REMEMBER_S = 60.0
"""How long a signature that was found good is not looked at again. It cannot become bad, only be taken away."""
MAX_REMEMBERED = 10_000
TOGETHER_S = 20.0
"""How long registries may take for all images of one request; the one that is asked about then is the last."""


class ImageAway(Unavailable):
    """The image cannot be checked or had at the moment; try again."""


@dataclass(frozen=True)
class Admitted:
    """An image that may be used: under `image`, which names exactly what was checked, with this login.

    `digest` and `signer` are None where the policy asks for neither. Whoever shows this shows no secret.
    """

    image: str
    digest: str | None = None
    signer: str | None = None
    chosen: Chosen = field(default=Chosen(None, ""), repr=False)


class ImageGate:
    """Lets images pass by each tenant's policy. Made once by a process; all methods may be called from any thread."""

    def __init__(self, settings: Settings, timeout_s: float, turns: Turns, wait_s: float) -> None:
        """Asks nothing yet; registries get `timeout_s` for one image, after at most `wait_s` for the tenant's turn.

        Raises SettingsError for trusted keys that are none.
        """
        self._settings = settings
        self._timeout_s = timeout_s
        self._turns = turns
        self._wait_s = wait_s
        self._reach: Reach = reach_of(settings)
        self._lock = threading.Lock()
        self._good: dict[tuple[object, ...], tuple[float, TrustedKey]] = {}
        try:
            pems = read_keys(settings.image_keys) if settings.image_keys else []
        except BadKey as exc:
            raise SettingsError(f"CFAB_IMAGE_KEYS {exc}") from exc
        self._keys = tuple(TrustedKey(f"fabric-{place}", pem) for place, pem in enumerate(pems, 1))

    def admit(self, db: Database, tenant_id: UUID, image: str) -> Admitted:
        """Returns when the tenant may use `image` now; never call it inside a transaction.

        Raises Refused (asking again will not help), and Unavailable when the database or the registry cannot be asked.
        """
        return self.decide(tenant_id, *trust_of(db, tenant_id), image)

    def admit_all(self, db: Database, tenant_id: UUID, images: Collection[str]) -> None:
        """`admit` for all images of one request; raises for the first that may not be used.

        Raises Unavailable too when registries take longer than TOGETHER_S: a thread serves no one else meanwhile.
        """
        tenant, until = trust_of(db, tenant_id), time.monotonic() + TOGETHER_S
        for place, image in enumerate(images):
            if place and time.monotonic() > until:
                raise ImageAway(
                    f"Only {place} of {len(images)} images could be checked in {TOGETHER_S:g} s; name fewer at a time"
                )
            self.decide(tenant_id, *tenant, image)

    def decide(
        self,
        tenant_id: UUID,
        tenant: str,
        trust: ImageTrust,
        image: str,
        to_run: bool = False,
        unwanted: threading.Event | None = None,
    ) -> Admitted:
        """`admit` for what is known of a tenant. With `to_run` the login for pulling comes with it.

        Then it also raises Unavailable when a credential that the tenant names is not on this host. Once `unwanted` is
        set it no longer waits for its turn, and raises Unavailable.
        """
        policy = trust.policy or ImagePolicy(self._settings.image_signatures)
        if policy is ImagePolicy.OFF and not trust.repositories and not to_run:
            return Admitted(image)
        try:
            name = parse_image_name(image)
            if policy is not ImagePolicy.SIGNED:
                _check_place(name, trust)
            if policy is ImagePolicy.DIGEST and name.digest is None:
                raise Refused("it must be named by its digest (name@sha256:…)")
            login = self._login(name, tenant_id, tenant, trust) if to_run or policy is ImagePolicy.SIGNED else None
            if policy is not ImagePolicy.SIGNED or login is None:
                return Admitted(image, chosen=login or Chosen(None, ""))
            digest, signer = self._signed(name, tenant_id, trust, login, unwanted)
        except (Refused, RegistryRefused, BadImageName) as exc:
            message = f"Image {image} may not be used by tenant {tenant}: {exc}"
            raise Refused(message, image=image, policy=policy.value) from exc
        except NoTurn as exc:
            raise ImageAway(f"Image {image} cannot be checked now: other images of this tenant are, slowly") from exc
        except (RegistryAway, LoginMissing) as exc:
            raise ImageAway(f"Image {image} cannot be used now: {exc}", image=image) from exc
        return Admitted(f"{_as_written(image)}@{digest}", digest, signer.name, login)

    def _login(self, name: ImageName, tenant_id: UUID, tenant: str, trust: ImageTrust) -> Chosen:
        known = self._settings
        return login_for(
            name.registry, tenant_id, tenant, trust.credentials, known.registry_credentials_dir, known.registry_auth
        )

    def _signed(
        self, name: ImageName, tenant_id: UUID, trust: ImageTrust, chosen: Chosen, unwanted: threading.Event | None
    ) -> tuple[str, TrustedKey]:
        """The digest that the name stands for now, and the key that signed it."""
        keys = (*trust.keys, *self._keys)
        if not keys:
            raise Refused("it must be signed, and no key is trusted yet: an admin adds one (cfab tenant images --key)")
        with self._turns.turn(tenant_id, self._wait_s, unwanted):
            registry = Registry(name.registry, name.path, chosen.login, self._reach, self._timeout_s)
            digest = name.digest or registry.manifest(name.tag or "latest").digest
            question = (name.repository, digest, chosen.owner, keys, trust.repositories)
            with self._lock:
                until, signer = self._good.get(question, (0.0, keys[0]))
            if until < time.monotonic():
                signer = find_signer(registry, name, digest, keys, trust.repositories)
                self._remember(question, signer)
        return digest, signer

    def _remember(self, question: tuple[object, ...], signer: TrustedKey) -> None:
        with self._lock:
            if len(self._good) >= MAX_REMEMBERED:
                self._good.clear()
            self._good[question] = time.monotonic() + REMEMBER_S, signer


def _check_place(name: ImageName, trust: ImageTrust) -> None:
    if trust.repositories and not any(name.lies_in(place) for place in trust.repositories):
        raise Refused(f"it lies in none of {', '.join(trust.repositories)}")


def _as_written(image: str) -> str:
    """The repository as the user wrote it, under which the node's engine knows it."""
    rest = image.partition("@")[0]
    return rest.rpartition(":")[0] if ":" in rest.rpartition("/")[2] else rest
