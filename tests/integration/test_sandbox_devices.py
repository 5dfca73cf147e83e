"""Which GPU device nodes a sandboxed job sees: real bubblewrap over a /dev of the test's own with pretended nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
NODES = ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")

# In a mount namespace of its own, so that nobody else ever sees this /dev.
PRETEND = """set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
for name in null zero full random urandom tty; do : > "$1/$name"; mount --bind "/dev/$name" "$1/$name"; done
for name in $2; do : > "$1/$name"; done
mkdir "$1/shm" "$1/pts"
mount --rbind "$1" /dev
shift 2
exec "$@"
"""
LOOK = """import os, sys
from workers.sandbox.bubblewrap import bubblewrap_argv
bwrap, work, driver, gpus = sys.argv[1:]
argv = bubblewrap_argv(bwrap, work=work, gpus=gpus.split(), driver=driver)
os.execv(argv[0], [*argv, "/bin/sh", "-c", "for node in /dev/nvidia*; do [ ! -e $node ] || echo $node; done"])
"""


@pytest.fixture
def bwrap() -> str:
    """bubblewrap, where it and mount namespaces are to be had."""
    program = shutil.which("bwrap")
    if program is None:
        pytest.skip("needs bubblewrap")
    if subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs mount namespaces")
    return program


def seen(bwrap: str, folder: Path, gpus: str, known: bool = True) -> list[str]:
    """The GPU nodes in the sandbox of a job that has these of GPU-0 to GPU-3."""
    dev, work, driver = folder / "dev", folder / "work", folder / "driver"
    for one in (dev, work, driver):
        one.mkdir()
    for number in range(4 if known else 0):
        # The bus has them in another order than their minor numbers say.
        (driver / f"0000:0{4 - number}:00.0").mkdir()
        text = f"GPU UUID: \t GPU-{number}\nDevice Minor: \t {number}\n"
        (driver / f"0000:0{4 - number}:00.0" / "information").write_text(text, encoding="ascii")
    program = [sys.executable, "-c", LOOK, bwrap, str(work), str(driver), gpus]
    told = subprocess.run(
        [*UNSHARE, "sh", "-c", PRETEND, "sh", str(dev), " ".join(NODES), *program],
        check=False, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return [Path(line).name for line in told.stdout.split()]


SHARED = {"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}


@pytest.mark.parametrize(
    ("gpus", "own"),
    [("GPU-2", {"nvidia2"}), ("GPU-3 GPU-0", {"nvidia0", "nvidia3"})],
)
def test_a_job_sees_the_nodes_of_its_own_gpus(bwrap: str, tmp_path: Path, gpus: str, own: set[str]) -> None:
    assert set(seen(bwrap, tmp_path, gpus)) == own | SHARED


def test_a_job_without_gpus_sees_no_node(bwrap: str, tmp_path: Path) -> None:
    assert seen(bwrap, tmp_path, "") == []


def test_where_the_driver_does_not_say_whose_they_are_all_gpus_are_seen_but_nothing_else(
    bwrap: str, tmp_path: Path
) -> None:
    assert set(seen(bwrap, tmp_path, "GPU-1", known=False)) == {*NODES} - {"nvidia-modeset"}
