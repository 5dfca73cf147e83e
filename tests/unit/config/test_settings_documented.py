"""docs/settings.md lists every setting with its default and meaning, and none that does not exist."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def row(setting: Field[Any]) -> str:
    """The line that documents `setting`."""
    default = setting.default
    if isinstance(default, bool):
        shown = str(int(default))
    else:
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
    words = f"`{shown}`" if shown else "empty"
    secret = " Secret." if setting.metadata["secret"] else ""
    return f"| `CFAB_{setting.name.upper()}` | {words} | {setting.metadata['doc']}{secret} |"


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda setting: setting.name)
def test_every_setting_is_documented(setting: Field[Any]) -> None:
    assert row(setting) in PAGE.read_text().splitlines(), f"add to {PAGE.name}:\n{row(setting)}"


def test_nothing_else_is_documented() -> None:
    documented = [line for line in PAGE.read_text().splitlines() if line.startswith("| `CFAB_")]
    assert sorted(documented) == sorted(map(row, fields(Settings)))
