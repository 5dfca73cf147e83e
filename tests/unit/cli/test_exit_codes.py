"""docs/errors.md lists every exit code with its number, and the README names the page."""

from __future__ import annotations

import re
from pathlib import Path

from app.cli.failure import ExitCode

ROOT = Path(__file__).parents[3]


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+) \| \S", page, re.MULTILINE)
    assert {(int(code), name.replace(" ", "_").upper()) for code, name in rows} == {(c.value, c.name) for c in ExitCode}


def test_the_readme_leads_there() -> None:
    assert "docs/errors.md" in (ROOT / "README.md").read_text()
