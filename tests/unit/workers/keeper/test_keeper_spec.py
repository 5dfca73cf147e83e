"""A spec is refused by the name of its first wrong field, before anything is created."""

from __future__ import annotations

from typing import Any

import pytest

from workers.keeper.spec import BadSpec, parse_spec
from workers.runners.base import RunSpec

GOOD: dict[str, Any] = {"attempt_id": "a-1", "argv": ["true"], "env": {"A": "b"}, "deadline": 5.0}


def test_defaults_are_filled_in() -> None:
    spec = parse_spec(GOOD)
    assert (spec.pids_max, spec.sandbox, spec.memory_bytes, spec.grace_s) == (1024, "off", None, 10.0)


def test_the_agents_spec_and_the_keepers_agree() -> None:
    spec = parse_spec(RunSpec("a-1", ["true"], {}, 5.0).to_wire())
    assert spec._fields == tuple(RunSpec.__dataclass_fields__)
    assert spec == parse_spec(
        {"attempt_id": "a-1", "argv": ["true"], "env": {}, "deadline": 5.0, "hide": [], "gpus": []}
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempt_id", "../x"), ("attempt_id", ""), ("attempt_id", "a/b"), ("attempt_id", "a\n"), ("argv", []),
        ("argv", ["a\0b"]), ("argv", "true"), ("env", {"A=B": "c"}), ("env", {"": "c"}), ("env", {"A": 1}),
        ("deadline", "soon"), ("deadline", None), ("deadline", float("nan")), ("memory_bytes", 0),
        ("memory_bytes", 1.5), ("memory_bytes", True), ("cpus_milli", -1), ("pids_max", 0), ("slot", -1),
        ("grace_s", None), ("time_limit_s", -1), ("sandbox", "chroot"), ("network", "bridge"), ("log_cap_bytes", -1),
        ("files", ["a"]), ("files", {"../a": ""}), ("files", {"a/b": ""}), ("files", {"": ""}), ("files", {"a": 1}),
        ("files", {"a": "x" * (2**20 + 1)}), ("files", {"a": "\ud800"}), ("files", {str(n): "" for n in range(17)}),
    ],
)  # fmt: skip
def test_bad_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(BadSpec, match=field):
        parse_spec({**GOOD, field: value})


def test_what_is_in_files_is_not_told() -> None:
    for files in ({"a": "secret", "b": 1}, {"a": "secret\ud800"}, {"../a": "secret"}):
        with pytest.raises(BadSpec) as refused:
            parse_spec({**GOOD, "files": files})
        assert "secret" not in str(refused.value)
    assert "secret" not in repr(RunSpec("a-1", ["true"], {}, 5.0, files={"a": "secret"}))


def test_files_are_sent_only_where_there_are_some() -> None:
    assert "files" not in RunSpec("a-1", ["true"], {}, 5.0).to_wire()
    wire = RunSpec("a-1", ["true"], {}, 5.0, files={"a": "b"}).to_wire()
    assert parse_spec(wire).files == {"a": "b"}


def test_missing_and_unknown_fields_are_named() -> None:
    with pytest.raises(BadSpec, match=r"lacks \['deadline'\].*\['colour'\]"):
        parse_spec({"attempt_id": "a", "argv": ["x"], "env": {}, "colour": 1})
