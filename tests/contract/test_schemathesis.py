# ruff: noqa: F811 (fixtures are imported by name)
"""Requests made from each contract's own OpenAPI document, good, bad and in sequences: what is answered is documented.

The same requests each time: a failure in a run is a failure in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import load_all_checks, negative_data_rejection, not_a_server_error, positive_data_acceptance
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema

from app.api.factory import CONTRACTS, create_app
from app.storage.database import Database
from config.rates import parse_rules
from config.settings import Settings
from tests.contract.conftest import TOKEN, Bells
from tests.contract.hpc_lab import database_url, hpc_database_url  # noqa: F401

EXAMPLES = 12
STEPS, SEQUENCES = 8, 10
READINESS = "/health/ready"
LIMITS = [f"{contract.name}:*=off" for contract in CONTRACTS] + ["ai:submit=off", "ai:list=off"]
BOUNDED: dict[str, Any] = {
    "derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate), "print_blob": False,
}  # fmt: skip
AUTH = {"Authorization": f"Bearer {TOKEN}"}

load_all_checks()
each_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    """Streams end as soon as they have said what there is, as they do when a server is told to end."""
    rules = parse_rules(",".join(LIMITS))
    settings = Settings(database_url=database_url, api_token=TOKEN, api_threads=8, rate_limits=rules)
    db = Database(database_url, 4, "contract-test")
    made = create_app(settings, db, Bells())
    made.extensions["cfab"].closing.set()
    yield made
    db.close()


def left_out(case: schemathesis.Case) -> list[Any]:
    """Rules between fields (one program of three, sizes added up) have no words in a schema; they are refused with 400.

    A readiness probe says 503 here, where no scheduler and no broker runs. Unknown parameters are ignored on purpose.
    """
    unready = [not_a_server_error] if case.operation.path.endswith(READINESS) else []
    return [positive_data_acceptance, *unready, *([] if must_be_refused(case) else [negative_data_rejection])]


def must_be_refused(case: schemathesis.Case) -> bool:
    """Whether a body, or the value of a parameter that the contract knows, is against the schema."""
    parts = {} if case.meta is None else case.meta.components
    wrong = {where.value for where, part in parts.items() if part.mode == schemathesis.GenerationMode.NEGATIVE}
    known = {parameter.name for parameter in case.operation.query}
    return "body" in wrong or ("query" in wrong and set(case.query or {}) <= known)


def schema_of(app: Flask, at: str) -> BaseSchema:
    """The document as a client reads it."""
    return schemathesis.openapi.from_wsgi(f"{at}/openapi.json", app, headers=AUTH)


@each_contract
def test_whatever_is_asked_the_answer_is_documented(app: Flask, contract: Any) -> None:
    schema = schema_of(app, contract.at)
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()

        @settings(max_examples=EXAMPLES, **BOUNDED)
        @given(
            case=operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=AUTH, excluded_checks=left_out(case))

        ask()


@each_contract
def test_sequences_of_requests_are_answered_as_documented(app: Flask, contract: Any) -> None:
    class Sequences(schema_of(app, contract.at).as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"headers": AUTH}

        def validate_response(self, response: Any, case: schemathesis.Case, **options: Any) -> None:
            case.validate_response(response, headers=AUTH, excluded_checks=left_out(case))

    Sequences.run(settings=settings(max_examples=SEQUENCES, stateful_step_count=STEPS, **BOUNDED))
