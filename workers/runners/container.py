"""Runs jobs as containers of a Docker Engine: the contract of `base.Runner` over the socket of their own keeper."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from workers.containers import recipe
from workers.containers.engine import Engine, EngineError
from workers.containers.service import PROTOCOL_VERSION
from workers.keeper.spec import BadSpec
from workers.runners.base import Cancelled, PrepareCancelled, RunnerError, RunnerUnavailable, RunSpec, Sample
from workers.runners.keeper_client import KeeperOptions
from workers.runners.process import ProcessRunner
from workers.runners.process_samples import processes_of

KEEPER_SCRIPT = Path(__file__).resolve().parents[1] / "containers" / "main.py"
SAMPLERS = 8
SAMPLE_TIMEOUT_S = 5.0
REBIRTH_S = 15.0
REBIRTH_RETRY_S = 0.2
_SINCE_3 = ("scope", "refused", "trouble", "notes")


@dataclass(frozen=True, slots=True)
class ContainerSpec(RunSpec):
    """One attempt to run in a container of `image`; `network` is none, or bridge (the fabric's own).

    With `own_entrypoint` the image's program is run and argv are its arguments; else argv is the program. `pull` is
    always (a tag is looked up at its registry each time), missing, or never. `credentials` are the registry's, the
    tenant `scope`'s own where that is given. An image that is `refused`, or in `trouble`, ends the attempt with these
    words at once, in its log and its record; `notes` go to its log.
    """

    network: str = "none"
    image: str = ""
    own_entrypoint: bool = False
    pull: str = "always"
    credentials: dict[str, str] | None = field(default=None, repr=False)
    scope: str = ""
    refused: str = ""
    trouble: str = ""
    notes: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain JSON values; without what an older keeper does not know, where there is nothing of it."""
        # Not super(): a dataclass with slots is another class than the one that this method was written in.
        wire = RunSpec.to_wire(self)
        for name in _SINCE_3:
            if not wire[name]:
                del wire[name]
        return wire


@dataclass(frozen=True, slots=True)
class ContainerOptions(KeeperOptions):
    """How to start a keeper of containers where none serves the directory."""

    protocol: ClassVar[int] = PROTOCOL_VERSION

    engine: str = "/var/run/docker.sock"
    max_image_bytes: int = 100 * 2**30

    def command(self) -> list[str]:
        """Return the command line."""
        return [
            sys.executable, "-I", "-S", str(KEEPER_SCRIPT), "--dir", str(self.directory),
            "--engine", self.engine, "--max-image-bytes", str(self.max_image_bytes),
        ]  # fmt: skip

    def differences(self, hello: Mapping[str, Any]) -> list[str]:
        """Say in which settings the keeper that answered `hello` was started otherwise; empty when in none."""
        engine = hello.get("engine")
        return [f"its Docker Engine is {engine}, not {self.engine}"] if engine != self.engine else []


def check_engine(path: str) -> str:
    """The version of the Docker Engine at a socket. Raises RunnerError when none answers, or one too old."""
    try:
        return str(Engine(path, timeout_s=10.0).call("GET", "/version")["Version"])
    except (EngineError, KeyError, TypeError, ValueError) as exc:
        raise RunnerError(f"no Docker Engine (20.10 or newer) at {path}: {exc}") from exc


class ContainerRunner(ProcessRunner):
    """Starts, stops and reports containers; they outlive it, and a new one finds them again with `attach`."""

    def __init__(self, options: ContainerOptions) -> None:
        """Connect to the directory's keeper, starting one. Raises RunnerUnavailable, RunnerError without an engine."""
        check_engine(options.engine)
        self._engine = Engine(options.engine, timeout_s=SAMPLE_TIMEOUT_S)
        self._samplers = ThreadPoolExecutor(SAMPLERS, thread_name_prefix="container-sample")
        give_up_at = time.monotonic() + REBIRTH_S
        while True:
            try:
                super().__init__(options)
                return
            except RunnerUnavailable:
                # Its guard may just be starting it again.
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(REBIRTH_RETRY_S)

    def prepare(self, spec: RunSpec, cancelled: Cancelled) -> RunSpec:
        """Check the spec; its image is brought when it starts, so that the job's log shows how that goes."""
        if cancelled():
            raise PrepareCancelled(f"attempt {spec.attempt_id} is no longer wanted")
        try:
            recipe.parse_wanted(spec.to_wire())
        except BadSpec as exc:
            raise RunnerError(f"attempt {spec.attempt_id}: {exc}") from exc
        return spec

    def _version_for(self, spec: RunSpec) -> int:
        """The version of the keeper's protocol that a spec needs."""
        needed = super()._version_for(spec)
        return 3 if any(getattr(spec, name, None) for name in _SINCE_3) else needed

    def work_dir(self, attempt_id: str) -> str:
        """Return the writable directory, as the job sees it."""
        return recipe.WORK

    def files_dir(self, attempt_id: str) -> str:
        """Return the directory of the files that come with the attempt, as the job sees it."""
        return recipe.FILES

    def samples(self, only: Collection[str] | None = None) -> list[Sample]:
        """Measure the running attempts, or `only` these, by the engine's statistics."""
        with self._lock:
            running = [one for name, one in self._running.items() if only is None or name in only]
        found = self._samplers.map(self._sample, [one.attempt_id for one in running])
        pids = processes_of(running)
        return [replace(sample, pids=pids[sample.attempt_id]) for sample in found if sample is not None]

    def close(self) -> None:
        """Disconnect; containers go on under their keeper."""
        super().close()
        self._samplers.shutdown(wait=False, cancel_futures=True)

    def _sample(self, attempt_id: str) -> Sample | None:
        path = f"/containers/cfab-{self.hello['name']}-{attempt_id}/stats"
        try:
            found = self._engine.call("GET", path, {"stream": "false", "one-shot": "true"})
        except EngineError:
            return None
        return _sample_of(attempt_id, found)


def _sample_of(attempt_id: str, found: dict[str, Any]) -> Sample | None:
    memory, cpu = found.get("memory_stats") or {}, (found.get("cpu_stats") or {}).get("cpu_usage") or {}
    if "usage" not in memory:
        return None
    detail = memory.get("stats") or {}
    cache = int(detail.get("total_inactive_file", detail.get("inactive_file", 0)))
    processes = int((found.get("pids_stats") or {}).get("current") or 0)
    seconds = int(cpu.get("total_usage", 0)) / 1e9
    return Sample(attempt_id, max(0, int(memory["usage"]) - cache), seconds, processes)
