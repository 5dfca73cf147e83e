"""The table of keys that no node could serve, in SQLAlchemy; a test holds it together with the migrations."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, ForeignKeyConstraint, PrimaryKeyConstraint, Table, Text, text

from app.storage.tables import metadata

unrunnable_key = Table(
    "unrunnable_key",
    metadata,
    Column("key_id", BigInteger, nullable=False),
    Column("code", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("since", DateTime(timezone=True), server_default=text("now()"), nullable=False),
    PrimaryKeyConstraint("key_id", name="pk_unrunnable_key"),
    ForeignKeyConstraint(["key_id"], ["scheduling_key.id"], name="fk_unrunnable_key_key", ondelete="CASCADE"),
)
