"""Rates and the syntax in which operators write them: `jobs:submit=100/second+5000/hour by subject, jobs:*=off`."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNITS_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
KEYS = ("tenant", "endpoint", "subject", "address")
"""Whose requests are counted together: a tenant's, a tenant's at one endpoint, one caller's, one address's."""
MOST = 10**9

_ENTRY = re.compile(r"([a-z]+):([a-z-]+|\*)=(.+)")
_RATE = re.compile(r"(\d{1,10})/(\d{1,5})?(second|minute|hour|day)s?")


@dataclass(frozen=True)
class Rate:
    """At most `amount` requests in each window of `window_s` seconds; windows begin at multiples of their length."""

    amount: int
    window_s: int

    def __str__(self) -> str:
        unit, length_s = next((u, s) for u, s in reversed(UNITS_S.items()) if self.window_s % s == 0)
        many = self.window_s // length_s
        return f"{self.amount}/{unit}" if many == 1 else f"{self.amount}/{many}{unit}s"


@dataclass(frozen=True)
class LimitRule:
    """What an operator set for a group of a contract's routes; no rates: no limit; key None: the group's own."""

    contract: str
    group: str
    rates: tuple[Rate, ...]
    key: str | None = None


def parse_rules(text: str) -> tuple[LimitRule, ...]:
    """The rules in `text`. Raises ValueError that quotes the entry and says what is allowed."""
    rules = [_rule(entry.strip()) for entry in text.split(",") if entry.strip()]
    names = [f"{rule.contract}:{rule.group}" for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is set twice; join its rates with +, as in {name}=100/second+5000/hour")
    return tuple(rules)


def _rule(entry: str) -> LimitRule:
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise ValueError(f"{entry!r} is not contract:group=rates, as in jobs:submit=100/second")
    contract, group, limits = found.groups()
    words = limits.split()
    if len(words) not in (1, 3) or words[1:2] not in ([], ["by"]) or (words[2:] and words[2] not in KEYS):
        raise ValueError(f"{entry!r} must end with its rates, or with: by {', by '.join(KEYS)}")
    key = words[2] if len(words) == 3 else None
    if words[0] == "off":
        return LimitRule(contract, group, (), key)
    return LimitRule(contract, group, tuple(_rate(entry, rate) for rate in words[0].split("+")), key)


def _rate(entry: str, text: str) -> Rate:
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} in {entry!r} is not a rate such as 100/second, 600/5minutes, 10000/day, or off")
    amount, many, unit = int(found[1]), int(found[2] or 1), found[3]
    if not 1 <= amount <= MOST:
        raise ValueError(f"{text!r} in {entry!r} must allow 1 to {MOST} requests; off means no limit")
    if not 1 <= many * UNITS_S[unit] <= UNITS_S["day"]:
        raise ValueError(f"{text!r} in {entry!r} must have a window of 1 second to 1 day")
    return Rate(amount, many * UNITS_S[unit])
