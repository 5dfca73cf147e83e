"""docs/explain.md names every code and every fit, in their order, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from app.domain.explain import Code, Fit

PAGE = (Path(__file__).parents[3] / "docs" / "explain.md").read_text(encoding="utf-8")


def rows(title: str) -> list[str]:
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_every_code_has_its_row() -> None:
    assert rows("Codes") == [code.value for code in Code]


def test_every_fit_has_its_row() -> None:
    assert rows("What one node is to the job") == [fit.value for fit in Fit]
