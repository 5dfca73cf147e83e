"""The cache directory: holds, seals, eviction and what crashes leave behind. Real files, no network."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from workers.artifacts import Artifact, CacheUnusable, FetchCancelled
from workers.artifacts.store import Store


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(store: Store, content: bytes) -> Artifact:
    with store.part(sha(content)) as part:
        part.write(content)
        return store.publish(part, sha(content))


def look(store: Store, content: bytes) -> bool:
    held = store.hold(sha(content))
    if held is not None:
        held.release()
    return held is not None


def never() -> None:
    """A check that lets the reading go on."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_entry_is_read_only_named_by_its_digest_and_runs(root: Path) -> None:
    script = b"#!/bin/sh\necho hello\n"
    with put(Store(root, 10_000), script) as artifact:
        assert artifact.path == root / sha(script)
        assert stat.S_IMODE(artifact.path.stat().st_mode) == 0o555
        assert stat.S_IMODE(root.stat().st_mode) == 0o755
        assert subprocess.run([artifact.path], capture_output=True, check=True).stdout == b"hello\n"
    assert os.listdir(root) == [sha(script)]


def test_mode_does_not_depend_on_the_umask(root: Path) -> None:
    before = os.umask(0o077)
    try:
        put(Store(root, 10_000), b"x").release()
    finally:
        os.umask(before)
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert stat.S_IMODE((root / sha(b"x")).stat().st_mode) == 0o555


def test_least_recently_used_goes_first_but_never_what_is_held(root: Path) -> None:
    store = Store(root, 300)
    put(store, b"a" * 100).release()
    held = put(store, b"b" * 100)
    put(store, b"c" * 100).release()
    assert look(store, b"a" * 100)
    put(store, b"d" * 200).release()
    assert not look(store, b"a" * 100)
    assert not look(store, b"c" * 100)
    assert look(store, b"b" * 100)
    held.release()
    put(store, b"e" * 300).release()
    assert os.listdir(root) == [sha(b"e" * 300)]


def test_use_decides_what_is_evicted_not_age(root: Path) -> None:
    store = Store(root, 300)
    for letter in (b"a", b"b", b"c"):
        put(store, letter * 100).release()
    assert look(store, b"a" * 100)
    put(store, b"d" * 100).release()
    assert [look(store, letter * 100) for letter in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_held_entries_may_exceed_the_limit_until_released(root: Path) -> None:
    store = Store(root, 100)
    first, second = put(store, b"a" * 90), put(store, b"b" * 90)
    assert first.path.exists()
    assert second.path.exists()
    first.release()
    first.release()
    assert not first.path.exists()
    assert second.path.exists()


def test_hold_of_another_process_is_respected(root: Path) -> None:
    store = Store(root, 100)
    put(store, b"a" * 90).release()
    code = (
        "import sys; from pathlib import Path; from workers.artifacts.store import Store\n"
        "held = Store(Path(sys.argv[1]), 100).hold(sys.argv[2])\n"
        "print(held is not None, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(root), sha(b"a" * 90)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        put(store, b"b" * 90).release()
        assert look(store, b"a" * 90)
        other.kill()
    put(store, b"c" * 90).release()
    assert not look(store, b"a" * 90)


def test_start_sweeps_parts_but_not_those_being_written(root: Path) -> None:
    store = Store(root, 1000)
    (root / f"{sha(b'x')}.0123456789abcdef.part").write_bytes(b"half")
    (root / "notes.txt").write_text("not ours")
    with store.part(sha(b"y")) as part:
        Store(root, 1000)
        assert sorted(os.listdir(root)) == sorted([os.path.basename(part.path), "notes.txt"])
    assert os.listdir(root) == ["notes.txt"]


def test_start_trims_to_a_lowered_limit(root: Path) -> None:
    put(Store(root, 1000), b"a" * 500).release()
    Store(root, 100)
    assert os.listdir(root) == []


def test_entry_of_this_boot_is_trusted_by_a_new_process_without_reading(root: Path) -> None:
    put(Store(root, 1000), b"a" * 500).release()
    assert look(Store(root, 1000), b"a" * 500)


def test_changed_file_is_not_trusted_and_dropped_when_wrong(root: Path) -> None:
    put(Store(root, 1000), b"right").release()
    path = root / sha(b"right")
    path.chmod(0o755)
    path.write_bytes(b"wrong")
    path.chmod(0o555)
    store = Store(root, 1000)
    assert store.hold(sha(b"right")) is None
    assert store.verify(sha(b"right"), never) is None
    assert not path.exists()


def test_change_while_running_is_noticed(root: Path) -> None:
    store = Store(root, 1000)
    put(store, b"right").release()
    path = root / sha(b"right")
    path.chmod(0o755)
    assert not look(store, b"right")
    path.write_bytes(b"wrong")
    path.chmod(0o555)
    assert not look(store, b"right")


@pytest.mark.parametrize("damage", ["times", "mode"])
def test_right_bytes_are_repaired_instead_of_fetched_again(root: Path, damage: str) -> None:
    store = Store(root, 1000)
    put(store, b"right").release()
    path = root / sha(b"right")
    if damage == "times":
        os.utime(path)
    else:
        path.chmod(0o777)
    assert not look(store, b"right")
    held = store.verify(sha(b"right"), never)
    assert held is not None
    assert stat.S_IMODE(held.path.stat().st_mode) == 0o555
    held.release()
    assert look(Store(root, 1000), b"right")


def test_truncated_entry_is_dropped_even_if_its_time_is_right(root: Path) -> None:
    store = Store(root, 1000)
    put(store, b"right").release()
    path = root / sha(b"right")
    found = path.stat()
    os.truncate(path, 3)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert store.verify(sha(b"right"), never) is None


def test_verification_can_be_cancelled_and_keeps_the_entry(root: Path) -> None:
    store = Store(root, 1000)
    put(store, b"right").release()
    os.utime(root / sha(b"right"))

    def stop() -> None:
        raise FetchCancelled("stop")

    with pytest.raises(FetchCancelled):
        store.verify(sha(b"right"), stop)
    assert (root / sha(b"right")).exists()


def test_second_publisher_gets_the_entry_that_is_there(root: Path) -> None:
    store = Store(root, 1000)
    first = put(store, b"same")
    inode = first.path.stat().st_ino
    with put(store, b"same") as second:
        assert second.path.stat().st_ino == inode
    first.release()


def test_publisher_replaces_what_is_not_trusted(root: Path) -> None:
    store = Store(root, 1000)
    (root / sha(b"right")).write_bytes(b"wrong")
    with put(store, b"right") as artifact:
        assert artifact.path.read_bytes() == b"right"


def test_symbolic_link_in_place_of_an_entry_is_not_followed(root: Path) -> None:
    store = Store(root, 1000)
    (root / sha(b"right")).symlink_to("/bin/sh")
    with pytest.raises(CacheUnusable, match=str(root)):
        store.hold(sha(b"right"))


def test_refuses_a_directory_that_others_can_write(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(CacheUnusable, match="mode 0777") as caught:
        Store(root, 1000)
    assert caught.value.node_fault


def test_refuses_a_file_in_place_of_the_directory(root: Path) -> None:
    root.write_text("")
    with pytest.raises(CacheUnusable, match="not a directory"):
        Store(root, 1000)
    with pytest.raises(CacheUnusable):
        Store(root / "below", 1000)
