"""What a node holds: slots and programs go with the attempts that have them, and come back once."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from uuid import UUID, uuid4

from workers.agent.registry import Entry, Registry
from workers.artifacts import Artifact


def entry(slot: int | None) -> Entry:
    return Entry(uuid4(), uuid4(), uuid4(), 1, "t", UUID(int=1), date(2024, 1, 1), slot, "fake", 0, 0, 1)


class Program:
    """A program in the cache, and how often it was let go."""

    def __init__(self) -> None:
        self.released = 0
        self.artifact = Artifact(Path("/nowhere"), 1, False, os.open("/dev/null", os.O_RDONLY), self._release)

    def _release(self) -> None:
        self.released += 1


def test_a_program_is_held_as_long_as_its_attempt_is_here() -> None:
    registry, one, program = Registry(2), entry(0), Program()
    registry.add(one)
    assert registry.keep(one, program.artifact)
    assert (one.artifact, program.released) == (program.artifact, 0)
    registry.remove(one.attempt_id)
    assert program.released == 1


def test_a_program_that_comes_when_its_attempt_has_gone_is_let_go() -> None:
    registry, one, program = Registry(2), entry(0), Program()
    registry.add(one)
    registry.remove(one.attempt_id)
    assert not registry.keep(one, program.artifact)
    assert program.released == 1


def test_an_attempt_without_a_slot_gives_none_back() -> None:
    registry, ended, other = Registry(2), entry(None), entry(None)
    registry.add(ended)
    registry.add(other)
    assert registry.free_slots == registry.free_after([ended.attempt_id, other.attempt_id]) == 2
    fresh = entry(registry.take_slot())
    registry.add(fresh)
    registry.remove(ended.attempt_id)
    assert registry.free_slots == 1
    registry.remove(other.attempt_id)
    assert registry.take_slot() != fresh.slot
    assert registry.take_slot() is None


def test_slots_that_will_be_free_are_those_of_attempts_that_are_here() -> None:
    registry = Registry(4)
    held = [entry(registry.take_slot()) for _ in range(3)]
    for one in held[1:]:
        registry.add(one)
    assert registry.free_after([one.attempt_id for one in held]) == 1 + 2
