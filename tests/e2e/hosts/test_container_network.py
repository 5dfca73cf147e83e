"""What a container reaches by a real bridge with address translation, on a GPU host that is a network namespace.

The rules of docs/containers.md that keep jobs from the network around them are run as they stand there.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.chaos.process import REPOSITORY
from tests.conformance.conftest import CONTAINERS
from tests.conformance.lab import Lab
from tests.e2e.hosts.network import Network, ip
from tests.engine import TestEngine, missing
from workers.containers.network import INTERFACE, NETWORK

HOST, OUTSIDE = "gpu-host", "outside"
METADATA, PUBLIC = "169.254.169.254", "203.0.113.7"
PORT = 9000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class Place:
    """A GPU host with a Docker Engine; outside of it one machine that has an address of each kind."""

    def __init__(self) -> None:
        if shutil.which("iptables") is None:
            missing("not installed: iptables")
        self.network = Network(HOST, OUTSIDE)
        self.host, self.outside = self.network.address(HOST), self.network.address(OUTSIDE)
        for address in (METADATA, PUBLIC):
            ip("-n", self.network.namespace(OUTSIDE), "address", "add", f"{address}/32", "dev", "lo")
        ip("-n", self.network.namespace(HOST), "route", "add", "default", "via", self.outside)
        self._servers = [self._serve(host) for host in (HOST, OUTSIDE)]
        self._servers.append(self._serve_names())
        self.labs = self.network.root / "labs"
        self.labs.mkdir(0o711)
        self.engine = TestEngine(self.network.words(HOST, []), str(self.network.root), ["--dns", self.outside])

    def run_on_host(self, script: str) -> None:
        """A shell script as an operator runs it on the host."""
        done = subprocess.run(
            self.network.words(HOST, ["sh", "-euc", script]), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr

    def lab(self, name: str) -> Lab:
        """The container runner on that engine, with a keeper on the host."""
        with self.network.inside(HOST):
            return Lab(replace(CONTAINERS, engine=self.engine.socket), self.labs / name)

    def close(self) -> None:
        """Ends all of it."""
        self.engine.close()
        for server in self._servers:
            server.close()
        self.network.close()

    def _serve(self, host: str) -> socket.socket:
        """Tells whoever connects to the port, by any address of the host, under which address it was seen."""
        with self.network.inside(host):
            server = socket.create_server(("0.0.0.0", PORT))

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, (seen, _port) = server.accept()
                    with peer, contextlib.suppress(OSError):
                        peer.sendall(f"seen as {seen}\n".encode())

        threading.Thread(target=answer, daemon=True).start()
        return server

    def _serve_names(self) -> socket.socket:
        """A name server outside: every name has the public address."""
        with self.network.inside(OUTSIDE):
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.bind((self.outside, 53))

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    asked, peer = server.recvfrom(512)
                    server.sendto(name_answer(asked), peer)

        threading.Thread(target=answer, daemon=True).start()
        return server


def name_answer(asked: bytes) -> bytes:
    """The answer to a question for an address: the public one for version 4, none for version 6."""
    end = asked.index(b"\0", 12) + 5
    question, kind = asked[12:end], asked[end - 4 : end - 2]
    record = b"\xc0\x0c" + b"\0\1\0\1" + b"\0\0\0\x3c" + b"\0\4" + socket.inet_aton(PUBLIC)
    found = kind == b"\0\1"
    return asked[:2] + b"\x81\x80\0\1" + (b"\0\1" if found else b"\0\0") + b"\0\0\0\0" + question + record * found


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """The host with its engine."""
    made = Place()
    yield made
    made.close()


@pytest.fixture
def lab(place: Place, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A runner on that host."""
    one = place.lab(re.sub(r"\W", "-", request.node.name))
    yield one
    one.close()


def tries(*addresses: str) -> str:
    """A shell program that tries to connect to each address, all at once, and prints what it is told or `no`."""
    each = "".join(
        f"echo {number} {address} $(nc -w 3 {address} {PORT} </dev/null 2>/dev/null | grep seen || echo no) &\n"
        for number, address in enumerate(addresses)
    )
    return f"{{ {each}wait; }} | sort -n | awk '{{sub(/^[0-9]+ /, \"\"); print}}'\n"


def told(lab: Lab, program: str, network: str, attempt: str = "a1") -> list[str]:
    """What a job in a container prints."""
    record = lab.run_program(attempt, ["/bin/sh", "-c", program], network=network)
    assert record.exit_code == 0, (record, lab.text(attempt))
    return lab.text(attempt, 1).splitlines()


def test_a_bridge_leads_outside_under_the_host_s_address(place: Place, lab: Lab) -> None:
    seen = told(lab, "ls /sys/class/net\n" + tries(place.outside, PUBLIC, "127.0.0.1"), "bridge")
    assert seen == ["eth0", "lo", f"{place.outside} seen as {place.host}", f"{PUBLIC} seen as {place.host}",
                    "127.0.0.1 no"]  # fmt: skip


def test_names_are_found_on_a_bridge(lab: Lab) -> None:
    assert f"Address: {PUBLIC}" in told(lab, "nslookup fabric.test", "bridge")


def test_none_leads_nowhere(place: Place, lab: Lab) -> None:
    addresses = (place.outside, PUBLIC, METADATA, place.host, "172.17.0.1", "127.0.0.1")
    assert told(lab, "ls /sys/class/net\n" + tries(*addresses), "none") == ["lo", *(f"{one} no" for one in addresses)]


def test_jobs_on_one_host_do_not_reach_each_other(place: Place, lab: Lab) -> None:
    serve = f"ip -4 -o address show eth0 | awk '{{print $4}}'; while :; do echo seen | nc -l -p {PORT}; done"
    lab.runner.start(lab.program("server", ["/bin/sh", "-c", serve], network="bridge"))
    lab.printed("server")
    address = lab.text("server", 1).split("/")[0]
    assert re.fullmatch(r"[0-9.]+", address)
    assert told(lab, tries(address), "bridge") == [f"{address} no"]


def test_the_documented_rules_keep_jobs_from_all_but_public_addresses(place: Place, lab: Lab) -> None:
    gateway = told(lab, "ip route | awk '/default/ {print $3}'", "bridge", "a0")[0]
    inner = (place.outside, METADATA, place.host, gateway)
    assert [line.endswith(" no") for line in told(lab, tries(*inner), "bridge", "a1")] == [False] * 4
    keep_away, let_ask = documented()
    place.run_on_host(keep_away)
    # The name server has a private address here, for which the page has a rule of its own: nothing is named.
    named = "nslookup fabric.test >/dev/null 2>&1 && echo named &\n"
    seen = told(lab, named + tries(*inner, PUBLIC) + "wait\n", "bridge", "a2")
    assert seen == [*(f"{one} no" for one in inner), f"{PUBLIC} seen as {place.host}"]
    place.run_on_host(f"NAME_SERVER={place.outside}\n{let_ask}")
    assert f"Address: {PUBLIC}" in told(lab, "nslookup fabric.test", "bridge", "a3")
    assert told(lab, tries(place.outside), "bridge", "a4") == [f"{place.outside} no"]


def test_a_network_that_cannot_be_made_is_the_node_s_fault(lab: Lab, place: Place) -> None:
    assert lab.run_program("a0", ["true"], network="bridge").exit_code == 0
    place.engine.docker("network", "rm", NETWORK)
    place.engine.docker("network", "create", "--opt", f"com.docker.network.bridge.name={INTERFACE}", "taken")
    record = lab.run_program("a1", ["true"], network="bridge")
    place.engine.docker("network", "rm", "taken")
    assert record.spawn_error is None and record.node_fault is not None
    assert f"the network '{NETWORK}'" in record.node_fault
    assert lab.run_program("a2", ["true"], network="bridge").exit_code == 0


def documented() -> list[str]:
    """The commands with which operators keep jobs from the network around them, as the page has them."""
    page = (REPOSITORY / "docs" / "containers.md").read_text(encoding="utf-8")
    return [script for script in re.findall(r"```sh\n(.*?)```", page, re.S) if "iptables" in script]
