"""Images: a name resolved to a digest, the image brought to this host, and old ones removed.

Tells apart what is wrong with an image (it will never run) from what is wrong with a registry or this host.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from workers.containers.engine import Engine, EngineError, registry_header
from workers.containers.pull_errors import ImageRefused, ImageUnavailable, trouble
from workers.containers.recipe import Wanted
from workers.containers.reference import Reference
from workers.containers.rights import Rights

RESOLVE_TIMEOUT_S = 60.0
PULL_IDLE_S = 300.0
TELL_EVERY_S = 2.0
COMING_S = 86_400.0
"""How long an image that is noted may take to come: pulls go on for hours, and one given up may still succeed."""
_MIB = 1 << 20

Say = Callable[[str], None]


class PullCancelled(Exception):
    """Nobody wants the image any more."""


class Image(NamedTuple):
    """An image on this host: its id, the registry's digest (None for one that never was in a registry), its name.

    `digests` are all that it was pulled by, in whichever repository.
    """

    id: str
    digest: str | None
    name: str
    digests: tuple[str, ...] = ()


class Images:
    """The images of one engine; remembers which it has brought, and removes only those."""

    def __init__(self, engine: Engine, memory_path: str, max_bytes: int) -> None:
        """Keep at most `max_bytes` of images brought here, as far as no container needs them."""
        self._engine = engine
        self._path = memory_path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}
        self._needed: dict[str, str] = {}
        self._rights = Rights(f"{memory_path}.rights")
        with contextlib.suppress(OSError, ValueError):
            with open(memory_path, encoding="utf-8") as file:
                self._used = {str(name): float(at) for name, at in json.load(file).items()}

    def bring(self, wanted: Wanted, say: Say, cancelled: Callable[[], bool]) -> Image:
        """Return the image, on this host, where `trim` leaves it until `done`, whether or not this raises.

        `pull` is always (a tag is looked up each time), missing, or never. One that was refused before it came here is
        refused in the same words, so that they are in the job's log too.
        Raises ImageRefused, ImageUnavailable, PullCancelled.
        """
        if wanted.refused:
            raise ImageRefused(wanted.refused)
        if wanted.trouble:
            raise ImageUnavailable(wanted.trouble)
        for note in wanted.notes:
            say(note)
        reference = wanted.image
        local = self._local(reference.name, reference) if reference.digest or wanted.pull != "always" else None
        if local is not None:
            self._check_access(local, wanted)
            self._note(local.name, wanted)
            return local
        if wanted.pull == "never":
            raise ImageRefused(f"image {reference.name} is not on this node, and this node pulls none")
        digest = reference.digest or self._resolve(reference, reference.name, wanted.credentials)
        name = reference.pinned(digest)
        local = self._local(name, reference)
        # Before it is pulled: an image that comes and is not wanted any more is to be removed one day, too.
        self._note(name, wanted, pulled=local is None)
        if local is None:
            self._pull(reference, digest, wanted.credentials, say, cancelled)
            local = self._local(name, reference)
        if local is None:
            raise ImageUnavailable(f"image {name} was pulled and is not there")
        self._rights.allow(digest, wanted.scope)
        return Image(local.id, digest, name)

    def done(self, attempt_id: str) -> None:
        """The attempt has its container, which keeps the image from now on, or needs none."""
        with self._lock:
            self._needed.pop(attempt_id, None)

    def _check_access(self, local: Image, wanted: Wanted) -> None:
        """Have the registry say that a job may have an image on this host, unless that is known.

        The operator's own need no registry: those that never came from one, or have a name that only an operator gives,
        and on a node that pulls nothing all that are not known to be somebody's.
        """
        if not local.digests or self._rights.are_shown(local.digests, wanted.scope):
            return
        if (wanted.pull == "never" or local.digest is None) and not self._rights.are_private(local.digests):
            return
        digest = local.digest or local.digests[0]
        self._resolve(wanted.image, wanted.image.pinned(digest), wanted.credentials)
        self._rights.allow(digest, wanted.scope)

    def _local(self, name: str, reference: Reference) -> Image | None:
        try:
            found = self._engine.call("GET", f"/images/{name}/json")
        except EngineError as exc:
            if exc.status == 404:
                return None
            raise ImageUnavailable(f"the Docker Engine cannot tell about image {name}: {exc}") from exc
        digests = [one.partition("@") for one in found.get("RepoDigests") or []]
        ours = [digest for repository, _, digest in digests if repository == reference.repository]
        every = tuple(digest for _, _, digest in digests)
        return Image(found["Id"], reference.digest or (ours[0] if ours else None), name, every)

    def _resolve(self, reference: Reference, name: str, credentials: Mapping[str, str] | None) -> str:
        headers = registry_header(credentials)
        path = f"/distribution/{name}/json"
        try:
            found = self._engine.call("GET", path, headers=headers, timeout_s=RESOLVE_TIMEOUT_S)
        except EngineError as exc:
            raise trouble(reference, name, exc.status, str(exc)) from exc
        return str(found["Descriptor"]["digest"])

    def _pull(
        self,
        reference: Reference,
        digest: str,
        credentials: Mapping[str, str] | None,
        say: Say,
        cancelled: Callable[[], bool],
    ) -> None:
        self.trim()
        name = reference.pinned(digest)
        say(f"pulling image {reference.name} ({digest})" if reference.digest is None else f"pulling image {name}")
        query = {"fromImage": reference.repository, "tag": digest}
        started = told = time.monotonic()
        layers: dict[str, tuple[int, int]] = {}
        try:
            for line in self._engine.lines("POST", "/images/create", query, registry_header(credentials), PULL_IDLE_S):
                if cancelled():
                    raise PullCancelled(f"pulling {name} was given up")
                if "error" in line:
                    raise trouble(reference, name, 0, str(line["error"]))
                _count(layers, line)
                if time.monotonic() - told > TELL_EVERY_S and layers:
                    told = time.monotonic()
                    done, size = (sum(pair[at] for pair in layers.values()) // _MIB for at in (0, 1))
                    say(f"pulling image: {done} of {size} MiB of {len(layers)} layers")
        except EngineError as exc:
            raise trouble(reference, name, exc.status, str(exc)) from exc
        say(f"pulled image in {time.monotonic() - started:.1f} s")

    def _note(self, name: str, wanted: Wanted, pulled: bool = False) -> None:
        with self._lock:
            self._needed[wanted.spec.attempt_id] = name
            # What was here before is the operator's: it is used, and never removed.
            if pulled or name in self._used:
                self._used[name] = time.time()
                self._save()

    def trim(self) -> None:
        """Remove the images brought here that were used longest ago, until the rest fits. Never raises."""
        with contextlib.suppress(EngineError, KeyError, TypeError), self._lock:
            sizes = {name: int(one["Size"]) for one in self._listed() for name in one.get("RepoDigests") or []}
            self._rights.prune({name.partition("@")[2] for name in sizes})
            coming = time.time() - COMING_S
            self._used = {name: at for name, at in self._used.items() if name in sizes or at > coming}
            ours = [name for name in sorted(self._used, key=self._used.__getitem__) if name in sizes]
            total, needed = sum(sizes[name] for name in ours), set(self._needed.values())
            for name in ours:
                if total <= self._max_bytes:
                    break
                if name in needed:
                    continue
                try:
                    self._engine.call("DELETE", f"/images/{name}")
                except EngineError as exc:
                    if exc.status != 404:
                        # 409: a container needs it.
                        continue
                total -= sizes[name]
                del self._used[name]
            self._save()

    def _listed(self) -> list[dict[str, Any]]:
        return list(self._engine.call("GET", "/images/json"))

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            with open(f"{self._path}.new", "w", encoding="utf-8") as file:
                json.dump(self._used, file)
            os.replace(f"{self._path}.new", self._path)


def _count(layers: dict[str, tuple[int, int]], line: Mapping[str, Any]) -> None:
    detail = line.get("progressDetail") or {}
    if line.get("status") == "Downloading" and detail.get("total"):
        layers[str(line.get("id"))] = int(detail.get("current", 0)), int(detail["total"])
    elif line.get("status") == "Download complete" and line.get("id") in layers:
        size = layers[str(line["id"])][1]
        layers[str(line["id"])] = size, size
