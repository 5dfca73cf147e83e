"""The witness file: what the jobs themselves wrote down, and the stretches of time in which each attempt was alive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RESOLUTION_S = 0.01
"""/proc/uptime counts hundredths."""


@dataclass(frozen=True)
class Line:
    """One line: start, alive or end; boot seconds rounded down to hundredths. `slice_bytes`: its share of the GPU.

    A member of a gang names its attempt NUMBER.MEMBER.
    """

    word: str
    job_id: str
    attempt: int
    at: float
    gpus: tuple[str, ...] = ()
    slice_bytes: int | None = None
    member: int = 0


@dataclass(frozen=True)
class Life:
    """One attempt, or member of one, as seen from inside: first line to last, which may be before its real end."""

    job_id: str
    attempt: int
    begins: float
    ends: float
    starts: int
    ended: bool
    gpus: tuple[str, ...]
    slice_bytes: int | None = None
    member: int = 0


def read_witness(path: Path) -> list[Line]:
    """All lines of the file. Raises ValueError for one that no job could have written whole."""
    return [_parse(text) for text in path.read_text(encoding="ascii").splitlines()]


def _parse(text: str) -> Line:
    words = text.split(" ")
    if len(words) != 5 or words[0] not in {"start", "alive", "end"}:
        raise ValueError(f"the witness has the line {text!r}, which no job writes")
    named, _, size = words[4].partition("@")
    gpus = () if named == "-" else tuple(named.split(","))
    number, _, member = words[2].partition(".")
    slice_bytes = int(size) if size else None
    return Line(words[0], words[1], int(number), float(words[3]), gpus, slice_bytes, int(member or 0))


def lives(lines: Iterable[Line]) -> list[Life]:
    """The life of each attempt, of gangs each member's, in the order of jobs, attempts and members."""
    by_attempt: dict[tuple[str, int, int], list[Line]] = {}
    for line in lines:
        by_attempt.setdefault((line.job_id, line.attempt, line.member), []).append(line)
    return [
        Life(
            job_id=job_id,
            attempt=attempt,
            begins=min(line.at for line in told),
            ends=max(line.at for line in told),
            starts=sum(line.word == "start" for line in told),
            ended=any(line.word == "end" for line in told),
            gpus=told[0].gpus,
            slice_bytes=told[0].slice_bytes,
            member=member,
        )
        for (job_id, attempt, member), told in sorted(by_attempt.items())
    ]
