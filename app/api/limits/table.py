"""The one table of rate limits: contract, group of routes, whose requests count together, rates, and headers.

Rates that a contract's document promises are written here; operators change them, or set others, by CFAB_RATE_LIMITS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from app.api.limits.marks import REST, UNLIMITED
from config.rates import LimitRule, Rate
from config.settings import SettingsError

SECOND_S, MINUTE_S = 1, 60


@dataclass(frozen=True)
class Row:
    """One limit: of a contract's group, counted by `key`; `headers`: on every answer, not only on refusals."""

    contract: str
    group: str
    key: str
    rates: tuple[Rate, ...]
    headers: bool


GROUPS: Mapping[str, Mapping[str, str]] = {
    "jobs": {
        "submit": "submit one job",
        "bulk": "submit or cancel many jobs in one request",
        "read": "list and show jobs",
        "stream": "read or follow output and live feeds",
        "executor": "claim, heartbeat, complete, fail",
        "admin": "counts, executors, nodes, tenants, metrics",
        REST: "everything else, such as cancel and stop",
    },
    "compute": {REST: "all routes"},
    "hpc": {REST: "all routes"},
    "ai": {"submit": "`POST /jobs/`", "list": "`GET /jobs/`", REST: "everything else"},
    "gpu": {REST: "all routes"},
}
"""The groups that views are marked with, by contract, and what they hold."""

DOCUMENTED = (
    Row("compute", REST, "endpoint", (Rate(10, SECOND_S),), headers=False),
    Row("ai", "submit", "subject", (Rate(100, MINUTE_S),), headers=True),
    Row("ai", "list", "subject", (Rate(300, MINUTE_S),), headers=True),
    Row("ai", REST, "subject", (Rate(600, MINUTE_S),), headers=True),
    Row("gpu", REST, "subject", (Rate(100, SECOND_S),), headers=False),
)
"""What the contracts' documents say; those of jobs and hpc name no limit."""


class Table:
    """The rows in force: the documented ones as the operator's rules changed them."""

    def __init__(self, rules: Iterable[LimitRule] = ()) -> None:
        self._rows = {(row.contract, row.group): row for row in DOCUMENTED}
        for rule in rules:
            self._apply(rule)

    def _apply(self, rule: LimitRule) -> None:
        place = (rule.contract, rule.group)
        if rule.group not in GROUPS.get(rule.contract, {}):
            known = ", ".join(f"{contract}:{group}" for contract, groups in GROUPS.items() for group in groups)
            raise SettingsError(f"CFAB_RATE_LIMITS: there is no {':'.join(place)} to limit; there are {known}")
        row = self._rows.get(place) or Row(*place, "tenant", (), headers=True)
        self._rows[place] = replace(row, rates=rule.rates, key=rule.key or row.key)

    def row(self, contract: str, group: str) -> Row | None:
        """The row for a view of `group`: its own, else its contract's `*`; None when nothing limits it.

        A group that is `off` has no limit, also not that of `*`.
        """
        if group == UNLIMITED:
            return None
        row = self._rows.get((contract, group)) or self._rows.get((contract, REST))
        return row if row and row.rates else None

    def rows(self) -> list[Row]:
        """All rows that limit something."""
        return [row for row in self._rows.values() if row.rates]
