"""What a keeper makes of what an earlier one left: only an attempt's own notes count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workers.keeper.leftovers import recover
from workers.keeper.notes import Notes


def leave(root: Path, name: str, notes_of: str, record: dict[str, Any] | None) -> None:
    """The folder of attempt `name` with the notes of `notes_of`, ended if there is a record."""
    folder = root / "attempts" / name
    folder.mkdir(parents=True)
    notes = Notes(str(folder))
    identity = {"attempt_id": notes_of, "job_id": f"job of {notes_of}", "attempt": 3, "member": 0}
    notes.begin({"identity": identity, "boot_id": "another boot"})
    if record is None:
        notes.close()
    else:
        notes.add_record({**identity, **record})


def test_an_end_is_told_again(tmp_path: Path) -> None:
    leave(tmp_path, "a", "a", {"exit_code": 7})
    (ended,) = recover(str(tmp_path))
    assert (ended.spec.attempt_id, ended.spec.job_id, ended.record["exit_code"]) == ("a", "job of a", 7)
    assert not ended.record["keeper_lost"]


@pytest.mark.parametrize("record", [None, {"exit_code": 7}])
def test_notes_of_another_attempt_are_no_end_of_this_one(tmp_path: Path, record: dict[str, Any] | None) -> None:
    leave(tmp_path, "a", "b", record)
    (ended,) = recover(str(tmp_path))
    assert (ended.spec.attempt_id, ended.spec.job_id, ended.record["exit_code"]) == ("a", "", None)
    assert ended.record["keeper_lost"]
