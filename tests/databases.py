"""Databases for tests: copies of a migrated template, each for one test at a time.

To empty a copy takes a fraction of the time that a new one takes, so copies are used again, each time under a new name:
whoever still has the old name cannot reach it. A copy whose schema a test has changed is dropped.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import closing

import psycopg2
from psycopg2.extensions import connection as Connection

# Everything that a copy must have again is kept in a schema of its own; a trigger notes every change of the schema.
REMEMBER = """
CREATE SCHEMA keepsake;
GRANT USAGE ON SCHEMA keepsake TO PUBLIC;
CREATE TABLE keepsake.change (tag text);
GRANT INSERT ON keepsake.change TO PUBLIC;
CREATE FUNCTION keepsake.note() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO keepsake.change VALUES (tg_tag); END $$;
DO $$
DECLARE name text; filled boolean;
BEGIN
    FOR name IN SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', name) INTO filled;
        IF filled THEN
            EXECUTE format('CREATE TABLE keepsake.%I AS TABLE public.%I', 'rows_' || name, name);
        END IF;
    END LOOP;
END $$;
CREATE EVENT TRIGGER keepsake_made ON ddl_command_end EXECUTE FUNCTION keepsake.note();
CREATE EVENT TRIGGER keepsake_dropped ON sql_drop EXECUTE FUNCTION keepsake.note();
"""

# As a replica no trigger of a table runs and no foreign key is looked at. Returns the tables that had rows.
EMPTY = """
SET session_replication_role = replica;
CREATE FUNCTION pg_temp.empty() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE name text; emptied text[] := '{}';
BEGIN
    FOR name IN SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
        AND pg_relation_size(oid) > 0 LOOP
        EXECUTE format('DELETE FROM public.%I', name);
        emptied := emptied || format('public.%I', name);
    END LOOP;
    FOR name IN SELECT substr(relname, 6) FROM pg_class WHERE relnamespace = 'keepsake'::regnamespace
        AND relname LIKE 'rows_%' LOOP
        EXECUTE format('INSERT INTO public.%I OVERRIDING SYSTEM VALUE TABLE keepsake.%I', name, 'rows_' || name);
    END LOOP;
    PERFORM setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false) FROM pg_sequences
        WHERE last_value IS NOT NULL;
    RETURN emptied;
END $$;
"""


class Databases:
    """The databases of one server, whose `url` leads to each by its name."""

    def __init__(self, url: Callable[[str], str], template: str) -> None:
        self._url = url
        self._template = template
        self._copies: set[str] = set()
        self._free: list[str] = []

    def take(self) -> str:
        """The name of a copy of the template that nobody has used, or that looks so."""
        name = _name()
        if self._free:
            self._run(f"ALTER DATABASE {self._free.pop()} RENAME TO {name}")
        else:
            self._run(f"CREATE DATABASE {name} TEMPLATE {self._template}")
        self._copies.add(name)
        return name

    def take_empty(self) -> str:
        """The name of a database without any table."""
        name = _name()
        self._run(f"CREATE DATABASE {name}")
        return name

    def give_back(self, name: str) -> None:
        """Takes a database back, whoever is still connected to it."""
        if name in self._copies:
            self._copies.discard(name)
            parked = _name()
            self._part(name, parked)
            if self._empty(parked):
                self._free.append(parked)
                return
            name = parked
        self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _part(self, name: str, parked: str) -> None:
        """Gives the database another name once nobody is connected to it."""
        self._run(
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'",
            f"ALTER DATABASE {name} RENAME TO {parked}",
            f"ALTER DATABASE {parked} ALLOW_CONNECTIONS true",
        )

    def _empty(self, name: str) -> bool:
        """Makes the database look like its template; false when its schema is another."""
        with closing(_connect(self._url(name))) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT EXISTS (SELECT FROM keepsake.change)")
            [(changed,)] = cursor.fetchall()
            if changed:
                return False
            cursor.execute(EMPTY)
            cursor.execute("SELECT pg_temp.empty()")
            [(emptied,)] = cursor.fetchall()
            if emptied:
                cursor.execute(f"VACUUM {', '.join(emptied)}")
        return True

    def _run(self, *statements: str) -> None:
        with closing(_connect(self._url("postgres"))) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def _connect(url: str) -> Connection:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def _name() -> str:
    return f"t_{uuid.uuid4().hex[:12]}"
