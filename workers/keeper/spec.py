"""What the keeper is asked to run: one attempt's spec, checked before anything is created.

The keeper trusts its client (the socket is 0600) but not the client's arithmetic: a bad value is refused by name.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

DEFAULT_LOG_CAP_BYTES = 64 * 1024 * 1024
DEFAULT_PIDS_MAX = 1024
ATTEMPT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
MAX_FILES = 16
# However they are escaped on the wire, these and the rest of a spec fit into one line of the keeper's.
MAX_FILES_BYTES = 2**20


class BadSpec(ValueError):
    """The spec cannot be run; the message names the field and its value."""


class Spec(NamedTuple):
    """One attempt as it travels over the socket; every time is in seconds, `deadline` on CLOCK_BOOTTIME."""

    attempt_id: str
    argv: list[str]
    env: dict[str, str]
    deadline: float
    job_id: str = ""
    attempt: int = 1
    member: int = 0
    executable: str | None = None
    cpus_milli: int | None = None
    memory_bytes: int | None = None
    pids_max: int = DEFAULT_PIDS_MAX
    slot: int = 0
    time_limit_s: float | None = None
    grace_s: float = 10.0
    log_cap_bytes: int = DEFAULT_LOG_CAP_BYTES
    sandbox: str = "off"
    network: str = "host"
    hide: list[str] | None = None
    gpus: list[str] | None = None
    files: dict[str, str] | None = None


_FIELDS = frozenset(Spec._fields)
_REQUIRED = ("attempt_id", "argv", "env", "deadline")


def _refuse(name: str, value: object, wanted: str) -> BadSpec:
    return BadSpec(f"{name} is {value!r}: it must be {wanted}")


def _number(raw: dict[str, Any], name: str, *, optional: bool, least: float, whole: bool) -> None:
    value = raw.get(name)
    if value is None:
        if not optional and name in raw:
            raise _refuse(name, value, "a number")
        return
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
        raise _refuse(name, value, f"{'a whole number' if whole else 'a number'} of at least {least:g}")


def _strings(raw: dict[str, Any], name: str) -> None:
    value = raw.get(name)
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise _refuse(name, value, "a list of strings without NUL")


def _files(files: object) -> None:
    """Check what comes with the job. What is in the files is never told: it may be secret."""
    if files is None:
        return
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise BadSpec("files must be an object of texts")
    if len(files) > MAX_FILES or not all(FILE_NAME.match(name) for name in files):
        raise _refuse("files", sorted(files)[: MAX_FILES + 1], f"at most {MAX_FILES} plain names")
    try:
        size = sum(len(text.encode()) for text in files.values())
    except UnicodeEncodeError:
        raise BadSpec("files must be Unicode without lone surrogates") from None
    if size > MAX_FILES_BYTES:
        raise BadSpec(f"files have {size} bytes: at most {MAX_FILES_BYTES} are allowed")


def parse_spec(raw: Any) -> Spec:
    """Check a decoded spec and return it. Raises BadSpec naming the first field that is wrong."""
    if not isinstance(raw, dict):
        raise _refuse("spec", raw, "an object")
    missing = [name for name in _REQUIRED if name not in raw]
    unknown = sorted(set(raw) - _FIELDS)
    if missing or unknown:
        raise BadSpec(f"spec lacks {missing} and has unknown fields {unknown}")
    if not isinstance(raw["attempt_id"], str) or not ATTEMPT_ID.match(raw["attempt_id"]):
        raise _refuse("attempt_id", raw["attempt_id"], "1 to 128 letters, digits, '_', '.' or '-'")
    for name in ("argv", "hide", "gpus"):
        _strings(raw, name)
    if not raw["argv"]:
        raise _refuse("argv", raw["argv"], "a list with at least the program's name")
    env = raw["env"]
    if not isinstance(env, dict) or not all(
        isinstance(value, str) and name and "=" not in name and "\0" not in name + value for name, value in env.items()
    ):
        raise _refuse("env", env, "an object of strings whose names hold neither '=' nor NUL")
    _files(raw.get("files"))
    _number(raw, "deadline", optional=False, least=0, whole=False)
    for name, least in (("attempt", 0), ("member", 0), ("pids_max", 1), ("slot", 0), ("log_cap_bytes", 0)):
        _number(raw, name, optional=False, least=least, whole=True)
    for name in ("cpus_milli", "memory_bytes"):
        _number(raw, name, optional=True, least=1, whole=True)
    _number(raw, "time_limit_s", optional=True, least=0, whole=False)
    _number(raw, "grace_s", optional=False, least=0, whole=False)
    if raw.get("sandbox", "off") not in ("off", "bubblewrap"):
        raise _refuse("sandbox", raw["sandbox"], "'off' or 'bubblewrap'")
    if raw.get("network", "host") not in ("host", "none"):
        raise _refuse("network", raw["network"], "'host' or 'none'")
    return Spec(**raw)
