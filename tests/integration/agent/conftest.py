"""Real agents on a real database: with the fake runner, which outlives them as a keeper would, or with processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.bells import Ringer
from app.domain.states import TERMINAL
from app.services.inspect import job_detail
from app.storage.database import Database
from app.storage.faults import FaultPlan
from tests.factories import Fabric, make_fabric, until
from workers.agent.agent import Agent
from workers.agent.confinement import Confinement
from workers.artifacts import ArtifactCache, FetchPolicy
from workers.runners.base import Runner
from workers.runners.fake import FakeRunner
from workers.runners.keeper_client import KeeperOptions
from workers.runners.process import ProcessRunner


class OutlivingRunner(FakeRunner):
    """A fake runner that goes on when an agent lets go of it, as a keeper does."""

    def close(self) -> None:
        """Forgets the agent, not the jobs."""
        with self._changed:
            self._callbacks.clear()

    def end(self) -> None:
        """Ends for good."""
        super().close()


class Site:
    """Agents of one fabric, each with its own pool of connections, and the runners that outlive them."""

    def __init__(self, fabric: Fabric, directory: Path) -> None:
        self.fabric = fabric
        self.directory = directory
        self.fetch_timeout_s = 5.0
        self.runners: dict[str, OutlivingRunner] = {}
        self.agents: list[Agent] = []
        self._databases: list[Database] = []
        self._opened: list[ProcessRunner] = []
        self._keepers: dict[Path, KeeperOptions] = {}

    def agent(
        self,
        name: str = "n1",
        faults: FaultPlan | None = None,
        runner: Runner | None = None,
        runners: tuple[str, ...] = ("process",),
        **settings: Any,
    ) -> Agent:
        """A running agent; a second one of a name is its restart."""
        values = {
            "node_name": name, "poll_s": 0.5, "renew_s": 0.1, "lease_s": 20.0, "fence_margin_s": 2.0, "slots": 8,
            "log_flush_s": 0.02, "work_dir": self.directory,
        }  # fmt: skip
        chosen = replace(self.fabric.settings, **{**values, **settings})
        db = Database(chosen.database_url, pool_size=2, application_name=f"agent {name}", faults=faults)
        if runner is None:
            if name not in self.runners:
                self.runners[name] = OutlivingRunner(self.directory / name)
            runner = self.runners[name]
        cache = ArtifactCache(
            self.directory / f"cache-{len(self.agents)}",
            2**20,
            FetchPolicy(allow_loopback=True, max_bytes=2**20, timeout_s=self.fetch_timeout_s),
        )
        agent = Agent(db, chosen, runner, cache, Ringer(chosen), Confinement(), f"host:{name}", runners)
        self.agents.append(agent)
        self._databases.append(db)
        agent.start()
        return agent

    def processes(self, cgroups: str = "off") -> ProcessRunner:
        """Real processes under the site's keeper; each call is what a restarted agent would open."""
        return self._open(KeeperOptions(self.directory / "keeper", cgroups=cgroups))

    def host(self, name: str) -> ProcessRunner:
        """Real processes under a keeper of one host's own."""
        return self._open(KeeperOptions(self.directory / f"keeper-{name}", cgroups="off"))

    def _open(self, options: KeeperOptions) -> ProcessRunner:
        self._opened.append(ProcessRunner(options))
        self._keepers[options.directory] = options
        return self._opened[-1]

    def until_ended(self, *job_ids: UUID, within_s: float = 30.0) -> None:
        """Waits till all of these jobs have come to an end."""
        until(lambda: all(self.fabric.state(job_id) in TERMINAL for job_id in job_ids), within_s)

    def output(self, job_id: UUID) -> bytes:
        """What a job has printed."""
        return job_detail(self.fabric.db, self.fabric.tenant, job_id).stdout

    def close(self) -> None:
        """Stops everything; keepers last, for whoever still uses one starts it anew."""
        for agent in self.agents:
            agent.stop()
        for runner in self.runners.values():
            runner.end()
        for opened in self._opened:
            opened.close()
        for options in self._keepers.values():
            last = ProcessRunner(options)
            last.shutdown_keeper(kill=True)
            last.close()
        for db in self._databases:
            db.close()


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    fabric = make_fabric(database_url)
    yield fabric
    fabric.db.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cfab-agent-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def site(fabric: Fabric, directory: Path) -> Iterator[Site]:
    site = Site(fabric, directory)
    yield site
    site.close()
