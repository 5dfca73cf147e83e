"""What `cfab submit` sends for what is typed, and what it refuses before anything is sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli import submit
from app.cli.failure import ExitCode

SHA = "a" * 64
URL = "https://example.com/bin/train%20it?x=1"
Run = Callable[..., Result]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `cfab submit` with the given words against a port where nobody listens."""
    monkeypatch.setenv("CFAB_SERVER_URL", "http://127.0.0.1:9")

    def run(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(submit.command, list(words), input=stdin)

    return run


def body(*words: str, stdin: str = "") -> dict[str, Any]:
    """The request body for `words`, taken through the real option parser."""
    with submit.command.make_context("submit", list(words)) as context:
        asked = dict(context.params)
        for own in ("server", "as_json", "key", "waits", "follows"):
            asked.pop(own)
        return submit.job_body(**asked)


def test_a_program_with_everything() -> None:
    given = "--priority foreground --arg one --env A=b=c --timeout 15m --retries 2"
    share = "--cpus 0.5 --memory 4G --gpus 1"
    assert body(URL, "--sha256", SHA, *given.split(), *share.split(), "--", "--two", "3") == {
        "priority": "foreground",
        "binary_url": URL,
        "binary_sha256": SHA,
        "type": "train-it",
        "arguments": ["one", "--two", "3"],
        "env_variables": {"A": "b=c"},
        "timeout_seconds": 900.0,
        "max_retries": 2,
        "resources": {"cpus": 0.5, "memory_mib": 4096, "gpus": 1},
    }


def test_what_is_not_asked_is_not_sent() -> None:
    assert set(body(URL, "--sha256", SHA)) == {
        "priority", "binary_url", "binary_sha256", "type", "arguments", "env_variables"
    }  # fmt: skip


@pytest.mark.parametrize(("word", "sent"), [("--preemptible", True), ("--not-preemptible", False)])
def test_whether_it_may_be_stopped_for_others(word: str, sent: bool) -> None:
    assert body(URL, "--sha256", SHA, word)["preemptible"] is sent


def test_a_script_from_a_file(tmp_path: Path) -> None:
    script = tmp_path / "greet.sh"
    script.write_text("echo hello $1\n")
    made = body("--script", str(script), "world")
    assert (made["script"], made["arguments"], made["type"]) == ("echo hello $1\n", ["world"], "greet.sh")


def test_the_checksum_of_a_local_copy(tmp_path: Path) -> None:
    copy = tmp_path / "train"
    copy.write_bytes(b"program")
    assert body(URL, "--file", str(copy))["binary_sha256"] == hashlib.sha256(b"program").hexdigest()


@pytest.mark.parametrize(
    ("words", "command", "arguments"),
    [
        ([], None, []),
        (["--arg", "--fast"], None, ["--fast"]),
        (["--", "sh", "-c", "echo $0"], ["sh"], ["-c", "echo $0"]),
        (["--arg", "one", "--", "tool", "--two"], ["tool"], ["one", "--two"]),
    ],
)
def test_an_image_with_or_without_a_command(words: list[str], command: list[str] | None, arguments: list[str]) -> None:
    made = body("--image", "127.0.0.1:5000/team/tool:1@sha256:" + SHA, *words)
    assert (made["image"], made["type"]) == ("127.0.0.1:5000/team/tool:1@sha256:" + SHA, "tool")
    assert (made.get("command"), made["arguments"]) == (command, arguments)
    assert "script" not in made and "binary_url" not in made


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give a URL"),
        ([URL], "--sha256 is needed"),
        (["./train", "--sha256", SHA], "serve the file over HTTP"),
        ([URL, "--file", "/no/such"], "cannot be read"),
        ([URL, "--file", "/dev/null", "--sha256", SHA], "has SHA-256 e3b0c442"),
        (["--script", "/no/such"], "cannot be read"),
        (["--script", "/dev/null"], "is empty"),
        (["--script", "-", "--sha256", SHA], "takes no --sha256"),
        (["--image", "busybox", "--sha256", SHA], "--image takes no --sha256"),
        (["--image", "busybox", "--file", "x"], "--image takes no --sha256 and no --file"),
        (["--image", "busybox", "--script", "-"], "give one of them"),
        ([URL, "--sha256", SHA, "--env", "NAME"], "no NAME=VALUE"),
        ([URL, "--sha256", SHA, "--timeout", "soon"], "'soon' is no duration"),
        ([URL, "--sha256", SHA, "--timeout", "0"], "'0' is no duration"),
        ([URL, "--sha256", SHA, "--memory", "0.5"], "'0.5' is no size"),
        ([URL, "--sha256", SHA, "--priority", "urgent"], "'urgent' is not one of"),
    ],
)
def test_what_cannot_be_sent_is_a_usage_error(typed: Run, words: list[str], says: str) -> None:
    result = typed(*words)
    assert result.exit_code == ExitCode.USAGE
    assert says in result.stderr
    assert result.stdout == ""


def test_nobody_there(typed: Run) -> None:
    result = typed("--script", "-", stdin="echo hello")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "no server answers at http://127.0.0.1:9" in result.stderr


def test_an_error_in_json(typed: Run) -> None:
    result = typed("--script", "-", "--json", stdin="echo hello")
    told = json.loads(result.stderr)
    assert set(told) == {"error", "context"} and told["context"]["server"] == "http://127.0.0.1:9"


def test_a_setting_that_cannot_be_used(typed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFAB_SERVER_URL", "127.0.0.1:8080")
    result = typed("--script", "-", stdin="echo hello")
    assert result.exit_code == ExitCode.USAGE and "is no server" in result.stderr
