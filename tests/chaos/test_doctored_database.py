"""What is read from a real database shows the faults that were planted there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest

from app.domain.job import DEFAULT_TENANT, JobRequest
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from app.domain.resources import Gpu
from app.services import nodes
from app.services.claim import Claimer, claim
from app.services.report import Finished, finish
from app.services.submit import submit
from app.storage.database import Database
from config.settings import Settings
from tests.chaos import checks
from tests.chaos.evidence import Evidence, Reader, gather, take_sample
from tests.chaos.workload import Planned

GPU = Gpu("GPU-1", "NVIDIA A100", 80 * 10**9)


@pytest.fixture
def look(db: Database, settings: Settings, tmp_path: Path) -> Callable[[], Evidence]:
    """Two jobs that ran to their end on a node, as evidence, read anew with each call."""
    request = JobRequest(type="test", priority_class=PriorityClass.BACKGROUND, script="true")
    jobs = submit(db, settings, DEFAULT_TENANT, [request, request]).jobs
    offer = nodes.NodeOffer("n", 2, 1000, 2**31, (GPU,))
    registered = nodes.register(db, offer, settings.lease_s)
    taken = claim(db, Claimer("n", registered.incarnation), 2)
    finish(db, [Finished(one.attempt_id, one.token, Ending(exit_code=0)) for one in taken])
    witness = tmp_path / "witness"
    witness.write_text("".join(f"start {j.id} 1 10.00 -\nend {j.id} 1 10.50 -\n" for j in jobs), encoding="ascii")
    planned = {str(job.id): Planned(f"job-{n}", "ok", {}) for n, job in enumerate(jobs)}

    def gathered() -> Evidence:
        reader = Reader(settings.database_url)
        try:
            samples = [take_sample(reader)]
        finally:
            reader.close()
        return gather(settings.database_url, planned, witness, samples)

    return gathered


def tamper(settings: Settings, *statements: str) -> None:
    """Changes rows behind the back of triggers and keys."""
    connection = psycopg2.connect(settings.database_url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


def test_a_real_database_that_is_right_passes(look: Callable[[], Evidence]) -> None:
    assert not any(checks.judge(look()).values())


ACCEPT_TWICE = (
    """INSERT INTO attempt (id, job_id, number, node_id, token, log_day, started_at, ended_at, outcome, exit_code)
    SELECT gen_random_uuid(), job_id, 2, node_id, gen_random_uuid(), log_day, now(), now(), 'completed', 0
    FROM attempt LIMIT 1""",
    """INSERT INTO event (tenant_id, job_id, attempt, state, ready)
    SELECT tenant_id, job_id, 2, 4, false FROM event WHERE state = 4 LIMIT 1""",
)
HOLD_TWICE = tuple(
    f"""INSERT INTO allocation (attempt_id, member, tenant_id, node_id, cpus_milli, memory_bytes, gpus,
    gpu_memory_bytes, gpu_uuids, token) SELECT a.id, {member}, j.tenant_id, 'n', 100, 1, 1, 0, '{{GPU-1}}', a.token
    FROM attempt a JOIN job j ON j.id = a.job_id LIMIT 1"""
    for member in (0, 1)
)


@pytest.mark.parametrize(
    ("check", "statements"),
    [
        pytest.param(
            checks.nothing_lost, ("DELETE FROM job WHERE id = (SELECT min(id::text)::uuid FROM job)",), id="lost"
        ),
        pytest.param(checks.one_result_each, ACCEPT_TWICE, id="accepted twice"),
        pytest.param(checks.never_overcommitted, ("UPDATE usage SET jobs = jobs + 1",), id="usage off by one"),
        pytest.param(checks.never_overcommitted, HOLD_TWICE, id="a GPU held twice"),
        pytest.param(checks.never_overcommitted, ("UPDATE usage SET jobs = 3",), id="over-committed"),
        pytest.param(checks.nothing_left_over, HOLD_TWICE, id="allocations left"),
        pytest.param(checks.counts_right, ("UPDATE job_count_delta SET n = n + 1 WHERE state = 4",), id="counts"),
        pytest.param(checks.counts_right, ("UPDATE usage SET completed = completed + 1",), id="ends of the node"),
        pytest.param(checks.results_are_true, ("DELETE FROM attempt",), id="ran unclaimed"),
    ],
)
def test_a_planted_fault_is_found(
    check: Callable[[Evidence], list[str]],
    statements: tuple[str, ...],
    look: Callable[[], Evidence],
    settings: Settings,
) -> None:
    tamper(settings, *statements)
    assert check(look())
