"""GPUs given away whole are never used by two jobs at once, whatever is killed: real agents, simulated GPUs."""

from __future__ import annotations

import pytest

from tests.chaos.options import Options
from tests.chaos.run import run_gpus
from tests.chaos.test_chaos_short import SEED, tell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_no_gpu_is_used_twice_while_agents_and_keepers_are_killed() -> None:
    report = run_gpus(Options(seed=SEED, jobs=36, seconds=12, patience_s=60))
    tell(report)
    assert report.problems == []
    assert len(report.struck) >= 6
