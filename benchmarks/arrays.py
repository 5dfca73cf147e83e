"""`python -m benchmarks.arrays`: what arrays and dependencies cost, on a PostgreSQL of its own; prints a table.

A submit and a first pass of a great array, claims and ends with and without turns beside plain jobs, and the end of a
job for which thousands wait.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from app.domain.array import ArrayAsked
from app.domain.dependency import After
from app.domain.job import DEFAULT_TENANT, Assignment, JobRequest
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from app.local.demo.fabric import temporary_directory
from app.local.ports import free_port
from app.local.postgres import PostgresServer
from app.services import arrays, dependencies
from app.services.claim import Claimer, claim
from app.services.nodes import NodeOffer, register
from app.services.report import Finished, finish
from app.services.submit import submit, submit_array
from app.storage.database import Database
from benchmarks.backlog import scratch_database
from config.settings import Settings

BATCH = 16
PLAIN = JobRequest("bench", PriorityClass.BACKGROUND, script="true")


class Lab:
    """One scratch database and a node with room for anything."""

    def __init__(self, url: str) -> None:
        self.db = Database(url, pool_size=2)
        self.settings = Settings(database_url=url)
        offer = NodeOffer("bench", slots=100_000, cpus_milli=10**9, memory_bytes=1 << 50)
        self._who = Claimer("bench", register(self.db, offer, 60.0).incarnation)

    def submit(self, count: int, *parents: UUID) -> None:
        """Plain jobs, each after all of `parents`."""
        after = tuple(After(parent) for parent in parents)
        for start in range(0, count, 1000):
            some = [JobRequest("bench", PriorityClass.BACKGROUND, script="true", after=after)] * min(
                1000, count - start
            )
            submit(self.db, self.settings, DEFAULT_TENANT, some)

    def array(self, count: int, most: int | None) -> UUID:
        """An array's id."""
        done = submit_array(self.db, self.settings, DEFAULT_TENANT, PLAIN, ArrayAsked(count, most))
        assert done.array is not None
        return done.array.id

    def cancel(self, array_id: UUID) -> None:
        """Ends what is left of an array."""
        with self.db.transaction("stop") as tx:
            arrays.cancel(tx, self.settings, DEFAULT_TENANT, array_id, None, "bench")

    def claim(self, most: int) -> list[Assignment]:
        """What the node gets."""
        return claim(self.db, self._who, most)

    def end(self, taken: list[Assignment]) -> None:
        """All of these exit with 0."""
        finish(self.db, [Finished(one.attempt_id, one.token, Ending(exit_code=0)) for one in taken])

    def rate(self, jobs: int) -> float:
        """Jobs a second through claim and end, in batches on one connection."""
        began, done = time.perf_counter(), 0
        while done < jobs:
            taken = self.claim(BATCH)
            if taken:
                self.end(taken)
            else:
                arrays.advance(self.db, self.settings)
            done += len(taken)
        return done / (time.perf_counter() - began)


def measure(lab: Lab, indices: int, jobs: int, dependents: int) -> Iterator[tuple[str, str]]:
    """Rows of the table: what, and how much."""
    lab.submit(jobs + BATCH)
    yield f"plain jobs, claim and end in batches of {BATCH}", f"{lab.rate(jobs):,.0f}/s"
    for name, most in (("an array's jobs", None), ("the same with turns (50 at a time)", 50)):
        began = time.perf_counter()
        array_id = lab.array(indices, most)
        yield f"submit of an array of {indices:,}", f"{(time.perf_counter() - began) * 1e3:.0f} ms"
        arrays.advance(lab.db, lab.settings)
        yield name, f"{lab.rate(jobs):,.0f}/s"
        lab.cancel(array_id)
    for count in (0, 1, dependents):
        lab.submit(1)
        (parent,) = lab.claim(1)
        lab.submit(count, parent.job_id)
        took = _ms(partial(lab.end, [parent]))
        yield f"end of a job for which {count:,} wait", f"{took:.1f} ms"
        yield "letting them go", f"{_ms(lambda: dependencies.release(lab.db, lab.settings)):,.0f} ms"
        while taken := lab.claim(500):
            lab.end(taken)


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


@contextmanager
def _lab() -> Iterator[Lab]:
    with temporary_directory() as root:
        server = PostgresServer(root / "postgres", free_port(), "benchmark")
        server.create()
        server.start()
        try:
            with scratch_database(server.url(), "cfab_arrays") as url:
                lab = Lab(url)
                try:
                    yield lab
                finally:
                    lab.db.close()
        finally:
            server.stop()


def main() -> int:
    """Prints each figure as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arrays", description=__doc__)
    parser.add_argument("--indices", type=int, default=1_000_000, help="indices of an array; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=3000, help="jobs to run for each rate; default: %(default)s")
    parser.add_argument("--dependents", type=int, default=10_000, help="jobs that wait for one; default: %(default)s")
    asked = parser.parse_args()
    with _lab() as lab:
        for what, figure in measure(lab, asked.indices, asked.jobs, asked.dependents):
            print(f"{what:<60}{figure:>14}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
