"""Births by a table of system calls: what fails is told, nothing leaks, and the code is what its comment says."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.keeper import spawn
from workers.keeper.child import Birth, open_null_above_gate
from workers.keeper.spawn import CODE, Spawner

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the code is for x86_64")


@pytest.fixture
def births() -> Iterator[Spawner]:
    null_fd = open_null_above_gate()
    yield Spawner(null_fd, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    os.close(null_fd)


def birth(*argv: str, file: str | None = None, cwd: str = "/", path: str = os.defpath) -> Birth:
    return Birth(list(argv), file or argv[0], {"PATH": path, "MARK": "x y"}, cwd, (), None, 100, False)


def run(births: Spawner, one: Birth) -> tuple[int, int, bytes]:
    """The errno that was told, the exit code, and what was printed."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        pid, outcome = births.fork(one, (write_fd, write_fd))
    finally:
        os.close(write_fd)
    with os.fdopen(read_fd, "rb") as printed:
        text = printed.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return outcome.number, code, text


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_program_gets_arguments_environment_directory_and_a_session(births: Spawner, tmp_path: Path) -> None:
    script = 'echo "$1|$MARK|$(pwd)|$(umask)"; test "$(ps -o sid= -p $$ | tr -d " ")" = $$ || exit 9; exit 3'
    number, code, text = run(births, birth("sh", "-c", script, "sh", "two words", cwd=str(tmp_path)))
    assert (number, code, text.decode()) == (0, 3, f"two words|x y|{tmp_path}|0022\n")


def test_what_keeps_a_program_from_running_is_told(births: Spawner, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not executable")
    assert run(births, birth("/nonexistent/program"))[:2] == (errno.ENOENT, 127)
    assert run(births, birth(str(plain)))[:2] == (errno.EACCES, 127)
    assert run(births, birth("true", cwd=str(tmp_path / "missing")))[:2] == (errno.ENOENT, 127)
    assert run(births, birth("true", cwd=str(plain)))[:2] == (errno.ENOTDIR, 127)


def test_path_is_searched_in_order_and_the_telling_error_wins(births: Spawner, tmp_path: Path) -> None:
    for name, mode in (("closed", 0o644), ("open", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_text("#!/bin/sh\nexit 5\n")
        (tmp_path / name / "program").chmod(mode)
    here = f"{tmp_path}/none:{tmp_path}/closed"
    assert run(births, birth("program", path=f"{here}:{tmp_path}/open"))[:2] == (0, 5)
    assert run(births, birth("program", path=f"{here}:{tmp_path}/none"))[:2] == (errno.EACCES, 127)


def test_no_descriptor_is_left_open(births: Spawner) -> None:
    before = open_descriptors()
    for _ in range(3):
        run(births, birth("true"))
        run(births, birth("/nonexistent/program"))
    assert open_descriptors() == before


def test_thousands_of_arguments_arrive(births: Spawner) -> None:
    words = [f"word-{number}" for number in range(20_000)]
    number, code, text = run(births, birth("sh", "-c", 'echo $# "$1" "${20000}"', "sh", *words))
    assert (number, code, text) == (0, 0, b"20000 word-0 word-19999\n")


def test_birth_dies_with_its_parent() -> None:
    """The parent is killed by itself, right after the birth; its child must not live on."""
    program = """
import os, resource, sys
from workers.keeper.child import Birth, open_null_above_gate
from workers.keeper.spawn import Spawner
births = Spawner(open_null_above_gate(), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
births.fork(Birth(["sleep", "1000"], "/bin/sleep", {}, "/", (), None, 100, False), (1, 1))
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False, timeout=30)
    # The pipe's end comes when nobody holds it any more: the sleep had it too.
    assert (done.returncode, done.stdout) == (-9, b"")


@pytest.mark.skipif(shutil.which("as") is None or shutil.which("objcopy") is None, reason="no assembler here")
def test_code_is_what_its_comment_says(tmp_path: Path) -> None:
    lines = Path(spawn.__file__).read_text(encoding="utf-8").splitlines()
    source = [re.sub(r"^#\s|\s# .*", "", line) for line in lines if re.match(r"#\s+(\w+:\s+)?[a-z]+ ?.*[%$;]", line)]
    (tmp_path / "code.s").write_text("\n".join(source) + "\n")
    subprocess.run(["as", "code.s", "-o", "code.o"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "code.o", "code"], cwd=tmp_path, check=True)
    assert (tmp_path / "code").read_bytes() == CODE
