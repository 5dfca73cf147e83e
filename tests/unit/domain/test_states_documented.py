"""The diagram in docs/states.md shows the transitions that the state table allows, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from app.domain.states import TRANSITIONS, Outcome, Reason

PAGE = (Path(__file__).parents[3] / "docs" / "states.md").read_text(encoding="utf-8")


def test_the_diagram_is_the_table() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+):", PAGE, re.MULTILINE))
    assert drawn == {(before.word, after.word) for before, afters in TRANSITIONS.items() for after in afters}


def test_every_reason_and_outcome_is_named() -> None:
    assert [word for word in (*Reason, *Outcome) if f"`{word}`" not in PAGE] == []
