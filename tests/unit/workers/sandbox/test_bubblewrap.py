"""The bubblewrap command line: what is shown, what is covered, which GPU nodes a job gets."""

from __future__ import annotations

from pathlib import Path

from workers.sandbox.bubblewrap import bubblewrap_argv, device_nodes, gpu_minors, visible_among


def pairs(argv: list[str], option: str) -> list[tuple[str, str]]:
    return [(argv[i + 1], argv[i + 2]) for i, word in enumerate(argv) if word == option]


def test_only_the_work_directory_is_writable() -> None:
    argv = bubblewrap_argv("bwrap", work="/data/a1/work", executable="/cache/abc")
    assert pairs(argv, "--bind") == [("/data/a1/work", "/data/a1/work")]
    assert pairs(argv, "--ro-bind") == [("/cache/abc", "/cache/abc")]
    assert argv[-1] == "--"


def test_files_of_the_job_are_shown_read_only() -> None:
    argv = bubblewrap_argv("bwrap", work="/usr/share/w", files="/usr/share/f", hide=["/usr/share"])
    assert ("/usr/share/f", "/usr/share/f") in pairs(argv, "--ro-bind")
    assert argv.index("/usr/share") < argv.index("/usr/share/f")


def test_covers_come_before_what_is_shown_again() -> None:
    argv = bubblewrap_argv("bwrap", work="/usr/share/w", executable="/usr/share/x", hide=["/usr/share"])
    assert argv.index("/usr/share") < argv.index("/usr/share/x") < argv.index("/usr/share/w")


def test_network_goes_only_when_told() -> None:
    assert "--unshare-net" not in bubblewrap_argv("bwrap", work="/w")
    assert "--unshare-net" in bubblewrap_argv("bwrap", work="/w", network="none")


def test_only_what_would_be_visible_is_covered() -> None:
    assert visible_among(["/usr/share", "/var", "/usr/nonexistent"]) == ["/usr/share"]


def test_job_without_gpus_gets_no_gpu_node() -> None:
    assert device_nodes([]) == []
    assert not any("nvidia" in word for word in bubblewrap_argv("bwrap", work="/w"))


def test_job_gets_its_own_gpus_by_uuid(tmp_path: Path) -> None:
    for number, uuid in ((0, "GPU-a"), (1, "GPU-b"), (2, "GPU-c")):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        text = f"Model: \t\t X\nGPU UUID: \t {uuid}\nDevice Minor: \t {number}\n"
        (folder / "information").write_text(text, encoding="ascii")
    assert gpu_minors(str(tmp_path)) == {"GPU-a": "0", "GPU-b": "1", "GPU-c": "2"}
    nodes = device_nodes(["GPU-c", "GPU-a"], str(tmp_path))
    assert [node for node in nodes if node[-1].isdigit()] == ["/dev/nvidia2", "/dev/nvidia0"]
    assert "/dev/nvidiactl" in nodes
