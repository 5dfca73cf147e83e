"""The hosts' network does what tests rely on: it carries, can be cut unseen, and outlives no run for long."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.fabric import wait_until
from tests.chaos.process import REPOSITORY
from tests.e2e.hosts.network import NAMESPACES, PLACE, PREFIX, Network, ip, require_namespaces, sweep

KILLED_RUN = """
import subprocess, sys, time
from tests.e2e.hosts.network import Network
network = Network("lone")
subprocess.Popen(network.words("lone", ["sleep", "1000"]), start_new_session=True)
print(network.root.name, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def pair() -> Iterator[Network]:
    """Two hosts."""
    network = Network("one", "two")
    yield network
    network.close()


def reaches(network: Network, source: str, target: str) -> bool:
    """Whether a connection from a host to the other's port 9000 comes about."""
    with network.inside(source):
        try:
            socket.create_connection((network.address(target), 9000), timeout=1).close()
        except OSError:
            return False
        return True


def test_hosts_reach_each_other_until_one_is_cut_off_and_again_when_it_is_healed(pair: Network) -> None:
    with pair.inside("one"):
        server = socket.create_server((pair.address("one"), 9000))
    with server:
        # A port of a bridge learns its way before it forwards.
        wait_until(lambda: reaches(pair, "two", "one"), 30, "the network to carry")
        pair.cut("two")
        assert not reaches(pair, "two", "one")
        assert "state UP" in ip("-n", pair.namespace("two"), "link", "show", "eth0")
        pair.heal("two")
        wait_until(lambda: reaches(pair, "two", "one"), 30, "the network to carry again")


def test_nothing_of_this_machine_can_be_reached(pair: Network) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server, pair.inside("one"):
        assert ip("-n", pair.namespace("one"), "route").splitlines() == [
            f"10.77.0.0/24 dev eth0 proto kernel scope link src {pair.address('one')} "
        ]
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.getsockname()[1]), timeout=1)


def test_a_close_ends_what_runs_there_and_leaves_nothing() -> None:
    network = Network("lone")
    sleeper = subprocess.Popen(network.words("lone", ["sleep", "1000"]))
    wait_until(lambda: runs_in(network.namespace("lone")), 20, "the process to enter its host")
    network.close()
    assert sleeper.wait(20) == -signal.SIGKILL
    assert remains(network.root.name) == []


def test_the_next_run_removes_what_a_killed_one_has_left_and_nothing_of_one_that_lives(pair: Network) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-c", KILLED_RUN]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY) as run:
        assert run.stdout is not None
        name = run.stdout.readline().strip()
        run.kill()
    assert name.startswith(PREFIX)
    wait_until(lambda: runs_in(f"{name}-lone"), 20, "the process to enter its host")
    sweep()
    assert remains(name) == []
    assert len(remains(pair.root.name)) == 4


def runs_in(namespace: str) -> bool:
    """Whether a process is in it."""
    return bool(ip("netns", "pids", namespace).split())


def remains(name: str) -> list[Path]:
    """Namespaces and folder of a run."""
    return [*NAMESPACES.glob(f"{name}-*"), *PLACE.glob(name)]


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    """Skips all of it where namespaces cannot be made."""
    require_namespaces()
