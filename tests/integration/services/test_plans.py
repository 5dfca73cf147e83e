"""What claims and reports keep as plans: made on tiny tables, they still go by index when those are full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from app.domain.job import Assignment
from app.domain.policy import Ending
from app.storage import leases
from app.storage.database import Database
from tests.factories import Fabric, Node, finished, gpu, job, share

WATCHED = ("job", "job_spec", "attempt", "allocation", "lease", "usage", "scheduling_key", "node", "gpu_hold")
JOBS = 100


@pytest.fixture
def one_connection(fabric: Fabric, database_url: str) -> Iterator[Fabric]:
    """The same fabric on one connection: all plans are kept by the same process of the server."""
    alone = replace(fabric, db=Database(database_url, pool_size=1))
    yield alone
    alone.db.close()


def life(fabric: Fabric, node: Node) -> None:
    """Every hot statement, for one job that fails and waits again, one that ends and one that holds a GPU."""
    fabric.submit(job(max_retries=1, backoff_s=0.01), job(), job(resources=share(gpus=1)))
    taken = fabric.claim(node)
    assert len(taken) >= 3
    fabric.start(*taken)
    extend(fabric, node, *taken)
    ends = [finished(taken[0], Ending(exit_code=1)), *map(finished, taken[1:])]
    assert len(fabric.finish_all(*ends).answers) == len(taken)


def extend(fabric: Fabric, node: Node, *held: Assignment) -> None:
    """The statement of a renewal whose plan is kept."""
    with fabric.db.transaction() as tx:
        renewed = leases.renew(tx, node.id, [t.attempt_id for t in held], [t.token for t in held], 60.0)
    assert len(renewed) == len(held)


def scans(fabric: Fabric) -> dict[str, int]:
    """How often each table was read from end to end, as told by this connection's own process too."""
    with fabric.db.transaction() as tx:
        tx.run("SELECT pg_stat_force_next_flush()")
    with fabric.db.transaction() as tx:
        rows = tx.rows(
            "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname = ANY(%(t)s)", {"t": list(WATCHED)}
        )
    return {row.relname: row.seq_scan for row in rows}


def test_plans_made_on_tiny_tables_read_no_whole_table_later(one_connection: Fabric) -> None:
    fabric = one_connection
    node = fabric.add_node(slots=3, gpus=[gpu(1)])
    life(fabric, node)
    # The planner now knows that a scan would be cheapest, and all plans are made anew.
    fabric.sql(f"ANALYZE {', '.join(WATCHED)}")
    life(fabric, node)
    fabric.submit(*[job()] * JOBS)
    # Without GPUs: what is only read for them is planned each time, by how full the tables are.
    plain = fabric.add_node(slots=3)
    before = scans(fabric)
    for _ in range(3):
        taken = fabric.claim(plain)
        fabric.start(*taken)
        extend(fabric, plain, *taken)
        fabric.finish_all(*map(finished, taken))
    assert scans(fabric) == before
