"""How pictures of tables and bars get to standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console, RenderableType

PIPE_WIDTH = 1000
ROOM_FOR_BARS = 120
"""Columns from which on tables have bars beside their figures; below that the figures alone fit."""


def console() -> Console:
    """As wide as the terminal; a pipe has no width of its own, and nothing may be cut or wrapped for it."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def show(draw: Callable[[int], RenderableType]) -> None:
    """Prints what `draw` makes for so many columns."""
    out = console()
    out.print(draw(out.width))
