"""The control group layers against a made-up file system: what is written where, and what is read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.sandbox.cgroup_v1 import V1Layer, find_v1
from workers.sandbox.cgroup_v2 import SUPERVISOR, V2Layer, find_v2
from workers.sandbox.cgroups import Limits, Mount, find_mounts, layer_from

MIB = 1 << 20


def proc(tmp_path: Path, cgroup: str, mountinfo: str) -> str:
    (tmp_path / "self").mkdir(parents=True)
    (tmp_path / "self" / "cgroup").write_text(cgroup, encoding="ascii")
    (tmp_path / "self" / "mountinfo").write_text(mountinfo, encoding="ascii")
    return str(tmp_path)


def read(path: Path) -> str:
    return path.read_text(encoding="ascii")


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose control files exist as soon as a group is made, as the kernel does it."""
    real = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        real(path, mode)
        for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cgroup.kill", "cgroup.procs"):
            Path(path, name).touch()

    monkeypatch.setattr("workers.sandbox.cgroup_v2.os.mkdir", mkdir)
    return tmp_path


def test_v2_limits_are_written_as_the_kernel_documents_them(v2: Path) -> None:
    group = V2Layer(str(v2)).create("a1", Limits(memory_bytes=64 * MIB, cpus_milli=1500, pids_max=100))
    folder = v2 / "a1"
    assert read(folder / "memory.max") == str(64 * MIB)
    assert read(folder / "memory.swap.max") == "0"
    assert read(folder / "pids.max") == "100"
    assert read(folder / "cpu.max") == "150000 100000"
    assert list(group.join_paths()) == [f"{folder}/cgroup.procs"]


def test_v2_leaves_unasked_limits_alone(v2: Path) -> None:
    V2Layer(str(v2)).create("a1", Limits())
    assert all(read(v2 / "a1" / name) == "" for name in ("memory.max", "pids.max", "cpu.max"))


def test_v2_kill_writes_the_kill_file(v2: Path) -> None:
    group = V2Layer(str(v2)).create("a1", Limits())
    group.kill()
    assert read(v2 / "a1" / "cgroup.kill") == "1"


def test_v2_usage_is_read_from_the_documented_files(tmp_path: Path) -> None:
    folder = tmp_path / "a1"
    folder.mkdir()
    (folder / "memory.current").write_text("4096\n", encoding="ascii")
    (folder / "memory.peak").write_text("8192\n", encoding="ascii")
    (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n", encoding="ascii")
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n", encoding="ascii")
    usage = V2Layer(str(tmp_path)).open("a1").usage()
    assert (usage.memory_bytes, usage.peak_memory_bytes, usage.cpu_seconds, usage.oom_kills) == (4096, 8192, 2.5, 1)


def test_group_that_is_gone_reads_as_empty(tmp_path: Path) -> None:
    for layer in (V2Layer(str(tmp_path)), V1Layer({"memory": str(tmp_path), "pids": str(tmp_path)})):
        group = layer.open("gone")
        assert group.pids() == []
        assert group.usage().oom_kills == 0
        assert group.remove()


def test_v2_is_not_taken_without_its_controllers(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset\n", encoding="ascii")
    mount = Mount(str(tmp_path), str(tmp_path), frozenset(), 2)
    assert find_v2("cfab-x", [mount]) is None
    assert not (tmp_path / "cfab-x").exists()


def test_v2_worker_in_its_own_leaf_uses_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n", encoding="ascii")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n", encoding="ascii")
    (tmp_path / "cfab-x").mkdir()
    (tmp_path / "cfab-x" / "cgroup.subtree_control").write_text("cpu memory pids\n", encoding="ascii")
    leaf = tmp_path / SUPERVISOR
    leaf.mkdir()

    mount = Mount(str(tmp_path), str(leaf), frozenset(), 2)
    # The kernel adds "+memory" to the enabled controllers; a plain file would hold just that text.
    monkeypatch.setattr("workers.sandbox.cgroup_v2.write_text", lambda path, text: None)
    layer = find_v2("cfab-x", [mount])
    assert layer is not None and layer.describe() == {"kind": "v2", "root": str(tmp_path / "cfab-x")}


def test_v1_spreads_limits_over_the_hierarchies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = {}
    for name in ("memory", "pids", "cpu", "cpuacct"):
        (tmp_path / name).mkdir()
        roots[name] = str(tmp_path / name)
    created = V1Layer(roots)
    made: list[str] = []

    def note(path: str, text: str) -> None:
        made.append(f"{Path(path).parent.parent.name}/{Path(path).name}={text}")

    monkeypatch.setattr("workers.sandbox.cgroup_v1.write_text", note)
    group = created.create("a1", Limits(memory_bytes=MIB, cpus_milli=250, pids_max=9))
    assert made == [
        f"memory/memory.limit_in_bytes={MIB}", "pids/pids.max=9", "cpu/cpu.cfs_period_us=100000",
        "cpu/cpu.cfs_quota_us=25000",
    ]  # fmt: skip
    assert len(group.join_paths()) == 4
    assert group.remove() and not (tmp_path / "memory" / "a1").exists()


def test_v1_needs_memory_and_pids(tmp_path: Path) -> None:
    cpu = Mount(str(tmp_path), str(tmp_path), frozenset({"cpu"}), 1)
    assert find_v1("cfab-x", [cpu]) is None


def test_layer_travels_as_a_description(tmp_path: Path) -> None:
    for layer in (V2Layer(str(tmp_path)), V1Layer({"memory": str(tmp_path), "pids": str(tmp_path)})):
        assert layer_from(layer.describe()).describe() == layer.describe()


def test_own_place_is_found_in_a_plain_host(tmp_path: Path) -> None:
    folder = proc(
        tmp_path,
        "4:memory:/user/x\n3:cpu,cpuacct:/\n0::/user.slice\n",
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n",
    )
    memory, cpu, unified = find_mounts(folder)
    assert (memory.own, memory.controllers) == ("/sys/fs/cgroup/memory/user/x", frozenset({"memory"}))
    assert (cpu.own, cpu.controllers) == ("/sys/fs/cgroup/cpu", frozenset({"cpu", "cpuacct"}))
    assert (unified.own, unified.version) == ("/sys/fs/cgroup/unified/user.slice", 2)


def test_own_place_is_found_inside_a_container(tmp_path: Path) -> None:
    folder = proc(
        tmp_path,
        "4:memory:/docker/abc\n",
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    )
    (memory,) = find_mounts(folder)
    assert memory.own == "/sys/fs/cgroup/memory"
