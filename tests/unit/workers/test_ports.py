"""Ports for gangs: free when taken, given to one gang only, and to the program when it starts."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from workers.agent.ports import Port, Ports


def free_range(size: int) -> range:
    """Neighbouring ports that nobody has at the moment."""
    for first in range(23_000, 29_000, size):
        found = []
        for number in range(first, first + size):
            probe = Ports(range(number, number + 1)).take()
            if probe is None:
                break
            probe.give_back()
            found.append(number)
        if len(found) == size:
            return range(first, first + size)
    raise AssertionError("this host has no free ports")


@pytest.fixture
def numbers() -> range:
    return free_range(3)


@pytest.fixture
def taken(numbers: range) -> Iterator[list[Port]]:
    ports = Ports(numbers)
    found = [port for port in (ports.take() for _ in numbers) if port is not None]
    yield found
    for port in found:
        port.give_back()


def listen(number: int) -> socket.socket:
    """As a program would that sets no option."""
    server = socket.socket()
    server.bind(("", number))
    server.listen()
    return server


def test_each_is_taken_once_and_then_there_is_none(numbers: range, taken: list[Port]) -> None:
    assert sorted(port.number for port in taken) == list(numbers)
    assert Ports(numbers).take() is None


def test_one_that_was_given_back_is_taken_again(numbers: range, taken: list[Port]) -> None:
    taken[1].give_back()
    again = Ports(numbers).take()
    assert again is not None and again.number == taken[1].number
    again.give_back()


def test_is_held_until_the_program_starts_and_kept_from_other_gangs_while_it_runs(
    numbers: range, taken: list[Port]
) -> None:
    port = taken[0]
    with pytest.raises(OSError, match="in use"):
        listen(port.number)
    port.open_up()
    listen(port.number).close()
    assert Ports(numbers).take() is None, "its program does not listen at the moment, and still it is not free"


def test_that_a_stranger_has_is_passed_over(numbers: range) -> None:
    with listen(numbers[0]):
        found = [Ports(numbers).take() for _ in numbers]
        assert sorted(port.number for port in found if port is not None) == list(numbers[1:])
        for port in found:
            if port is not None:
                port.give_back()


def test_of_a_running_program_is_kept_by_the_next_agent_and_by_one_only(numbers: range) -> None:
    kept = Ports(numbers).keep(numbers[0])
    assert kept is not None
    assert Ports(numbers).keep(numbers[0]) is None
    listen(numbers[0]).close()
    kept.give_back()


def test_of_an_agent_that_was_killed_are_free(numbers: range) -> None:
    take = f"p = Ports(range({numbers[0]}, {numbers[0] + 1})).take()"
    code = f"from workers.agent.ports import Ports; {take}; print(p is not None, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None and agent.stdout.readline() == "True\n"
        only = Ports(range(numbers[0], numbers[0] + 1))
        assert only.take() is None
        agent.kill()
        agent.wait(30)
        again = only.take()
        assert again is not None
        again.give_back()
