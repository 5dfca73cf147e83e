"""The systemd unit that ships: a restart of the worker must not reach the keeper and its jobs."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from workers.sandbox.cgroup_v2 import SUPERVISOR

UNIT = Path(__file__).resolve().parents[3] / "deploy" / "cfab-worker.service"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("KillMode", "process"),
        ("Delegate", "yes"),
        ("DelegateSubgroup", SUPERVISOR),
        ("OOMPolicy", "continue"),
        ("ExecStart", "/usr/local/bin/cfab worker"),
    ],
)
def test_the_unit_of_the_worker_leaves_jobs_alone(setting: str, value: str) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    assert unit["Service"][setting] == value
