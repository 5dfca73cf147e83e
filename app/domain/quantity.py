"""Quantities as Kubernetes writes them (resource.Quantity): 500m, 2, 1.5, 8Gi, 1G, 1e9."""

from __future__ import annotations

import re
from fractions import Fraction

_FORM = re.compile(
    r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,2})?"
)
_SCALE: dict[str, int | Fraction] = {
    "m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


def parse_quantity(text: str) -> Fraction:
    """The exact number that `text` stands for. Raises ValueError for anything else, and for negative ones."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError("is not a quantity such as 2, 500m, 8Gi or 512Mi")
    number, suffix = Fraction(match[1]), match[2] or ""
    if suffix in _SCALE:
        return number * _SCALE[suffix]
    return number * _power_of_ten(int(suffix[1:])) if suffix else number


def _power_of_ten(exponent: int) -> Fraction:
    return Fraction(10**exponent) if exponent >= 0 else Fraction(1, 10**-exponent)


def cpu_text(milli: int) -> str:
    """Thousandths of a CPU in Kubernetes' form: whole CPUs as 32, others as 1500m."""
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def memory_text(size: int) -> str:
    """Bytes with the largest binary suffix that divides them; whole MiB of what no suffix divides."""
    if size == 0:
        return "0"
    for suffix, unit in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20)):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return f"{size // 2**20}Mi"
