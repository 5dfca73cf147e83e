"""A load: jobs with the times when they are submitted, what they ask for and how long they run; as CSV too."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from app.domain.priority import PriorityClass

CLASSES = {cls.word: cls for cls in PriorityClass}


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One job: `gpus` and `gpu_memory_gb` of each of its `gang` members; times in seconds.

    `runtime_s` is how long it would run undisturbed, `limit_s` the limit that its user asked for; the run ends at the
    lesser of both.
    """

    submit_s: float
    tenant: str
    class_: str
    gpus: int
    gpu_memory_gb: int
    runtime_s: float
    limit_s: float
    gang: int = 1

    @property
    def runs_s(self) -> float:
        """How long it really runs."""
        return min(self.runtime_s, self.limit_s)

    @property
    def all_gpus(self) -> int:
        """GPUs over all members."""
        return self.gpus * self.gang


COLUMNS = tuple(field.name.rstrip("_") for field in fields(TraceJob))


class TraceError(ValueError):
    """A trace cannot be read: the file, the line, what was wrong with which value."""


def read_trace(path: Path) -> list[TraceJob]:
    """The jobs of a CSV file with a header of COLUMNS in any order (`gang` and `limit_s` may be missing), by time.

    Raises TraceError.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            missing = {*COLUMNS} - {"gang", "limit_s"} - {*(reader.fieldnames or ())}
            if missing:
                raise TraceError(f"{path}: the header lacks {', '.join(sorted(missing))}; it has {reader.fieldnames}")
            jobs = [_job(row, f"{path}:{reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise TraceError(f"{path}: cannot be read: {exc}") from exc
    if not jobs:
        raise TraceError(f"{path}: has no jobs")
    return sorted(jobs, key=lambda job: job.submit_s)


def write_trace(path: Path, jobs: Iterable[TraceJob]) -> None:
    """Writes the jobs as `read_trace` reads them."""
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(COLUMNS)
        writer.writerows(astuple(job) for job in jobs)


def _job(row: dict[str, str | None], where: str) -> TraceJob:
    def number(name: str, least: float, default: float | None = None) -> float:
        text = (row.get(name) or "").strip()
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise TraceError(f"{where}: {name} must be a number of at least {least:g}, not {text[:40]!r}")
        return value

    word = (row.get("class") or "").strip()
    if word not in CLASSES:
        raise TraceError(f"{where}: class must be one of {', '.join(CLASSES)}, not {word[:40]!r}")
    runtime = number("runtime_s", 0.0)
    return TraceJob(
        number("submit_s", 0.0), (row.get("tenant") or "").strip() or "default", word, int(number("gpus", 0)),
        int(number("gpu_memory_gb", 0)), runtime, number("limit_s", 1.0, max(1.0, runtime)), int(number("gang", 1, 1)),
    )  # fmt: skip
