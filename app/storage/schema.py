"""All tables together, for migrations and tests: importing it fills the metadata."""

from __future__ import annotations

from app.storage import array_tables, plan_tables, unrunnable_tables
from app.storage.tables import metadata

__all__ = ["array_tables", "metadata", "plan_tables", "unrunnable_tables"]
