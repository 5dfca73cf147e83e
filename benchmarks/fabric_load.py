"""The whole fabric under load: submits, bulk, latency, a backlog of no-op jobs from first request to last end."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.local.demo.fabric import Fabric
from app.storage.database import Database
from benchmarks.figures import quantile
from benchmarks.http_load import STUCK_S, Program, Stuck, User, submit_bulk, submit_each
from benchmarks.roles import JOBS, cpu_seconds, memory_mib, roles_of

CLIENTS = 8
Say = Callable[[str], None]


@dataclass(frozen=True)
class Amounts:
    """How much to measure."""

    submit_s: float = 10.0
    bulk_jobs: int = 10_000
    drain_jobs: int = 5_000
    latency_jobs: int = 300

    def quick(self) -> Amounts:
        """A tenth: seconds instead of minutes, and a rougher picture."""
        return Amounts(self.submit_s / 4, self.bulk_jobs // 5, self.drain_jobs // 10, self.latency_jobs // 10)


class FabricLoad:
    """Measures one running fabric. The order matters: memory first, latency while it is idle, then the load."""

    def __init__(self, fabric: Fabric, supervisor_pid: int, program: Program, amounts: Amounts, say: Say) -> None:
        self._fabric = fabric
        self._pid = supervisor_pid
        self._program = program
        self._amounts = amounts
        self._say = say
        self._token = (fabric.data / "secrets" / "api_token").read_text().strip()
        self._user = User(fabric.port, self._token)
        self._db = Database((fabric.data / "secrets" / "database_url").read_text().strip(), pool_size=1)

    def run(self) -> dict[str, Any]:
        """All measurements by name."""
        self._user.wait_ended(self._user.post("/jobs", self._program.job())["id"])
        time.sleep(2)
        results: dict[str, Any] = {"settings": self._settings(), "memory_at_rest": self._memory()}
        results["latency"] = self._latency()
        results["drain"] = self._drain()
        results["submit"] = self._submit()
        results["bulk"] = self._bulk()
        results["memory_after_load"] = self._memory()
        self._db.close()
        return results

    def _settings(self) -> dict[str, str]:
        names = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
        with self._db.transaction() as tx:
            return {name: str(tx.value("SELECT current_setting(%(n)s)", {"n": name})) for name in names}

    def _memory(self) -> dict[str, dict[str, float]]:
        return memory_mib(roles_of(self._fabric.data, self._pid))

    def _latency(self) -> dict[str, float]:
        """From just before the POST is sent to the start of the process, one job at a time on an idle fabric."""
        count = self._amounts.latency_jobs
        sent: dict[str, float] = {}
        for number in range(count):
            self._say(f"latency: {number} of {count}")
            # A pause that is not a multiple of anything, or the jobs would meet the fabric's timers in step.
            time.sleep(random.uniform(0.02, 0.08))
            now = time.time()
            job_id = self._user.post("/jobs", self._program.job())["id"]
            sent[job_id] = now
            self._user.wait_ended(job_id)
        with self._db.transaction() as tx:
            rows = tx.rows(
                """SELECT id::text, extract(epoch FROM started_at)::float8 AS started FROM job
                WHERE id = ANY(%(ids)s::uuid[])""",
                {"ids": list(sent)},
            )
        took = [(row.started - sent[row.id]) * 1000 for row in rows if row.started is not None]
        return {"jobs": len(took), "p50_ms": quantile(took, 0.5), "p99_ms": quantile(took, 0.99)}

    def _drain(self) -> dict[str, Any]:
        """A backlog of no-op jobs, from the first submit to the last accepted end, and the CPU time of each role."""
        count = self._amounts.drain_jobs
        done = self._user.by_status()["completed"]
        before, began = cpu_seconds(roles_of(self._fabric.data, self._pid)), time.monotonic()
        submit_s = submit_bulk(self._user, self._program, count)
        self._wait_done(done + count, "drain", done)
        wall_s = time.monotonic() - began
        used = cpu_seconds(roles_of(self._fabric.data, self._pid))
        per_job = {role: 1000 * (seconds - before.get(role, 0.0)) / count for role, seconds in used.items()}
        return {
            "jobs": count, "wall_s": wall_s, "submit_s": submit_s, "jobs_per_s": count / wall_s,
            "cpu_ms_per_job": dict(Counter(per_job).most_common()),
            "cpu_ms_per_job_without_the_jobs": sum(ms for role, ms in per_job.items() if role != JOBS),
        }  # fmt: skip

    def _submit(self) -> dict[str, float]:
        """Single submits by several clients. What they submit is run at the same time, as it would be."""
        self._say(f"submit: {CLIENTS} clients for {self._amounts.submit_s:g} s")
        done = self._user.by_status()["completed"]
        took, wall_s = submit_each(
            self._fabric.port, self._token, self._program, CLIENTS, self._amounts.submit_s
        )  # fmt: skip
        self._wait_done(done + len(took), "submit: waiting for what was submitted", done)
        return {
            "clients": CLIENTS, "requests": len(took), "requests_per_s": len(took) / wall_s,
            "p50_ms": 1000 * quantile(took, 0.5), "p99_ms": 1000 * quantile(took, 0.99),
        }  # fmt: skip

    def _bulk(self) -> dict[str, float]:
        """Bulk submits by one client: while nodes are drained, and while they run what comes.

        The jobs are cancelled by ending the fabric, which comes next.
        """
        count = self._amounts.bulk_jobs
        self._say(f"bulk: {count} jobs, twice")
        with self._user.drained():
            alone = submit_bulk(self._user, self._program, count)
        while_run = submit_bulk(self._user, self._program, count)
        return {"jobs": count, "jobs_per_s": count / alone, "jobs_per_s_while_they_run": count / while_run}

    def _wait_done(self, wanted: int, what: str, already: int) -> None:
        last, since = -1, time.monotonic()
        while True:
            counts = self._user.by_status()
            if counts["completed"] >= wanted:
                return
            if counts["failed"] or counts["cancelled"]:
                raise Stuck(f"{counts['failed']} jobs failed and {counts['cancelled']} were cancelled; none should")
            if counts["completed"] != last:
                last, since = counts["completed"], time.monotonic()
            elif time.monotonic() - since > STUCK_S:
                raise Stuck(f"{wanted - last} jobs are left, and none has ended for {STUCK_S:g} s: {counts}")
            self._say(f"{what}: {counts['completed'] - already} of {wanted - already}")
            time.sleep(0.1)


def log_tails(data: Path) -> str:
    """The last lines of every part's log, for when something went wrong."""
    return "\n".join(
        f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-5:])
        for path in sorted((data / "logs").glob("*.log"))
    )
