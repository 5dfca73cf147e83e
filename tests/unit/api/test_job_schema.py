"""The short way of loading faultless bulk bodies gives what the framework gives, and refuses what it refuses."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.jobs.submit_schemas import BulkAsked, JobAsked

texts = st.text(alphabet="aZ_0 \n", max_size=3)
odd = st.none() | st.booleans() | st.integers(-2, 5) | st.floats(0, 2) | texts | st.lists(texts, max_size=2)
SENSIBLE: dict[str, Any] = {
    "type": "t",
    "binary_url": "https://example.com/x",
    "binary_sha256": "AB" * 32,
    "script": "true",
    "image": "acme/tool:1",
    "command": ["sh"],
    "arguments": ["a"],
    "env_variables": {"A": "b"},
    "priority": "background",
    "resources": {"cpus": 1},
    "timeout_seconds": 5,
    "grace_seconds": 1,
    "max_retries": 2,
    "backoff_seconds": 0.5,
    "unknown": 1,
}


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.sets(st.sampled_from(sorted(SENSIBLE)), max_size=4)) ^ {
        "type", "binary_url", "binary_sha256", "priority",
    }  # fmt: skip
    spoilt = draw(st.dictionaries(st.sampled_from(sorted(names) or ["type"]), odd, max_size=1))
    return {name: SENSIBLE[name] for name in names} | spoilt


@given(jobs())
def test_both_ways_agree(job: dict[str, Any]) -> None:
    try:
        expected = JobAsked(exclude=("array",)).load(job)
    except ma.ValidationError as refusal:
        with pytest.raises(ma.ValidationError) as caught:
            BulkAsked(many=True).load([job])
        assert caught.value.normalized_messages() == {0: refusal.normalized_messages()}
    else:
        assert BulkAsked(many=True).load([job]) == [expected]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("timeout_seconds", 3.599999999999964e17, "at most 31622400, not 359999999999996416"),
        ("timeout_seconds", True, "not True"),
        ("timeout_seconds", "9", "not '9'"),
    ],
)
def test_numbers_in_refusals_have_no_exponent(field: str, value: object, words: str) -> None:
    with pytest.raises(ma.ValidationError) as caught:
        JobAsked().load({"type": "t", "priority": "background", "script": "true", field: value})
    assert words in str(caught.value.normalized_messages()[field])
