"""What open streams cost the API: `python -m benchmarks.followers` on servers of its own; leaves nothing.

Submits are measured without and with idle followers in turns, so that a noisy machine troubles both alike, then with
followers of a job that prints all the time. At rest: processor time and memory of the API process.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import redis

from app.local.demo.fabric import temporary_directory
from app.local.ports import free_port
from app.local.postgres import PostgresServer
from app.local.valkey import ValkeyServer
from app.services import logs, nodes, report
from app.services.claim import Claimer, claim
from app.services.hints import CHANNEL, encode
from app.services.report import Chunk, Started
from app.storage.database import Database
from app.storage.migrate import upgrade
from benchmarks.figures import quantile, table
from benchmarks.http_load import Program, User, submit_each

TOKEN = "benchmark"
CLIENTS = 4


class Readers:
    """Connections that follow jobs, read by one thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.bytes = 0
        self.refused = 0

    def open(self, job_ids: list[str], count: int) -> None:
        """`count` followers of these jobs in turn; returns when all are connected."""
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", self._port), timeout=30)
            path = f"/jobs/api/v1/jobs/{job_ids[number % len(job_ids)]}/logs?follow=true"
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
            self.refused += b" 200 " not in sock.recv(4096).split(b"\r\n")[0]
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        """Leaves all streams."""
        self._stopped.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            for key, _events in self._selector.select(0.2):
                data = key.fileobj.recv(262_144)  # type: ignore[union-attr]
                self.bytes += len(data)
                if not data:
                    self._selector.unregister(key.fileobj)


@dataclass
class Site:
    """An API process on servers of its own, and jobs that run nowhere."""

    port: int
    process: psutil.Process
    db: Database
    broker: Any
    jobs: list[Any]

    @contextmanager
    def followed(self, job_ids: list[str], count: int) -> Iterator[Readers]:
        """`count` followers meanwhile."""
        readers = Readers(self.port)
        try:
            if count:
                readers.open(job_ids, count)
                assert not readers.refused, f"{readers.refused} streams were refused"
            yield readers
        finally:
            if count:
                readers.close()
                time.sleep(0.5)

    @contextmanager
    def printing(self, per_second: float, size: int) -> Iterator[list[int]]:
        """The first job prints `per_second` chunks of `size` bytes meanwhile; the bytes it has printed."""
        one, stopped, told = self.jobs[0], threading.Event(), [0]

        def work() -> None:
            position = 0
            while not stopped.wait(1 / per_second):
                framed = logs.frame(logs.STDOUT, time.time(), b"x" * (size - 1) + b"\n")
                report.append_output(
                    self.db, [Chunk(one.attempt_id, one.log_day, position, len(framed), logs.PLAIN, framed)]
                )
                position += len(framed)
                told[0] += size
                self.broker.publish(CHANNEL, encode([one.job_id], False))

        writer = threading.Thread(target=work)
        writer.start()
        try:
            yield told
        finally:
            stopped.set()
            writer.join()

    def submits(self, seconds: float) -> dict[str, float]:
        """Submits by a few users for a while."""
        program = Program("https://example.com/program", "ab" * 32)
        took, spent = submit_each(self.port, TOKEN, program, CLIENTS, seconds)
        return {
            "per_s": len(took) / spent,
            "p50_ms": quantile(took, 0.5) * 1000,
            "p99_ms": quantile(took, 0.99) * 1000,
        }

    def rest(self, seconds: float) -> dict[str, float]:
        """The API process while nobody asks for anything."""
        before = self.process.cpu_times()
        time.sleep(seconds)
        after = self.process.cpu_times()
        return {
            "cpu_percent": 100 * (after.user + after.system - before.user - before.system) / seconds,
            "rss_mib": self.process.memory_info().rss / 2**20,
            "threads": self.process.num_threads(),
        }


def measure(site: Site, asked: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    ids = [str(job.job_id) for job in site.jobs]
    site.submits(2.0)
    results: dict[str, Any] = {"at rest": {"no followers": site.rest(asked.seconds)}}
    rounds: dict[str, list[dict[str, float]]] = {"no followers": [], f"{asked.idle} idle followers": []}
    for _ in range(asked.rounds):
        rounds["no followers"].append(site.submits(asked.seconds))
        with site.followed(ids[1:], asked.idle):
            rounds[f"{asked.idle} idle followers"].append(site.submits(asked.seconds))
    results["submits"] = {name: _middle(found) for name, found in rounds.items()}
    with site.followed(ids[1:], asked.idle):
        time.sleep(2)
        results["at rest"][f"{asked.idle} idle followers"] = site.rest(15.0)
    for count in (20, asked.idle):
        with site.followed(ids[:1], count) as readers, site.printing(10, 2000) as told:
            results["submits"][f"{count} followers of 20 kB/s"] = site.submits(asked.seconds)
            time.sleep(1.0)
            results["submits"][f"{count} followers of 20 kB/s"]["told_percent"] = (
                100 * readers.bytes / max(1, told[0] * count)
            )
    base = results["submits"]["no followers"]
    for found in results["submits"].values():
        found["of_none_percent"] = 100 * found["per_s"] / base["per_s"]
    return results


def _middle(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


@contextmanager
def site(root: Path) -> Iterator[Site]:
    """Servers, an API and thirty running jobs."""
    postgres = PostgresServer(root / "postgres", free_port(), "benchmark")
    postgres.create()
    postgres.start()
    valkey = ValkeyServer(root / "valkey", free_port(), "benchmark")
    valkey.create()
    valkey.start()
    upgrade(postgres.url())
    port = free_port()
    plain = {name: text for name, text in os.environ.items() if not name.startswith("CFAB_")}
    own = {
        "CFAB_DATABASE_URL": postgres.url(), "CFAB_BROKER_URL": valkey.url, "CFAB_API_TOKEN": TOKEN,
        "CFAB_API_PORT": str(port), "CFAB_LOG_LEVEL": "warning",
    }  # fmt: skip
    api = subprocess.Popen([sys.executable, "-m", "app.cli.main", "api"], env={**plain, **own})
    db = Database(postgres.url(), pool_size=2, application_name="benchmark")
    try:
        _until(lambda: User(port, TOKEN).get("/jobs?limit=1") is not None)
        user = User(port, TOKEN)
        body = Program("https://example.com/program", "ab" * 32).job()
        user.post("/jobs/bulk", [body] * 30)
        offer = nodes.NodeOffer("bench", 64, 64_000, 2**40, (), ("process",), ip="192.0.2.1")
        incarnation: UUID = nodes.register(db, offer, 3600.0).incarnation
        taken = claim(db, Claimer("bench", incarnation, ("process",), 3600.0), 30)
        now = datetime.now(UTC)
        report.report_started(db, [Started(t.attempt_id, t.token, now) for t in taken])
        worker = max(psutil.Process(api.pid).children(recursive=True), key=lambda p: p.memory_info().rss)
        yield Site(port, worker, db, redis.Redis.from_url(valkey.url), list(taken))
    finally:
        api.terminate()
        api.wait()
        db.close()
        valkey.stop()
        postgres.stop()


def _until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            if ready():
                return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def main() -> int:
    """Measures and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.followers", description=__doc__)
    parser.add_argument("--idle", type=int, default=300, help="idle followers; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="turns without and with them; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    with temporary_directory() as root, site(root) as made:
        results = measure(made, asked)
    print(json.dumps(results, indent=2) if asked.json else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
