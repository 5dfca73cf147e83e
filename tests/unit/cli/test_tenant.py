"""`cfab tenant` turns options into the API's body and an answer into lines for people."""

from __future__ import annotations

import math
from typing import Any

import click
import pytest
from click.testing import CliRunner

from app.cli.failure import ExitCode
from app.cli.main import main
from app.cli.tenant import WIDTH, bar, body_of, describe

TENANT: dict[str, Any] = {
    "id": "00000000-0000-0000-0000-000000000009", "name": "lab", "email": None, "organization": "L\x1b[31mab",
    "tier": "high", "weight": 2.5, "active": True, "allow_preemption": True, "can_preempt_others": False,
    "quota": {"jobs": 20, "cpus": 64.5, "memory_mib": 262144, "gpus": 4, "gpu_memory_mb": None},
    "usage": {"jobs": 5, "cpus": 60, "memory_mib": 1536, "gpus": 6, "gpu_memory_mb": 80000},
    "created_at": "2024-01-01T12:00:00Z",
}  # fmt: skip


def parsed(*words: str) -> dict[str, Any]:
    """The body of `cfab tenant set x …`."""
    command = main.get_command(click.Context(main), "tenant")
    assert isinstance(command, click.Group)
    given = command.commands["set"].make_context("set", ["x", *words]).params
    return body_of({name: value for name, value in given.items() if name not in {"name", "server", "as_json"}})


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (["--quota-jobs", "20"], {"quota": {"jobs": 20}}),
        (["--quota-jobs", "none"], {"quota": {"jobs": None}}),
        (["--quota-cpus", "2.5"], {"quota": {"cpus": 2.5}}),
        (["--quota-memory", "64G"], {"quota": {"memory_mib": 65536}}),
        (["--quota-memory", "512"], {"quota": {"memory_mib": 512}}),
        (["--quota-gpu-memory", "80G"], {"quota": {"gpu_memory_mb": 80000}}),
        (["--quota-gpu-memory", "1GiB"], {"quota": {"gpu_memory_mb": 1073.741824}}),
        (["--quota-gpus", "0", "--tier", "low"], {"quota": {"gpus": 0}, "tier": "low"}),
        (["--weight", "3", "--inactive"], {"weight": 3.0, "active": False}),
        (
            ["--cannot-preempt-others", "--no-allow-preemption"],
            {"can_preempt_others": False, "allow_preemption": False},
        ),
        (["--email", "a@b", "--organization", "Lab"], {"email": "a@b", "organization": "Lab"}),
        ([], {}),
    ],
)
def test_only_what_is_given_is_sent(words: list[str], body: dict[str, Any]) -> None:
    assert parsed(*words) == body


@pytest.mark.parametrize(
    "words", [["--quota-jobs", "1.5"], ["--quota-jobs", "-1"], ["--quota-memory", "5X"], ["--tier", "best"], []]
)
def test_what_cannot_be_is_a_usage_error_before_anything_is_sent(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["tenant", "set", "x", *words], env={"CFAB_SERVER_URL": "http://127.0.0.1:9"})
    assert result.exit_code == ExitCode.USAGE


def test_a_tenant_is_shown_with_a_bar_for_each_quota() -> None:
    lines = [click.unstyle(line) for line in describe(TENANT)]
    assert "jobs          █████░░░░░░░░░░░░░░░  5 of 20" in lines
    assert "CPUs          ██████████████████░░  60 of 64.5" in lines
    assert "memory        █░░░░░░░░░░░░░░░░░░░  1.5 GiB of 256 GiB" in lines
    assert "GPUs          ████████████████████  6 of 4" in lines
    assert "GPU memory    ····················  80 GB, no limit" in lines
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("used", [0, 0.001, 1, 7, 9.999, 10, 11, 1e30])
@pytest.mark.parametrize("limit", [None, 0, 10])
def test_a_bar_always_has_its_width_and_shows_the_least_use(used: float, limit: float | None) -> None:
    shown = click.unstyle(bar(used, limit))
    assert len(shown) == WIDTH
    assert limit is None or ("█" in shown) is (used > 0 or limit == 0)
    assert limit is None or math.isclose(limit, 0) or ("░" in shown) is (used < limit)


def test_great_amounts_are_in_digits() -> None:
    usage = dict.fromkeys(("jobs", "cpus", "memory_mib", "gpus", "gpu_memory_mb"), 0)
    quota = {"jobs": 1_000_000, "cpus": None, "memory_mib": 16 * 2**20, "gpus": None, "gpu_memory_mb": 40_960_000}
    page = "\n".join(describe({**TENANT, "usage": usage, "quota": quota}))
    for words in ("of 1000000", "of 16384 GiB", "of 40960 GB"):
        assert words in page
