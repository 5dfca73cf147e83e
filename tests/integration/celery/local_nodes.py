"""Nodes of pytest-celery that are processes of this host instead of containers: a Valkey and fabric workers.

Each has the surface that pytest-celery asks of a container. Its clusters never end such nodes: our fixtures do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from celery import Celery
from pytest_celery import CeleryTestBroker, CeleryTestWorker

from app.local.keepers import end_keepers
from app.local.valkey import ValkeyServer
from tests.chaos.process import Process
from tests.factories import until


class LocalValkey:
    """An embedded Valkey."""

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server
        self.id = self.name = f"valkey-{server.port}"

    @property
    def celeryconfig(self) -> dict[str, str]:
        """Where it is, seen from anywhere on this host."""
        return {"url": self.server.url, "host_url": self.server.url}

    @property
    def status(self) -> str:
        """The word a container would have."""
        return "running" if self.server.pid is not None else "exited"

    def ready(self) -> bool:
        """Whether it answers."""
        return self.server.answers()

    def kill(self, signal: str = "SIGKILL") -> None:
        """Ends it at once, whatever the signal."""
        self.server.kill()

    def restart(self, timeout: int = 0) -> None:
        """Ends it at once if it runs, and starts it on the same data and port."""
        self.server.kill()
        self.server.start()

    def reload(self) -> None:
        """A process has nothing to reload."""

    def logs(self) -> str:
        """What it printed."""
        return (self.server.root / "server.log").read_text(errors="replace")

    def teardown(self) -> None:
        """Ends it."""
        self.server.stop()


class LocalWorker:
    """A `cfab worker` with its keeper, in a directory of its own."""

    def __init__(self, name: str, directory: Path, environment: Mapping[str, str]) -> None:
        self.id = self.name = name
        self._directory = directory
        self._log = directory / f"{name}.log"
        own = {"CFAB_NODE_NAME": name, "CFAB_WORK_DIR": str(directory / "work"), "CFAB_SANDBOX": "off"}
        plain = {key: value for key, value in os.environ.items() if not key.startswith("CFAB_")}
        command = [sys.executable, "-m", "app.cli.main", "worker"]
        self.process = Process(name, command, {**plain, **environment, **own}, self._log)
        self.celeryconfig: dict[str, str] = {}

    @property
    def status(self) -> str:
        """The word a container would have."""
        return "running" if self.process.alive else "exited"

    def ready(self) -> bool:
        """Waits until Celery says that the worker consumes."""
        try:
            until(lambda: "ready." in self.logs(), 60)
        except AssertionError as exc:
            raise AssertionError(f"{self.name} did not get ready: {self.logs()[-2000:]}") from exc
        return True

    def kill(self, signal: str = "SIGKILL") -> None:
        """The signal to the worker alone; its keeper and jobs are not told."""
        if signal == "SIGKILL":
            self.process.kill()
        else:
            self.process.ask_to_end()

    def restart(self, timeout: int = 0) -> None:
        """Ends it by SIGTERM, and starts it on the same directory."""
        if self.process.alive:
            self.process.ask_to_end()
            until(lambda: not self.process.alive, 30)
        self._log.write_text("")
        self.process.start()

    def reload(self) -> None:
        """A process has nothing to reload."""

    def logs(self) -> str:
        """What it printed since it was started."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def teardown(self) -> None:
        """Ends it with its keeper and all jobs."""
        self.process.end()
        end_keepers(self._directory / "work")


class ValkeyNode(CeleryTestBroker):  # type: ignore[misc]
    """The broker of a cluster."""


class WorkerNode(CeleryTestWorker):  # type: ignore[misc]
    """A worker of a cluster; its node name is its container's."""

    def __init__(self, worker: LocalWorker, app: Celery) -> None:
        super().__init__(worker, app)

    @property
    def worker_name(self) -> str:
        """The name before the @ of its Celery host name."""
        return str(self.container.name)

    def hostname(self) -> str:
        """Its Celery host name."""
        return f"{self.worker_name}@{os.uname().nodename}"
