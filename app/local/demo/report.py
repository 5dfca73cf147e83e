"""What the demo shows: lines as they come, each under its job's name, and the table at the end."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import click

from app.cli.render import plain, table

_COLOURS = ("cyan", "magenta", "blue", "yellow", "bright_cyan", "bright_magenta", "bright_blue", "bright_yellow")


@dataclass(frozen=True)
class Outcome:
    """One thing the demo set out to show: `seen` is what was, `right` whether it is what was `expected`."""

    what: str
    expected: str
    seen: str
    took_s: float
    right: bool


class Report:
    """Lines from several threads, whole and one at a time; remembers the outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._began = time.monotonic()
        self._closed = False
        self._lock = threading.Lock()
        self._colours: dict[str, str] = {}

    def say(self, text: str, who: str = "demo") -> None:
        """Print a line of `who` with the seconds since the start."""
        if self._closed and who != "demo":
            return
        with self._lock:
            colour = self._colours.setdefault(who, _COLOURS[len(self._colours) % len(_COLOURS)])
            name = click.style(f"{who:>12}", fg=None if who == "demo" else colour, bold=who == "demo")
            click.echo(f"{time.monotonic() - self._began:6.1f}s {name} │ {plain(text)}")

    def close(self, text: str) -> None:
        """Print a last line before the end; what jobs say while they are ended is no news."""
        self.say(text)
        self._closed = True

    def table(self) -> str:
        """The outcomes as a table."""
        rows = [
            (one.what, one.expected, plain(one.seen)[:70], f"{one.took_s:.1f}s", _verdict(one.right))
            for one in self.outcomes
        ]
        return table(("WHAT", "EXPECTED", "SEEN", "TIME", ""), rows)


def _verdict(right: bool) -> str:
    return click.style("ok", fg="green") if right else click.style("FAILED", fg="red", bold=True)
