"""`cfab simulate`: what it refuses before it begins, and how it ends early."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli.failure import ExitCode
from app.cli.main import main
from scheduler.simulate import comparison

SMALL = ("simulate", "--jobs", "3", "--nodes", "2")


def cfab(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when a simulation begins."""

    def begin(*_: Any) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr(comparison, "compare", begin)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(("name", "why"), [("none/a.png", "No such file"), ("a.xyz", "is no format"), ("a", "no")])
def test_a_picture_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, why: str) -> None:
    pytest.importorskip("matplotlib")
    done = cfab(*SMALL, "--plot", str(tmp_path / name))

    assert done.exit_code == ExitCode.USAGE
    assert why in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("option", ["--checkpoint-every", "--half-life", "--load", "--starvation", "--plan-every"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_is_finite(option: str, value: str) -> None:
    assert cfab(*SMALL, option, value).exit_code == ExitCode.USAGE


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "compare", interrupted)
    done = cfab(*SMALL)

    assert done.exit_code == ExitCode.INTERRUPTED
    assert "Aborted" not in done.output


def test_a_picture_of_a_run_without_cycles(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = cfab(*SMALL, "--plot", str(tmp_path / "a.svg"))

    assert done.exit_code == ExitCode.OK, done.output
    assert (tmp_path / "a.svg").stat().st_size
