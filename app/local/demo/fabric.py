"""A fabric of its own in a temporary directory, started by `cfab up` as a child and ended with nothing left."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from app.cli.client import Client
from app.cli.failure import ExitCode, Failure
from config.settings import child_environment

GPUS = "2xT4-16GB"
START_S = 120.0
STOP_S = 30.0
# What a demo takes from its user's settings; all others, above all those that name servers, are left out.
_KEPT = ("CFAB_SANDBOX", "CFAB_LOG_LEVEL", "CFAB_JOB_NETWORK", "CFAB_JOB_UID_BASE")
_PR_SET_PDEATHSIG = 1
_SOURCES = Path(__file__).parents[3]


class Fabric:
    """A running `cfab up` with one worker, which pretends to have GPUS; `client` speaks to it."""

    def __init__(self, root: Path) -> None:
        self.data = root / "data"
        self.output = root / "up.log"
        self.port, self.flower_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._child = self._start()

    @property
    def client(self) -> Client:
        """A client of its own for each use: connections are not shared between threads."""
        return Client(self.url, (self.data / "secrets" / "api_token").read_text().strip())

    @property
    def pid(self) -> int:
        """The process of `cfab up`, the ancestor of all but the keepers and their jobs."""
        return self._child.pid

    def wait_ready(self) -> None:
        """Return when the API answers and a worker has registered. Raises Failure with the stack's own words."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                raise Failure(ExitCode.UNREACHABLE, f"`cfab up` ended with {self._child.returncode}:\n{self.tail()}")
            try:
                if self.client.executors():
                    return
            except (Failure, FileNotFoundError):
                pass
            time.sleep(0.05)
        raise Failure(ExitCode.TIMEOUT, f"`cfab up` was not ready after {START_S:g} s:\n{self.tail()}")

    def worker(self) -> psutil.Process | None:
        """The worker's main process as the supervisor runs it now."""
        for process in psutil.Process(self._child.pid).children(recursive=True):
            try:
                if "worker" in process.cmdline()[1:]:
                    return process
            except psutil.Error:
                continue
        return None

    def wait_new_worker(self, dead_pid: int) -> None:
        """Return when another worker than `dead_pid` runs. Raises Failure when none comes."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            worker = self.worker()
            if worker is not None and worker.pid != dead_pid:
                return
            time.sleep(0.02)
        raise Failure(ExitCode.TIMEOUT, f"no new worker came after process {dead_pid}:\n{self.tail()}")

    def tail(self) -> str:
        """The end of what `cfab up` printed."""
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        return "\n".join(text.splitlines()[-20:])

    def stop(self) -> list[str]:
        """End it as Ctrl-C does, then by force what is left; returns the command lines of what had to be forced."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                pass
        return self._end_rest()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "app.cli.main", "up", "--data", str(self.data)]
        command += ["--port", str(self.port), "--flower-port", str(self.flower_port), "--workers", "1"]
        command += ["--ai-port", "0", "--gpu-port", "0", "--simulate-gpus", GPUS]
        environment = {k: v for k, v in child_environment({}).items() if not k.startswith("CFAB_") or k in _KEPT}
        # The same code as this, also where it runs from a source tree that is not installed.
        environment["PYTHONPATH"] = os.pathsep.join((str(_SOURCES), *filter(None, (environment.get("PYTHONPATH"),))))
        prctl = ctypes.CDLL(None, use_errno=True).prctl

        def end_with_parent() -> None:
            # If the demo itself is killed, its fabric must not stay.
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with self.output.open("wb") as output:
            # A session of its own: Ctrl-C reaches the demo alone, which then ends the fabric in order.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def _end_rest(self) -> list[str]:
        """Kill every process that names the data directory or works in it: only those of this very fabric do."""
        left: dict[psutil.Process, str] = {}
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                places = (*words, process.cwd())
                if process.pid != os.getpid() and any(place.startswith(str(self.data)) for place in places):
                    left[process] = " ".join(words)
                    process.kill()
            except psutil.Error:
                continue
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        psutil.wait_procs(left, timeout=STOP_S)
        return list(left.values())


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory that other users may pass through but not list: the database and the jobs are not this user."""
    root = Path(tempfile.mkdtemp(prefix="cfab-demo-"))
    root.chmod(0o711)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
