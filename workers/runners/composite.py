"""Several runners as one: each attempt is the runner's that its specification is for, for as long as it is held."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence

from workers.runners.base import (
    Callback,
    Cancelled,
    Event,
    Held,
    Runner,
    RunnerError,
    RunSpec,
    Sample,
    Started,
    StartRefused,
    Stock,
)
from workers.runners.container import ContainerSpec

log = logging.getLogger(__name__)


class Runners:
    """Processes and containers behind one `base.Runner`. Trouble of one never keeps the other from being told."""

    def __init__(self, processes: Runner, containers: Runner) -> None:
        """Join two runners; `close` closes both."""
        self._processes = processes
        self._containers = containers
        self._all = (processes, containers)
        self._lock = threading.Lock()
        self._contained: set[str] = set()

    def obstacle(self) -> str | None:
        """Why nothing may be claimed for one of them."""
        return next(filter(None, (runner.obstacle() for runner in self._all)), None)

    def prepare(self, spec: RunSpec, cancelled: Cancelled) -> RunSpec:
        """Let the spec's runner prepare it."""
        return self._for(spec).prepare(spec, cancelled)

    def subscribe(self, callback: Callback) -> None:
        """Deliver the events of both."""

        def contained(event: Event) -> None:
            if isinstance(event, Started):
                self._note([event.attempt_id])
            callback(event)

        self._processes.subscribe(callback)
        self._containers.subscribe(contained)

    def attach(self) -> list[Held]:
        """Return everything that either holds."""
        contained = self._containers.attach()
        self._note([held.attempt_id for held in contained])
        return [*self._processes.attach(), *contained]

    def take_stock(self) -> Stock:
        """Return what is held; without containers where their keeper does not answer, as while its engine is away."""
        held = self._processes.attach()
        try:
            contained = self._containers.attach()
        except RunnerError as exc:
            log.warning("what runs in containers here cannot be seen: %s", exc)
            return Stock(held, frozenset({"container"}))
        self._note([one.attempt_id for one in contained])
        return Stock([*held, *contained])

    def start(self, spec: RunSpec) -> bool:
        """Start an attempt with its runner."""
        answer = self.start_many([spec])[0]
        if isinstance(answer, StartRefused):
            raise answer
        return answer

    def start_many(self, specs: Sequence[RunSpec]) -> list[bool | StartRefused]:
        """Start several, each with its runner.

        Raises RunnerError when one of them could not be told; what the other was told holds, as `attach` shows.
        """
        answers: dict[str, bool | StartRefused] = {}
        failed: list[RunnerError] = []
        for runner in self._all:
            mine = [spec for spec in specs if self._for(spec) is runner]
            if not mine:
                continue
            if runner is self._containers:
                self._note([spec.attempt_id for spec in mine])
            try:
                given = runner.start_many(mine)
            except RunnerError as exc:
                failed.append(exc)
                continue
            answers |= {spec.attempt_id: answer for spec, answer in zip(mine, given, strict=True)}
        if failed:
            # Whoever asked looks for each attempt then, and finds those that were started.
            raise failed[0]
        with self._lock:
            self._contained -= {name for name, answer in answers.items() if isinstance(answer, StartRefused)}
        return [answers[spec.attempt_id] for spec in specs]

    def stop(self, attempt_id: str, grace_s: float, cause: str) -> None:
        """Stop an attempt."""
        self._of(attempt_id).stop(attempt_id, grace_s, cause)

    def kill(self, attempt_id: str, cause: str) -> None:
        """Kill an attempt."""
        self._of(attempt_id).kill(attempt_id, cause)

    def extend(self, deadlines: Mapping[str, float]) -> list[str]:
        """Move deadlines forward with each runner; what a runner that is cut off holds is not called unknown."""
        unknown: list[str] = []
        for runner, names in self._split(deadlines):
            try:
                unknown += runner.extend({name: deadlines[name] for name in names})
            except RunnerError as exc:
                log.warning("deadlines could not be extended: %s", exc)
        return unknown

    def forget(self, attempt_ids: Iterable[str], wait: bool = True) -> None:
        """Remove ended attempts."""
        for runner, names in self._split(list(attempt_ids)):
            runner.forget(names, wait)
            if runner is self._containers:
                with self._lock:
                    self._contained.difference_update(names)

    def spool_path(self, attempt_id: str) -> str:
        """Return where the attempt's output frames are."""
        return self._of(attempt_id).spool_path(attempt_id)

    def work_dir(self, attempt_id: str) -> str:
        """Return the attempt's working directory as the job sees it."""
        return self._of(attempt_id).work_dir(attempt_id)

    def files_dir(self, attempt_id: str) -> str:
        """Return where the job finds its files."""
        return self._of(attempt_id).files_dir(attempt_id)

    def samples(self, only: Collection[str] | None = None) -> list[Sample]:
        """Measure with each runner; one that is cut off measures nothing."""
        found: list[Sample] = []
        for runner in self._all:
            if only is None or any(self._of(name) is runner for name in only):
                try:
                    found += runner.samples(only)
                except RunnerError as exc:
                    log.warning("samples were dropped: %s", exc)
        return found

    def close(self) -> None:
        """Close both."""
        for runner in self._all:
            runner.close()

    def _for(self, spec: RunSpec) -> Runner:
        return self._containers if isinstance(spec, ContainerSpec) else self._processes

    def _of(self, attempt_id: str) -> Runner:
        with self._lock:
            return self._containers if attempt_id in self._contained else self._processes

    def _note(self, attempt_ids: Iterable[str]) -> None:
        with self._lock:
            self._contained.update(attempt_ids)

    def _split(self, attempt_ids: Iterable[str]) -> list[tuple[Runner, list[str]]]:
        names = list(attempt_ids)
        parts = [(runner, [name for name in names if self._of(name) is runner]) for runner in self._all]
        return [(runner, mine) for runner, mine in parts if mine]
