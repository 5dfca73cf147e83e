"""The roles as processes of their own, to be killed and started again while somebody follows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import requests

from app.local.ports import free_port
from tests.factories import until

TOKEN = "t0ken-of-the-follow-tests"


class Role:
    """One `cfab` role, started with nothing but these variables."""

    def __init__(self, name: str, variables: dict[str, str], log: Path) -> None:
        self._name = name
        self._variables = variables
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; a second time after `kill` is its restart."""
        plain = {name: text for name, text in os.environ.items() if not name.startswith("CFAB_")}
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli.main", self._name],
                env={**plain, **self._variables}, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, to it and to the processes it has made in its session."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, 9)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process = None


class ApiProcess(Role):
    """An API on a port of its own, which it keeps over restarts."""

    def __init__(self, variables: dict[str, str], log: Path) -> None:
        self.port = free_port()
        own = {"CFAB_API_PORT": str(self.port), "CFAB_AI_PORT": "0", "CFAB_GPU_PORT": "0", "CFAB_API_TOKEN": TOKEN}
        super().__init__("api", {**own, **variables}, log)
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"

    def start(self) -> None:
        """Starts it and waits till it answers."""
        super().start()
        until(self._answers, 30)

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self._log.read_text()
        try:
            return self.session.get(self.url + "/api/v1/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def logs(self, job_id: object, scheme: str = "http") -> str:
        """The address of a job's log."""
        return f"{scheme}://127.0.0.1:{self.port}/jobs/api/v1/jobs/{job_id}/logs"
