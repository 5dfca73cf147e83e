"""A job's words made harmless for a terminal: no escape sequence, no control character, no reordering of text.

What a job prints could otherwise retitle a window, overwrite what was shown before, or answer into the reader's shell.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

# ECMA-48: CSI parameters final; OSC, DCS, SOS, PM, APC up to BEL or ST; two-byte escapes with intermediates.
_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]*[0-Z\\\\`-~]"
)
# What may still become a sequence with the next piece.
_BEGUN = re.compile(
    "(?:(?:\x1b\\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*\x1b?|\x1b[ -/]*|\r+)\\Z"
)
_LINE_END = re.compile("\r+\n|\r")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Marks that reorder or isolate the text around them ("Trojan source").
_REORDERING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LONGEST_HELD = 4096


class Plain:
    """Cleans one stream of text piece by piece; a sequence that is cut between two pieces is still one."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """What can be shown of the text so far. A carriage return begins a new line instead of overwriting one."""
        text = self._held + text
        begun = _BEGUN.search(text)
        # An escape that never ends must not hide all that follows.
        self._held = begun[0] if begun and len(begun[0]) <= LONGEST_HELD else ""
        return clean(text[: len(text) - len(self._held)])

    def rest(self) -> str:
        """What was held back when the stream ends."""
        held, self._held = self._held, ""
        return clean(held)


def clean(text: str) -> str:
    """A whole text without what could drive a terminal; tabs and line ends stay."""
    text = _CONTROL.sub("", _LINE_END.sub("\n", _SEQUENCE.sub("", text)))
    return _REORDERING.sub("\N{REPLACEMENT CHARACTER}", text)


def stamp_of(at: float) -> str:
    """The time (unix) as it stands before a line: in UTC to the millisecond, with a space behind it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") + " "
