"""`--tenant`: a command about jobs asks for another tenant's."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from app.cli.failure import ExitCode
from app.cli.main import main
from tests.unit.cli.conftest import Answers

JOB = "550e8400-e29b-41d4-a716-446655440000"
EVENTS = {"events": [], "next": "0", "more": False, "gap": False}


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["ps"], "/jobs"),
        (["show", JOB], f"/jobs/{JOB}"),
        (["explain", JOB], f"/jobs/{JOB}/explain"),
        (["stop", JOB], f"/jobs/{JOB}/stop"),
        (["logs", JOB], f"/jobs/{JOB}/logs"),
        (["hold", JOB], f"/jobs/{JOB}/hold"),
        (["array", "ls"], "/arrays"),
        (["submit", "--image", "busybox"], "/jobs"),
        (["events", "--job", JOB], f"/jobs/{JOB}/events"),
    ],
)
def test_the_tenant_is_named_to_the_server(answers: Answers, words: list[str], path: str) -> None:
    answers.given["GET", f"/jobs/{JOB}/events"] = (200, EVENTS)

    CliRunner().invoke(main, [*words, "--tenant", "gäste", "--server", answers.url])

    assert [one.path for one in answers.asked] == [path]
    # A server reads the bytes of a header as Latin-1.
    assert answers.asked[0].headers["X-Tenant"].encode("latin-1").decode() == "gäste"


def test_without_it_the_token_says_whose_jobs(answers: Answers) -> None:
    CliRunner().invoke(main, ["ps", "--server", answers.url])

    assert "X-Tenant" not in answers.asked[0].headers


@pytest.mark.parametrize("name", ["", "a/b", "a\nb"])
def test_no_tenant(answers: Answers, name: str) -> None:
    done = CliRunner().invoke(main, ["ps", "--tenant", name, "--server", answers.url])

    assert done.exit_code == ExitCode.USAGE
    assert not answers.asked


@pytest.mark.parametrize("name", ["nodes", "plan", "tenant"])
def test_commands_about_the_whole_fabric_have_none(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    below = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    assert not [one.name for one in below if any("--tenant" in option.opts for option in one.params)]
