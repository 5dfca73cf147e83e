"""`cfab up` as a user meets it: refusals before anything starts, kills of any part or all of it, a clean end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg2
import pytest
import requests

from app.local.data import DataDirectory
from app.local.failure import StackError
from app.local.ports import free_port
from app.local.processes import Process, command_line, find, wait_gone

ROOT = Path(__file__).parents[2]
CFAB = (sys.executable, "-m", "app.cli.main")
START_S = 90.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that the database's user may pass through; pytest's own it may not."""
    root = Path(tempfile.mkdtemp(prefix="cfab-stack-", dir="/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


def cfab(*words: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run([*CFAB, *words], capture_output=True, text=True, timeout=START_S, cwd=ROOT, check=False)


def refusal(*words: str) -> str:
    """What `cfab up` says when it refuses: one line, no traceback, exit code 2."""
    done = cfab("up", *words)
    assert done.returncode == 2, done.stderr + done.stdout
    assert done.stderr.startswith("cfab up: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


class Running(NamedTuple):
    """One `cfab up`, without workers unless asked for."""

    popen: subprocess.Popen[str]
    data: Path
    port: int

    def call(self, method: str, path: str, **options: object) -> requests.Response:
        token = (self.data / "secrets" / "api_token").read_text().strip()
        url = f"http://127.0.0.1:{self.port}/api/v1{path}"
        return requests.request(method, url, headers={"Authorization": f"Bearer {token}"}, timeout=10, **options)  # type: ignore[arg-type]

    def parts(self) -> list[Process]:
        """Every process that belongs to it: recorded, its children, and all that name its directory."""
        found = []
        for entry in Path("/proc").iterdir():
            process = find(int(entry.name)) if entry.name.isdigit() else None
            if process is None or process.pid == os.getpid():
                continue
            try:
                cwd = str((entry / "cwd").readlink())
            except OSError:
                continue
            if cwd.startswith(str(self.data)) or str(self.data) in " ".join(command_line(process.pid)):
                found.append(process)
        return found

    def stop(self) -> str:
        """Ends it as Ctrl-C does; what it said."""
        self.popen.send_signal(signal.SIGINT)
        return self.popen.communicate(timeout=60)[0]


@pytest.fixture
def up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    """Starts `cfab up` on one and the same data directory, as often as it is called."""
    started: list[Running] = []
    # Jobs write what they witness into the test's own directory.
    monkeypatch.setenv("CFAB_SANDBOX", "off")

    def start(*words: str) -> Running:
        port, flower = free_port(), free_port()
        options = ["--data", str(folder / "data"), "--port", str(port), "--flower-port", str(flower), "--workers", "0"]
        with (folder / "up.log").open("a") as log:
            popen = subprocess.Popen(
                [*CFAB, "up", *options, *words], stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )
        running = Running(popen, folder / "data", port)
        started.append(running)
        assert popen.stdout is not None
        for line in popen.stdout:
            if line.startswith("ready"):
                return running
        pytest.fail((folder / "up.log").read_text())

    yield start
    for running in started:
        if running.popen.poll() is None:
            running.stop()
        for process in running.parts():
            process.signal(signal.SIGKILL)


def test_the_token_and_the_refusals_of_a_second_stack(up: Callable[..., Running]) -> None:
    running = up()

    assert cfab("token", "--data", str(running.data)).stdout.strip() == (
        (running.data / "secrets" / "api_token").read_text().strip()
    )
    others = ("--port", str(free_port()), "--flower-port", str(free_port()))
    second = refusal("--data", str(running.data), *others)
    assert f"another `cfab up` (process {running.popen.pid}) uses {running.data}" in second
    elsewhere = str(running.data.parent / "elsewhere")
    taken = refusal("--data", elsewhere, "--port", str(running.port), "--flower-port", str(free_port()))
    assert f"port {running.port} on 127.0.0.1 is taken" in taken
    assert "--port" in taken
    for secret in (running.data / "secrets").iterdir():
        assert secret.stat().st_mode & 0o077 == 0

    said = running.stop()

    assert running.popen.returncode == 0
    assert said.splitlines()[-1].startswith("stopping: running jobs are told to end")
    assert running.parts() == []
    # The part that was refused for its port left nothing running either.
    assert find(running.popen.pid) is None


def test_what_was_accepted_survives_kill_9_of_the_supervisor_and_of_everything(up: Callable[..., Running]) -> None:
    running = up()
    body = {"type": "nap", "script": "true", "priority": "background"}
    job = running.call("POST", "/jobs", json=body).json()["id"]

    running.popen.kill()
    assert wait_gone(running.parts(), 30) == [], "the kernel tells the children that their supervisor is gone"
    running.popen.wait()
    running = up()
    assert running.call("GET", f"/jobs/{job}").json()["status"] == "pending"

    for process in running.parts():
        process.signal(signal.SIGKILL)
    running.popen.wait()
    running = up()
    assert running.call("GET", f"/jobs/{job}").json()["status"] == "pending"


def test_each_part_that_is_killed_comes_back(up: Callable[..., Running]) -> None:
    running = up()
    for name in ("valkey", "postgres", "api"):
        record = running.data / "run" / f"{name}.json"
        before = record.read_text()
        pid = int(before.split('"pid": ')[1].split(",")[0])
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda record=record, before=before: record.exists() and record.read_text() != before)  # type: ignore[misc]

    def healthy() -> bool:
        try:
            return running.call("GET", "/health").status_code == 200
        except requests.RequestException:
            return False

    wait_for(healthy)


def test_a_clean_stop_ends_running_jobs_and_the_next_start_runs_them_again(up: Callable[..., Running]) -> None:
    running = up("--workers", "1", "--slots", "2")
    witness = running.data.parent / "witness"
    witness.touch()
    witness.chmod(0o666)
    script = (
        f"trap 'echo bye >> {witness}; exit 1' TERM; echo $CFAB_ATTEMPT >> {witness}; "
        "[ $CFAB_ATTEMPT = 2 ] || while :; do sleep 0.1; done"
    )
    job = running.call("POST", "/jobs", json={"type": "nap", "script": script, "priority": "background"}).json()["id"]
    wait_for(lambda: witness.read_text() == "1\n")

    running.stop()
    assert running.parts() == []

    running = up("--workers", "1", "--slots", "2")
    wait_for(lambda: running.call("GET", f"/jobs/{job}").json()["status"] == "completed")
    # It was told to end, and had its grace.
    assert witness.read_text() == "1\nbye\n2\n"


def test_a_database_of_a_newer_version_is_refused(up: Callable[..., Running]) -> None:
    running = up()
    url = (running.data / "secrets" / "database_url").read_text().strip()
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    running.stop()

    ports = ("--port", str(free_port()), "--flower-port", str(free_port()))
    done = cfab("up", "--data", str(running.data), *ports)

    assert done.returncode == 2
    assert "made by a newer version of this program" in done.stderr
    assert "9999" in done.stderr
    assert "Traceback" not in done.stderr
    assert running.parts() == []


def test_no_auth_is_refused_beyond_this_machine(folder: Path) -> None:
    said = refusal("--data", str(folder / "data"), "--no-auth", "--host", "0.0.0.0")

    assert "--no-auth serves this machine only" in said


def test_flowers_port_is_checked_too(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ("--data", str(folder / "data"), "--port", str(free_port()), "--flower-port", str(port))
        assert f"port {port} on 127.0.0.1 is taken" in refusal(*words)
        assert "--flower-port" in refusal(*words)


def test_a_setting_that_cannot_be_used_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFAB_SANDBOX", "maybe")

    assert "CFAB_SANDBOX='maybe'" in refusal("--data", str(folder / "data"))


def test_gpus_that_cannot_be_pretended_are_refused_before_there_is_anything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder / "data"
    assert "'foo': write a count, a model and a size" in refusal(
        "--data", str(data), "--simulate-gpus", "4xA100-80GB,foo"
    )
    monkeypatch.setenv("CFAB_SIMULATE_GPUS", "bar")
    assert "'bar'" in refusal("--data", str(data))
    assert not data.exists()


def test_a_token_that_was_never_made_is_explained(folder: Path) -> None:
    done = cfab("token", "--data", str(folder / "none"))

    assert done.returncode == 2
    assert "run `cfab up` first" in done.stderr


def test_data_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("format 99\npostgres 42\n")

    with pytest.raises(StackError, match=r"made by another version of cfab \(format 99, postgres 42; this one needs"):
        DataDirectory(tmp_path).open()


def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(StackError, match=r"holds other files \(thesis\.tex"):
        DataDirectory(tmp_path).open()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    with pytest.raises(StackError, match="is no directory"):
        DataDirectory(tmp_path / "data").open()
    with pytest.raises(StackError, match="Not a directory"):
        DataDirectory(tmp_path / "data" / "below").open()


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    with pytest.raises(StackError, match="is full: 5 MiB are left"):
        DataDirectory(tmp_path).open()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every directory")
def test_a_directory_that_may_not_be_used_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(StackError, match="may not be used by this user"):
        DataDirectory(tmp_path / "data").open()


def test_a_start_cut_short_is_taken_up(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path)
    first.open()
    token = first.secret("api_token")
    (tmp_path / "VERSION").unlink()
    (tmp_path / "secrets" / ".api_token.new").write_text("half a tok")
    first.close()

    second = DataDirectory(tmp_path)
    second.open()

    assert second.secret("api_token") == token
    second.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns as soon as the condition holds."""
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        threading.Event().wait(0.05)
