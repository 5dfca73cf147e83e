"""Images come and go on a real engine: none that a job needs is removed, and none that came for one stays for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.here import Here
from tests.conformance.lab import eventually
from tests.engine import TestEngine
from workers.containers.engine import Engine

Open = Callable[..., Here]


@pytest.fixture
def registry(docker_engine: TestEngine) -> Iterator[TestEngine]:
    docker_engine.start_registry()
    yield docker_engine
    docker_engine.stop_registry()


@pytest.fixture
def here(node_directory: Path) -> Iterator[Open]:
    """Makes keepers that keep no image, with an engine each."""
    made: list[Here] = []

    def open_one(engine: Engine, name: str = "k") -> Here:
        made.append(Here(node_directory / name, engine, max_image_bytes=1))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def pushed(registry: TestEngine, name: str) -> str:
    """An image that only the registry has, and nothing else shares."""
    registry.import_image(f"cfab-{name}:1", number=name)
    digest = registry.push(f"room/{name}:1", f"cfab-{name}:1")
    registry.docker("rmi", f"cfab-{name}:1")
    return f"{registry.registry}/room/{name}@{digest}"


def has(registry: TestEngine, name: str) -> bool:
    return f"room/{name}" in registry.docker("images", "--digests")


def test_image_is_not_removed_between_its_pull_and_its_container(here: Open, registry: TestEngine) -> None:
    arrived, go = threading.Event(), threading.Event()

    class Slow(Engine):
        def create(self, name: str, config: Mapping[str, Any]) -> str:
            if name.endswith("-a1"):
                arrived.set()
                assert go.wait(60)
            return super().create(name, config)

    keeper = here(Slow(registry.socket))
    keeper.start("a1", "true", image=pushed(registry, "one"), pull="always")
    assert arrived.wait(60)
    other = pushed(registry, "two")
    assert keeper.run("a2", "true", image=other, pull="always")["exit_code"] == 0
    eventually(lambda: not has(registry, "two"), "room")
    assert has(registry, "one")
    go.set()
    record = keeper.ended("a1")
    assert (record["exit_code"], record["spawn_error"]) == (0, None)
    # And then it goes as well.
    eventually(lambda: not has(registry, "one"), "room")


@pytest.mark.parametrize("times", [1, 2])
def test_image_that_somebody_else_removes_just_then_is_brought_again_once(
    here: Open, registry: TestEngine, times: int
) -> None:
    image = pushed(registry, "three")
    left = [None] * times

    class Shared(Engine):
        def create(self, name: str, config: Mapping[str, Any]) -> str:
            if left:
                left.pop()
                registry.docker("rmi", image)
            return super().create(name, config)

    record = here(Shared(registry.socket)).run("a1", "true", image=image, pull="always")
    assert record["spawn_error"] is None
    if times == 1:
        assert record["exit_code"] == 0
    else:
        assert "was removed while it was needed" in record["node_fault"]


def test_image_that_came_for_a_job_which_was_stopped_meanwhile_is_removed_one_day(
    here: Open, registry: TestEngine
) -> None:
    class Slow(Engine):
        def lines(self, *args: Any) -> Iterator[dict[str, Any]]:
            told = list(super().lines(*args))
            yield from told[:-1]
            keeper.jobs.stop("a1", 0.0, "cancel")
            yield told[-1]

    keeper = here(Slow(registry.socket))
    assert keeper.run("a1", "true", image=pushed(registry, "four"), pull="always")["stop_cause"] == "cancel"
    assert has(registry, "four")
    assert keeper.run("a2", "true")["exit_code"] == 0
    eventually(lambda: not has(registry, "four"), "room")
