"""The exit codes of `cfab` and the one exception that carries them.

docs/errors.md repeats the table for users; a test holds the two together.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What `cfab` tells the shell; the numbers are a promise to scripts and never change."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NOT_FOUND = 5
    TIMEOUT = 6
    OUTPUT_LOST = 7
    INTERRUPTED = 130


class Failure(Exception):
    """What was asked could not be done; `code` is the exit status, `message` one line on standard error."""

    def __init__(self, code: ExitCode, message: str, context: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.context = dict(context or {})

    def line(self, as_json: bool) -> str:
        """What standard error shows; JSON has the form of the API's errors."""
        if as_json:
            return json.dumps({"error": self.message, "context": self.context}, ensure_ascii=False)
        return f"cfab: {self.message}"


def output_lost(exc: OSError) -> Failure:
    """What to say of an output that cannot be written; raises `exc` where it is something else.

    A reader that went away (`cfab ps | head -1`) is no trouble: click ends quietly for that.
    """
    if exc.errno == errno.EPIPE or exc.filename is not None:
        raise exc
    # Python tries again at its end with what it still holds, and would say so in a traceback.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Failure(ExitCode.OUTPUT_LOST, f"the output cannot be written: {exc.strerror or exc}")
