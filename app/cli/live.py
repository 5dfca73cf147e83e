"""A picture that is drawn anew again and again until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from app.cli.failure import ExitCode, Failure
from app.cli.render import plain

OUTAGE_S = 60.0
T = TypeVar("T")


def redraw(first: T, look: Callable[[], T], draw: Callable[[T, int], RenderableType], every_s: float) -> None:
    """Draws `first`, then what `look` finds every `every_s` seconds, for the terminal's width, until Ctrl-C.

    A server that is away for up to OUTAGE_S is waited for, and said so; after that its Failure ends it.
    """
    found, heard, note = first, time.monotonic(), ""
    with Live(Text(""), screen=True, auto_refresh=False) as live:
        live.update(_screen(draw(found, live.console.width), note), refresh=True)
        while True:
            time.sleep(every_s)
            try:
                found, heard, note = look(), time.monotonic(), ""
            except Failure as failure:
                if failure.code is not ExitCode.UNREACHABLE or time.monotonic() - heard > OUTAGE_S:
                    raise
                note = failure.message
            live.update(_screen(draw(found, live.console.width), note), refresh=True)


def _screen(picture: RenderableType, note: str) -> RenderableType:
    last = Text(plain(note), style="red") if note else Text("Ctrl-C ends this", style="dim")
    return Group(picture, Text(""), last)
