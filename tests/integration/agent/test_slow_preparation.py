"""What is slow to prepare, a download or the check of an image, delays no other tenant's job, no stop, no restart."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from app.domain.image_trust import TrustedKey
from app.domain.job import DEFAULT_TENANT, JobRequest
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.services.image_trust import change_trust
from app.services.stop import request_stop
from tests.factories import Fabric, job, until
from tests.integration.agent.conftest import Site
from tests.signing import Signer
from workers.agent import admission
from workers.agent.agent import Agent
from workers.agent.fetches import MOST_EACH

PROGRAM = b"#!/bin/sh\nexit 0\n"


class Web:
    """A web server that answers at once, except under /slow: there nothing comes before the test is over."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.over = over = threading.Event()
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(PROGRAM)))
                self.end_headers()
                self.wfile.flush()
                if self.path.startswith("/slow"):
                    over.wait()
                else:
                    self.wfile.write(PROGRAM)

            def log_message(self, *args: Any) -> None:
                """Says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def program(self, path: str, number: int | None = None) -> JobRequest:
        """A job whose program is there; with a number it is one of its own, which has no right bytes."""
        digest = hashlib.sha256(PROGRAM).hexdigest() if number is None else f"{number:064x}"
        return job(script=None, binary_url=self.url + path, binary_sha256=digest)

    def slow(self, count: int) -> list[JobRequest]:
        """Jobs whose programs do not come."""
        return [self.program(f"/slow{n}", n) for n in range(count)]

    def close(self) -> None:
        """Lets all go."""
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


def cancel(fabric: Fabric, agent: Agent, job_id: UUID, tenant: UUID = DEFAULT_TENANT) -> None:
    request_stop(fabric.db, tenant, job_id, "ann")
    agent.wake()


class TestDownloads:
    @pytest.fixture
    def agent(self, site: Site) -> Agent:
        """An agent whose downloads may take longer than any test waits."""
        site.fetch_timeout_s = 300.0
        return site.agent(slots=16, fetch_schemes=("http", "https"))

    def test_a_tenant_s_slow_servers_delay_no_other_tenant_and_no_housekeeping(
        self, site: Site, agent: Agent, web: Web
    ) -> None:
        slow = site.fabric.submit(*web.slow(MOST_EACH + 2), tenant=site.fabric.add_tenant())
        until(lambda: len(web.asked) == MOST_EACH)
        done = threading.Event()
        agent._starter.later(done.set)
        until(done.is_set)
        (fast,) = site.fabric.submit(web.program("/fast"))
        site.until_ended(fast)
        assert site.fabric.state(fast) == JobState.COMPLETED
        assert {site.fabric.state(one) for one in slow} == {JobState.STARTING}
        assert len(web.asked) == MOST_EACH + 1

    def test_a_stop_ends_a_download_and_what_waits_for_its_turn(self, site: Site, agent: Agent, web: Web) -> None:
        slow = site.fabric.submit(*web.slow(MOST_EACH + 1))
        until(lambda: len(web.asked) == MOST_EACH and len(agent.registry) == MOST_EACH + 1)
        asked = {int(path.removeprefix("/slow")) for path in web.asked}
        (waits,) = (one for n, one in enumerate(slow) if n not in asked)
        cancel(site.fabric, agent, waits)
        site.until_ended(waits)
        assert len(web.asked) == MOST_EACH
        runs = slow[asked.pop()]
        cancel(site.fabric, agent, runs)
        site.until_ended(runs)
        until(lambda: len(agent.registry) == MOST_EACH - 1)
        assert [a.outcome for one in (waits, runs) for a in site.fabric.attempts(one)] == ["cancelled", "cancelled"]
        assert site.fabric.value("SELECT count(*) FROM attempt WHERE outcome IS NULL") == MOST_EACH - 1
        assert site.runners["n1"].attach() == []

    def test_a_restart_breaks_downloads_off_at_no_charge(self, site: Site, agent: Agent, web: Web) -> None:
        (slow,) = site.fabric.submit(web.program("/slow"))
        until(lambda: web.asked)
        agent.stop()
        assert [(a.outcome, a.reason) for a in site.fabric.attempts(slow)] == [(None, None)]
        web.over.set()
        site.agent(slots=16, fetch_schemes=("http", "https"))
        until(lambda: len(site.fabric.attempts(slow)) == 2)
        assert site.fabric.attempts(slow)[0].outcome == "lost"
        assert (site.fabric.row(slow).failures, site.fabric.row(slow).lost_nodes) == (0, [])

    def test_what_an_agent_claimed_while_it_stopped_is_handed_back_at_no_charge(
        self, site: Site, agent: Agent, web: Web
    ) -> None:
        """A claim may be under way when all else has ended: nothing of it is taken for the node's fault."""
        (plain,) = site.fabric.submit(job())
        until(lambda: site.fabric.state(plain) == JobState.COMPLETED)
        agent._stopping.set()
        agent._starter.stop()
        agent._cache.close()
        late = site.fabric.submit(job(), web.program("/fast"))
        until(lambda: len(agent.registry) == 2)
        agent.stop()
        assert [a.outcome for one in late for a in site.fabric.attempts(one)] == [None, None]
        site.agent(slots=16, fetch_schemes=("http", "https"))
        site.until_ended(*late)
        assert [[a.outcome for a in site.fabric.attempts(one)] for one in late] == [["lost", "completed"]] * 2


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a registry that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_stop_does_not_wait_for_a_registry_that_hangs(site: Site, mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "CHECK_S", 300.0)
    fabric = site.fabric
    change_trust(fabric.db, fabric.tenant, {"policy": "signed", "keys": [TrustedKey("ci", Signer().pem)]})
    agent = site.agent(slots=16, runners=("process", "container"), registry_hosts=(f"http://{mute}",))
    request = JobRequest(
        type="container", priority_class=PriorityClass.FOREGROUND, contract="compute", runner="container",
        image=f"{mute}/some/tool:1", command=("true",),
    )  # fmt: skip
    hanging = fabric.submit(*[request] * (admission.MOST_EACH + 1))
    until(lambda: len(agent.registry) == len(hanging))
    for one in hanging:
        cancel(fabric, agent, one)
    site.until_ended(*hanging)
    assert {a.outcome for one in hanging for a in fabric.attempts(one)} == {"cancelled"}
    # Those who waited for their turn are gone with their jobs, those who ask the registry cannot be disturbed.
    until(lambda: sum(one.name.startswith("admit ") for one in threading.enumerate()) <= admission.MOST_EACH)
