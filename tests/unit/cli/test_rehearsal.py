"""What `cfab submit --dry-run` prints, and its exit codes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from app.cli.failure import ExitCode
from app.cli.rehearsal import picture, show_rehearsal

TENANT = {"name": "lab", "active": True, "quota": {"gpus": None}, "used": {"gpus": 0}}
TOLD: dict[str, Any] = {
    "dry_run": True, "admitted": True, "refusal": None, "type": "x", "priority": "foreground",
    "effective_class": "background", "effective_priority": 500, "code": "busy", "message": "1 node is busy.",
    "causes": [{"code": "busy", "message": "1 node is busy.", "numbers": {}}], "tenant": TENANT, "ahead": 3,
    "queue": {"position": 4, "of": 9, "exact": True, "in_tenant": 4}, "queue_position": 4, "nodes": [], "nodes_seen": 0,
    "runs_now": {"count": 0, "names": []}, "runs_ever": {"count": 5, "names": ["a", "b", "c", "d", "e"]},
}  # fmt: skip
REFUSED = {
    **dict.fromkeys(TOLD), "admitted": False, "message": "The job asks for 2 GPUs.",
    "refusal": {"status": 403, "error": "The job asks for 2 GPUs.", "context": {}},
}  # fmt: skip


def lines(told: dict[str, Any]) -> list[str]:
    console = Console(width=120, record=True, highlight=False, file=io.StringIO())
    console.print(picture(told))
    return console.export_text().splitlines()


def test_an_admitted_job_says_where_it_would_stand_and_run() -> None:
    assert lines(TOLD) == [
        "would be admitted as background 500 (asked foreground), place 4 of 9  busy",
        "  1 node is busy.",
        "  Room now on no node; big enough: a, b, c and 2 more.",
    ]


def test_a_refused_one_says_why() -> None:
    assert lines(REFUSED) == ["would be refused (403): The job asks for 2 GPUs."]


@pytest.mark.parametrize(("told", "code"), [(TOLD, ExitCode.OK), (REFUSED, ExitCode.REFUSED)])
def test_the_exit_code_is_the_submits(told: dict[str, Any], code: ExitCode) -> None:
    assert show_rehearsal(told, as_json=True) == code
