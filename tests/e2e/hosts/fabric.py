"""A fabric on three hosts: a control plane, and two GPU hosts that reach it by the network alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from app.cli.client import Client
from app.cli.failure import Failure
from app.local.postgres import PostgresServer, ServerFailed
from app.local.valkey import ValkeyServer
from app.storage.migrate import AGENT_ROLE, upgrade
from tests.chaos.evidence import Evidence, Reader, gather
from tests.chaos.fabric import wait_until
from tests.chaos.process import REPOSITORY, Process
from tests.e2e.hosts.network import SUBNET, Network
from tests.engine import missing
from workers.runners.keeper_client import connect

CONTROL, BIG, SMALL = "control", "gpu-big", "gpu-small"
GPUS = {BIG: "4xA100-80GB", SMALL: "2xT4-16GB"}
TOKEN = "only-for-tests"
PASSWORD = "only-for-tests"
JOBS = "/jobs/api/v1"
POSTGRES_PORT, VALKEY_PORT, API_PORT = 5432, 6379, 8080
PATIENCE_S = 90.0
LEASE_S, MARGIN_S = 20.0, 2.0
MEMBER = Path(__file__).with_name("member.py")
"""What members of gangs run; jobs cannot read it here, so they get it as text."""
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

# Writes the witness's lines like the program of the chaos runs; prints a number each time, and waits for a file of its
# own attempt to end, so that a test decides how each attempt ends.
PROGRAM = r"""
say() {
    read -r up _ < /proc/uptime
    echo "$1 $CFAB_JOB_ID $CFAB_ATTEMPT $up ${CFAB_GPUS:--}" >> "$WITNESS"
}
trap 'say end; exit 0' TERM
say start
i=0
while [ ! -e "$OVER.$CFAB_ATTEMPT" ]; do
    sleep 0.2
    say alive
    echo "$i"
    i=$((i + 1))
done
say end
"""


class Hosts:
    """Three hosts with all roles on them, made by `start` and removed by `close`."""

    def __init__(self, settings: Mapping[str, str] | None = None, bug: str = "") -> None:
        """`settings` add to those of all roles; `bug` names one that is planted in the workers."""
        self.network = Network(CONTROL, *GPUS)
        self.root = self.network.root
        self.logs = self.root / "logs"
        self.logs.mkdir()
        self.witness = self.root / "witness"
        self.witness.touch()
        self.witness.chmod(0o666)
        self.api_url = f"http://{self.network.address(CONTROL)}:{API_PORT}"
        everywhere = f"127.0.0.1,{self.network.address(CONTROL)}"
        options = {"fsync": "off", "listen_addresses": everywhere}
        self.postgres = PostgresServer(self.root / "postgres", POSTGRES_PORT, PASSWORD, options)
        self.broker = ValkeyServer(self.root / "valkey", VALKEY_PORT, PASSWORD)
        self.roles: dict[str, Process] = {}
        self._tenants: dict[str, str] = {}
        self._settings = dict(settings or {})
        self._bug = bug

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts everything and waits until the API answers and both GPU hosts are registered."""
        with self.network.inside(CONTROL):
            self._start_servers()
        cfab = [sys.executable, "-m", "app.cli.main"]
        for role in ("api", "scheduler"):
            self._add(CONTROL, role, [*cfab, role], self._control_environment())
        for host in GPUS:
            bugged = [sys.executable, "-m", "tests.chaos.role", "worker", "--bug", self._bug]
            self._add(host, host, bugged if self._bug else [*cfab, "worker"], self._worker_environment(host))
        for role in self.roles.values():
            role.start()
        wait_until(lambda: self.states() == dict.fromkeys(GPUS, "ready"), PATIENCE_S, "the hosts to register")

    def _start_servers(self) -> None:
        self.postgres.create()
        with (self.postgres.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {SUBNET}.0/24 scram-sha-256\n")
        self.postgres.start()
        self.postgres.ensure_login(AGENT_ROLE, PASSWORD)
        upgrade(self.postgres.url())
        self.broker.create()
        # Of two lines that say the same, the last one counts.
        with (self.broker.root / "valkey.conf").open("a") as lines:
            lines.write(f"bind 127.0.0.1 {self.network.address(CONTROL)}\n")
        self.broker.start()

    def close(self, keep: bool = False) -> None:
        """Ends all of it, jobs included, and removes the hosts."""
        try:
            for role in self.roles.values():
                # A worker that is cut off would take its time, and what is here has been judged.
                role.end(patience_s=0.0)
            for host in GPUS:
                self._end_keeper(host)
            self.broker.stop()
            with contextlib.suppress(ServerFailed):
                self.postgres.stop()
        finally:
            self.network.close(keep)

    # -- acting ----------------------------------------------------------------------------------------------

    def cfab(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`cfab` as an operator runs it on the control plane."""
        return subprocess.run(
            self.network.words(CONTROL, [sys.executable, "-m", "app.cli.main", *words]), cwd=REPOSITORY,
            env={**_plain(), "CFAB_SERVER_URL": self.api_url, "CFAB_API_TOKEN": TOKEN}, capture_output=True,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def submit(self, name: str, **resources: Any) -> str:
        """A job that runs until `over(name, attempt)`; its id."""
        body = {"type": name, "priority": "background", "script": PROGRAM, "grace_seconds": 3, "resources": resources}
        with self.network.inside(CONTROL):
            return str(self._client().submit({**body, "env_variables": self._told(name)}, None)["id"])

    def submit_gang(self, name: str, tenant: str = "default", silence_s: float | None = None) -> str:
        """A gang with a member on each GPU host, each with a GPU, until `over(name, attempt)`; its id.

        `silence_s` after a member was last heard of, member 0 fails.
        """
        python = shutil.which("python3", path=SYSTEM_PATH)
        if python is None:
            missing("gangs on hosts need a python3 that jobs may run (Debian: python3)")
        told = {**self._told(name), "PROGRAM": MEMBER.read_text(encoding="utf-8")}
        if silence_s is not None:
            told["SILENCE_S"] = str(silence_s)
        # No host has the CPUs for two of them.
        body = {
            "type": name, "priority": "background", "script": f'exec {python} -c "$PROGRAM"', "grace_seconds": 20,
            "resources": {"cpus": 3, "gpus": 1}, "gang": {"members": len(GPUS)}, "env_variables": told,
        }  # fmt: skip
        job_id = str(self._asked("POST", f"{JOBS}/jobs", tenant, body).json()["id"])
        self._tenants[job_id] = tenant
        return job_id

    def _told(self, name: str) -> dict[str, str]:
        return {"WITNESS": str(self.witness), "OVER": str(self.root / f"over-{name}")}

    def submit_to(self, host: str, *names: str, **resources: Any) -> list[str]:
        """Jobs that any host may run, running on this one: the other takes nothing meanwhile."""
        (other,) = set(GPUS) - {host}
        self.drain(other)
        ids = [self.submit(name, **resources) for name in names]
        wait_until(lambda: all(self.begun(one, 1) for one in ids), PATIENCE_S, f"{names} to run on {host}")
        self.resume(other)
        return ids

    def drain(self, host: str, *words: str) -> None:
        """An operator drains a host."""
        done = self.cfab("nodes", "drain", host, *words)
        assert done.returncode == 0, done.stderr

    def resume(self, host: str) -> None:
        """An operator has a host take jobs again."""
        done = self.cfab("nodes", "resume", host)
        assert done.returncode == 0, done.stderr

    def over(self, name: str, attempt: int) -> None:
        """An attempt of the job `name` ends by itself, wherever it runs."""
        (self.root / f"over-{name}.{attempt}").touch()

    # -- looking ---------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as the API shows it."""
        return dict(self._asked("GET", f"{JOBS}/jobs/{job_id}", self._tenants.get(job_id)).json())

    def log(self, job_id: str) -> str:
        """A job's output as the API has it."""
        return self.cfab("logs", job_id).stdout

    def member_logs(self, job_id: str, attempt: int) -> list[str]:
        """What each member of a gang has printed, by rank."""
        path = f"{JOBS}/jobs/{job_id}/logs?raw=true&attempt={attempt}&member="
        return [self._asked("GET", f"{path}{member}", self._tenants.get(job_id)).text for member in range(len(GPUS))]

    def hpc_nodes(self, job_id: str) -> list[str]:
        """The nodes of a job as the hpc contract shows them."""
        return sorted(self._asked("GET", f"/v1/jobs/{job_id}", self._tenants.get(job_id)).json()["nodes"])

    def last_plan(self) -> dict[str, Any]:
        """What the planner last saw and did, as the API shows it."""
        return dict(self._asked("GET", f"{JOBS}/plan").json()["cycle"] or {})

    def states(self) -> dict[str, str]:
        """The state of each GPU host as the API shows it; nothing while it does not answer."""
        return {node["name"]: node["state"] for node in self.nodes()}

    def nodes(self) -> list[dict[str, Any]]:
        """The GPU hosts as the API shows them; none while it does not answer."""
        try:
            with self.network.inside(CONTROL):
                return [dict(node) for node in self._client().nodes()]
        except (Failure, requests.RequestException):
            return []

    def begun(self, job_id: str, attempt: int) -> bool:
        """Whether an attempt has written its first line."""
        return f"start {job_id} {attempt} " in self.witness.read_text(encoding="ascii")

    def gang_begun(self, job_id: str, attempt: int) -> bool:
        """Whether all members of an attempt have met and go on from there."""
        seen = self.witness.read_text(encoding="ascii")
        return all(f"alive {job_id} {attempt}.{member} " in seen for member in range(len(GPUS)))

    def evidence(self) -> Evidence:
        """Rows of the database, and the witness."""
        with self.network.inside(CONTROL):
            return gather(self.postgres.url(), {}, self.witness, [])

    def lease_ends(self) -> dict[tuple[str, int], float]:
        """When the lease of each job's member that holds one ends, in seconds since boot."""
        rows = self._rows(
            """SELECT a.job_id::text AS job_id, a.member, extract(epoch FROM l.expires_at - clock_timestamp())::float8
            AS left_s FROM lease l JOIN attempt a ON a.id = l.attempt_id"""
        )
        return {(row["job_id"], row["member"]): _boottime() + row["left_s"] for row in rows}

    def reservations(self) -> int:
        """For how many members of waiting jobs room is kept."""
        return int(self._rows("SELECT count(*) AS n FROM reservation")[0]["n"])

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        with self.network.inside(CONTROL):
            reader = Reader(self.postgres.url())
            try:
                return reader.rows(sql)
            finally:
                reader.close()

    def said(self, host: str, words: str) -> int:
        """How often a host's worker has said something in its log."""
        return (self.logs / f"{host}.log").read_text(errors="replace").count(words)

    def keeper_pids(self, host: str) -> tuple[int, int] | None:
        """Process ids of a host's keeper and its guard; None while none serves."""
        try:
            with connect(self.root / host / host / "keeper") as sock:
                sock.settimeout(5)
                sock.sendall(b'{"cmd": "hello", "id": 1, "events": false}\n')
                hello = json.loads(sock.makefile("rb").readline())
                return int(hello["pid"]), int(hello["guard_pid"])
        except (OSError, ValueError, KeyError):
            return None

    def tails(self, lines: int = 40) -> str:
        """The last lines of every role's log."""
        parts = []
        for path in sorted(self.logs.glob("*.log")):
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(parts)

    # -- making ----------------------------------------------------------------------------------------------

    def _client(self) -> Client:
        return Client(self.api_url, TOKEN)

    def _asked(self, method: str, path: str, tenant: str | None = None, body: Any = None) -> requests.Response:
        """An answer of the API to an operator, who acts for a tenant if one is named; fails if it is a refusal."""
        headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "*/*"} | ({"X-Tenant": tenant} if tenant else {})
        with self.network.inside(CONTROL):
            url = self.api_url + path
            answer = requests.request(method, url, headers=headers, json=body, timeout=PATIENCE_S)
        assert answer.ok, answer.text
        return answer

    def _add(self, host: str, name: str, argv: list[str], env: Mapping[str, str]) -> None:
        self.roles[name] = Process(name, self.network.words(host, argv), env, self.logs / f"{name}.log")

    def _environment(self) -> dict[str, str]:
        return {
            **_plain(),
            "CFAB_BROKER_URL": self.broker.url.replace("127.0.0.1", self.network.address(CONTROL)),
            "CFAB_LEASE_S": str(LEASE_S),
            "CFAB_RENEW_S": "1",
            "CFAB_FENCE_MARGIN_S": str(MARGIN_S),
            "CFAB_POLL_S": "1",
            "CFAB_TICK_S": "0.5",
            "CFAB_STATEMENT_TIMEOUT_S": "5",
            "CFAB_MIN_RUNTIME_S": "0",
            **self._settings,
        }

    def _control_environment(self) -> dict[str, str]:
        return {
            **self._environment(),
            "CFAB_DATABASE_URL": self._database_url(),
            "CFAB_API_HOST": self.network.address(CONTROL),
            "CFAB_API_PORT": str(API_PORT),
            "CFAB_API_TOKEN": TOKEN,
            "CFAB_DATA_DIR": str(self.root / "data"),
        }

    def _worker_environment(self, host: str) -> dict[str, str]:
        place = list(GPUS).index(host)
        return {
            **self._environment(),
            "CFAB_DATABASE_URL": self._database_url(AGENT_ROLE),
            "CFAB_NODE_NAME": host,
            "CFAB_WORK_DIR": str(self.root / host),
            "CFAB_DATA_DIR": str(self.root / host / "data"),
            "CFAB_SLOTS": "6",
            "CFAB_CPUS_MILLI": "4000",
            "CFAB_MEMORY_MIB": "2048",
            "CFAB_SIMULATE_GPUS": GPUS[host],
            "CFAB_JOB_UID_BASE": str(320_000 + 10_000 * place),
            # In a sandbox jobs could not write into the one file that they all share.
            "CFAB_SANDBOX": "off",
            "CFAB_CONTAINER_RUNTIME": "off",
        }

    def _database_url(self, user: str = "postgres") -> str:
        return self.postgres.url(user=user).replace("127.0.0.1", self.network.address(CONTROL))

    def _end_keeper(self, host: str) -> None:
        pids = self.keeper_pids(host)
        if pids is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[1], signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self.keeper_pids(host) is None, 15.0, "the keeper to end")


def _plain() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CFAB_")}
    return {**plain, "PYTHONPATH": str(REPOSITORY)}


def _boottime() -> float:
    return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
