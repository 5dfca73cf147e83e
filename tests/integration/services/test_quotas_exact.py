"""Quotas hold at every moment while real processes claim at once and are killed at random; and the check can fail."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import pytest

from app.domain.resources import GIB
from app.services import recover
from app.services.tenants import change
from config.settings import Settings
from scheduler.plan import run_plan
from tests.factories import Fabric, job, share, until

ROOT = Path(__file__).resolve().parents[3]
LEASE_S = 1.0
NODES = 4
KILLS = 4
JOBS_EACH = 120
WITHIN_S = 120.0

OVER = """SELECT t.name, h.* FROM tenant t CROSS JOIN LATERAL (
    SELECT count(*) AS jobs, sum(cpus_milli) AS cpus, sum(memory_bytes) AS memory, sum(gpus) AS gpus,
        sum(gpus * gpu_memory_bytes) AS gpu_memory FROM allocation WHERE tenant_id = t.id) h
WHERE h.jobs > t.quota_jobs OR h.cpus > t.quota_cpus_milli OR h.memory > t.quota_memory_bytes
    OR h.gpus > t.quota_gpus OR h.gpu_memory > t.quota_gpu_memory_bytes"""
FULL = """SELECT count(*) FROM tenant t CROSS JOIN LATERAL (
    SELECT count(*) AS jobs, sum(cpus_milli) AS cpus, sum(memory_bytes) AS memory, sum(gpus) AS gpus
    FROM allocation WHERE tenant_id = t.id) h
WHERE h.jobs = t.quota_jobs OR h.cpus = t.quota_cpus_milli OR h.memory = t.quota_memory_bytes
    OR h.gpus = t.quota_gpus"""


@dataclass
class Hosts:
    """The claiming processes of one run, each killed and brought back under its name."""

    url: str
    seed: int
    bug: str
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    started: int = 0

    def start(self, name: str) -> None:
        self.started += 1
        argv = [sys.executable, "-m", "tests.integration.services.quota_claimer", self.url, name]
        argv += [str(self.seed * 1000 + self.started), str(LEASE_S), self.bug]
        self.running[name] = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def kill(self, name: str) -> str:
        """SIGKILL; what it had to say, which is nothing unless it had ended by a fault of its own."""
        process = self.running.pop(name)
        process.kill()
        return process.communicate()[1]


@contextmanager
def hosts(url: str, seed: int, bug: str) -> Iterator[Hosts]:
    made = Hosts(url, seed, bug)
    try:
        for number in range(NODES):
            made.start(f"host-{number}")
        yield made
    finally:
        for name in list(made.running):
            made.kill(name)


def arrange(fabric: Fabric, draw: random.Random) -> list[UUID]:
    """One tenant for each limit, one with all of them, one with none; jobs of many shapes that all fit alone."""
    limits = [
        {"quota_jobs": 3},
        {"quota_cpus_milli": 4000},
        {"quota_memory_bytes": 8 * GIB},
        {"quota_gpus": 3, "quota_gpu_memory_bytes": 120 * 10**9},
        {"quota_jobs": 5, "quota_cpus_milli": 6000, "quota_memory_bytes": 9 * GIB, "quota_gpus": 4},
        {},
    ]
    tenants = [fabric.add_tenant(**columns) for columns in limits]
    for tenant in tenants:
        shapes = [
            share(draw.choice((0.5, 1, 2)), draw.choice((256, 1024, 4096)), gpus, 40 * 10**9 * bool(gpus))
            for gpus in draw.choices((0, 1, 2), (5, 2, 1), k=JOBS_EACH)
        ]
        fabric.submit(*[job(resources=shape, priority=draw.randrange(3)) for shape in shapes], tenant=tenant)
    return tenants


def faults(fabric: Fabric) -> list[str]:
    """What no reader may ever see: a tenant beyond a quota, usage that is not what is held. One snapshot each."""
    over = [f"over quota: {tuple(row)}" for row in fabric.all(OVER)]
    return over + [f"usage is not what is held: {row}" for row in recover.check_usage(fabric.db)]


def plan_again(fabric: Fabric, settings: Settings) -> int:
    """A cycle for which nothing is too young to be kept a quota for; for how many jobs one is kept then."""
    fabric.sql("UPDATE task_run SET detail = detail - 'at' WHERE name = 'plan'")
    run_plan(fabric.db, replace(settings, starvation_s=0.001))
    return int(fabric.value("SELECT count(*) FROM quota_hold"))


def run(fabric: Fabric, url: str, seed: int, bug: str = "", planned: bool = False) -> tuple[list[str], int, int]:
    """Runs all jobs to their end and lowers one quota on the way; stops at the first faults.

    Returns these faults, in how many looks a quota was full (`planned`: for how many jobs one was kept), and how many
    looks there were.
    """
    draw = random.Random(seed)
    first = arrange(fabric, draw)[0]
    lowered = False
    settings = replace(fabric.settings, lease_s=LEASE_S)
    full = looks = kills = 0
    end = time.monotonic() + WITHIN_S
    with hosts(url, seed, bug) as claimers:
        total = int(fabric.value("SELECT count(*) FROM job"))
        while (done := int(fabric.value("SELECT count(*) FROM job WHERE state = 4"))) < total:
            assert time.monotonic() < end, f"{total - done} of {total} jobs are not done: room was not used"
            looks += 1
            full += plan_again(fabric, settings) if planned else int(fabric.value(FULL)) > 0
            if found := faults(fabric):
                return found, full, looks
            recover.reap(fabric.db, settings)
            if done > total / 3 and not lowered:
                lowered = True
                change(fabric.db, first, {"quota": {"jobs": 2}})
                # What runs may end; from then on the new limit holds like the old one, without a moment's grace.
                until(lambda: recover.reap(fabric.db, settings) and not fabric.all(OVER))
            for name, process in claimers.running.items():
                assert process.poll() is None, f"{name} ended by itself: {process.communicate()[1]}"
            if kills < KILLS and done >= total * (kills + 1) / (KILLS + 2):
                kills += 1
                holders = [row[0] for row in fabric.all("SELECT DISTINCT node_id FROM allocation ORDER BY 1")]
                name = draw.choice(holders or sorted(claimers.running))
                assert claimers.kill(name) == ""
                claimers.start(name)
        assert kills > 0
    return faults(fabric), full, looks


@pytest.mark.timeout(180)
def test_no_quota_is_ever_exceeded_and_every_job_ends(fabric: Fabric, database_url: str) -> None:
    found, full, looks = run(fabric, database_url, seed=1)
    assert found == []
    assert full > 5, f"a quota was full in {full} of {looks} looks only, so that little was tested"
    assert fabric.value("SELECT count(*) FROM allocation") == 0
    assert fabric.value("SELECT count(*) FROM attempt WHERE outcome = 'lost'") > 0
    fabric.assert_in_order()


@pytest.mark.timeout(180)
def test_what_is_kept_of_quotas_and_placed_under_them_exceeds_none(fabric: Fabric, database_url: str) -> None:
    found, kept, _looks = run(fabric, database_url, seed=3, planned=True)
    assert found == []
    assert kept > 5
    assert fabric.value("SELECT count(*) FROM allocation") == 0
    fabric.assert_in_order()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("bug", "sign"), [("no_quota_lock", "over quota"), ("usage_kept", "usage is not what is held")]
)
def test_a_planted_bug_is_seen(fabric: Fabric, database_url: str, bug: str, sign: str) -> None:
    found, _full, _looks = run(fabric, database_url, seed=2, bug=bug)
    assert any(fault.startswith(sign) for fault in found)
