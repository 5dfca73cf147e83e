"""The whole fabric on one machine: which parts there are, in which order, and what each is told.

Parts are told by settings only, secrets by files; so every part is the very one that runs on many machines.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import requests

from app.domain.errors import FabricError
from app.local.child import Program, end_leftovers
from app.local.data import DataDirectory
from app.local.failure import AnotherVersion, StackError
from app.local.keepers import end_keepers
from app.local.ports import free_port, require_free
from app.local.postgres import PostgresServer
from app.local.supervisor import Supervisor
from app.local.tokens.keys import StackKeys
from app.local.tokens.signing import ALGORITHM, issuer_of
from app.local.valkey import ValkeyServer
from app.services.inspect import executors
from app.storage.database import Database
from app.storage.migrate import AGENT_ROLE, SchemaTooNew, upgrade
from config.settings import Settings, child_environment

OWNER, DATABASE = "cfab", "cfab"
LOOPBACK = "127.0.0.1"
PROBE_S = 3.0
JOBS_END_S = 20.0
"""At a stop workers have so long to end their jobs: the usual grace of ten seconds, and time to tell the end."""


@dataclass(frozen=True)
class Shape:
    """What `cfab up` is asked for on its command line."""

    host: str = LOOPBACK
    port: int = 8080
    flower_port: int = 5555
    workers: int = 1
    slots: int = 0
    simulate_gpus: str = ""
    auth: bool = True
    ai_port: int = 0
    gpu_port: int = 0


class Stack:
    """One stack on one data directory. `start`, then `watch` until a signal, then `stop`; `say` gets its news."""

    def __init__(self, settings: Settings, data: DataDirectory, shape: Shape, say: Callable[[str], None]) -> None:
        self._settings, self._data, self._shape, self._say = settings, data, shape, say
        self._supervisor = Supervisor(data.records, say)
        self._urls: dict[str, str] = {}

    @property
    def stopping(self) -> bool:
        """Whether a signal asked it to stop."""
        return self._supervisor.stopping

    @property
    def api_url(self) -> str:
        """Where the API is, as this machine reaches it."""
        host = LOOPBACK if self._shape.host in {"0.0.0.0", "::"} else self._shape.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._shape.port}"

    @property
    def secondary_urls(self) -> dict[str, str]:
        """Where another contract than jobs is at /api/v1, by its name."""
        base = self.api_url.rpartition(":")[0]
        ports = {"ai": self._shape.ai_port, "gpu": self._shape.gpu_port}
        return {name: f"{base}:{port}" for name, port in ports.items() if port}

    @property
    def flower_url(self) -> str:
        """Where Flower is."""
        return f"http://{LOOPBACK}:{self._shape.flower_port}"

    def check(self) -> None:
        """Raises StackError for what cannot work, before anything is started."""
        shape = self._shape
        if shape.port == shape.flower_port:
            raise StackError(f"--port and --flower-port are both {shape.port}; give one of them another port")
        if not shape.auth and shape.host not in {"127.0.0.1", "::1", "localhost"}:
            raise StackError(f"--no-auth serves this machine only, not --host {shape.host}; leave one of the two out")
        require_free(shape.host, shape.port, "--port")
        self._shape = replace(shape, ai_port=self._free("ai"), gpu_port=self._free("gpu"))
        require_free(LOOPBACK, shape.flower_port, "--flower-port")

    def _free(self, name: str) -> int:
        """The port for a contract of its own, or 0 where it is taken: its other address serves it all the same."""
        shape, port = self._shape, int(getattr(self._shape, f"{name}_port"))
        if not port:
            return 0
        try:
            if port in {shape.port, shape.flower_port}:
                raise StackError(f"--{name}-port {port} is another part's")
            require_free(shape.host, port, f"--{name}-port")
        except StackError as exc:
            self._say(f"warning: {exc}; the {name} contract is served at {self.api_url}/{name}/api/v1 alone")
            return 0
        return port

    def start(self) -> None:
        """Starts every part and returns when all serve. Raises StackError; then `stop` ends what was started."""
        self._supervisor.stop_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for name in end_leftovers(self._data.records):
            self._say(f"ended {name}, left over from a run that was killed")
        self._start_servers()
        try:
            upgrade(self._urls["DATABASE_URL"])
        except FabricError as exc:
            kind = AnotherVersion if isinstance(exc, SchemaTooNew) else StackError
            raise kind(f"the database cannot be used: {exc.message} {dict(exc.context) or ''}".strip()) from exc
        began = datetime.now(UTC)
        workers = [self._worker(number, began) for number in range(1, self._shape.workers + 1)]
        # One tier: none of them needs another to start, and on one machine starting Python is what takes time.
        self._supervisor.start(self._api(), *workers, self._scheduler(), self._flower())

    def watch(self) -> None:
        """Keeps all parts running until a signal comes."""
        self._supervisor.watch()

    def stop(self) -> None:
        """Stops everything; harmless to repeat and after a start that failed.

        Jobs get SIGTERM and their grace, JOBS_END_S at most (a second SIGINT: none), and wait again at no charge.
        """
        self._supervisor.stop(after_tier=lambda: end_keepers(self._data.root / "work"))

    def _start_servers(self) -> None:
        settings, data = self._settings, self._data
        if settings.database_url:
            self._urls["DATABASE_URL"] = settings.database_url
            self._urls["AGENT_DATABASE_URL"] = settings.agent_url
        postgres = None if settings.database_url else self._postgres()
        valkey = None if settings.broker_url else self._valkey()
        programs = [server.program(data.log(name)) for name, server in (("postgres", postgres), ("valkey", valkey))
                    if server is not None]  # fmt: skip
        self._supervisor.start(*programs)
        if postgres is not None:
            owner, agent = data.secret("database_password"), data.secret("agent_database_password")
            postgres.ensure_login(OWNER, owner)
            postgres.ensure_login(AGENT_ROLE, agent)
            postgres.ensure_database(DATABASE, OWNER, guests=(AGENT_ROLE,))
            self._urls["DATABASE_URL"] = postgres.url(DATABASE, OWNER, owner)
            self._urls["AGENT_DATABASE_URL"] = postgres.url(DATABASE, AGENT_ROLE, agent)
        self._urls["BROKER_URL"] = valkey.url if valkey is not None else settings.broker_url
        for name, url in self._urls.items():
            data.write_secret(name.lower(), url)

    def _postgres(self) -> PostgresServer:
        root = self._data.root / "postgres"
        if not (root / "data" / "CREATED").exists():
            self._say(f"making a database in {root}")
        server = PostgresServer(root, free_port(), self._data.secret("postgres_password"))
        server.create()
        return server

    def _valkey(self) -> ValkeyServer:
        server = ValkeyServer(self._data.root / "valkey", free_port(), self._data.secret("valkey_password"))
        server.create()
        return server

    def _environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        files = {f"CFAB_{name}_FILE": str(self._data.root / "secrets" / name.lower()) for name in self._urls}
        if not self._settings.api_token:
            files["CFAB_API_TOKEN_FILE"] = str(self._data.token_file)
        if self._settings.auth_keys and "://" not in self._settings.auth_keys:
            # The parts run in the data directory, not where this command was typed.
            files["CFAB_AUTH_KEYS"] = str(Path(self._settings.auth_keys).absolute())
        elif not self._settings.auth_keys:
            files["CFAB_AUTH_KEYS"] = str(StackKeys(self._data.root).public_file)
            files["CFAB_AUTH_ISSUER"] = issuer_of(self._settings)
            files["CFAB_AUTH_ALGORITHMS"] = ALGORITHM
        plain = {
            "CFAB_DATA_DIR": str(self._data.root),
            "CFAB_API_HOST": self._shape.host,
            "CFAB_API_PORT": str(self._shape.port),
            "CFAB_AI_PORT": str(self._shape.ai_port),
            "CFAB_GPU_PORT": str(self._shape.gpu_port),
            "CFAB_AUTH": "required" if self._shape.auth else "off",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        return child_environment({**files, **plain, **(more or {})})

    def _role(self, name: str, *words: str, role: str, more: Mapping[str, str] | None = None) -> Program:
        return Program(
            name=name, argv=[sys.executable, "-m", "app.cli.main", role, *words], env=self._environment(more),
            log=self._data.log(name), cwd=self._data.root,
        )  # fmt: skip

    def _api(self) -> Program:
        url = f"{self.api_url}/api/v1/health"
        return _probed(self._role("api", role="api"), lambda: _http_status(url) == 200, lambda: _http_status(url) > 0)

    def _scheduler(self) -> Program:
        return self._role("scheduler", role="scheduler")

    def _flower(self) -> Program:
        url = f"{self.flower_url}/healthcheck"
        words = ("--host", LOOPBACK, "--port", str(self._shape.flower_port))
        program = self._role("flower", *words, role="flower")
        return _probed(program, lambda: _http_status(url) > 0, lambda: _http_status(url) > 0)

    def _worker(self, number: int, began: datetime) -> Program:
        name = "worker" if self._shape.workers == 1 else f"worker-{number}"
        node = self._settings.node if self._shape.workers == 1 else f"{self._settings.node}-{number}"
        program = self._role(name, role="worker", more=self._worker_settings(number, node))
        # One under another name than the last waits for that one's GPUs to be free for as long as a lease.
        wait_s = program.ready_timeout_s + self._settings.lease_s
        limit_s = self._settings.drain_limit_s if self._settings.drain_on_stop else 0.0
        program = replace(program, ready_timeout_s=wait_s, stop_timeout_s=limit_s + JOBS_END_S)
        url = self._urls["DATABASE_URL"]
        return _probed(program, lambda: _registered(url, node, began), None)

    def _worker_settings(self, number: int, node: str) -> dict[str, str]:
        """Several workers share the machine out between them; one has it all."""
        settings, shape = self._settings, self._shape
        own = {
            "CFAB_NODE_NAME": node,
            "CFAB_WORK_DIR": str(self._data.root / "work"),
            # On one machine the programs usually come from the machine itself.
            "CFAB_FETCH_ALLOW_LOOPBACK": "1",
        }
        if not settings.drain_on_stop:
            # Nothing outlives the stack: what runs is told to end, and waits for the next start.
            own |= {"CFAB_DRAIN_ON_STOP": "1", "CFAB_DRAIN_LIMIT_S": "0.1"}
        if shape.slots:
            own["CFAB_SLOTS"] = str(shape.slots)
        if shape.simulate_gpus:
            own["CFAB_SIMULATE_GPUS"] = shape.simulate_gpus
        elif number > 1 and not settings.simulate_gpus:
            # A GPU belongs to one live node only.
            own["CFAB_GPUS"] = "none"
        if shape.workers > 1:
            if not settings.cpus_milli:
                own["CFAB_CPUS_MILLI"] = str(1000 * (os.cpu_count() or 1) // shape.workers)
            if not settings.memory_mib:
                total_mib = psutil.virtual_memory().total // 2**20
                own["CFAB_MEMORY_MIB"] = str(int(total_mib * 0.9) // shape.workers)
        return own


def prepare(settings: Settings, root: Path, shape: Shape, say: Callable[[str], None]) -> Stack:
    """Takes the data directory and checks everything that can be checked before a start. Raises StackError."""
    data = DataDirectory(root)
    data.open()
    try:
        if not settings.api_token:
            data.secret(data.token_file.name)
        if not settings.auth_keys:
            StackKeys(root).ensure()
        stack = Stack(settings, data, shape, say)
        stack.check()
    except OSError as exc:
        raise data.failure(exc) from exc
    return stack


def _probed(program: Program, ready: Callable[[], bool], alive: Callable[[], bool] | None) -> Program:
    return Program(**{**program.__dict__, "ready": ready, "alive": alive})


def _http_status(url: str) -> int:
    """Status of the answer, 0 for none."""
    try:
        return requests.get(url, timeout=PROBE_S, allow_redirects=False).status_code
    except requests.RequestException:
        return 0


def _registered(database_url: str, node: str, since: datetime) -> bool:
    """Whether the node has given a sign of life since then."""
    db = Database(database_url, pool_size=1, application_name="cfab-up")
    try:
        return any(seen.executor_id == node and seen.last_heartbeat >= since for seen in executors(db))
    except FabricError:
        return False
    finally:
        db.close()
