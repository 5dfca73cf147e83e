"""One running fabric for all tests of this folder, as `cfab up` starts it, and `cfab` as a shell runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.local.demo.fabric import Fabric, temporary_directory

ROOT = Path(__file__).parents[2]
CFAB = (sys.executable, "-m", "app.cli.main")


@dataclass(frozen=True)
class Shell:
    """Runs `cfab` in an environment that leads to the fabric."""

    environment: dict[str, str]

    def __call__(self, *words: str, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        """The finished command; `changes` are variables."""
        return subprocess.run(
            [*CFAB, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.environment | changes,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The command, running."""
        return subprocess.Popen([*CFAB, *words], stdout=subprocess.PIPE, text=True, env=self.environment)


@pytest.fixture(scope="session")
def fabric() -> Iterator[Fabric]:
    """A fabric with one worker. Fails when anything of it had to be killed in the end."""
    with temporary_directory() as root:
        running = Fabric(root)
        try:
            running.wait_ready()
            yield running
        finally:
            left = running.stop()
        assert not left


@pytest.fixture(scope="session")
def cfab(fabric: Fabric) -> Shell:
    """`cfab` against that fabric."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CFAB_")}
    path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    ours = {"CFAB_SERVER_URL": fabric.url, "CFAB_DATA_DIR": str(fabric.data), "PYTHONPATH": path}
    return Shell(environment | ours)
