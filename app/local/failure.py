"""The one exception of the one-machine stack: a sentence for a person, never a traceback."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot start or go on; the message says what is wrong, with what value, and what to do."""


class AnotherVersion(StackError):
    """What is there was made by another version, so that this one will never start on it."""
