"""`cfab hold`, `release`, `reprioritise`, `requeue`, `resubmit`: several ids, refusals, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import pytest

from app.cli.client import Client
from app.cli.control import PriorityWord, each, told
from app.cli.failure import ExitCode, Failure

A, B, C = (f"550e8400-e29b-41d4-a716-44665544000{n}" for n in range(3))


def job(job_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": job_id, "status": "pending", "state_detail": "pending", "reason": "new", "message": None,
        "effective_class": "background", "effective_priority": 500, "queue_position": 3, **changes,
    }  # fmt: skip


@pytest.fixture
def client() -> Client:
    return Client("http://127.0.0.1:1")


def refusing(refused: dict[str, ExitCode]) -> Any:
    def act(job_id: str) -> dict[str, Any]:
        if job_id in refused:
            raise Failure(refused[job_id], "no", {"job_id": job_id})
        return job(job_id)

    return act


def test_one_refusal_does_not_keep_the_others(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    act = refusing({A: ExitCode.NOT_FOUND, B: ExitCode.REFUSED})
    assert each(client, [A, B, C], False, act) == ExitCode.NOT_FOUND
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{C}  pending, background 500, place 3"]
    assert err.splitlines() == [f"cfab: {A}: no", f"cfab: {B}: no"]


def test_json_lists_what_was_done(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert each(client, [A, B], True, refusing({A: ExitCode.REFUSED})) == ExitCode.REFUSED
    out, err = capsys.readouterr()
    assert [one["id"] for one in json.loads(out)] == [B]
    assert json.loads(err)["context"] == {"job_id": A}
    assert each(client, [A], True, refusing({})) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["id"] == A


def test_the_refusal_of_the_only_one_is_the_commands(client: Client) -> None:
    with pytest.raises(Failure):
        each(client, [A], False, refusing({A: ExitCode.REFUSED}))


def test_a_server_that_is_away_ends_it_at_once(client: Client) -> None:
    asked: Iterator[str] = iter([A])

    def act(job_id: str) -> dict[str, Any]:
        assert job_id == next(asked)
        raise Failure(ExitCode.UNREACHABLE, "away")

    with pytest.raises(Failure):
        each(client, [A, B], False, act)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "pending, background 500, place 3"),
        ({"reason": "hold", "message": "held by ann", "queue_position": 0}, "pending: held by ann, background 500"),
        ({"reason": "requeued"}, "pending (requeued), background 500, place 3"),
        ({"status": "running", "state_detail": "stopping", "queue_position": 0}, "stopping"),
    ],
)
def test_a_line_says_where_the_job_is(changes: dict[str, Any], line: str) -> None:
    assert click.unstyle(told(job(A, **changes))) == f"{A}  {line}"


@pytest.mark.parametrize(
    ("text", "value"), [("foreground", "foreground"), ("best-effort", "best_effort"), ("700", 700), ("0", 0)]
)
def test_a_priority(text: str, value: object) -> None:
    assert PriorityWord().convert(text, None, None) == value


@pytest.mark.parametrize("text", ["5001", "-1", "urgent", "1.5", "²"])
def test_no_priority(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no priority; use foreground"):
        PriorityWord().convert(text, None, None)
