"""Keeps counts cheap to read also when no scheduler folds their changes: then their readers do."""

from __future__ import annotations

from app.services.recover import fold_stats
from app.storage.database import Database

UNFOLDED = 50_000
"""Count changes that readers may have to add up: some 10 ms. They fold what is above it."""


def fold_when_many(db: Database, unfolded: int) -> None:
    """Folds when so many count changes wait that reading them costs.

    Call outside of a transaction. Bounded; another that folds just now makes this do nothing.
    """
    if unfolded > UNFOLDED:
        fold_stats(db, 2 * UNFOLDED)
