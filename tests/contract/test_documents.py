"""Each contract's OpenAPI document holds all that its document lists, and the documents' examples are valid in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema_rs
import pytest

from app.api.factory import CONTRACTS, create_app
from config.settings import Settings
from tests.contract.conftest import TOKEN, Bells
from tests.contract.documents import DOCUMENTS, Endpoint

NAMED = [(name, endpoint) for name, endpoints in DOCUMENTS.items() for endpoint in endpoints]
AT = {contract.name: contract.at for contract in CONTRACTS}
every_endpoint = pytest.mark.parametrize(("name", "endpoint"), NAMED, ids=[f"{name}-{one}" for name, one in NAMED])


@cache
def spec(name: str) -> dict[str, Any]:
    """The OpenAPI document as a client reads it; no database is asked for it."""
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/none", api_token=TOKEN)
    client = create_app(settings, ringer=Bells()).test_client()
    answer = client.get(f"{AT[name]}/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"})
    return dict(answer.json)


def unnamed(path: str) -> str:
    """The path with its parameters' names taken out: the documents and the code name them differently."""
    return re.sub(r"\{\w+\}", "{}", path)


def operation(name: str, endpoint: Endpoint) -> dict[str, Any]:
    paths = {unnamed(path): item for path, item in spec(name)["paths"].items()}
    return dict(paths[unnamed(endpoint.path)][endpoint.method.lower()])


def plain(schema: Any) -> Any:
    """An OpenAPI 3.0 schema as JSON Schema, which has no word `nullable`."""
    if isinstance(schema, list):
        return [plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    told = {key: plain(value) for key, value in schema.items() if key not in {"nullable", "example"}}
    if schema.get("nullable") is True and "type" in schema:
        told["type"] = [schema["type"], "null"]
        if "enum" in told:
            told["enum"] = list({*told["enum"], None})
    return told


def resolved(name: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind a reference."""
    while "$ref" in schema or "allOf" in schema:
        ref = schema["$ref"] if "$ref" in schema else schema["allOf"][0]["$ref"]
        schema = spec(name)["components"]["schemas"][ref.rpartition("/")[2]]
    return schema


def optional(schema: Any) -> Any:
    """The schema without what it requires: our answers may promise fields that a document lacks."""
    if isinstance(schema, list):
        return [optional(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: optional(value) for key, value in schema.items() if key != "required" or isinstance(value, dict)}


def fits(name: str, schema: Mapping[str, Any], example: Any, sent: bool = False) -> None:
    """Checks that an example is valid, and that the schema has a word for each of its fields."""
    whole = {"components": plain(spec(name)["components"]), **plain(schema)}
    jsonschema_rs.Draft4Validator(whole if sent else optional(whole)).validate(example)
    assert list(strange(name, schema, example, "")) == []


def strange(name: str, schema: Mapping[str, Any], example: Any, at: str) -> Iterator[str]:
    """Fields of an example that the schema does not name; an object of free form names all."""
    found = resolved(name, schema)
    if isinstance(example, list):
        for one in example:
            yield from strange(name, found.get("items", {}), one, at + "[]")
    elif isinstance(example, dict) and "properties" in found:
        for key, value in example.items():
            if key not in found["properties"]:
                yield f"{at}.{key}"
            else:
                yield from strange(name, found["properties"][key], value, f"{at}.{key}")


def content(name: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of an answer, which may be a reference."""
    if "$ref" in answer:
        answer = spec(name)["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    return dict(answer.get("content", {}))


@every_endpoint
def test_the_endpoint_and_its_parameters_are_there(name: str, endpoint: Endpoint) -> None:
    described = {one["name"]: one["schema"] for one in operation(name, endpoint).get("parameters", [])}
    for parameter, default in endpoint.query.items():
        assert parameter in described
        assert described[parameter].get("default") == default


@every_endpoint
def test_its_answers_are_there_and_the_examples_fit(name: str, endpoint: Endpoint) -> None:
    answers = operation(name, endpoint)["responses"]
    assert "default" not in answers, "a default allows any answer"
    for status, example in endpoint.answers.items():
        told = content(name, answers[str(status)])
        if example is not None:
            fits(name, told["application/json"]["schema"], example)
        elif status == 200:
            assert endpoint.kind in told


@every_endpoint
def test_its_example_body_fits(name: str, endpoint: Endpoint) -> None:
    described = operation(name, endpoint).get("requestBody")
    assert (described is not None) == (endpoint.sent is not None)
    if described is not None:
        fits(name, described["content"]["application/json"]["schema"], endpoint.sent, sent=True)


def test_the_documents_limits_are_there() -> None:
    assert {str(one) for one in DOCUMENTS["jobs"]} >= {"GET /jobs", "POST /jobs/claim"}
    for name, most in {"jobs": 1000, "ai": 100}.items():
        listed = next(one for one in DOCUMENTS[name] if one.method == "GET" and one.path.rstrip("/") == "/jobs")
        described = {one["name"]: one["schema"] for one in operation(name, listed)["parameters"]}
        assert described["limit"]["maximum"] == most
