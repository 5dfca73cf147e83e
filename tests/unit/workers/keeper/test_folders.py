"""Folders of attempts: used again only when nobody can have left anything in them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from workers.keeper.folders import NOTES, SETTLED_NS, SPOOL, WORK, Folders
from workers.keeper.notes import Notes, read_notes


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(str(tmp_path))


def make(folders: Folders, name: str) -> Path:
    """An attempt's folder as a keeper makes it, and nothing run in it yet."""
    folders.make(folders.path(name), None)
    folder = Path(folders.path(name))
    notes = Notes(str(folder))
    notes.begin({"of": name})
    notes.add_process(7, None)
    notes.close()
    return folder


def settle(folder: Path) -> None:
    """Wait until the age of a folder's work directory shows every later change."""
    made = (folder / WORK).stat().st_ctime_ns
    while time.time_ns() - made <= SETTLED_NS:
        os.sched_yield()


def settled(folders: Folders, tmp_path: Path) -> tuple[Path, int]:
    """A folder whose work directory waited for its job for a while; the inode of that directory."""
    folder = make(folders, "first")
    folders.discard(str(folder), printed=False)
    (spare,) = (tmp_path / "spare").iterdir()
    settle(spare)
    folder = make(folders, "a")
    return folder, (folder / WORK).stat().st_ino


def test_untouched_work_directory_is_used_again(folders: Folders, tmp_path: Path) -> None:
    folder, inode = settled(folders, tmp_path)
    changed = (folder / WORK).stat().st_ctime_ns
    folders.discard(str(folder), printed=False)
    again = make(folders, "b")
    assert ((again / WORK).stat().st_ino, (again / WORK).stat().st_ctime_ns) == (inode, changed)


@pytest.mark.parametrize("touch", ["mode", "entry", "attribute"])
def test_touched_work_directory_is_never_used_again(folders: Folders, tmp_path: Path, touch: str) -> None:
    folder, _inode = settled(folders, tmp_path)
    work = folder / WORK
    changed = work.stat().st_ctime_ns
    if touch == "mode":
        work.chmod(0o755)
        work.chmod(0o700)
    elif touch == "entry":
        (work / "file").touch()
        (work / "file").unlink()
    else:
        try:
            os.setxattr(work, "user.note", b"for the next one")
        except OSError:
            pytest.skip("no extended attributes here")
    folders.discard(str(folder), printed=False)
    again = make(folders, "b")
    assert (again / WORK).stat().st_ctime_ns != changed
    assert os.listxattr(again / WORK) == []


def test_work_directory_of_a_job_that_began_at_once_is_replaced(folders: Folders) -> None:
    folder = make(folders, "a")
    changed = (folder / WORK).stat().st_ctime_ns
    settle(folder)
    folders.discard(str(folder), printed=False)
    assert (make(folders, "b") / WORK).stat().st_ctime_ns != changed


def test_spare_that_somebody_touched_is_not_used(folders: Folders, tmp_path: Path) -> None:
    folder, _inode = settled(folders, tmp_path)
    folders.discard(str(folder), printed=False)
    (spare,) = (tmp_path / "spare").iterdir()
    (spare / WORK / "planted").touch()
    assert list((make(folders, "b") / WORK).iterdir()) == []


def test_notes_are_never_cut_to_nothing(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.discard(str(make(folders, "a")), printed=False)
    (spare,) = (tmp_path / "spare").iterdir()
    assert (spare / NOTES).read_bytes() == b"\n", "ext4 sends to the disk what is written after a cut to nothing"
    flags = []
    plain = os.open
    monkeypatch.setattr(os, "open", lambda path, how, *more: flags.append(how) or plain(path, how, *more))
    make(folders, "b")
    assert flags and not any(how & os.O_TRUNC for how in flags)


def test_a_folder_that_was_not_made_to_its_end_is_gone(folders: Folders, tmp_path: Path) -> None:
    folders.make(folders.path("a"), None)
    folders.discard(folders.path("a"), printed=False)
    assert not Path(folders.path("a")).exists() and list((tmp_path / "spare").iterdir()) == []


def test_notes_that_were_not_emptied_are_started_over(folders: Folders) -> None:
    folder = make(folders, "a")
    notes = Notes(str(folder))
    notes.begin({"of": "b"})
    notes.close()
    assert read_notes(str(folder)) == {"state": {"of": "b"}}


def test_files_and_output_never_come_back(folders: Folders, tmp_path: Path) -> None:
    folder = make(folders, "a")
    (folder / WORK / "file").touch()
    (folder / SPOOL).write_bytes(b"printed")
    folders.discard(str(folder), printed=True)
    again = make(folders, "b")
    assert {path.name for path in again.iterdir()} == {NOTES, WORK}
    assert list((again / WORK).iterdir()) == []


def test_notes_are_emptied_and_survivors_leave_nothing_to_use_again(folders: Folders, tmp_path: Path) -> None:
    folders.discard(str(make(folders, "a")), printed=False)
    (spare,) = (tmp_path / "spare").iterdir()
    assert read_notes(str(spare)) == {}
    again = make(folders, "b")
    assert read_notes(str(again)) == {"state": {"of": "b"}, "pid": 7, "ticks": None}
    folders.discard(str(again), printed=False, survived=True)
    assert list((tmp_path / "spare").iterdir()) == []
    assert not Path(folders.path("b")).exists()
