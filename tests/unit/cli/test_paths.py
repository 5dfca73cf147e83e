"""What can be no id and no name is refused before anything is asked."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from app.cli.failure import ExitCode
from app.cli.main import main
from tests.unit.cli.conftest import Answers

COMMANDS = (
    "show", "explain", "wait", "logs", "top", "stop", "cancel", "hold", "requeue", "resubmit", "checkpoint",
    "reprioritise foreground", "events --job", "array show", "array jobs", "array cancel", "array retry",
    "nodes show", "nodes drain", "nodes forget", "nodes gpu host --in", "tenant show", "tenant images",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["", ".", "..", "../../health", " "])
def test_no_name(answers: Answers, command: str, name: str) -> None:
    done = CliRunner().invoke(main, [*command.split(), name, "--server", answers.url])

    assert done.exit_code == ExitCode.USAGE
    assert f"cfab: {name!r} is no " in done.stderr
    assert not answers.asked


@pytest.mark.parametrize("name", ["gpu node", "gpü", "a.b", "..."])
def test_any_other_name_is_asked_for(answers: Answers, name: str) -> None:
    done = CliRunner().invoke(main, ["nodes", "show", name, "--server", answers.url])

    assert done.exit_code == ExitCode.NOT_FOUND
    assert len(answers.asked) == 1
