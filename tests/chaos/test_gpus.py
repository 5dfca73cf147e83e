"""GPUs given away whole are never used by two jobs at once, whatever is killed: real agents, simulated GPUs."""

from __future__ import annotations

import pytest

from tests.chaos.checks import gpus_exclusive
from tests.chaos.options import NODES, Options
from tests.chaos.run import run_gpus
from tests.chaos.test_chaos_short import SEED, tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_no_gpu_is_used_twice_while_agents_and_keepers_are_killed() -> None:
    report = run_gpus(Options(seed=SEED, jobs=20, seconds=9, patience_s=60))
    tell(report)
    assert report.problems == []
    assert len(report.struck) >= 6


NO_GUARD = ("DROP TRIGGER gpu_hold_added ON gpu_hold", "DROP INDEX uq_gpu_hold_exclusive")


def test_claims_that_do_not_look_at_what_is_held_are_seen() -> None:
    """Two faults at once, for each alone is caught by the other: the claim's, and a database without its guard."""
    few = Options(seed=SEED, jobs=10, seconds=1, patience_s=5)
    report = run_gpus(few, dict.fromkeys(NODES, "gpus_thought_free"), NO_GUARD, say=lambda _text: None)
    assert report.findings[gpus_exclusive.__name__]


def test_the_database_alone_keeps_gpus_from_being_given_twice() -> None:
    few = Options(seed=SEED, jobs=10, seconds=1, patience_s=5)
    report = run_gpus(few, dict.fromkeys(NODES, "gpus_thought_free"), say=lambda _text: None)
    assert report.findings[gpus_exclusive.__name__] == []
    assert report.evidence.witness
