"""The syntax of CFAB_RATE_LIMITS: what it means, and what it says about what it cannot mean."""

from __future__ import annotations

import pytest

from config.rates import LimitRule, Rate, parse_rules
from config.settings import SettingsError, load_settings


def test_rules_name_contract_group_rates_and_key() -> None:
    assert parse_rules("jobs:submit=100/second, jobs:*=20/5minutes+1000/day by subject,ai:list=off") == (
        LimitRule("jobs", "submit", (Rate(100, 1),)),
        LimitRule("jobs", "*", (Rate(20, 300), Rate(1000, 86_400)), "subject"),
        LimitRule("ai", "list", ()),
    )


@pytest.mark.parametrize("text", ["1/second", "100/minute", "7/30seconds", "600/5minutes", "2/hour", "9/day"])
def test_a_rate_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_rules(f"jobs:read={text}")[0].rates[0]) == text


def test_nothing_set_is_no_rule() -> None:
    assert parse_rules(" , ") == ()
    assert load_settings({}).rate_limits == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jobs=10/second", "contract:group=rates"),
        ("submit", "contract:group=rates"),
        ("jobs:submit=", "contract:group=rates"),
        ("jobs:submit=ten/second", "is not a rate such as"),
        ("jobs:submit=10/fortnight", "is not a rate such as"),
        ("jobs:submit=10", "is not a rate such as"),
        ("jobs:submit=-1/second", "is not a rate such as"),
        ("jobs:submit=0/second", "off means no limit"),
        ("jobs:submit=1000000001/second", "must allow 1 to"),
        ("jobs:submit=1/2days", "1 second to 1 day"),
        ("jobs:submit=1/0seconds", "1 second to 1 day"),
        ("jobs:submit=1/second by colour", "by tenant, by endpoint, by subject, by address"),
        ("jobs:submit=1/second per tenant", "by tenant, by endpoint, by subject, by address"),
        ("jobs:submit=1/second,jobs:submit=5/hour", "is set twice"),
    ],
)
def test_a_rule_that_cannot_be_used_is_named_with_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=r"CFAB_RATE_LIMITS=.* cannot be used: ") as refused:
        load_settings({"CFAB_RATE_LIMITS": text})
    assert said in str(refused.value)
