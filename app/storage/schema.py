"""All tables together, for migrations and tests: importing it fills the metadata."""

from __future__ import annotations

from app.storage import array_tables, history_tables, plan_tables, tracked_tables, unrunnable_tables
from app.storage.tables import metadata

__all__ = ["array_tables", "history_tables", "metadata", "plan_tables", "tracked_tables", "unrunnable_tables"]
