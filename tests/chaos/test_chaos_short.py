"""The short form of chaos: the strikes and the verdict of the long one, in a minute; CHAOS_SEED sets its seed."""

from __future__ import annotations

import os

import pytest

from tests.chaos.options import Options
from tests.chaos.run import Report, run_broker_kills, run_chaos

SEED = int(os.environ.get("CHAOS_SEED", "20261"))


def tell(report: Report) -> None:
    for line in report.lines():
        print(line)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_invariant_holds_while_everything_is_hit() -> None:
    options = Options(seed=SEED, jobs=60, seconds=28, patience_s=90)
    print(f"seed {options.seed}; again with CHAOS_SEED={options.seed}")
    report = run_chaos(options)
    tell(report)
    assert report.problems == []
    assert len(report.struck) >= 12
    assert any(job.members > 1 for job in report.evidence.jobs.values())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_broker_kills_restart_no_job() -> None:
    report = run_broker_kills(8, Options(seed=SEED, patience_s=60))
    tell(report)
    assert report.problems == []
