"""Two keepers of one host never share a range of users."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.keeper import uid_range


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uid_range, "FOLDER", str(tmp_path / "locks"))


def test_second_keeper_gets_the_next_range(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, lock = uid_range.take_range(200_000, str(tmp_path / "a"))
    second, other = uid_range.take_range(200_000, str(tmp_path / "b"))
    assert (first, second) == (200_000, 201_000)
    os.close(lock)
    os.close(other)


def test_keeper_gets_its_former_range_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _first, lock = uid_range.take_range(200_000, str(tmp_path / "a"))
    second, other = uid_range.take_range(200_000, str(tmp_path / "b"))
    os.close(lock)
    os.close(other)
    again, held = uid_range.take_range(200_000, str(tmp_path / "b"))
    assert again == second
    os.close(held)


def test_no_range_left_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uid_range, "RANGES", 1)
    _first, lock = uid_range.take_range(200_000, str(tmp_path))
    with pytest.raises(uid_range.NoRangeLeft, match="held by other workers"):
        uid_range.take_range(200_000, str(tmp_path))
    os.close(lock)
