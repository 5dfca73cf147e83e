"""Makes the tables of contracts.md that the code already knows; run it when a test says that the page is behind.

python docs/contract_tables.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

from flask import Flask
from marshmallow import Schema

from app.api.ai import schemas as ai_schemas
from app.api.ai import translate as ai
from app.api.compute import schemas as compute_schemas
from app.api.compute import translate as compute
from app.api.contract import Contract
from app.api.errors import HttpRefusal, status_of
from app.api.factory import CONTRACTS
from app.api.gpu import schemas as gpu_schemas
from app.api.gpu import translate as gpu
from app.api.hpc import schemas as hpc_schemas
from app.api.hpc import translate as hpc
from app.api.ids import shown_id
from app.api.jobs import schemas as jobs_schemas
from app.api.jobs import translate as jobs
from app.api.limits.table import DOCUMENTED
from app.domain.errors import FabricError, Invalid, KeyInFlight, KeyReused, NotFound, QuotaExceeded, StateConflict
from app.domain.job import DEFAULT_TENANT
from app.domain.phase import STATE_OF, Phase
from app.domain.priority import PriorityClass
from app.domain.tenant import Tier, effective

PAGE = Path(__file__).with_name("contracts.md")
_BLOCK = re.compile(r"(<!-- made by contract_tables\.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_STATUSES = (400, 401, 403, 404, 405, 409, 413, 415, 429, 500, 503)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def prefixes() -> str:
    """Where each contract is."""
    ports = {"jobs": "`CFAB_API_PORT` (8080)", "ai": "`CFAB_AI_PORT` (8000)", "gpu": "`CFAB_GPU_PORT` (8081)"}
    rows = []
    for contract in CONTRACTS:
        beside = "".join(f", `{path}`" for path in _beside(contract))
        rows.append((contract.name, f"`{contract.at}`{beside}", ports.get(contract.name, "-"), f"`{contract.at}/docs`"))
    return table(("contract", "always at", "also `/api/v1` on", "OpenAPI pages"), rows)


def _beside(contract: Contract) -> list[str]:
    app = Flask("paths", static_folder=None)
    for blueprint in contract.outside:
        app.register_blueprint(blueprint)
    return sorted(rule.rule for rule in app.url_map.iter_rules())


def states() -> str:
    """Each phase of a job in each contract's word."""
    rows = [
        (
            phase.name.lower(),
            jobs.STATUS[STATE_OF[phase]],
            hpc.WORD[STATE_OF[phase]],
            ai.STATUS[phase],
            compute.STATE[STATE_OF[phase]],
            gpu.STATE[phase],
        )
        for phase in Phase
    ]
    return table(("phase", "jobs", "hpc", "ai", "compute", "gpu"), rows)


def priorities() -> str:
    """Each class on each scale."""

    def span(ends: tuple[int, int]) -> str:
        return f"{ends[0]}–{ends[1]}"

    rows = [
        (of.word, span(of.percents), f"`{ai.QUEUES[of]}`", span(of.range), of.default_priority)
        for of in sorted(PriorityClass, reverse=True)
    ]
    return table(("class (jobs)", "ai `priority`", "ai queue", "gpu `priority`", "where only the class is named"), rows)


def tiers() -> str:
    """What a tier leaves of the highest ask."""
    rows = []
    for tier in Tier:
        of, priority = effective(tier, PriorityClass.FOREGROUND, 5000)
        rows.append((tier.value, of.word, priority))
    return table(("tier", "highest class", "highest priority"), rows)


def ids() -> str:
    """How each contract shows the same job."""
    shown: Mapping[str, str] = {
        "jobs": str(DEFAULT_TENANT), "hpc": str(DEFAULT_TENANT), "ai": shown_id(ai.PREFIX, DEFAULT_TENANT),
        "compute": shown_id(compute.PREFIX, DEFAULT_TENANT), "gpu": shown_id(gpu.JOB, DEFAULT_TENANT),
    }  # fmt: skip
    return table(("contract", "the job's id"), [(name, f"`{text}`") for name, text in shown.items()])


def pages() -> str:
    """Limits of lists."""
    asked = {
        "jobs": jobs_schemas.ListAsked, "ai": ai_schemas.ListAsked, "compute": compute_schemas.ListAsked,
        "gpu": gpu_schemas.ListAsked, "hpc": hpc_schemas.ListAsked,
    }  # fmt: skip
    rows = []
    for name, schema in asked.items():
        limit = cast(Schema, schema()).fields["limit"]
        rows.append((name, limit.load_default, limit.metadata["maximum"]))
    return table(("contract", "`limit` when absent", "at most"), rows)


def limits() -> str:
    """Rates that the documents promise."""
    rows = [
        (row.contract, f"`{row.group}`", " + ".join(str(rate) for rate in row.rates), row.key,
         "every answer" if row.headers else "refusals")
        for row in DOCUMENTED
    ]  # fmt: skip
    return table(("contract", "group", "rate", "counted by", "headers on"), rows)


def errors() -> str:
    """The word of each status in the contracts that have words."""
    forms = {contract.name: contract.errors for contract in CONTRACTS}
    told: dict[str, Callable[[int], str]] = {}
    with Flask("words").app_context():
        told["ai"] = lambda status: str(forms["ai"].body(status, _refusal(status))["error"]["code"])
        for name in ("compute", "hpc", "gpu"):
            told[name] = lambda status, form=forms[name]: str(form.body(status, _refusal(status))["error"])  # type: ignore[misc]
        rows = [
            (status, *(_word(told[name](status)) for name in ("ai", "compute", "hpc", "gpu"))) for status in _STATUSES
        ]
    return table(("status", "ai", "compute", "hpc", "gpu"), rows)


def _refusal(status: int) -> FabricError:
    refusal = HttpRefusal("the message")
    refusal.status = status
    return refusal


def _word(text: str) -> str:
    return text if text == "the message" else f"`{text}`"


def refusals() -> str:
    """The status of each kind of refusal."""
    kinds: Mapping[str, FabricError] = {
        "a field, a parameter or the body is wrong": Invalid("x"),
        "no such job, or another tenant's": NotFound("x"),
        "the job stands where this cannot be done": StateConflict("x"),
        "more than the tenant's quota will ever hold": QuotaExceeded("x"),
        "the first request with this idempotency key still runs": KeyInFlight("x"),
        "the idempotency key was used with another body": KeyReused("x"),
    }
    names = ("jobs", "ai", "compute", "gpu", "hpc")
    forms = {contract.name: contract.errors for contract in CONTRACTS}

    def told(error: FabricError, name: str) -> str:
        keyless = name == "hpc" and isinstance(error, KeyInFlight | KeyReused)
        return "–" if keyless else str(status_of(error, forms[name]))

    rows = [(what, *(told(error, name) for name in names)) for what, error in kinds.items()]
    return table(("what is refused", *names), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    made.__name__: made for made in (prefixes, states, priorities, tiers, ids, pages, limits, errors, refusals)
}


def renewed(page: str) -> str:
    """The page with every table as the code has it now. Raises KeyError for a block that nothing makes."""
    return _BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
