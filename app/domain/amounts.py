"""Shares, names, times and durations in words for people, so that every sentence reads alike."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from app.domain.resources import MIB, Resources
from app.domain.tenant import amount

MB, GIB = 10**6, 2**30


def counted(number: int, word: str) -> str:
    """A number with its word, which gets an s unless the number is one."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def digits(number: float) -> str:
    """A number in digits, without an exponent; one of more than 30 digits as Python writes it."""
    if abs(number) >= 1e30 or not math.isfinite(number):
        return repr(number)
    return f"{number:.0f}" if number == int(number) else f"{number:.15g}"


def gpu_memory(size_bytes: int) -> str:
    """Memory of a GPU as it was asked for: 20 GiB where it is whole MiB and no whole MB, else as on the card, 80 GB."""
    if size_bytes % MIB or not size_bytes % MB:
        return f"{size_bytes / 1e9:.6g} GB"
    return f"{size_bytes / GIB:.6g} GiB" if size_bytes >= GIB else f"{size_bytes // MIB} MiB"


def gpus(need: Resources) -> str:
    """The GPUs of a share, with what each must have."""
    model = f"{need.gpu_model} " if need.gpu_model else ""
    if need.gpu_shared:
        return f"{gpu_memory(need.gpu_memory_bytes)} of a shared {model}GPU"
    each = f" with {gpu_memory(need.gpu_memory_bytes)} or more" if need.gpu_memory_bytes else ""
    return f"{counted(need.gpus, f'{model}GPU')}{each}"


def share(need: Resources) -> str:
    """A whole share: 2 CPUs, 4 GiB of memory and 1 A100 GPU."""
    parts = [amount("cpus_milli", need.cpus_milli), amount("memory_bytes", need.memory_bytes)]
    if need.gpus:
        parts.append(gpus(need))
    return listed(parts)


def listed(parts: list[str]) -> str:
    """Several parts of a sentence: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def named(names: list[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def seconds(duration_s: float) -> str:
    """A duration in its largest two units: 7 s, 3 min 12 s, 2 h 5 min, 4 d 3 h."""
    whole = max(0, round(duration_s))
    for unit, word, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit} {word}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def moment(when: datetime) -> str:
    """A time in whole seconds of UTC."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
