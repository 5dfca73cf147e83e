"""Alembic's entry: one transaction per run, on the connection or URL that the caller hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine

from app.storage.schema import metadata

config = context.config


def run() -> None:
    connection = config.attributes.get("connection")
    if connection is None:
        engine = create_engine(config.get_main_option("sqlalchemy.url") or "")
        with engine.begin() as opened:
            _run(opened)
    else:
        _run(connection)


def _run(connection: object) -> None:
    context.configure(connection=connection, target_metadata=metadata)  # type: ignore[arg-type]
    with context.begin_transaction():
        context.run_migrations()


run()
