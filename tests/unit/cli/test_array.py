"""What `cfab array` shows, and what `cfab submit` sends for arrays and dependencies."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from app.cli import submit
from app.cli.array import describe
from app.cli.failure import ExitCode
from app.cli.render import array_ending, job_table
from tests.unit.cli.test_submit_body import body

ARRAY: dict[str, Any] = {
    "id": "019aa5a5-0000-7000-8000-000000000000", "type": "render\x1b[2J", "priority": "background",
    "status": "running", "reason": None, "message": None, "count": 100, "max_parallel": 10,
    "counts": {"pending": 88, "running": 10, "completed": 1, "failed": 1, "cancelled": 0}, "unexpanded": 60,
    "progress": 0.02, "created_at": "2026-11-21T12:00:00Z", "completed_at": None, "stopped_by": None,
    "stop_reason": None,
    "depends_on": [{"job": "p", "on": "afterok", "array": True, "satisfied": True, "state_detail": "ended"}],
}  # fmt: skip


def test_an_array_in_lines() -> None:
    page = click.unstyle("\n".join(describe(ARRAY)))
    for line in ("jobs          100", "at a time     10", "progress      2.0 %", "no job yet    60", "failed        1",
                 "depends on    array p afterok (ended, satisfied)"):  # fmt: skip
        assert line in page
    assert "cancelled" not in page
    assert "\x1b" not in page


def test_an_array_in_a_sentence() -> None:
    sentence = click.unstyle(array_ending(ARRAY))
    assert sentence.endswith("running: 88 pending, 10 running, 1 completed, 1 failed")


def test_its_jobs_begin_with_their_index() -> None:
    job = {"id": "j", "type": "t", "status": "pending", "array_index": 7, "created_at": "2026-11-21T12:00:00Z"}
    assert job_table([job], with_index=True).splitlines()[1].split()[:2] == ["7", "j"]


def test_an_array_is_asked_for() -> None:
    url = ("https://example.com/x", "--sha256", "a" * 64)
    assert body(*url, "--array", "5")["array"] == {"count": 5}
    assert body(*url, "--array", "5", "--max-parallel", "2")["array"] == {"count": 5, "max_parallel": 2}


def test_parents_are_asked_for() -> None:
    url = ("https://example.com/x", "--sha256", "a" * 64)
    assert body(*url, "--after", "one", "--after", "two:any", "--after", "three:notok")["depends_on"] == [
        {"job": "one", "on": "afterok"}, {"job": "two", "on": "afterany"}, {"job": "three", "on": "afternotok"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-parallel", "2"), "--array N"), (("--after", "x:later"), "is no ID"), (("--after", ":ok"), "is no ID"),
        (("--array", "0"), "0"), (("--array", "2", "--follow"), "--wait"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str) -> None:
    monkeypatch.setenv("CFAB_SERVER_URL", "http://127.0.0.1:9")
    done = CliRunner().invoke(submit.command, ["--script", "-", *words], input="true")
    assert (done.exit_code, said in done.output) == (ExitCode.USAGE, True)
