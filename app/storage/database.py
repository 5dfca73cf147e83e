"""The unit of work: one short transaction with a name, on a small pool.

Works through transaction pooling: no prepared statements, no session state. A lost or hung server becomes
`Unavailable` within seconds; nothing here retries, because only the caller knows whether that is safe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg2.errors
import psycopg2.extensions
import psycopg2.extras
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.domain.errors import Unavailable
from app.storage.faults import FaultPlan

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]

Row = Any


class Tx:
    """One open transaction. Statements use psycopg2's `%(name)s` parameters."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, params: Mapping[str, Any] | None = None) -> Sequence[Row]:
        """All rows of a statement that returns some."""
        return self._connection.exec_driver_sql(sql, dict(params or {})).fetchall()

    def row(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row, or None."""
        return self._connection.exec_driver_sql(sql, dict(params or {})).first()

    def value(self, sql: str, params: Mapping[str, Any] | None = None) -> Any:
        """The first column of the first row, or None."""
        return self._connection.exec_driver_sql(sql, dict(params or {})).scalar()

    def run(self, sql: str, params: Mapping[str, Any] | None = None) -> int:
        """Runs a statement; the number of rows it touched."""
        return self._connection.exec_driver_sql(sql, dict(params or {})).rowcount

    def locks_within(self, at_most_s: float, sql: str, params: Mapping[str, Any] | None = None) -> bool:
        """Runs a statement that takes locks; whether it got each within `at_most_s`. If not, it has done nothing."""
        usual = self.value("SELECT current_setting('lock_timeout')")
        self.run("SAVEPOINT before_locks")
        try:
            self.run(f"SET LOCAL lock_timeout = {round(at_most_s * 1000)}")
            self.run(sql, params)
        except DBAPIError as exc:
            if not isinstance(exc.orig, psycopg2.errors.LockNotAvailable):
                raise
            # The timeout of this transaction is as it was then, too.
            self.run("ROLLBACK TO SAVEPOINT before_locks")
            return False
        self.run("SELECT set_config('lock_timeout', %(usual)s, true)", {"usual": usual})
        return True


class Database:
    """A pool of at most `pool_size` connections to one PostgreSQL.

    Connections are made when first needed, so that a process may fork after building one. `faults` is None outside
    tests.
    """

    def __init__(
        self,
        url: str,
        pool_size: int = 4,
        application_name: str = "cfab",
        statement_timeout_s: float = 30.0,
        faults: FaultPlan | None = None,
    ) -> None:
        self.faults = faults
        timeout_ms = int(statement_timeout_s * 1000)
        self.engine: Engine = create_engine(
            make_url(url).set(drivername="postgresql+psycopg2"),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            # The connection that was used last has its plans and its memory at hand; taking turns would cool them all.
            pool_use_lifo=True,
            pool_reset_on_return=None,
            connect_args={
                "application_name": application_name,
                "connect_timeout": 5,
                "keepalives_idle": 10,
                "keepalives_interval": 3,
                "keepalives_count": 3,
                "tcp_user_timeout": timeout_ms + 5000,
                "options": f"-c statement_timeout={timeout_ms} -c lock_timeout={timeout_ms // 2}"
                " -c idle_in_transaction_session_timeout=30000 -c TimeZone=UTC -c jit=off",
            },
        )

    @contextmanager
    def transaction(self, name: str = "") -> Iterator[Tx]:
        """A READ COMMITTED transaction: commits at the end of the block, rolls back on any exception.

        Raises Unavailable when the server cannot be reached or ended the connection. After Unavailable the commit may
        or may not have happened: callers must be safe to repeat.
        """
        try:
            with self._connect() as connection:
                with connection.begin():
                    yield Tx(connection)
                    self._strike(name, "before")
                self._strike(name, "after")
        except PoolTimeout as exc:
            raise Unavailable("All database connections are busy; try again.") from exc
        except DBAPIError as exc:
            if exc.connection_invalidated or _is_outage(exc.orig):
                raise Unavailable() from exc
            raise

    def _connect(self) -> Connection:
        # A pooled connection that a server restart killed is noticed here once, not by every caller in turn.
        try:
            connection = self.engine.connect()
            driver = connection.connection.dbapi_connection
            if driver is not None and driver.closed:
                connection.invalidate()
            return connection
        except PoolTimeout:
            raise
        except SQLAlchemyError as exc:
            raise Unavailable() from exc

    def _strike(self, name: str, point: str) -> None:
        if self.faults is not None and self.faults.strikes(name, point):
            raise Unavailable(f"fault on purpose: {name} {point} commit")

    def close(self) -> None:
        """Closes all idle connections."""
        self.engine.dispose()


def _is_outage(error: BaseException | None) -> bool:
    """Whether the driver's error means "not now" rather than "this statement is wrong"."""
    # Syntax, privilege and data errors must surface; an ended server, a shutdown or a timed-out wait must not.
    transient = (
        psycopg2.errors.DeadlockDetected,
        psycopg2.errors.LockNotAvailable,
        psycopg2.errors.QueryCanceled,
        psycopg2.errors.AdminShutdown,
        psycopg2.errors.CrashShutdown,
        psycopg2.errors.CannotConnectNow,
        psycopg2.errors.TooManyConnections,
        psycopg2.errors.ReadOnlySqlTransaction,
        psycopg2.errors.DiskFull,
        psycopg2.errors.IdleInTransactionSessionTimeout,
    )
    if isinstance(error, transient):
        return True
    if not isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return False
    code = getattr(error, "pgcode", None)
    return code is None or str(code)[:2] in {"08", "53", "57", "58"}


def arrays(rows: Sequence[Mapping[str, Any]], *names: str) -> dict[str, list[Any]]:
    """Columns of `rows` as lists, for `unnest`: one statement for a whole batch."""
    return {name: [row[name] for row in rows] for name in names}


def records(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows` as text for `json_to_recordset`: one parameter for a whole batch, cheaper to parse than its arrays."""
    # As text, a number that JSON does not know (an infinite one) arrives like any other.
    named = [{k: str(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    return json.dumps(named, default=str)


Json = psycopg2.extras.Json
