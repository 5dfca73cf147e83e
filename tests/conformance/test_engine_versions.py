"""Engines of other versions: what is too old for them is not spoken, and what cannot be is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.conftest import CONTAINERS
from tests.conformance.lab import Lab
from tests.door import Door
from tests.engine import TestEngine
from workers.containers.engine import Engine
from workers.runners.base import RunnerError
from workers.runners.container import check_engine


@pytest.fixture
def door(docker_engine: TestEngine, node_directory: Path) -> Iterator[Door]:
    """The real engine, as Docker 29 answers: nothing below version 1.44 of its API."""
    made = Door(node_directory, docker_engine.socket, "1.44", "1.52")
    yield made
    made.close()


def test_jobs_run_on_an_engine_that_no_longer_speaks_the_oldest_version(door: Door, node_directory: Path) -> None:
    assert check_engine(door.socket)
    lab = Lab(replace(CONTAINERS, engine=door.socket), node_directory)
    try:
        record = lab.run_program("a1", ["/bin/sh", "-c", "echo ran; exit 3"])
        assert (record.exit_code, lab.text("a1")) == (3, "ran\n")
    finally:
        lab.close()
    assert door.asked == {"1.44"}


def test_engine_that_is_replaced_is_asked_anew(door: Door) -> None:
    engine = Engine(door.socket)
    assert engine.labelled("none=such") == []
    door.least = "1.48"
    assert engine.labelled("none=such") == []
    assert door.asked == {"1.44", "1.48"}


def test_oldest_version_is_spoken_where_it_is_taken(door: Door) -> None:
    door.least = "1.24"
    assert check_engine(door.socket)
    assert door.asked == {"1.41"}


def test_engine_that_is_too_old_is_refused_with_the_reason(door: Door) -> None:
    door.least, door.newest = "1.12", "1.40"
    with pytest.raises(RunnerError, match=r"speaks version 1\.40 of its API at most: 1\.41 is needed"):
        check_engine(door.socket)
