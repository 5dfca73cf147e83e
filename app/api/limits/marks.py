"""The mark that puts a view into a group of the table of limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

View = TypeVar("View", bound=Callable[..., Any])

UNLIMITED = "unlimited"
"""The group of what must always answer, such as health: never counted, never refused."""
REST = "*"
"""The group of views without a mark, and of those whose group has no row of its own."""


def limited(group: str) -> Callable[[View], View]:
    """Marks a view as one of `group`; the table's row for its contract and this group applies."""

    def mark(view: View) -> View:
        view._limit_group = group  # type: ignore[attr-defined]
        return view

    return mark


def group_of(view: Callable[..., Any] | None) -> str:
    """The group that a view was marked with, or `*`."""
    return str(getattr(view, "_limit_group", REST))
