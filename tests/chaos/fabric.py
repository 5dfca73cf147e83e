"""A whole fabric on this host under our own hand: servers, API, scheduler, and two workers that stand for two hosts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import requests

from app.local.ports import free_port
from app.local.postgres import PostgresServer, ServerFailed
from app.local.valkey import ValkeyServer
from app.storage.migrate import upgrade
from tests.chaos import options as sizes
from tests.chaos.process import REPOSITORY, Process
from workers.runners.keeper_client import connect

TOKEN = "only-for-chaos"
PASSWORD = "only-for-chaos"
START_S = 60.0


class Fabric:
    """Everything that one run needs, in one folder below /tmp that `close` removes."""

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        bugs: Mapping[str, str] | None = None,
        faults: str = "",
    ) -> None:
        """`settings` add to the roles' environment, `bugs` names one for a role, `faults` is for the workers."""
        self.root = Path(tempfile.mkdtemp(prefix="cfab-chaos-", dir="/tmp"))
        self.root.chmod(0o711)
        self.logs = self.root / "logs"
        self.logs.mkdir()
        self.witness = self._open_file("witness")
        self.postgres = PostgresServer(self.root / "postgres", free_port(), PASSWORD, {"fsync": "off"})
        self.broker = ValkeyServer(self.root / "valkey", free_port(), PASSWORD)
        self.api_port = free_port()
        self._extra = dict(settings or {})
        self._bugs = dict(bugs or {})
        self._faults = faults
        self.roles: dict[str, Process] = {}

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts all of it and waits until the API answers and both nodes are registered."""
        self.postgres.create()
        self.postgres.start()
        self.broker.create()
        self.broker.start()
        upgrade(self.postgres.url())
        environment = self._environment()
        self._add("api", self._api_command(), environment)
        self._add("scheduler", self._role_command("scheduler"), environment)
        for place, node in enumerate(sizes.NODES):
            own = {"CFAB_NODE_NAME": node, "CFAB_JOB_UID_BASE": str(300_000 + 10_000 * place)}
            if self._faults:
                own["CFAB_FAULTS"] = self._faults
            self._add(node, self._role_command("worker", node), {**environment, **own})
        for role in self.roles.values():
            role.start()
        both = len(sizes.NODES)
        wait_until(lambda: self.api_answers() and self._registered() == both, START_S, "the fabric to start")

    def close(self, keep: bool = False) -> None:
        """Ends every process of it, jobs included, and removes its folder unless it is to be kept."""
        for role in self.roles.values():
            role.end()
        for node in sizes.NODES:
            self.end_keeper(node)
        self.broker.stop()
        with contextlib.suppress(ServerFailed):
            self.postgres.stop()
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)

    # -- asking ----------------------------------------------------------------------------------------------

    @property
    def api_url(self) -> str:
        """Base of the jobs contract."""
        return f"http://127.0.0.1:{self.api_port}/api/v1"

    def api_answers(self) -> bool:
        """Whether the API is there and reaches the database."""
        try:
            return requests.get(f"{self.api_url}/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def keeper_pids(self, node: str) -> tuple[int, int] | None:
        """Process ids of a node's keeper and its guard; None while none serves."""
        try:
            with connect(self.keeper_directory(node)) as sock:
                sock.settimeout(2)
                sock.sendall(b'{"cmd": "hello", "id": 1, "events": false}\n')
                hello = json.loads(sock.makefile("rb").readline())
                return int(hello["pid"]), int(hello["guard_pid"])
        except (OSError, ValueError, KeyError):
            return None

    def keeper_directory(self, node: str) -> Path:
        """Where a node's keeper has its socket."""
        return self.root / "work" / node / "keeper"

    def end_keeper(self, node: str) -> None:
        """Ends a node's keeper with all of its jobs."""
        pids = self.keeper_pids(node)
        if pids is None:
            return
        for pid in pids:
            # A frozen one could not end the rest.
            _tell(pid, signal.SIGCONT)
        _tell(pids[1], signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not any(_is_there(pid) for pid in pids), 15.0, "the keeper to end")

    def tails(self, lines: int = 15) -> str:
        """The last lines of every log."""
        parts = []
        for path in sorted(self.logs.glob("*.log")):
            text = path.read_text(errors="replace").splitlines()
            parts += [f"--- {path.name}", *text[-lines:]]
        return "\n".join(parts)

    # -- making ----------------------------------------------------------------------------------------------

    def _add(self, name: str, argv: list[str], env: Mapping[str, str]) -> None:
        self.roles[name] = Process(name, argv, env, self.logs / f"{name}.log")

    def _environment(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("CFAB_")}
        return {
            **plain,
            "PYTHONPATH": str(REPOSITORY),
            "CFAB_DATABASE_URL": self.postgres.url(),
            "CFAB_BROKER_URL": self.broker.url,
            "CFAB_API_TOKEN": TOKEN,
            "CFAB_API_PORT": str(self.api_port),
            "CFAB_WORK_DIR": str(self.root / "work"),
            "CFAB_DATA_DIR": str(self.root / "data"),
            "CFAB_LEASE_S": str(sizes.LEASE_S),
            "CFAB_RENEW_S": str(sizes.RENEW_S),
            "CFAB_FENCE_MARGIN_S": str(sizes.FENCE_MARGIN_S),
            "CFAB_POLL_S": "1",
            "CFAB_TICK_S": "0.5",
            "CFAB_GANG_BARRIER_S": "10",
            "CFAB_STATEMENT_TIMEOUT_S": "5",
            "CFAB_SLOTS": str(sizes.SLOTS),
            "CFAB_CPUS_MILLI": str(sizes.CPUS_MILLI),
            "CFAB_MEMORY_MIB": str(sizes.MEMORY_MIB),
            "CFAB_SIMULATE_GPUS": sizes.GPUS,
            "CFAB_SANDBOX": "off",
            "CFAB_FETCH_ALLOW_LOOPBACK": "1",
            "CFAB_LOG_LEVEL": "info",
            **self._extra,
        }

    def _api_command(self) -> list[str]:
        return [
            sys.executable, "-m", "gunicorn", "app.api.wsgi:app", "--worker-class", "gthread", "--threads", "16",
            "--bind", f"127.0.0.1:{self.api_port}", "--graceful-timeout", "2", "--log-level", "warning",
        ]  # fmt: skip

    def _role_command(self, role: str, name: str | None = None) -> list[str]:
        bug = self._bugs.get(name or role)
        return [sys.executable, "-m", "tests.chaos.role", role, *(["--bug", bug] if bug else [])]

    def _open_file(self, name: str) -> Path:
        path = self.root / name
        path.touch()
        path.chmod(0o666)
        return path

    def _registered(self) -> int:
        answer = requests.get(
            f"{self.api_url}/admin/executors", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=2
        )
        return len(answer.json()) if answer.status_code == 200 else 0


def wait_until(condition: Callable[[], object], patience_s: float, what: str) -> None:
    """Waits for something outside this process. Raises TimeoutError naming it."""
    give_up_at = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"waited {patience_s:g} s for {what}")
        time.sleep(0.05)


def _tell(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_there(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rsplit(") ", 1)[1][0] not in "ZX"
